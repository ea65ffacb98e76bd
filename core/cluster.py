"""Which process of a cluster's job this is, from what its scheduler has set.

=======================  ==========================================================================
torchrun                 LOCAL_RANK, RANK, WORLD_SIZE: this process is one rank
Slurm (srun)             SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID: the same, under other names
Kubernetes (PyTorchJob)  RANK and WORLD_SIZE count pods: this process starts one node's agent
=======================  ==========================================================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from core.errors import UsageError

RANK_VARIABLES = ("LOCAL_RANK", "RANK", "WORLD_SIZE")
_SLURM_VARIABLES = ("SLURM_LOCALID", "SLURM_PROCID", "SLURM_NTASKS")
_FIRST_PORT, _PORTS = 20_000, 10_000


@dataclass(frozen=True)
class Node:
    """This node among those of the job, and where their agents meet."""

    rank: int
    count: int
    address: str
    port: int


def is_rank(environ: Mapping[str, str]) -> bool:
    """Whether a launcher started this process as one rank."""
    return all(name in environ for name in RANK_VARIABLES)


def adopt_slurm(environ: MutableMapping[str, str]) -> None:
    """Set torchrun's variables from srun's, where srun started this process as one of several tasks.

    A variable that is set already stays as it is. One task alone is not a rank: it launches its own workers.
    """
    if any(name in environ for name in RANK_VARIABLES) or not all(name in environ for name in _SLURM_VARIABLES):
        return
    if int(environ["SLURM_NTASKS"]) == 1:
        return
    for name, theirs in zip(RANK_VARIABLES, _SLURM_VARIABLES, strict=True):
        environ[name] = environ[theirs]
    environ.setdefault("LOCAL_WORLD_SIZE", str(_tasks_per_node(environ)))
    nodes = (
        environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST")
    )
    environ.setdefault("MASTER_ADDR", first_host(nodes) if nodes else "127.0.0.1")
    job = int(environ.get("SLURM_JOB_ID", "0"))
    environ.setdefault("MASTER_PORT", str(_FIRST_PORT + job % _PORTS))


def first_host(nodelist: str) -> str:
    """The first host of Slurm's list: ``gpu[03-04,7],big1`` begins with ``gpu03``.

    UsageError for a text that is not such a list.
    """
    found = re.match(r"^([\w.-]*)(?:\[(\w+)[^\]]*\]([\w.-]*))?(?:,|$)", nodelist)
    if not found or not found[0].rstrip(","):
        raise UsageError(f"the node list {nodelist!r} is not one of Slurm's", "set MASTER_ADDR to the first node")
    return found[1] + (found[2] or "") + (found[3] or "")


def _tasks_per_node(environ: Mapping[str, str]) -> int:
    """Tasks on each node; Slurm writes ``4(x2)`` for two nodes of four. UsageError where nodes differ."""
    tasks = int(environ["SLURM_NTASKS"])
    told = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE")
    if told is None:
        return tasks // int(environ.get("SLURM_NNODES", "1"))
    each = re.fullmatch(r"(\d+)(?:\(x\d+\))?", told)
    if each is None or tasks % int(each[1]):
        raise UsageError(
            f"srun has put {told} tasks on the nodes", "use --ntasks-per-node, the same on every node"
        )
    return int(each[1])


def pod(environ: Mapping[str, str]) -> Node | None:
    """The node that this pod of a PyTorchJob is; None outside of one, and for a job of one pod."""
    if "LOCAL_RANK" in environ or not ("RANK" in environ and "WORLD_SIZE" in environ):
        return None
    count = _pods(environ)
    if count == 1:
        return None
    if "MASTER_ADDR" not in environ:
        raise UsageError(
            f"RANK={environ['RANK']} says that this is one pod of {count}, but MASTER_ADDR is not set",
            "run it in a PyTorchJob, which sets it; elsewhere unset RANK and WORLD_SIZE",
        )
    return Node(
        rank=int(environ["RANK"]),
        count=count,
        address=environ["MASTER_ADDR"],
        port=int(environ.get("MASTER_PORT", "23456")),
    )


def _pods(environ: Mapping[str, str]) -> int:
    """Pods of the job.

    Operators from 1.7 on tell PET_NNODES, and multiply WORLD_SIZE by the job's ``nprocPerNode`` where that is a
    number; before that, WORLD_SIZE counts pods.
    """
    told = environ.get("PET_NNODES", environ["WORLD_SIZE"])
    if not told.isdecimal():
        raise UsageError(
            f"PET_NNODES={told} says that the number of pods may change while the job runs",
            "leave elasticPolicy out of the PyTorchJob: a measurement has a fixed number of chips",
        )
    return int(told)
