"""How a run ended: what the launcher saw, what the ranks said, and the status and reason that follow."""

from __future__ import annotations

from collections.abc import Sequence

from core.events import of_kind
from schemas import event as ev
from schemas.base import Schema
from schemas.plan import Plan

OUTCOME_FILE = "outcome.json"


class Outcome(Schema):
    """How the launcher saw the processes end; missing after the launcher itself was killed."""

    command: str
    begun_unix_s: float | None = None
    """When the command began, or this run of a series; None where that is not known."""
    interrupted: bool = False
    hang: str | None = None
    """What made no progress, when the launcher ended the run for that."""
    exit_code: int | None = None
    lost: dict[int, str] = {}
    """Rank -> how it ended, for ranks that ended without a word; the first cause first."""
    oom_kills: int = 0
    """Processes of the machine that the kernel ended for lack of memory during the run."""
    disk_full: bool = False
    launched_nodes: int = 1
    """Nodes whose processes this tells of: 0 under a launcher that is not ours."""


def status_of(plan: Plan, events: Sequence[ev.Event], outcome: Outcome) -> tuple[ev.Status, str | None]:
    """What ended the run: the user, a rank's own error (the earliest), a hang, or a rank lost without a word.

    A rank that loses its peer fails too, with a message about the connection, so among plain crashes the rank
    that could not say a word comes first.
    """
    if outcome.interrupted:
        return "interrupted", f"interrupted {_place(events)}"
    errors = sorted(of_kind(events, ev.ErrorEvent), key=lambda event: event.time_unix_s)
    telling = [event for event in errors if event.status not in ("crashed", "interrupted")]
    if telling:
        return telling[0].status, _said(plan, telling[0])
    if outcome.hang:
        return "hang", outcome.hang
    silent = _silent(plan, events, outcome)
    first_ended = [event for event in errors if event.status == "crashed"] or errors
    if silent:
        return _lost(plan, events, outcome, silent)
    if first_ended:
        return first_ended[0].status, _said(plan, first_ended[0])
    finished = {event.rank for event in of_kind(events, ev.FinishEvent)}
    missing = sorted(set(range(plan.topology.world_size)) - finished)
    return _lost(plan, events, outcome, missing) if missing else ("ok", None)


def _said(plan: Plan, error: ev.ErrorEvent) -> str:
    step = "before the first step" if error.step is None else f"in step {error.step}"
    node = "" if plan.topology.nodes == 1 else f"node {error.rank // plan.topology.chips_per_node}, "
    return f"{node}rank {error.rank} {step}: {error.reason}"


def _silent(plan: Plan, events: Sequence[ev.Event], outcome: Outcome) -> list[int]:
    """Ranks that ended without a word and are not known to have been ended by another one's failure.

    Aborting is what NCCL's watchdog does when another rank is gone.
    """
    spoke = {event.rank for event in events if isinstance(event, (ev.ErrorEvent, ev.FinishEvent))}
    lost = [rank for rank, how in outcome.lost.items() if rank not in spoke and "SIGABRT" not in how]
    if lost or outcome.launched_nodes == plan.topology.nodes:
        return lost
    # Of other nodes nobody tells how their processes ended; one without any word is gone as a whole.
    per_node = plan.topology.chips_per_node
    nodes = [set(range(first, first + per_node)) for first in range(0, plan.topology.world_size, per_node)]
    gone = [rank for node in nodes if not node & spoke for rank in sorted(node)]
    return gone or sorted(set(range(plan.topology.world_size)) - spoke)


def _lost(plan: Plan, events: Sequence[ev.Event], outcome: Outcome, ranks: Sequence[int]) -> tuple[ev.Status, str]:
    """Ranks that ended without a word, how, and where they had come to."""
    if outcome.disk_full:
        return "crashed", f"{_ranks(plan, ranks)} {_place(events, ranks)}: the disk of the run folder is full"
    known = {rank: how for rank, how in outcome.lost.items() if rank in ranks}
    told = "; ".join(f"rank {rank} {_place(events, [rank])} {how}" for rank, how in known.items())
    if any("SIGKILL" in how for how in known.values()) and outcome.oom_kills > 0:
        return "oom", f"{told}, and the kernel ended {outcome.oom_kills} processes for lack of host memory"
    if told:
        return "crashed", told
    how = "ended without a word"
    if outcome.exit_code is None:
        how += ", and so did their launcher"
    elif outcome.exit_code < 0:
        how += f" when their agent was ended by signal {-outcome.exit_code}"
    return "crashed", f"{_ranks(plan, ranks)} {_place(events, ranks)} {how}"


def _ranks(plan: Plan, ranks: Sequence[int]) -> str:
    """The ranks by number, and on several nodes by node."""
    if plan.topology.nodes == 1:
        return f"rank {', '.join(map(str, ranks))}"
    per_node = plan.topology.chips_per_node
    nodes = sorted({rank // per_node for rank in ranks})
    told = [(node, [rank for rank in ranks if rank // per_node == node]) for node in nodes]
    return "; ".join(f"node {node} (rank {', '.join(map(str, of_node))})" for node, of_node in told)


def _place(events: Sequence[ev.Event], ranks: Sequence[int] | None = None) -> str:
    """Where the ranks (None: all) were heard of last."""
    own = [event for event in events if ranks is None or event.rank in ranks]
    steps, phases = of_kind(own, ev.StepEvent), of_kind(own, ev.PhaseEvent)
    if steps:
        return f"after step {max(step.step for step in steps)}"
    if phases:
        return f"in phase {phases[-1].phase}"
    return "before it started" if events else "before any worker started (see agent.log)"
