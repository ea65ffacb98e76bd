"""A run's plan, folder and record, and sinks that keep what they are told."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from core import sinks
from core.sinks import SinkSpec
from core.sinks.feed import Feed
from schemas.plan import Plan
from schemas.record import Loss, Mfu, Record, Throughput
from tests.core.progress import recorded
from tests.core.sinks import fakes

RUN = "toy-X1x1x2-base-20260101-000000"


@pytest.fixture
def plan(make_plan: Callable[..., Plan]) -> Plan:
    return make_plan(topology="X1x1x2", run={"fix_hp": {"measure.warmup_steps": 2}})


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / RUN
    folder.mkdir()
    return folder


@pytest.fixture
def make_record(plan: Plan) -> Callable[..., Record]:
    def make(status: str = "ok", reason: str | None = None) -> Record:
        return Record(
            id=RUN, status=status, reason=reason, source="measured", official=True, scaled_down=False,
            emulated=False, weights="random", data="generated", case=plan.case, vendor=plan.vendor, chip="X1",
            topology=plan.topology, engine=plan.engine, run=plan.run, precision="bf16", parallel=plan.parallel,
            throughput=Throughput(tokens_per_second_per_chip=8191.5), mfu=Mfu(flagperf=0.348), loss=Loss(last=3.0),
            started_unix_s=1e9, duration_s=40.0,
        )  # type: ignore[arg-type]  # fmt: skip

    return make


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200, quiet=True)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, fakes.Fake]:
    """Sinks that are made up, by name: those that fail do so where their name says."""
    packages = ("json",)
    made = {name: SinkSpec(f"tests.core.sinks.fakes:{name}", packages) for name in fakes.NAMES}
    monkeypatch.setattr(sinks, "SINKS", made)
    fakes.OPENED.clear()
    return fakes.OPENED


@pytest.fixture
def feed_run(
    plan: Plan, run_dir: Path, console: Console, make_record: Callable[..., Record]
) -> Callable[..., str]:
    """Tell the named sinks of a whole run of two ranks; what the console got."""

    def feed(*names: str, status: str = "ok", reason: str | None = None) -> str:
        feed = Feed(names, plan, run_dir, console)
        for _, event in recorded.run(2):
            feed.put(event)
        feed.finish(make_record(status, reason))
        return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]

    return feed
