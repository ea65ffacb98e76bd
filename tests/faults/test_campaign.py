"""The campaign's table and exit code count what was really played, and wrong runs can be looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import campaign
from tests.faults.faults import Fault, Scene


def played(fault: Fault, engine: str, scene: Scene) -> tuple[list[str], float]:
    """In the place of a real run: what is wrong is in the fault's name."""
    scene.folder.mkdir(parents=True)
    (scene.folder / "record.json").write_text(engine, encoding="utf-8")
    if fault.name == "cannot_be_judged":
        raise ValueError("no such file")
    return (["status ok"] if (fault.name, scene.folder.name) == ("second_is_wrong", "1") else []), 2.0


FAULTS = (
    Fault("good"),
    Fault("second_is_wrong", engines=("torch",)),
    Fault("cannot_be_judged", engines=("torch",)),
    Fault("not_here", engines=("torch",), unless=lambda: "no disk"),
)


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "FAULTS", FAULTS)
    monkeypatch.setattr(campaign, "play", played)


def run(out: Path, *words: str) -> int:
    return campaign.main(["--times", "2", "--out", str(out), *words])


def test_all_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "good") == 0
    table = capsys.readouterr().out.splitlines()
    assert table[2:] == ["| good | torch | 2/2 | 2.0, 2.0 |", "| good | deepspeed | 2/2 | 2.0, 2.0 |"]
    assert list(tmp_path.iterdir()) == []


def test_one_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "good", "--engine", "deepspeed") == 0
    assert capsys.readouterr().out.splitlines()[2:] == ["| good | deepspeed | 2/2 | 2.0, 2.0 |"]


def test_a_wrong_repeat_is_counted_and_its_folder_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "second_is_wrong") == 1
    told = capsys.readouterr()
    assert told.out.splitlines()[2:] == ["| second_is_wrong | torch | 1/2 | 2.0, 2.0 |"]
    (kept,) = tmp_path.glob("second_is_wrong/torch/*/1")
    assert (kept / "record.json").read_text(encoding="utf-8") == "torch"
    assert told.err == f"  second_is_wrong (torch): status ok; see {kept}\n"


def test_what_cannot_be_judged_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "cannot_be_judged") == 1
    told = capsys.readouterr()
    assert told.out.splitlines()[2:] == ["| cannot_be_judged | torch | 0/2 | nan, nan |"]
    assert "ValueError: no such file" in told.err


def test_what_was_not_played_is_not_right_unless_that_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "not_here") == 1
    assert run(tmp_path, "not_here", "--allow-unplayable") == 0
    table = capsys.readouterr().out.splitlines()
    assert table[2] == "| not_here | torch | 0/2, not played: no disk | |"


def test_an_unknown_fault_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, "goood")
