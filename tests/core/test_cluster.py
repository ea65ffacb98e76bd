"""What schedulers set and what becomes of it; two agents on this host stand for nodes without a shared disk."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from core import cluster, runner, torchrun
from core.cluster import Node
from core.errors import RunError, UsageError
from core.record import read_record
from core.selection import Selection
from schemas.plan import Plan
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


@pytest.mark.parametrize("nodes", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "16", "PET_NNODES": "2"}])
def test_pods_are_counted_whatever_the_job_says_of_processes(nodes: dict[str, str]) -> None:
    found = cluster.pod(POD | nodes)
    assert found is not None
    assert found.count == 2


def test_a_job_whose_pods_come_and_go_is_refused() -> None:
    with pytest.raises(UsageError, match="PET_NNODES=1:4 says that the number of pods may change"):
        cluster.pod(POD | {"PET_NNODES": "1:4"})


ONE_POD_OF_EIGHT = POD | {"RANK": "0", "WORLD_SIZE": "8", "PET_NNODES": "1"}


@pytest.mark.parametrize(
    "environ",
    [{}, POD | {"LOCAL_RANK": "0"}, POD | {"WORLD_SIZE": "1"}, {"RANK": "0"}, ONE_POD_OF_EIGHT],
)
def test_what_is_no_pod_of_several(environ: dict[str, str]) -> None:
    assert cluster.pod(environ) is None


def test_pods_that_cannot_find_each_other_are_refused() -> None:
    with pytest.raises(UsageError, match="MASTER_ADDR is not set"):
        cluster.pod({"RANK": "1", "WORLD_SIZE": "2"})


def _torchrun(node: int, port: int, ranks: int) -> tuple[list[str], dict[str, str]]:
    agent = ["torch.distributed.run", "--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", str(ranks)]
    # Without the two dashes torchrun takes --run for an option of its own.
    return [*agent, "--master-addr", "127.0.0.1", "--master-port", str(port), "-m", "--"], {}


def _srun(node: int, port: int, _ranks: int) -> tuple[list[str], dict[str, str]]:
    return [], {
        "SLURM_PROCID": str(node), "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
        "SLURM_STEP_NODELIST": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def _pytorchjob(node: int, port: int, _ranks: int) -> tuple[list[str], dict[str, str]]:
    """All that kubeflow's operator 1.9 sets, as its pkg/controller.v1/pytorch/envvar.go says."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    elastic = {f"PET_{name}": value for name, value in address.items()}
    counts = {"WORLD_SIZE": "2", "RANK": str(node), "PET_NODE_RANK": str(node), "PET_NNODES": "2"}
    return [], {"PYTHONUNBUFFERED": "1", "PET_NPROC_PER_NODE": "auto"} | address | elastic | counts


FORMS = {"torchrun": _torchrun, "srun": _srun, "pytorchjob": _pytorchjob}
QUICK = ("measure.timeout_s=20", "measure.start_timeout_s=60")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def two_nodes(  # noqa: PLR0917 - where, what, and how it is started
    form: str, folder: Path, cache: Path, sabotage: str, sets: Sequence[str] = QUICK, ranks: int = 1
) -> list[subprocess.CompletedProcess[str]]:
    """Run the case on two nodes of ``ranks``, each with a run folder of its own; what they ended with."""
    more = [part for value in sets for part in ("--set", value)]
    case = ["cases/llama2_7b", "--config", f"SABOx2x{ranks}", "--run", "torch", *more]
    words = [[*case, "--out", str(folder / f"node{node}")] for node in (0, 1)]
    return two_agents(form, folder, cache, sabotage, words, ranks)


def two_agents(  # noqa: PLR0917 - as above
    form: str, folder: Path, cache: Path, sabotage: str, words: Sequence[Sequence[str]], ranks: int
) -> list[subprocess.CompletedProcess[str]]:
    """Run what ``words`` say on each node."""
    install_saboteur(folder / "site")
    port = _free_port()
    agents = []
    for node in (0, 1):
        prefix, own = FORMS[form](node, port, ranks)
        agents.append(
            subprocess.Popen(
                [sys.executable, "-m", *prefix, "core.run", *words[node]], cwd=ROOT, text=True,
                env=environment(Scene(folder, cache), sabotage) | own,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
            )
        )  # fmt: skip
    done = []
    try:
        for agent in agents:
            out, err = agent.communicate(timeout=200)
            done.append(subprocess.CompletedProcess(agent.args, agent.returncode, out, err))
    finally:
        for agent in agents:
            agent.kill()  # what it has started ends with it
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
    assert re.match(r"node 1 \(rank 1\) ended without a word; the others were .* after step 3$", record.reason)
    assert len(record.loss.curve) >= 3


@pytest.mark.slow
def test_an_error_of_another_node_is_told_with_its_rank_and_step(tmp_path: Path, cache: Path) -> None:
    done = two_nodes("pytorchjob", tmp_path, cache, "raise optimizer 1 4")
    assert [one.returncode for one in done] == [1, 1]
    record = record_of(tmp_path / "node0")
    assert record.reason == "node 1, rank 1 in step 4: ValueError: the plugin has a bug"


def test_a_rank_that_never_comes_leaves_a_record(
    tmp_path: Path, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where srun has started the first of two tasks alone."""
    pytest.importorskip("torch")
    plan = make_plan(topology="X1x2x1", sets={"measure.start_timeout_s": 2})
    monkeypatch.setattr(runner, "plans", lambda *_: [plan])
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(_free_port()))
    with pytest.raises(RunError, match="the ranks did not meet within 2 s"):
        torchrun.run(runner.Options(Selection("toy"), tmp_path), Console(quiet=True))
    record = record_of(tmp_path)
    assert record.status == "hang"
    said = r"node 0, rank 0 before the first step: the ranks did not meet within 2 s \(measure.start_timeout_s\): "
    assert re.match(said, record.reason or ""), record.reason


HANGS = ("measure.timeout_s=5", "measure.start_timeout_s=60")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torchrun", "pytorchjob"])
def test_a_rank_of_another_node_that_hangs_is_named_with_its_node(form: str, tmp_path: Path, cache: Path) -> None:
    done = two_nodes(form, tmp_path, cache, "sleep forward 3 4", HANGS, ranks=2)
    assert [one.returncode != 0 for one in done] == [True, True], done[0].stderr[-2000:]
    record = record_of(tmp_path / "node0")
    assert record.status == "hang"
    assert record.reason is not None
    assert re.match(
        r"node 1, rank 3 after step 3 is in .*saboteur\.py:\d+\); node \d, rank [012] .*waits in .*"
        r": no progress for \d+ s \(measure\.timeout_s is 5\)$",
        record.reason,
    ), record.reason
    assert len(record.loss.curve) == 3
    stacks = {
        file.name for node in (0, 1) for file in tmp_path.glob(f"node{node}/*/stacks/*") if file.stat().st_size
    }
    assert stacks == {f"rank0000{rank}.txt" for rank in range(4)}, "each node keeps those of its ranks"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torchrun", "pytorchjob"])
def test_a_rank_of_another_node_that_is_killed_is_named_with_its_node(
    form: str, tmp_path: Path, cache: Path
) -> None:
    done = two_nodes(form, tmp_path, cache, "kill forward 3 4", ranks=2)
    assert [one.returncode != 0 for one in done] == [True, True]
    record = record_of(tmp_path / "node0")
    assert (record.status, len(record.loss.curve)) == ("crashed", 3)
    assert record.reason == "node 1 (rank 3) ended without a word; the others were heard of last after step 3"


@pytest.mark.slow
def test_a_rank_of_this_node_that_is_stopped_is_named(tmp_path: Path, cache: Path) -> None:
    """It cannot say a word itself, and no launcher of ours sees it."""
    two_nodes("torchrun", tmp_path, cache, "stop forward 1 4", HANGS, ranks=2)
    record = record_of(tmp_path / "node0")
    assert record.status == "hang"
    assert (record.reason or "").startswith("node 0, rank 1 after step 3 gave no word; node 0, rank 0 ")


@pytest.mark.deepspeed
@pytest.mark.slow
def test_two_nodes_go_on_with_the_runs_that_are_not_done(tmp_path: Path, cache: Path) -> None:
    """Both name their own folder of the run that failed; the first node alone has records."""
    pytest.importorskip("deepspeed")
    failed = two_nodes("torchrun", tmp_path, cache, "raise optimizer 1 4", ("measure.timeout_s=60", "seed=7"))
    assert [one.returncode for one in failed] == [1, 1]
    words = [["--resume", str(next((tmp_path / f"node{node}").iterdir())), "--json"] for node in (0, 1)]
    resumed = two_agents("torchrun", tmp_path, cache, "", words, 1)
    assert [one.returncode for one in resumed] == [0, 0], resumed[0].stderr[-2000:]
    told = json.loads(resumed[0].stdout)
    assert [(record["run"], record["status"]) for record in told] == [("torch", "ok"), ("deepspeed", "ok")]
    assert [record["plan"]["hyper_parameters"]["seed"] for record in told] == [7, 7]
    again = two_agents("torchrun", tmp_path, cache, "", words, 1)
    assert [one.returncode for one in again] == [0, 0], again[0].stderr[-2000:]
    assert again[0].stderr.count("done before: ") == 2
    assert [record["id"] for record in json.loads(again[0].stdout)] == [record["id"] for record in told]
    assert len(list((tmp_path / "node1").iterdir())) == 3, "nothing ran on the other node either"
