"""The path of a run, from options to records: select, plan, launch, watch, record, report."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from core import plan as planning
from core import process, selection, sinks
from core.checkpoint import folder as checkpoint
from core.cluster import Node
from core.console import complain
from core.engines.catalog import engine_spec
from core.errors import DeviceError, UsageError
from core.folders import new_folder
from core.launch import pod_command, shell_line
from core.launcher import launch_run
from core.plan import Request
from core.record import build_record, write_record
from core.selection import Selection
from core.sinks.feed import Feed
from core.worker import PLAN_FILE
from schemas.plan import Plan
from schemas.record import Record
from schemas.report import Language

EXIT_OK, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 130


@dataclass(frozen=True)
class Options:
    """What ``run`` is asked to do."""

    selection: Selection
    out: Path = Path("runs")
    done: tuple[Record, ...] = ()
    """Records of earlier runs; a run with the plan of one of them is not run again."""
    sinks: tuple[str, ...] = ()
    """Trackers that are told of each run, too: names of ``core.sinks.SINKS``."""


def plans(options: Options, console: Console, world: tuple[int, int] | None = None) -> list[Plan]:
    """The plans of every run that the options select."""
    return [planning.build(request) for request in _choose(options, console, world)]


def run(options: Options, console: Console) -> list[Record]:
    """Plan all runs, then launch one after the other; a failing one does not keep the next from running.

    An interrupted run ends the series. Raises before anything starts when a plan or the machine cannot be.
    """
    sinks.require(options.sinks)
    requests = _choose(options, console)
    planned = [planning.build(request) for request in requests]
    for request, plan in zip(requests, planned, strict=True):
        if plan.topology.nodes > 1:
            raise UsageError(
                f"config {plan.topology} spans {plan.topology.nodes} nodes",
                f"start on every node: {shell_line(plan)}",
            )
        selection.require_chips(request)
    if options.selection.run is None:
        planned = _with_their_extras(planned, console)
    for plan in planned:
        _require_software(plan)
        if plan.checkpoint.save is not None:
            checkpoint.require_new(Path(plan.checkpoint.save).expanduser())
    records: list[Record] = []
    begun_unix_s = process.started_unix_s()
    for plan in planned:
        before = done_before(plan, options, console)
        records.append(before or _run_one(plan, options, console, begun_unix_s))
        begun_unix_s = time.time()
        if records[-1].status == "interrupted":
            break
    return records


def _with_their_extras(planned: Sequence[Plan], console: Console) -> list[Plan]:
    """The runs of a series that have all they import, with a warning for each of the others.

    Where that is none, all: what they lack is told then.
    """
    complete = []
    for plan in planned:
        try:
            selection.require_extras(plan)
            complete.append(plan)
        except DeviceError as error:
            console.print(f"warning: left out: {error.what}; {error.fix}", soft_wrap=True)
    return complete or list(planned)


def _choose(options: Options, console: Console, world: tuple[int, int] | None = None) -> list[Request]:
    return selection.choose(options.selection, lambda message: console.print(f"warning: {message}"), world)


def _require_software(plan: Plan) -> None:
    """DeviceError or UsageError unless this machine has the packages and files of the plan."""
    selection.require_packages(engine_spec(plan.engine))
    selection.require_extras(plan)
    selection.require_paths(plan)


def done_before(plan: Plan, options: Options, console: Console) -> Record | None:
    """The record of an earlier run with this plan, however that was started; None while it is to be done."""
    for record in options.done:
        if record.plan and record.plan.model_copy(update={"launch": plan.launch}) == plan:
            console.print(f"done before: {record.id}", soft_wrap=True)
            return record
    return None


def _run_one(plan: Plan, options: Options, console: Console, begun_unix_s: float) -> Record:
    run_dir = prepare_run_dir(plan, options.out)
    console.print(f"run folder {run_dir}", soft_wrap=True)
    feed = Feed(options.sinks, plan, run_dir, console)
    launch_run(plan, run_dir, command_line(), console, listener=feed.put, begun_unix_s=begun_unix_s)
    record = finish(run_dir, console)
    feed.finish(record)
    return record


def prepare_run_dir(plan: Plan, out: Path) -> Path:
    """A new folder for one run, named after what and when, holding the plan."""
    folder = new_folder(out, f"{plan.case}-{plan.topology}-{plan.run}")
    try:
        _write_plan(plan, folder)
    except OSError as error:
        raise UsageError(
            f"cannot write the plan into {folder}: {error.strerror}",
            "make room there, or name another folder with --out",
        ) from error
    return folder


def join_run_dir(plan: Plan, folder: Path) -> None:
    """Make the run's folder on a node that does not see the one that was prepared."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / PLAN_FILE).exists():
        _write_plan(plan, folder)


def _write_plan(plan: Plan, folder: Path) -> None:
    (folder / PLAN_FILE).write_text(plan.model_dump_json(indent=2) + "\n", encoding="utf-8")


def run_pod(options: Options, node: Node, console: Console) -> tuple[list[Record], int]:
    """One node's part of every selected run: its agent and workers. The records (of node 0) and the exit code."""
    sinks.require(options.sinks)
    requests = [_on_nodes(request, node) for request in _choose(options, console)]
    planned = [planning.build(request) for request in requests]
    for request, plan in zip(requests, planned, strict=True):
        selection.require_chips(request)
        _require_software(plan)
    records: list[Record] = []
    begun_unix_s = process.started_unix_s()
    for number, plan in enumerate(planned):
        # A port of its own for each run: another node may be quicker to begin the next one.
        own = plan.model_copy(update={"launch": pod_command(plan.topology, node, node.port + number)})
        run_dir = prepare_run_dir(own, options.out)
        console.print(f"node {node.rank} of {node.count}: run folder {run_dir}", soft_wrap=True)
        feed = Feed(options.sinks if node.rank == 0 else (), own, run_dir, console)
        outcome = launch_run(own, run_dir, command_line(), console, node.rank, feed.put, begun_unix_s)
        begun_unix_s = time.time()
        if node.rank == 0:
            records.append(finish(run_dir, console))
            feed.finish(records[-1])
        if outcome.interrupted:
            return records, EXIT_INTERRUPTED
        if outcome.exit_code != 0:
            return records, EXIT_FAILED
    return records, exit_code(records) if node.rank == 0 else EXIT_OK


def _on_nodes(request: Request, node: Node) -> Request:
    return replace(request, world=(node.count, request.config.value.topology.chips_per_node))


def finish(run_dir: Path, console: Console, language: Language = "zh") -> Record:
    """Record and report of the run in ``run_dir``, whatever state it was left in."""
    from core.report.run_report import write_run_report

    try:
        record = write_record(run_dir)
        write_run_report(run_dir, record, language)
    except OSError as error:
        record = build_record(run_dir)
        complain(
            console,
            f"the record cannot be kept: {error.strerror}; make room and run python -m core report {run_dir}",
        )
    if record.status == "ok":
        console.print(f"ok: {record.id} (report: {run_dir}/report.md)", soft_wrap=True)
    else:
        complain(console, f"{record.status}: {record.reason} (logs: {run_dir}/logs)")
    return record


def exit_code(records: Sequence[Record]) -> int:
    """What the process ends with."""
    statuses = {record.status for record in records}
    if "interrupted" in statuses:
        return EXIT_INTERRUPTED
    return EXIT_OK if statuses == {"ok"} else EXIT_FAILED


def command_line() -> str:
    """The command as it was given, for the record; the interpreter by name, so that no local path is kept."""
    program = Path(sys.argv[0])
    names = {"run.py": "python -m core.run", "__main__.py": "python -m core"}
    return " ".join([names.get(program.name, program.name), *map(shlex.quote, sys.argv[1:])])
