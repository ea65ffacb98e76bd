"""New folders of runs and conformance reports: never one that is there, and an error where none can be made."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from core import folders, runner, selection
from core.errors import UsageError
from core.folders import new_folder
from core.worker import PLAN_FILE
from schemas.plan import Plan


def test_a_folder_is_named_after_what_and_when(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "runs" / "of_mine", "toy-X1x1x2-base")
    assert folder.is_dir()
    assert folder.parent == tmp_path / "runs" / "of_mine"
    assert re.fullmatch(r"toy-X1x1x2-base-\d{8}-\d{6}", folder.name)


def test_folders_of_one_second_are_counted_until_there_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "ATTEMPTS", 3)
    monkeypatch.setattr(folders.time, "strftime", lambda *_: "now")
    assert [new_folder(tmp_path, "toy").name for _ in range(3)] == ["toy-now", "toy-now-1", "toy-now-2"]
    with pytest.raises(UsageError, match=f"{tmp_path} holds 3 folders toy-now") as error:
        new_folder(tmp_path, "toy")
    assert error.value.fix == "name another folder with --out"


@pytest.mark.parametrize("words", [("run", "llama2_7b", "--config", "CPUx1x2"), ("conform", "cpu")], ids=" ".join)
def test_a_folder_that_cannot_be_is_told(
    call: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
) -> None:
    monkeypatch.setattr(selection, "require_packages", lambda _: None)
    (tmp_path / "file").touch()
    code, out, err = call(*words, "--out", str(tmp_path / "file"))
    assert (code, out) == (2, "")
    what, fix = err.splitlines()
    assert re.fullmatch(rf"error: cannot create the folder {tmp_path}/file/\S+: Not a directory", what)
    assert fix == "  fix: name a writable one with --out"


def test_a_plan_that_finds_no_room_is_told(
    make_plan: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    plan = make_plan()
    assert (runner.prepare_run_dir(plan, tmp_path) / PLAN_FILE).stat().st_size > 0
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UsageError, match=f"cannot write the plan into {tmp_path}/toy-.*: No space left") as error:
        runner.prepare_run_dir(plan, tmp_path)
    assert error.value.fix == "make room there, or name another folder with --out"
