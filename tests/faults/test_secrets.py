"""Whatever the environment holds, no file of a run does, however the run ends."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.faults.faults import Scene, execute, install_saboteur

CANARY = "canary-5b1f0c77"
NAMES = (
    "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD",
    "NCCL_SECRET", "SLURM_JWT", "MY_OWN_VARIABLE", "http_proxy",
)  # fmt: skip


@pytest.mark.parametrize(
    ("engine", "sabotage", "exit_code"),
    [
        ("torch", "", 0), ("torch", "raise optimizer 1 4", 1), ("torch", "sleep forward 1 4", 1),
        pytest.param("deepspeed", "raise optimizer 1 4", 1, marks=[pytest.mark.deepspeed, pytest.mark.slow]),
    ],
    ids=str,
)  # fmt: skip
def test_no_file_of_a_run_holds_what_the_environment_does(
    engine: str, sabotage: str, exit_code: int, *, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pytest.importorskip(engine)
    for name in NAMES:
        monkeypatch.setenv(name, f"http://user:{CANARY}@localhost:9" if name == "http_proxy" else CANARY)
    scene = Scene(tmp_path, tmp_path_factory.getbasetemp() / "accelmark-cache")
    install_saboteur(tmp_path / "site")
    command = [
        sys.executable, "-m", "core.run", "cases/llama2_7b", "--config", "SABOx1x2", "--run", engine, "--json",
        "--out", str(scene.out), "--set", "measure.timeout_s=4",
    ]  # fmt: skip
    done = execute(command, scene, sabotage)
    assert done.returncode == exit_code, done.stderr
    files = [file for file in scene.out.rglob("*") if file.is_file()]
    assert {"record.json", "plan.json", "outcome.json", "agent.log", "report.md"} <= {file.name for file in files}
    assert [str(file) for file in files if CANARY.encode() in file.read_bytes()] == []
    assert CANARY not in done.stdout + done.stderr
