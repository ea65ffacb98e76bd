"""Starts the processes that check, and says what became of each check, whatever became of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from core import launch, process
from core.testing.catalog import check_called
from core.testing.session import SESSION_FILE, Outcome, Session, blocker, results_file
from schemas.conformance import Verdict

TIMEOUT_S = 600.0
"""For all checks of one process: the first use of a device may compile what it needs."""
GRACE_S = 10.0
"""What the other ranks get after one has ended badly."""


def run_checks(session: Session, folder: Path) -> dict[str, Outcome]:
    """Outcomes by check; those whose needs failed on the way are missing.

    A check during which the process ends or hangs has failed, and another process goes on with those behind it.
    """
    outcomes: dict[str, Outcome] = {}
    kind = session.plan.hyper_parameters.precision if session.plan else "launcher"
    for number in range(1, len(session.checks) + 1):
        part = folder / f"{kind}-{session.ranks}-{number}"
        part.mkdir(parents=True)
        (part / SESSION_FILE).write_text(session.model_dump_json(indent=2) + "\n", encoding="utf-8")
        how = _run(part, session)
        found, begun = _read(part, session.ranks)
        outcomes |= found
        if how is None:
            break
        culprit = begun or next((name for name in session.checks if name not in found), None)
        if culprit is None:  # every check had been done when it ended
            break
        outcomes[culprit] = Outcome(check=culprit, verdict="failed", reason=f"the process {how} (log: {part})")
        later = _without_blocked(session.checks[session.checks.index(culprit) + 1 :], outcomes)
        if not later:
            break
        session = session.model_copy(update={"checks": later})
    return outcomes


def _without_blocked(checks: Sequence[str], outcomes: dict[str, Outcome]) -> tuple[str, ...]:
    """Those of ``checks`` that need nothing that has failed, be it by way of others."""
    verdicts: dict[str, Verdict] = {name: o.verdict for name, o in outcomes.items() if o.verdict}
    free = []
    for name in checks:
        if blocker(check_called(name), verdicts):
            verdicts[name] = "not run"
        else:
            free.append(name)
    return tuple(free)


def _run(folder: Path, session: Session) -> str | None:
    """Start the ranks and wait; how the first that ended badly did so."""
    processes = []
    for rank in range(session.ranks):
        log = (folder / f"log{rank}.txt").open("wb")
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "core.testing.session", str(folder)],
                env=_environment(session, rank),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=process.die_with_parent_in_child,  # noqa: PLW1509 - no thread is running yet
            )
        )
        log.close()
    try:
        return _wait(processes)
    finally:
        for started in processes:
            process.kill_session(started.pid, signal.SIGKILL)  # with whatever compilers and tools it has started
            started.wait()


def _wait(processes: list[subprocess.Popen[bytes]]) -> str | None:
    deadline = time.monotonic() + TIMEOUT_S
    how = None
    while time.monotonic() < deadline:
        codes = [started.poll() for started in processes]
        bad = next((code for code in codes if code), None)
        if how is None and bad is not None:
            how, deadline = _ended(bad), min(deadline, time.monotonic() + GRACE_S)
        if None not in codes:
            return how
        time.sleep(0.05)
    return how or f"had not ended after {TIMEOUT_S:g} s"


def _ended(code: int) -> str:
    if code > 0:
        return f"ended with exit code {code}"
    return f"was ended by signal {-code} ({signal.Signals(-code).name})"


def _environment(session: Session, rank: int) -> dict[str, str]:
    """As a worker's: the user's, the vendor's beneath it, and this installation before any other ``core``."""
    path = os.pathsep.join(part for part in (str(launch.ROOT), os.environ.get("PYTHONPATH")) if part)
    fixed = {"PYTHONSAFEPATH": "1", "PYTHONPATH": path}
    if session.ranks > 1:
        fixed |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(session.ranks)}
    return {**(session.plan.launch_env if session.plan else {}), **os.environ, **fixed}


def _read(folder: Path, ranks: int) -> tuple[dict[str, Outcome], str | None]:
    """What the ranks say of each check, the worst of them; and a check that one has begun and that did not end."""
    ended: dict[str, Outcome] = {}
    begun: set[str] = set()
    for rank in range(ranks):
        file = results_file(folder, rank)
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        told = {o.check: o for o in map(Outcome.model_validate_json, lines)}  # the last word on each
        begun |= {name for name, outcome in told.items() if outcome.verdict is None}
        for name, outcome in told.items():
            if outcome.verdict and (name not in ended or _badness(outcome) > _badness(ended[name])):
                ended[name] = outcome
    # A rank that waits for one that has failed is no cause.
    begun = {name for name in begun if name not in ended or ended[name].verdict != "failed"}
    return {name: o for name, o in ended.items() if name not in begun}, min(begun, default=None)


def _badness(outcome: Outcome) -> int:
    assert outcome.verdict is not None
    return ("passed", "not declared", "not run", "failed").index(outcome.verdict)
