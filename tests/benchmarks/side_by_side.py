"""Measures ours and what a user would run instead on the same GPUs in one session, taking turns.

``python -m tests.benchmarks.side_by_side llama2_7b --gpus 1`` plans our run (config H200x1x1, run tuned), gives
every contender the same work, starts each in processes of its own, one after the other and over again, and keeps
what was measured after each: a JSON file and a table. Of 7B on one H200 a window takes about 75 s with its start.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from core import plan as planning
from core import process
from core.errors import AccelMarkError, UsageError
from core.launch import ROOT
from core.selection import Selection, choose, parse_sets
from schemas.plan import Plan
from tests.benchmarks.lineup import MODULES, Contender, lineup
from tests.benchmarks.tables import side_by_side
from tests.benchmarks.work import Comparison, Measured, Result, Work

END_S = 10.0
START_S = 45
"""About how long a contender takes until its first step: for the estimate that is printed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when ours and at least one other were measured."""
    given = _options().parse_args(arguments)
    try:
        plan = _plan(given)
        work = Work.of(plan)
        chosen = _chosen(lineup(work), given.contenders)
        found = _begun(plan, work, chosen, given, _command(sys.argv[1:] if arguments is None else arguments))
    except AccelMarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    given.out.mkdir(parents=True, exist_ok=True)
    each_s = START_S + work.min_window_s
    _say(
        f"{len(chosen)} contenders x {given.alternations}, about {len(chosen) * given.alternations * each_s:.0f} s"
    )
    found = _take_turns(found, chosen, plan, given)
    print(side_by_side(found))
    measured = {contender.name for contender in found.contenders if contender.rates}
    return 0 if "ours" in measured and len(measured) > 1 else 1


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("case")
    options.add_argument("--gpus", type=int, default=1, metavar="N", help="config H200x1xN")
    options.add_argument("--config", help="our config, where it is another one")
    options.add_argument("--run", default="tuned", help="our run; it decides the work")
    options.add_argument(
        "--set", dest="sets", action="append", default=[], metavar="KEY=VALUE", help="as core.run's"
    )
    options.add_argument("--alternations", type=int, default=2, metavar="N")
    options.add_argument("--steps", type=int, default=20, metavar="N", help="at least so many in a window")
    options.add_argument(
        "--window-s", type=float, default=30.0, metavar="S", help="and at least so long, on a GPU"
    )
    options.add_argument("--timeout-s", type=float, default=420.0, metavar="S", help="of one contender's turn")
    options.add_argument("--contenders", metavar="A,B", help="only these, of those that the report names")
    options.add_argument(
        "--add", action="store_true", help="to what an earlier command of this session left in --out"
    )
    options.add_argument("--out", type=Path, default=Path("runs") / "side_by_side", metavar="DIR")
    return options


def _plan(given: argparse.Namespace) -> Plan:
    window = {"measure.steps": given.steps, "measure.min_window_s": given.window_s}
    given.config = given.config or f"H200x1x{given.gpus}"
    selection = Selection(given.case, given.config, given.run, sets=parse_sets(given.sets) | window)
    (request,) = choose(selection, _say)
    return planning.build(request)


def _begun(
    plan: Plan, work: Work, chosen: Sequence[Contender], given: argparse.Namespace, command: str
) -> Comparison:
    """What turns are added to: nothing, or with ``--add`` what an earlier command of the session has kept."""
    topology = plan.topology.render()
    mine = tuple(Measured(name=c.name, what=c.what) for c in chosen)
    new = Comparison(command=command, started_unix_s=time.time(), topology=topology, work=work, contenders=mine)
    file = _stem(given.out, new).with_suffix(".json")
    if not given.add:
        return new
    if not file.exists():
        raise UsageError(f"--add: there is no {file}", "leave --add out of a session's first command")
    earlier = Comparison.model_validate_json(file.read_bytes())
    if earlier.work != work:
        raise UsageError(f"--add: {file} is of other work", "give the same options, or another --out")
    known = {contender.name for contender in earlier.contenders}
    contenders = (*earlier.contenders, *(contender for contender in mine if contender.name not in known))
    return earlier.model_copy(update={"command": f"{earlier.command}; {command}", "contenders": contenders})


def _stem(out: Path, found: Comparison) -> Path:
    return out / f"{found.work.case}-{found.topology}"


def _chosen(everybody: Sequence[Contender], names: str | None) -> list[Contender]:
    if names is None:
        return list(everybody)
    known = {contender.name: contender for contender in everybody}
    unknown = [name for name in names.split(",") if name not in known]
    if unknown:
        raise UsageError(f"no contender is called {', '.join(unknown)}", f"known: {', '.join(known)}")
    return [known[name] for name in names.split(",")]


def _take_turns(
    found: Comparison, chosen: Sequence[Contender], plan: Plan, given: argparse.Namespace
) -> Comparison:
    """Every contender once, then over again; what is known by then is kept after each."""
    sizes = {contender.name: list(contender.micro_batches(found.work)) for contender in chosen}
    stem = _stem(given.out, found)
    for turn in range(given.alternations):
        for contender in chosen:
            command, result = _until_it_fits(contender, found.work, plan, given, sizes[contender.name])
            rate = result.tokens_per_second_per_gpu
            told = f"{result.status}: {result.reason}" if rate is None else f"{rate:,.0f} token/p/s"
            _say(f"turn {turn + 1}, {contender.name} (LBS {result.micro_batch}): {told}")
            found = _with(found, contender.name, command, result)
            stem.with_suffix(".json").write_text(found.model_dump_json(indent=2) + "\n")
            stem.with_suffix(".md").write_text(side_by_side(found) + "\n")
    return found


def _with(found: Comparison, name: str, command: str, result: Result) -> Comparison:
    contenders = tuple(
        c.model_copy(update={"command": command, "results": (*c.results, result)}) if c.name == name else c
        for c in found.contenders
    )
    return found.model_copy(update={"contenders": contenders})


def _until_it_fits(
    contender: Contender, work: Work, plan: Plan, given: argparse.Namespace, sizes: list[int]
) -> tuple[str, Result]:
    """One window, with the largest micro-batch that fits; those that do not are left out from then on."""
    if (why := contender.missing()) is not None:
        return "", Result(status="not run", reason=why, micro_batch=sizes[0])
    while True:
        command, result = _measure(contender, work, plan, given, sizes[0])
        if result.status != "oom" or len(sizes) == 1 or contender.module == "ours":
            return command, result
        _say(f"{contender.name}: LBS {sizes.pop(0)} does not fit, trying {sizes[0]}")


def _measure(
    contender: Contender, work: Work, plan: Plan, given: argparse.Namespace, micro_batch: int
) -> tuple[str, Result]:
    with tempfile.TemporaryDirectory(prefix="side_by_side-") as folder:
        work_file, result_file = Path(folder) / "work.json", Path(folder) / "result.json"
        work_file.write_text(work.model_dump_json())
        own = ["--work", str(work_file), "--result", str(result_file), "--micro-batch", str(micro_batch)]
        command = _words(contender, work, plan, given, own)
        log = given.out / f"{contender.name}.log"
        in_time = _run(command, _environment(plan), log, given.timeout_s)
        told = _command([word for word in command[1:] if word not in own[:4]], program="python")
        if not result_file.exists():
            reason = f"no result; see {log}" if in_time else f"no result within {given.timeout_s:.0f} s"
            return told, Result(status="failed", reason=reason, micro_batch=micro_batch)
        return told, Result.model_validate_json(result_file.read_text())


def _run(command: list[str], environment: dict[str, str], log: Path, timeout_s: float) -> bool:
    """Run to the end; False where that took too long. Nothing that it started is alive afterwards."""
    with log.open("ab") as file:
        started = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        try:
            started.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        finally:  # torch's agent, killed, would leave its workers, which have sessions of their own
            family = process.descendants(started.pid)
            started.kill()
            process.end_all(family, END_S)
            started.wait()
    return True


def _words(contender: Contender, work: Work, plan: Plan, given: argparse.Namespace, own: list[str]) -> list[str]:
    module = f"{MODULES}.{contender.module}"
    if contender.module == "ours":
        words = [plan.case_location, "--config", given.config, "--run", plan.run]
        window = [f"measure.steps={given.steps}", f"measure.min_window_s={given.window_s}"]
        words += [word for one in (*given.sets, *window) for word in ("--set", one)]
        words += ["--out", str(given.out / "runs")]
        return [sys.executable, "-m", module, *own, "--", *words]
    agent = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    return [
        sys.executable,
        *agent,
        "--nproc-per-node",
        str(work.gpus),
        "-m",
        "--",
        module,
        *own,
        *contender.options,
    ]


def _environment(plan: Plan) -> dict[str, str]:
    """What the vendor's plugin sets for our workers (allocator, collectives, threads), for all alike."""
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
    return {**plan.launch_env, **os.environ, "PYTHONPATH": path}


def _command(words: Sequence[str], program: str = "python -m tests.benchmarks.side_by_side") -> str:
    return f"{program} {shlex.join(words)}"


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
