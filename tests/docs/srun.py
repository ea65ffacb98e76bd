"""Stands in for Slurm's srun: starts the tasks of two "nodes" on this host, with the variables that srun sets.

What sbatch makes of a script's directives is expected in the environment: SLURM_NNODES, SLURM_NTASKS_PER_NODE,
SLURM_JOB_ID. Nodes are 127.0.0.1 and 127.0.0.2; each node's tasks work in a folder of their own, ``NODES/node0``
and so on, which stands for a disk that is not shared. An option that this does not play is refused.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

PLAYED = ("--kill-on-bad-exit=0", "--label")
"""No task ends another's; each line of output begins with its task's number."""


def main(words: list[str]) -> int:
    """The highest exit code of all tasks, as srun returns it."""
    options = [word for word in words if word.startswith("--")]
    options = options[: next((n for n, word in enumerate(words) if not word.startswith("--")), len(words))]
    if unknown := set(options) - set(PLAYED):
        print(f"srun: this stand-in does not play {sorted(unknown)}", file=sys.stderr)
        return 2
    command = words[len(options) :]
    nodes, per_node = int(os.environ["SLURM_NNODES"]), int(os.environ["SLURM_NTASKS_PER_NODE"])
    tasks = [start(command, task, nodes, per_node) for task in range(nodes * per_node)]
    readers = [threading.Thread(target=label, args=(number, task)) for number, task in enumerate(tasks)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return max(abs(task.wait()) for task in tasks)


def start(command: list[str], task: int, nodes: int, per_node: int) -> subprocess.Popen[str]:
    """One task, as srun's manual says (OUTPUT ENVIRONMENT VARIABLES)."""
    node, local = divmod(task, per_node)
    hosts = [f"127.0.0.{number}" for number in range(1, nodes + 1)]
    own = {
        "SLURM_PROCID": task, "SLURM_LOCALID": local, "SLURM_NODEID": node, "SLURM_NTASKS": nodes * per_node,
        "SLURM_NPROCS": nodes * per_node, "SLURM_STEP_ID": 0, "SLURM_STEP_NODELIST": ",".join(hosts),
        "SLURM_STEP_NUM_NODES": nodes, "SLURM_STEP_NUM_TASKS": nodes * per_node,
        "SLURM_STEP_TASKS_PER_NODE": f"{per_node}(x{nodes})", "SLURMD_NODENAME": hosts[node],
    }  # fmt: skip
    return subprocess.Popen(
        command, env=os.environ | {name: str(value) for name, value in own.items()},
        cwd=Path(os.environ["NODES"]) / f"node{node}",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def label(number: int, task: subprocess.Popen[str]) -> None:
    for line in task.stdout or ():
        print(f"{number}: {line}", end="", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
