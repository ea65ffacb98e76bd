"""What schedulers set and what becomes of it; two agents on this host stand for nodes without a shared disk."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from core import cluster
from core.cluster import Node
from core.errors import UsageError
from core.record import read_record
from schemas.record import Record
from tests.faults.faults import ROOT, Scene, environment, install_saboteur

SRUN = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "41017"}


def test_srun_sets_what_torchrun_would() -> None:
    environ = SRUN | {"SLURM_STEP_NODELIST": "gpu[03-04]", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}
    cluster.adopt_slurm(environ)
    assert cluster.is_rank(environ)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    assert [environ[name] for name in names] == ["5", "8", "1", "4", "gpu03", "21017"]


@pytest.mark.parametrize(
    ("more", "per_node"), [({"SLURM_NNODES": "4"}, "2"), ({}, "8"), ({"SLURM_TASKS_PER_NODE": "8"}, "8")]
)
def test_tasks_of_each_node(more: dict[str, str], per_node: str) -> None:
    environ = SRUN | more
    cluster.adopt_slurm(environ)
    assert (environ["LOCAL_WORLD_SIZE"], environ["MASTER_ADDR"]) == (per_node, "127.0.0.1")


def test_what_the_user_has_set_wins() -> None:
    environ = SRUN | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "SLURM_JOB_NODELIST": "gpu[1-2]"}
    cluster.adopt_slurm(environ)
    assert (environ["MASTER_ADDR"], environ["MASTER_PORT"]) == ("10.0.0.1", "29500")


@pytest.mark.parametrize(
    "environ", [{}, SRUN | {"SLURM_NTASKS": "1"}, SRUN | {"RANK": "0", "WORLD_SIZE": "2"}, {"SLURM_PROCID": "0"}]
)
def test_a_process_that_is_no_task_of_several_is_left_alone(environ: dict[str, str]) -> None:
    before = dict(environ)
    cluster.adopt_slurm(environ)
    assert environ == before


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [
        ("gpu03", "gpu03"), ("gpu[03-04,7],big1", "gpu03"), ("gpu[7,9]", "gpu7"), ("a,b", "a"),
        ("r1-c[2-3]-gpu", "r1-c2-gpu"), ("node-1.site.org,node-2.site.org", "node-1.site.org"),
    ],
)  # fmt: skip
def test_the_first_node_of_slurms_list(nodelist: str, first: str) -> None:
    assert cluster.first_host(nodelist) == first


@pytest.mark.parametrize("nodelist", ["", "gpu[", ",a", "a b"])
def test_what_is_no_node_list_is_refused(nodelist: str) -> None:
    with pytest.raises(UsageError, match="is not one of Slurm's"):
        cluster.first_host(nodelist)


def test_nodes_with_different_numbers_of_tasks_are_refused() -> None:
    with pytest.raises(UsageError, match=r"srun has put 4,4\(x1\) tasks"):
        cluster.adopt_slurm(SRUN | {"SLURM_TASKS_PER_NODE": "4,4(x1)"})


POD = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "job-master-0", "MASTER_PORT": "2222"}


def test_a_pod_is_a_node() -> None:
    assert cluster.pod(POD) == Node(rank=1, count=2, address="job-master-0", port=2222)


@pytest.mark.parametrize("environ", [{}, POD | {"LOCAL_RANK": "0"}, POD | {"WORLD_SIZE": "1"}, {"RANK": "0"}])
def test_what_is_no_pod_of_several(environ: dict[str, str]) -> None:
    assert cluster.pod(environ) is None


def test_pods_that_cannot_find_each_other_are_refused() -> None:
    with pytest.raises(UsageError, match="MASTER_ADDR is not set"):
        cluster.pod({"RANK": "1", "WORLD_SIZE": "2"})


def _torchrun(node: int, port: int) -> tuple[list[str], dict[str, str]]:
    agent = ["torch.distributed.run", "--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", "1"]
    # Without the two dashes torchrun takes --run for an option of its own.
    return [*agent, "--master-addr", "127.0.0.1", "--master-port", str(port), "-m", "--"], {}


def _srun(node: int, port: int) -> tuple[list[str], dict[str, str]]:
    return [], {
        "SLURM_PROCID": str(node), "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
        "SLURM_STEP_NODELIST": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def _pytorchjob(node: int, port: int) -> tuple[list[str], dict[str, str]]:
    return [], {"RANK": str(node), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


FORMS = {"torchrun": _torchrun, "srun": _srun, "pytorchjob": _pytorchjob}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def two_nodes(form: str, folder: Path, cache: Path, sabotage: str) -> list[subprocess.CompletedProcess[str]]:
    """Run both agents, each in a run folder of its own; what they ended with."""
    install_saboteur(folder / "site")
    port = _free_port()
    agents = []
    for node in (0, 1):
        prefix, own = FORMS[form](node, port)
        words = ["cases/llama2_7b", "--config", "SABOx2x1", "--run", "torch", "--out", str(folder / f"node{node}")]
        sets = ["--set", "measure.timeout_s=20", "--set", "measure.start_timeout_s=60"]
        agents.append(
            subprocess.Popen(
                [sys.executable, "-m", *prefix, "core.run", *words, *sets], cwd=ROOT, text=True,
                env=environment(Scene(folder, cache), sabotage) | own,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
            )
        )  # fmt: skip
    done = []
    for agent in agents:
        out, err = agent.communicate(timeout=200)
        done.append(subprocess.CompletedProcess(agent.args, agent.returncode, out, err))
    return done


def record_of(folder: Path) -> Record:
    (file,) = folder.glob("*/record.json")
    return read_record(file)


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    return tmp_path_factory.getbasetemp() / "accelmark-cache"


@pytest.mark.parametrize("form", ["torchrun", "srun", pytest.param("pytorchjob", marks=pytest.mark.slow)])
def test_two_nodes_leave_one_whole_record(form: str, tmp_path: Path, cache: Path) -> None:
    done = two_nodes(form, tmp_path, cache, "")
    assert [one.returncode for one in done] == [0, 0], done[0].stderr[-2000:] + done[1].stderr[-2000:]
    record = record_of(tmp_path / "node0")
    assert (record.status, record.topology.render()) == ("ok", "SABOx2x1")
    assert record.throughput is not None, "both nodes' windows are needed for it"
    assert not list((tmp_path / "node1").glob("*/record.json"))
    assert list((tmp_path / "node1").glob("*/events/rank00001.jsonl")), "node 1 has a folder of its own"


@pytest.mark.parametrize(
    "form", ["torchrun", *(pytest.param(f, marks=pytest.mark.slow) for f in ("srun", "pytorchjob"))]
)
def test_a_lost_node_is_named(form: str, tmp_path: Path, cache: Path) -> None:
    done = two_nodes(form, tmp_path, cache, "kill forward 1 4")
    assert [one.returncode != 0 for one in done] == [True, True]
    record = record_of(tmp_path / "node0")
    assert record.status == "crashed"
    assert record.reason is not None
    assert record.reason.startswith("node 1 (rank 1) ")
    assert len(record.loss.curve) >= 3


@pytest.mark.slow
def test_an_error_of_another_node_is_told_with_its_rank_and_step(tmp_path: Path, cache: Path) -> None:
    done = two_nodes("pytorchjob", tmp_path, cache, "raise optimizer 1 4")
    assert [one.returncode for one in done] == [1, 1]
    record = record_of(tmp_path / "node0")
    assert record.reason == "node 1, rank 1 in step 4: ValueError: the plugin has a bug"
