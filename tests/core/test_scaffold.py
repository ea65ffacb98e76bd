"""New plugins and cases: what is made loads and can be planned as it is, and what cannot be made says why."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from core import plan, plugins
from core.cases import Config, resolve
from core.cli import main
from core.plugins import Vendor
from schemas.case import Run

NEEDS_COPIER = pytest.mark.skipif(
    importlib.util.find_spec("copier") is None, reason="copier makes new projects, and is not installed"
)


def texts(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return {str(file.relative_to(folder)): file.read_text(encoding="utf-8") for file in files}


@NEEDS_COPIER
def test_a_new_vendor_is_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert main(["new-vendor", "acme", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr()
    folder = Path(told.out.strip())
    assert folder == tmp_path / "accelmark-acme"
    assert "accelmark conform acme" in told.err
    made = texts(folder)
    assert {".gitignore", ".github/workflows/ci.yml", "README.md", "accelmark_acme/py.typed"} <= made.keys()
    assert not [name for name, text in made.items() if "{{ name" in text or "{{ module" in text]
    assert 'acme = "accelmark_acme"' in made["pyproject.toml"]
    assert "${{ matrix.python }}" in made[".github/workflows/ci.yml"]
    monkeypatch.syspath_prepend(str(folder))
    vendor = Vendor("acme", "accelmark-acme", importlib.import_module("accelmark_acme"))
    (chip,) = vendor.chips
    assert chip.emulated, "nothing that the CPU did in its place may be ranked"
    loaded = resolve("llama2_7b")
    (config,) = vendor.hardware_configs(loaded.case)
    planned = plan.build(plan.Request(loaded, Config(config, "plugin acme"), Run(id="base"), vendor))
    assert planned.chip.emulated
    assert "torch" not in vars(vendor.module)


@NEEDS_COPIER
def test_a_new_case_can_be_planned(tmp_path: Path, capsys) -> None:
    assert main(["new-case", "my_case", "--out", str(tmp_path)]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder == tmp_path / "accelmark-case-my-case"
    loaded = resolve(str(folder / "accelmark_case_my_case"))
    assert loaded.case.name == "my_case"
    (config,) = loaded.configs
    planned = plan.build(plan.Request(loaded, config, config.value.runs[0], plugins.select("cpu")))
    assert planned.scaled_down
    assert main(["validate", str(folder / "accelmark_case_my_case")]) == 0


@pytest.mark.parametrize("name", ["Acme", "7up", "a-b", "a" * 31, ""])
def test_a_name_that_no_module_can_have_is_refused(name: str, tmp_path: Path, capsys) -> None:
    assert main(["new-vendor", name, "--out", str(tmp_path)]) == 2
    assert "cannot be the name of a vendor" in capsys.readouterr().err


@pytest.mark.parametrize(("verb", "name"), [("new-vendor", "nvidia"), ("new-case", "llama2_7b")])
def test_a_name_that_is_taken_is_refused(verb: str, name: str, tmp_path: Path, capsys) -> None:
    assert main([verb, name, "--out", str(tmp_path)]) == 2
    assert f"{name!r}, installed here" in capsys.readouterr().err


def test_what_is_there_is_not_written_over(tmp_path: Path, capsys) -> None:
    (tmp_path / "accelmark-case-mine").mkdir()
    assert main(["new-case", "mine", "--out", str(tmp_path)]) == 2
    assert "is already there" in capsys.readouterr().err


def test_without_copier_the_way_to_get_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "copier", None)
    assert main(["new-vendor", "acme", "--out", str(tmp_path)]) == 3
    assert "pip install 'accelmark[templates]'" in capsys.readouterr().err


@NEEDS_COPIER
def test_a_folder_that_cannot_be_written_is_told_of(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    assert main(["new-vendor", "acme", "--out", str(tmp_path / "file")]) == 2
    assert "name a writable folder with --out" in capsys.readouterr().err
