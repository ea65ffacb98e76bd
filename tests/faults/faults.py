"""What can befall a run, how it is brought about from outside of the core, and what must be left of the run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from core.record import read_record
from schemas.record import Record
from tests.conftest import python_path

ROOT = Path(__file__).parents[2]
SCENE_VARIABLE = "SABOTAGE_SCENE"
"""Whatever a run starts, under whichever launcher, inherits it."""
WITHIN_S = 90.0
"""A run with a fault has ended by then, on two shared cores, and with the short time-outs below."""
ENGINES = ("torch", "deepspeed")
HANGS = ("measure.timeout_s=4", "measure.start_timeout_s=25", "measure.setup_timeout_s=60")


@dataclass(frozen=True)
class Scene:
    """Where a fault is played."""

    folder: Path
    cache: Path
    """Generated data, shared between scenes."""

    @property
    def out(self) -> Path:
        return self.folder / "runs"


@dataclass(frozen=True)
class Fault:
    """One fault and what a run must make of it."""

    name: str
    sabotage: str = ""
    status: str | None = "crashed"
    """Of the record; None where there can be none."""
    exit_code: int | None = 1
    """None: any but 0. An agent of torchrun that was told to end once aborted at its interpreter's exit."""
    reason: str = ""
    """What the reason (without a record: stderr) must match."""
    steps: int = 0
    """At least so many are kept."""
    engines: tuple[str, ...] = ENGINES
    """Those it is played on."""
    sets: Sequence[str] = ()
    prepare: Callable[[Scene], Sequence[str]] | None = None
    """Makes files, and gives further arguments."""
    wrap: Callable[[Scene, Sequence[str]], Sequence[str]] | None = None
    """Another command around the run's."""
    rebuilt: bool = False
    """The record is made afterwards by `report RUN_DIR`."""
    check: Callable[[Scene, Record], list[str]] | None = None
    stacks: int = 0
    """At least so many ranks have left their stack."""
    unless: Callable[[], str | None] = field(default=lambda: None)
    """Why this machine cannot play it."""


def play(fault: Fault, engine: str, scene: Scene) -> tuple[list[str], float]:
    """Run it; what is wrong with what is left (nothing, if all is right), and the seconds it took."""
    scene.folder.mkdir(parents=True, exist_ok=True)
    install_saboteur(scene.folder / "site")
    started = time.monotonic()
    done = _run(fault, engine, scene)
    took_s = time.monotonic() - started
    wrong = [] if took_s < WITHIN_S else [f"took {took_s:.0f} s"]
    if done.returncode == 0 if fault.exit_code is None else done.returncode != fault.exit_code:
        wrong.append(f"exit code {done.returncode}: {done.stderr[-1500:]}")
    wrong += _leftovers(scene)
    if fault.status is None:
        told = done.stderr.strip().splitlines()[:1]
        found = bool(told and re.search(fault.reason, told[0]))
        return [*wrong, *([] if found else [f"told {told}"])], took_s
    return wrong + _judge(fault, scene), took_s


def _judge(fault: Fault, scene: Scene) -> list[str]:
    folders = list(scene.out.glob("*/record.json"))
    if len(folders) != 1:
        return [f"{len(folders)} records"]
    record = read_record(folders[0])
    wrong = []
    if record.status != fault.status:
        wrong.append(f"status {record.status} ({record.reason})")
    if not re.search(fault.reason, record.reason or "", re.DOTALL) or "\n" in (record.reason or ""):
        wrong.append(f"reason {record.reason!r}")
    if len(record.loss.curve) < fault.steps:
        wrong.append(f"{len(record.loss.curve)} steps kept of {fault.steps}")
    dumps = [file for file in (folders[0].parent / "stacks").glob("*.txt") if file.stat().st_size]
    if len(dumps) < fault.stacks:
        wrong.append(f"{len(dumps)} stacks")
    if not (folders[0].parent / "report.md").is_file():
        wrong.append("no report")
    return wrong + (fault.check(scene, record) if fault.check else [])


def _run(fault: Fault, engine: str, scene: Scene) -> subprocess.CompletedProcess[str]:
    more = list(fault.prepare(scene)) if fault.prepare else []
    sets = [part for value in fault.sets for part in ("--set", value)]
    case = [] if "--case" in more else ["cases/llama2_7b"]
    more = [word for word in more if word != "--case"]
    command = [sys.executable, "-m", "core.run", *case, *more]
    if "--config" not in more:
        command += ["--config", "SABOx1x2", "--run", engine]
    command += [*sets, *([] if "--out" in more else ["--out", str(scene.out)])]
    if fault.wrap:
        command = list(fault.wrap(scene, command))
    done = execute(command, scene, fault.sabotage)
    if fault.rebuilt:
        (run_dir,) = scene.out.iterdir()
        _wait_until_gone(scene)
        done = execute([sys.executable, "-m", "core", "report", str(run_dir)], scene, "")
    return done


def execute(command: Sequence[str], scene: Scene, sabotage: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=environment(scene, sabotage), capture_output=True, text=True,
        timeout=240, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def environment(scene: Scene, sabotage: str) -> dict[str, str]:
    own = {
        "SABOTAGE": sabotage,
        SCENE_VARIABLE: str(scene.folder),
        "ACCELMARK_CACHE": str(scene.cache),
        "PYTHONPATH": python_path(scene.folder / "site"),
        "OMP_NUM_THREADS": "1",
    }
    return os.environ | own


def install_saboteur(site: Path) -> None:
    """What pip would leave of the plugin's distribution."""
    info = site / "saboteur-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: saboteur\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[accelmark.vendors]\nsaboteur = saboteur\n", encoding="utf-8")
    shutil.copy(Path(__file__).with_name("saboteur.py"), site / "saboteur.py")


def _leftovers(scene: Scene) -> list[str]:
    """Processes that a run in this scene has left."""
    return [f"process {pid} is left" for pid in _started_in(scene)]


def _wait_until_gone(scene: Scene) -> None:
    """The kernel's signal to orphans takes a moment; a second is more than it needs."""
    deadline = time.monotonic() + 3.0
    while _started_in(scene) and time.monotonic() < deadline:
        time.sleep(0.05)


def _started_in(scene: Scene) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and process.environ().get(SCENE_VARIABLE) == str(scene.folder):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found
