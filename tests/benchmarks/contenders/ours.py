"""Ours: ``python -m core.run``, exactly as a user calls it; its record becomes the result.

Beside the step it does what the others leave out: it reads data, logs every step and samples telemetry.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from schemas.record import Record
from tests.benchmarks.work import Result, Work


def main() -> int:
    """Run the words behind ``--`` as options of ``core.run``; 0 when the window was measured."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--result", type=Path, required=True)
    options.add_argument("--micro-batch", type=int, required=True)
    options.add_argument("words", nargs="+")
    given = options.parse_args()
    work = Work.model_validate_json(given.work.read_text())
    command = [sys.executable, "-m", "core.run", *given.words, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    result = _result(done.stdout, done.returncode, work, given.micro_batch)
    given.result.write_text(result.model_dump_json())
    return 0 if result.status == "ok" else 1


def _result(printed: str, code: int, work: Work, micro_batch: int) -> Result:
    if not printed.strip():
        return Result(status="failed", reason=f"core.run ended with {code}", micro_batch=micro_batch)
    (one,) = json.loads(printed)
    return from_record(Record.model_validate(one), work)


def from_record(record: Record, work: Work) -> Result:
    """What a comparison needs of our record; ``failed`` where it is of other work."""
    assert record.plan is not None
    micro_batch, measured = record.plan.hyper_parameters.local_batch_size, record.throughput
    if record.status != "ok" or measured is None:
        status = "oom" if record.status == "oom" else "failed"
        return Result(status=status, reason=record.reason, micro_batch=micro_batch)
    if (found := Work.of(record.plan)) != work:
        return Result(status="failed", reason=f"other work: {found}", micro_batch=micro_batch)
    return Result(
        status="ok",
        micro_batch=micro_batch,
        tokens_per_second_per_gpu=measured.tokens_per_second_per_chip,
        steps=measured.measured_steps,
        window_s=measured.window_s,
        peak_memory_gib=record.memory.peak_reserved_gib,
        first_loss=record.loss.curve[record.plan.measure.warmup_steps],
        last_loss=record.loss.last,
        versions={"python": record.environment["python"], "torch": record.environment["torch"]},
    )


if __name__ == "__main__":
    sys.exit(main())
