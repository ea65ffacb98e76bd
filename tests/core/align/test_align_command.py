"""The verb ``align`` as users call it: what it prints, writes and returns."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from core.cli import main
from core.record import read_record
from schemas.reference import ReferenceCurve

MakeRunDir = Callable[..., Path]


@pytest.fixture
def curve(make_run_dir: MakeRunDir) -> str:
    """A reference made by the command itself."""
    assert main(["align", str(make_run_dir(1.000001)), "--make-reference", "curve"]) == 0
    return "curve"


def test_a_made_reference_is_told(make_run_dir: MakeRunDir, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = make_run_dir()
    assert main(["align", str(run_dir), "--make-reference", "one"]) == 0
    file = Path(capsys.readouterr().out.strip())
    assert ReferenceCurve.model_validate_json(file.read_bytes()).record == run_dir.name
    assert main(["align", str(run_dir), "--make-reference", "two", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"reference": str(file.with_name("two.json"))}


def test_an_aligned_run_gets_verdict_plot_and_report(
    curve: str, make_run_dir: MakeRunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    run_dir = make_run_dir()
    capsys.readouterr()
    assert main(["align", str(run_dir), "--reference", curve]) == 0
    assert "aligned with curve over 60 steps" in capsys.readouterr().out
    record = read_record(run_dir / "record.json")
    assert record.aligned is True
    assert record.alignment is not None
    assert record.alignment.conditions[0].error == pytest.approx(1e-6, rel=1e-3)
    report = (run_dir / "report.md").read_text(encoding="utf-8")
    assert "是否精度对齐" in report
    assert "与参考曲线 curve 对齐（60 步）：loss 1.0e-06 (≤ 2%)" in report
    assert "![alignment](alignment.svg)" in report
    assert b"<svg" in (run_dir / "alignment.svg").read_bytes()
    assert main(["report", str(run_dir), "--lang", "en"]) == 0
    report = capsys.readouterr().out
    assert "Alignment: aligned with reference curve curve (60 steps): loss 1.0e-06 (≤ 2%)" in report
    header, _, row = [line for line in report.splitlines() if line.startswith("|")][-3:]
    titles, cells = ([cell.strip() for cell in line.split("|")] for line in (header, row))
    assert cells[titles.index("Aligned")] == "True"
    assert titles.index("Aligned") == titles.index("loss") + 1


def test_a_record_built_anew_keeps_the_verdict(curve: str, make_run_dir: MakeRunDir) -> None:
    run_dir = make_run_dir()
    main(["align", str(run_dir), "--reference", curve])
    before = read_record(run_dir / "record.json")
    assert main(["report", str(run_dir)]) == 0
    assert read_record(run_dir / "record.json") == before


def test_a_run_that_is_not_aligned(
    curve: str, make_run_dir: MakeRunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = make_run_dir(1.06)
    capsys.readouterr()
    assert main(["align", str(run_dir), "--reference", curve]) == 4
    said = capsys.readouterr()
    assert "loss is off by 6% (tolerance 2%), first_loss is off by 6% (tolerance 0.1%)" in said.err
    assert "docs/alignment.md" in said.err
    assert "over" in said.out
    assert read_record(run_dir / "record.json").aligned is False


def test_another_recipe_is_the_first_thing_to_mend(
    curve: str, make_run_dir: MakeRunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = make_run_dir(1.06, hp={"learning_rate": 2e-5})
    capsys.readouterr()
    assert main(["align", str(run_dir), "--reference", curve]) == 4
    said = capsys.readouterr()
    assert "another recipe: learning_rate 2e-05 instead of 1e-05" in said.out
    assert "fix: run with the reference's learning_rate; docs/alignment.md" in said.err


def test_json_is_one_object(curve: str, make_run_dir: MakeRunDir, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    run_dir = make_run_dir(1.06)
    assert main(["align", str(run_dir), "--reference", curve, "--json"]) == 4
    told = json.loads(capsys.readouterr().out)
    assert (told["record"], told["aligned"], told["alignment"]["reference"]) == (run_dir.name, False, "curve")


def test_a_refused_comparison_writes_nothing(
    curve: str, make_run_dir: MakeRunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = make_run_dir(steps=45)
    before = sorted(run_dir.iterdir())
    assert main(["align", str(run_dir), "--reference", curve]) == 2
    assert "the run has 45 steps, fewer than the reference's 60" in capsys.readouterr().err
    assert sorted(run_dir.iterdir()) == before


def test_a_record_in_a_run_folder_stands_for_the_folder(curve: str, make_run_dir: MakeRunDir) -> None:
    run_dir = make_run_dir()
    assert main(["align", str(run_dir), "--reference", curve]) == 0
    (run_dir / "alignment.json").unlink()
    assert main(["align", str(run_dir / "record.json"), "--reference", curve]) == 0
    assert (run_dir / "alignment.json").is_file()


def test_a_record_elsewhere_is_only_judged(curve: str, make_run_dir: MakeRunDir, tmp_path: Path) -> None:
    from core.record import write_record

    record = tmp_path / "records" / "mine.json"
    record.parent.mkdir()
    record.write_text(write_record(make_run_dir(1.06)).model_dump_json(), encoding="utf-8")
    before = record.read_bytes()
    assert main(["align", str(record), "--reference", curve]) == 4
    assert record.read_bytes() == before
    assert list(record.parent.iterdir()) == [record]


def test_a_folder_that_holds_only_a_record(curve: str, make_run_dir: MakeRunDir, tmp_path: Path) -> None:
    from core.record import write_record

    folder = tmp_path / "submitted"
    folder.mkdir()
    (folder / "record.json").write_text(write_record(make_run_dir()).model_dump_json(), encoding="utf-8")
    assert main(["align", str(folder), "--reference", curve]) == 0
    assert [path.name for path in folder.iterdir()] == ["record.json"]


@pytest.mark.parametrize("what", [".", "no/such/run"])
def test_what_is_no_run(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["align", what, "--reference", "curve"]) == 2
    assert f"{what} is no run folder and no record" in capsys.readouterr().err


def test_without_matplotlib_there_is_a_verdict_but_no_plot(
    curve: str, make_run_dir: MakeRunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [module for module in sys.modules if module.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run_dir = make_run_dir()
    assert main(["align", str(run_dir), "--reference", curve]) == 0
    assert "matplotlib is not installed, so no plot was drawn" in capsys.readouterr().err
    assert not (run_dir / "alignment.svg").exists()
    assert read_record(run_dir / "record.json").aligned is True


def test_one_of_the_two_options_is_needed(make_run_dir: MakeRunDir, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["align", str(make_run_dir())])
    assert ended.value.code == 2
    assert "--reference --make-reference is required" in capsys.readouterr().err


def test_validate_reads_the_references_of_a_case(
    curve: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = tmp_path / "toy"
    assert main(["validate", str(case)]) == 0
    assert "ok    toy references: 1 reference\n" in capsys.readouterr().out
    (case / "references" / "broken.json").write_text("{}", encoding="utf-8")
    assert main(["validate", str(case)]) == 2
    out = capsys.readouterr().out
    assert f"error toy references: {case}/references/broken.json: id: this field is missing" in out
