"""Going on with a config's runs, and measuring several times: through the command line, on the CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

pytest.importorskip("torch")

from core import resume
from core.commands import run_command
from core.errors import UsageError
from tests.faults.faults import Scene, execute, install_saboteur

SETS = ("measure.repeat=2", "measure.max_spread=0", "seed=7")


@pytest.fixture
def scene(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    install_saboteur(tmp_path / "site")
    return Scene(tmp_path, tmp_path_factory.getbasetemp() / "accelmark-cache")


@pytest.mark.deepspeed
@pytest.mark.slow
def test_a_resumed_config_runs_what_is_not_done_and_keeps_what_is(scene: Scene) -> None:
    """The first of two runs failed; both have the plan that their command line gave them."""
    pytest.importorskip("deepspeed")
    sets = [part for value in SETS for part in ("--set", value)]
    case = [sys.executable, "-m", "core.run", "cases/llama2_7b", "--config", "SABOx1x2", "--out", str(scene.out)]
    failed = execute([*case, "--run", "torch", "--engine", "torch", *sets], scene, "raise optimizer 1 4")
    assert failed.returncode == 1, failed.stderr
    (run_dir,) = scene.out.iterdir()
    again = [sys.executable, "-m", "core.run", "--resume", str(run_dir), "--json"]
    both = execute([*again], scene, "")
    assert both.returncode == 0, both.stderr
    told = json.loads(both.stdout)
    assert [record["status"] for record in told] == ["ok", "ok"]
    assert all(record["plan"]["hyper_parameters"]["seed"] == 7 for record in told)
    assert all(len(record["throughput"]["repeats"]) == 2 for record in told)
    assert all("measure.max_spread (0.0%)" in " ".join(record["warnings"]) for record in told)
    third = execute([*again], scene, "")
    assert third.stderr.count("done before: ") == 2
    assert [record["id"] for record in json.loads(third.stdout)] == [record["id"] for record in told]
    assert len(list(scene.out.iterdir())) == 3, "the failed run stays"


def test_a_folder_without_a_plan_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not the folder of a run"):
        resume.options(tmp_path)


def arguments(**given: object) -> object:
    names = ("case", "config", "run", "vendor", "engine", "resume")
    values = dict.fromkeys(names) | {"sets": [], "out": Path("runs"), "dry_run": False, "json": False}
    values |= {"quiet": False, "sinks": []}
    return type("Arguments", (), values | given)


def test_either_a_case_or_a_folder_is_named() -> None:
    with pytest.raises(UsageError, match="no case is given"):
        run_command.execute(arguments(), Console())
    with pytest.raises(UsageError, match="not from CASE, --run"):
        run_command.execute(arguments(resume=Path("x"), case="toy", run="base"), Console())


def test_pods_are_not_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="--resume does not work in the pods of a PyTorchJob"):
        run_command.execute(arguments(resume=Path("x")), Console())
