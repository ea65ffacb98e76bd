"""How workers are started: the exact line, and the environment they get."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from core.cluster import Node
from schemas.plan import Plan
from schemas.units import Topology

RUN_DIR_VARIABLE = "ACCELMARK_RUN_DIR"
ROOT = Path(__file__).resolve().parent.parent
"""The folder that holds the package ``core``."""


def command(topology: Topology, words: Sequence[str]) -> tuple[str, ...]:
    """The line that starts the workers: of torch's elastic launcher on one node; for several, the line to run on
    each node, which brings its agents together at ``$MASTER_ADDR`` and plans there what ``words`` say.
    """
    if topology.nodes == 1:
        return (
            "python", "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1",
            "--nproc-per-node", str(topology.chips_per_node), "-m", "core.worker",
        )  # fmt: skip
    return (
        "torchrun", "--nnodes", str(topology.nodes), "--nproc-per-node", str(topology.chips_per_node),
        "--rdzv-backend", "c10d", "--rdzv-endpoint", "$MASTER_ADDR:29400", "--rdzv-id", "accelmark",
        "-m", "--", "core.run", *words,
    )  # fmt: skip


def pod_command(topology: Topology, node: Node, port: int) -> tuple[str, ...]:
    """The line that starts one node's workers where the cluster has said who is who."""
    return (
        "python", "-m", "torch.distributed.run", "--nnodes", str(topology.nodes), "--node-rank", str(node.rank),
        "--nproc-per-node", str(topology.chips_per_node), "--master-addr", node.address,
        "--master-port", str(port), "-m", "core.worker",
    )  # fmt: skip


def shell_line(plan: Plan) -> str:
    """The launch line as one would type it, environment first.

    On one node the workers read the plan from a run folder, which has to be put in for ``RUN_FOLDER``.
    """
    assignments = [f"{key}={shlex.quote(value)}" for key, value in plan.launch_env.items()]
    if plan.topology.nodes == 1:
        assignments.append(f"{RUN_DIR_VARIABLE}=RUN_FOLDER")
    words = [word if word.startswith("$MASTER_ADDR") else shlex.quote(word) for word in plan.launch]
    return " ".join(assignments + words)


def environment(plan: Plan, run_dir: Path) -> dict[str, str]:
    """The workers' environment: the user's own, which wins, and beneath it the vendor's.

    PYTHONSAFEPATH and a PYTHONPATH that begins with this installation keep a ``core`` folder of the user's own
    from being imported instead of ours.
    """
    inherited = dict(os.environ)
    path = os.pathsep.join(part for part in (str(ROOT), inherited.get("PYTHONPATH")) if part)
    fixed = {RUN_DIR_VARIABLE: str(run_dir), "PYTHONSAFEPATH": "1", "PYTHONPATH": path}
    return {**plan.launch_env, **inherited, **fixed}
