"""The Slurm script and the Kubernetes manifest of ``docs/clusters.md`` are what Slurm and the operator take."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from core import cli
from core.record import read_record
from tests.faults.faults import ROOT, Scene, environment, install_saboteur

PAGE = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")


def block(language: str, holding: str) -> str:
    """The page's only code block in ``language`` with ``holding`` in it."""
    (found,) = [text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if holding in text]
    return str(found)


SCRIPT = block("bash", "#SBATCH")


def directives() -> dict[str, str]:
    """``#SBATCH`` lines as sbatch reads them: before the first command."""
    head = SCRIPT.split("\nsrun", maxsplit=1)[0].splitlines()
    assert all(line.startswith("#") for line in head)
    lines = [line for line in head if line.startswith("#SBATCH")]
    return dict(re.fullmatch(r"#SBATCH --([a-z-]+)=(\S+)", line).groups() for line in lines)  # type: ignore[union-attr]


def plans_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What ``python -m core.run`` with these words would run."""
    python, dash, module, *rest = words
    assert (python, dash, module) == ("python", "-m", "core.run")
    assert cli.main(["run", *rest, "--dry-run", "--json"]) == 0
    return list(json.loads(capsys.readouterr().out))


def srun_words() -> tuple[list[str], list[str]]:
    """Options and command of the script's srun."""
    line = SCRIPT.replace("\\\n", " ").strip().splitlines()[-1]
    words = shlex.split(line)
    assert words[0] == "srun"
    return words[1 : words.index("python")], words[words.index("python") :]


def test_the_slurm_script_is_one_for_bash() -> None:
    assert SCRIPT.startswith("#!/bin/bash\n")
    checked = subprocess.run(["bash", "-n"], input=SCRIPT, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_slurm_script_asks_for_what_its_config_needs(capsys: pytest.CaptureFixture[str]) -> None:
    asked = directives()
    plans = plans_of(srun_words()[1], capsys)
    shape = f"H800x{asked['nodes']}x{asked['ntasks-per-node']}"
    assert {plan["topology"] for plan in plans} == {shape}
    assert asked["gpus-per-node"] == asked["ntasks-per-node"], "one task a GPU"
    assert not {"gpus-per-task", "gpu-bind"} & set(asked), "each task has to see all GPUs of its node"
    assert srun_words()[0] == ["--kill-on-bad-exit=0", "--label"]


def _free_job() -> int:
    """A job's number whose port (20000 and its last four digits) is free."""
    for job in range(os.getpid() % 10_000, 10_000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", 20_000 + job)) != 0:
                return 410_000 + job
    raise AssertionError("no port is free")


@pytest.mark.slow
def test_the_slurm_script_runs_under_a_stand_in_for_srun(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As it is on the page, but for the config: one CPU a node instead of eight GPUs."""
    pytest.importorskip("torch")
    install_saboteur(tmp_path / "site")
    for node in ("node0", "node1"):
        (tmp_path / "nodes" / node).mkdir(parents=True)
        (tmp_path / "nodes" / node / "cases").symlink_to(ROOT / "cases")
    programs = {
        "srun": f'exec {sys.executable} {ROOT}/tests/docs/srun.py "$@"',
        "python": f'exec {sys.executable} "$@"',
    }
    for name, line in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(SCRIPT.replace("H800x2x8", "SABOx2x1 --run torch"), encoding="utf-8")
    sbatch = {
        "SLURM_JOB_ID": str(_free_job()), "SLURM_NNODES": directives()["nodes"], "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NTASKS": "2", "PATH": f"{tmp_path}:{os.environ['PATH']}", "NODES": str(tmp_path / "nodes"),
    }  # fmt: skip
    scene = Scene(tmp_path, tmp_path_factory.getbasetemp() / "accelmark-cache")
    done = subprocess.run(
        ["bash", tmp_path / "job.sh"], env=environment(scene, "") | sbatch, text=True, capture_output=True,
        timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    (file,) = (tmp_path / "nodes").glob("node*/runs/*/record.json")
    record = read_record(file)
    assert file.parents[2].name == "node0"
    assert (record.status, record.topology.render(), record.case) == ("ok", "SABOx2x1", "baichuan2_13b")
    assert record.throughput is not None
    assert re.search(r"^0: ok: ", done.stdout, re.MULTILINE), "rank 0 tells the result"


MANIFEST = block("yaml", "PyTorchJob")


def replicas() -> dict[str, dict[str, Any]]:
    specs: dict[str, dict[str, Any]] = yaml.safe_load(MANIFEST)["spec"]["pytorchReplicaSpecs"]
    return specs


def test_the_manifest_is_a_pytorchjob_as_the_operator_takes_it() -> None:
    """By kubeflow's operator 1.9: pkg/apis/kubeflow.org/v1 and its validation."""
    job = yaml.safe_load(MANIFEST)
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", job["metadata"]["name"])
    assert set(job["spec"]) == {"pytorchReplicaSpecs"}, "neither elasticPolicy nor nprocPerNode"
    assert set(replicas()) == {"Master", "Worker"}
    assert replicas()["Master"]["replicas"] == 1
    for replica in replicas().values():
        assert replica["restartPolicy"] == "Never"
        pod = replica["template"]["spec"]
        (container,) = pod["containers"]
        assert container["name"] == "pytorch", "the operator sets variables and port of this one"
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        (shm,) = [volume for volume in pod["volumes"] if volume["name"] == "shm"]
        assert shm["emptyDir"] == {"medium": "Memory"}


def test_the_manifests_pods_are_the_nodes_of_its_config(capsys: pytest.CaptureFixture[str]) -> None:
    pods = sum(replica["replicas"] for replica in replicas().values())
    for replica in replicas().values():
        (container,) = replica["template"]["spec"]["containers"]
        gpus = container["resources"]["limits"]["nvidia.com/gpu"]
        plans = plans_of(container["command"], capsys)
        assert {plan["topology"] for plan in plans} == {f"H800x{pods}x{gpus}"}
        out = container["command"][container["command"].index("--out") + 1]
        assert out in {mount["mountPath"] for mount in container["volumeMounts"]}
