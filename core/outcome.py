"""How a run ended: what the launcher saw, what the ranks said, and the status and reason that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from core import stacks
from core.events import of_kind
from schemas import event as ev
from schemas.base import Schema
from schemas.plan import Plan

OUTCOME_FILE = "outcome.json"
SHOWN_RANKS = 4
"""Ranks that a reason of one line names; the stacks of all are in the run folders."""


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
    node: int = 0
    """The node whose processes this tells of, where it does not tell of all."""
    launched_nodes: int = 1
    """How many nodes' processes this tells of: 0 under a launcher that is not ours."""


def status_of(plan: Plan, events: Sequence[ev.Event], outcome: Outcome) -> tuple[ev.Status, str | None]:
    """What ended the run: the user, a rank's own error (the earliest), a hang, or a rank lost without a word.

    A rank that loses its peer fails too, with a message about the connection, so among plain crashes the rank
    that could not say a word comes first.
    """
    if outcome.interrupted:
        return "interrupted", f"interrupted {_place(events)}"
    errors = _first_words(events)
    telling = [event for event in errors if event.status not in ("crashed", "interrupted")]
    if telling and telling[0].status != "hang":
        return telling[0].status, _said(plan, telling[0])
    if telling or outcome.hang:
        return "hang", _hung(plan, events, errors, outcome)
    silent = _silent(plan, events, outcome)
    first_ended = [event for event in errors if event.status == "crashed"] or errors
    if silent:
        return _lost(plan, events, outcome, silent)
    if first_ended:
        return first_ended[0].status, _said(plan, first_ended[0])
    finished = {event.rank for event in of_kind(events, ev.FinishEvent)}
    missing = sorted(set(range(plan.topology.world_size)) - finished)
    return _lost(plan, events, outcome, missing) if missing else ("ok", None)


def _first_words(events: Sequence[ev.Event]) -> list[ev.ErrorEvent]:
    """Each rank's first error, the earliest rank's first.

    A rank that was told to end may lose a peer, which was told so too, before its process is gone.
    """
    first: dict[int, ev.ErrorEvent] = {}
    for event in sorted(of_kind(events, ev.ErrorEvent), key=lambda event: event.time_unix_s):
        first.setdefault(event.rank, event)
    return list(first.values())


def hanging(plan: Plan, heard: Mapping[int, str], places: Mapping[int, str]) -> str:
    """Who hangs where: ranks (rank -> place on its stack) that do not wait for others first.

    ``heard``: rank -> how far it had come.
    """
    guilty = stacks.culprits(places)
    told = [f"{_rank(plan, rank)} {heard[rank]} {places[rank]}" for rank in guilty[:SHOWN_RANKS]]
    waiting = [f"{_rank(plan, rank)} {place}" for rank, place in places.items() if rank not in guilty]
    return "; ".join([*told, *waiting[: SHOWN_RANKS - len(told)]])


def _hung(plan: Plan, events: Sequence[ev.Event], errors: Sequence[ev.ErrorEvent], outcome: Outcome) -> str:
    """What hangs, from the launcher that has seen it, and from the words of ranks that it does not watch.

    A rank without a word comes before one that waits: it is stopped, or gone where nobody was told.
    """
    watched = _ranks_of(plan, outcome.node) if outcome.hang else range(0)
    others = set(range(plan.topology.world_size)) - set(watched)
    placed = {event.rank: event for event in errors if event.place is not None and event.rank in others}
    silent = sorted(others - _spoke(events))
    places = dict.fromkeys(silent, "gave no word") | {rank: str(placed[rank].place) for rank in sorted(placed)}
    known = {event.rank for event in events}
    heard = {rank: _place(events, [rank]) if rank in known else "of which nothing is known" for rank in places}
    if outcome.hang is None and not placed:
        return _said(plan, next(event for event in errors if event.status == "hang"))
    if outcome.hang is None:
        why = next(event.reason for event in errors if event.status == "hang")
        return f"{hanging(plan, heard, places)}: {why}"
    culprits = {rank: place for rank, place in places.items() if not stacks.waits(place)}
    return f"{hanging(plan, heard, culprits)}; {outcome.hang}" if culprits else outcome.hang


def _said(plan: Plan, error: ev.ErrorEvent) -> str:
    return f"{_rank(plan, error.rank)} {_step(error)}: {error.reason}"


def _step(error: ev.ErrorEvent) -> str:
    return "before the first step" if error.step is None else f"in step {error.step}"


def _rank(plan: Plan, rank: int) -> str:
    node = "" if plan.topology.nodes == 1 else f"node {rank // plan.topology.chips_per_node}, "
    return f"{node}rank {rank}"


def _silent(plan: Plan, events: Sequence[ev.Event], outcome: Outcome) -> list[int]:
    """Ranks that ended without a word and are not known to have been ended by another one's failure.

    Aborting is what NCCL's watchdog does when another rank is gone.
    """
    spoke = _spoke(events)
    lost = [rank for rank, how in outcome.lost.items() if rank not in spoke and "SIGABRT" not in how]
    if lost or outcome.launched_nodes == plan.topology.nodes:
        return lost
    # Of other nodes nobody tells how their processes ended; one without any word is gone as a whole.
    nodes = [_ranks_of(plan, node) for node in range(plan.topology.nodes)]
    gone = [rank for node in nodes if spoke.isdisjoint(node) for rank in node]
    return gone or sorted(set(range(plan.topology.world_size)) - spoke)


def _spoke(events: Sequence[ev.Event]) -> set[int]:
    """Ranks that have said how they ended."""
    return {event.rank for event in events if isinstance(event, (ev.ErrorEvent, ev.FinishEvent))}


def _ranks_of(plan: Plan, node: int) -> range:
    per_node = plan.topology.chips_per_node
    return range(node * per_node, (node + 1) * per_node)


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
    if events and plan.topology.nodes > 1 and not any(event.rank in ranks for event in events):
        # Their events are on their own node.
        return "crashed", f"{_ranks(plan, ranks)} {how}; the others were heard of last {_place(events)}"
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
