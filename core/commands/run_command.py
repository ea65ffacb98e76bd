"""``run``: plan, launch, record; or with ``--dry-run`` only plan."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from core import cluster, resume, runner, torchrun
from core.cli import new_console, print_json
from core.errors import UsageError
from core.selection import Selection, parse_sets
from core.sinks import SINKS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``run``."""
    parser.add_argument(
        "case", metavar="CASE", nargs="?", help="a case folder (cases/llama2_7b) or an installed case's name"
    )
    parser.add_argument("--config", metavar="TOPOLOGY", help="hardware config, e.g. H800x2x8 (default: what fits)")
    parser.add_argument("--run", metavar="ID", help="one run of the config (default: all of them)")
    parser.add_argument(
        "--vendor", metavar="NAME[@DIST]", help="vendor plugin, and its distribution if two have it"
    )
    parser.add_argument(
        "--engine", metavar="NAME", help="another engine than the config's: torch, deepspeed, megatron"
    )
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="sets",
        help="change a setting of those that --dry-run lists: to say where data and weights lie or how long to "
        "measure, or to try things out (the record is then not official); repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="DIR", help="where run folders go (default: runs)"
    )
    parser.add_argument(
        "--resume", type=Path, metavar="RUN_DIR",
        help="in the place of CASE: go on with the runs of that run's config that lack an ok record beside it",
    )  # fmt: skip
    parser.add_argument(
        "--sink", choices=tuple(SINKS), action="append", default=[], dest="sinks",
        help="tell this tracker, too; it writes into the run's folder; repeatable",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the plan and the launch line, start nothing")
    parser.add_argument("--json", action="store_true", help="records (or plans) as a JSON array on stdout")
    parser.add_argument("--quiet", action="store_true", help="print the result and errors only")


def execute(arguments: argparse.Namespace, console: Console) -> int:
    """Run, or plan; the exit code is the worst of the runs'."""
    console.quiet = arguments.quiet
    if arguments.resume is not None:
        options = _resumed(arguments)
    elif arguments.case is None:
        raise UsageError("no case is given", "name one: run cases/llama2_7b, or --resume RUN_DIR")
    else:
        options = runner.Options(_selection(arguments), arguments.out)
    options = replace(options, sinks=tuple(dict.fromkeys(arguments.sinks)))
    if arguments.dry_run:
        return _show_plans(options, console, as_json=arguments.json)
    cluster.adopt_slurm(os.environ)
    if torchrun.is_worker():
        records, code = torchrun.run(options, console)
    elif node := cluster.pod(os.environ):
        records, code = runner.run_pod(options, node, console)
    else:
        records = runner.run(options, console)
        code = runner.exit_code(records)
    if arguments.json and (records or not torchrun.is_worker()):
        print_json([record.model_dump(mode="json") for record in records])
    elif records:
        from core.commands.tables import records_table

        new_console().print(records_table(records))
    return code


def _resumed(arguments: argparse.Namespace) -> runner.Options:
    options = {"case": "CASE", "config": "--config", "run": "--run", "vendor": "--vendor", "engine": "--engine",
               "sets": "--set"}  # fmt: skip
    given = [shown for name, shown in options.items() if getattr(arguments, name)]
    if given:
        raise UsageError(
            f"--resume takes what is run from the folder, not from {', '.join(given)}", "leave the rest out"
        )
    if cluster.pod(os.environ) is not None:
        raise UsageError(
            "--resume does not work in the pods of a PyTorchJob: only the first one's launcher knows what is done",
            "start the runs that are missing with --run",
        )
    return resume.options(arguments.resume)


def _selection(arguments: argparse.Namespace) -> Selection:
    return Selection(
        case=arguments.case,
        config=arguments.config,
        run=arguments.run,
        vendor=arguments.vendor,
        engine=arguments.engine,
        sets=parse_sets(arguments.sets),
    )


def _show_plans(options: runner.Options, console: Console, *, as_json: bool) -> int:
    plans = runner.plans(options, console)
    if as_json:
        print_json([plan.model_dump(mode="json") for plan in plans])
        return 0
    from core.commands.tables import bubble_line, placement_table, plan_table
    from core.launch import shell_line

    stdout = new_console()
    for plan in plans:
        stdout.print(plan_table(plan))
        if plan.placement is not None:
            stdout.print(placement_table(plan.placement))
            stdout.print(bubble_line(plan.placement), soft_wrap=True)
        stdout.print("launch:", shell_line(plan), soft_wrap=True)
    return 0
