"""Vendors' command line tools, as they may be: absent, slow, failing, or writing files where they run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from core import tools
from core.tools import Tool, number, visible_devices
from schemas.chip import TelemetryReading


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put a shell script called ``acme-smi`` on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    def write(body: str) -> Path:
        file = folder / "acme-smi"
        file.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        file.chmod(0o755)
        return file

    return write


def test_a_tool_that_is_not_installed_tells_nothing() -> None:
    tool = Tool("acme-smi-that-nobody-has")
    assert (tool.path, tool.read(), tool.sample()) == (None, None, None)


def test_a_tool_may_lie_where_its_driver_put_it(script: Callable[[str], Path], tmp_path: Path) -> None:
    file = script("echo here").rename(tmp_path / "acme-smi")
    assert Tool("acme-smi").path is None
    tool = Tool("acme-smi", elsewhere=str(file))
    assert (tool.path, tool.read()) == (str(file), "here\n")


def test_a_tool_may_lie_beside_the_interpreter_of_an_environment_that_is_not_activated(
    script: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = script("echo here").rename(tmp_path / "acme-smi")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert Tool("acme-smi").path == str(file)


def test_a_tool_is_asked_with_its_arguments_in_plain_english(script: Callable[[str], Path]) -> None:
    script('echo "$LC_ALL $1 $2"; echo noise >&2')
    assert Tool("acme-smi", "-q", "-j").read() == "C -q -j\n"


def test_a_tool_writes_its_files_into_a_folder_that_is_gone_afterwards(
    script: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    script(f'pwd > "{tmp_path}/where"; echo 42 > info.json; echo saved')
    assert Tool("acme-smi", writes="info.json").read() == "42\n"
    assert list(here.iterdir()) == []
    where = Path((tmp_path / "where").read_text(encoding="utf-8").strip())
    assert where.name.startswith("accelmark-tool-")
    assert not where.exists()


def test_a_failing_tool_tells_nothing(script: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    script("echo half of it; exit 1")
    assert Tool("acme-smi").read() is None
    script("exit 0")
    assert Tool("acme-smi", writes="info.json").read() is None
    script("exec sleep 60")
    monkeypatch.setattr(tools, "TIMEOUT_S", 0.2)
    assert Tool("acme-smi").read() is None
    script("printf '35\\260C'")  # a degree sign, but not in UTF-8
    monkeypatch.setattr(tools, "TIMEOUT_S", 10.0)
    assert number(Tool("acme-smi").read()) == 35


def test_samples_do_not_start_the_tool_every_time(
    script: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(f'echo x >> "{tmp_path}/calls"; wc -l < "{tmp_path}/calls"')
    tool, now_s = Tool("acme-smi"), 1000.0
    monkeypatch.setattr(tools.time, "monotonic", lambda: now_s)
    assert [number(tool.sample()) for _ in range(3)] == [1, 1, 1]
    now_s += tools.SAMPLE_EVERY_S
    assert number(tool.sample()) == 2
    assert number(tool.read()) == 3
    assert number(tool.sample()) == 2


def test_a_tool_that_told_nothing_is_asked_again_if_it_is_there(script: Callable[[str], Path]) -> None:
    assert Tool("acme-smi").silence() is None
    script("exit 1")
    assert Tool("acme-smi").silence() == TelemetryReading()


@pytest.mark.parametrize(
    ("text", "value"),
    [("109.51W", 109.51), ("45 C", 45), (" 97% ", 97), (97, 97), ("-3C", -3), ("N/A", None), (None, None)],
)
def test_numbers_without_their_units(text: object, value: float | None) -> None:
    assert number(text) == value


UUIDS = ("GPU-aaaa1111", "GPU-bbbb2222", None, "GPU-aabb3333")


@pytest.mark.parametrize(
    ("named", "visible"),
    [
        ("2,0", [2, 0]),
        ("", []),
        ("0, 1", [0, 1]),
        ("GPU-b", [1]),
        ("GPU-aaaa,GPU-aabb", [0, 3]),
        ("GPU-a", []),  # two begin so
        ("1,9,0", [1]),
        ("-1", []),
        ("1,none", [1]),
    ],
)
def test_visible_devices_by_index_or_uuid(named: str, visible: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACME_VISIBLE_DEVICES", named)
    assert visible_devices(["ACME_VISIBLE_DEVICES"], UUIDS) == visible


def test_without_a_variable_all_devices_are_visible_and_the_first_one_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("ACME_A", "ACME_B"):
        monkeypatch.delenv(name, raising=False)
    assert visible_devices(["ACME_A", "ACME_B"], UUIDS) == [0, 1, 2, 3]
    monkeypatch.setenv("ACME_B", "1")
    assert visible_devices(["ACME_A", "ACME_B"], UUIDS) == [1]
    monkeypatch.setenv("ACME_A", "3")
    assert visible_devices(["ACME_A", "ACME_B"], UUIDS) == [3]
    monkeypatch.setenv("ACME_A", "")  # as good as not set while the other one names some
    assert visible_devices(["ACME_A", "ACME_B"], UUIDS) == [1]
