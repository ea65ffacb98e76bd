"""Conducts the checks of one vendor's plugin: what has to run where, and what follows from what."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.plugins import Vendor
from core.testing.catalog import CHECKS
from core.testing.check import Check, Place
from core.testing.processes import run_checks
from core.testing.run_checks import Runs
from core.testing.session import FACTS_FILE, Outcome, Session, attempt, blocker
from core.testing.small import small_plan, tuned_plan
from schemas.conformance import CheckResult, ConformanceReport, Verdict

if TYPE_CHECKING:
    from schemas.chip import ProbeResult
    from schemas.plan import Plan

RANKS = 2
"""Enough for every collective; where a machine holds one chip, runs take one rank."""
SOFTWARE = ("accelmark", "torch", "deepspeed", "megatron-core", "numpy", "safetensors", "sentencepiece")


class Conformance:
    """The checks of one vendor on this machine; each runs once, when its result is first asked for."""

    def __init__(self, vendor: Vendor, folder: Path, only: Sequence[str] = ()) -> None:
        """``folder`` keeps what the checks leave; ``only`` are ids of the checks wanted (their needs run, too)."""
        self.vendor, self.folder = vendor, folder
        self.wanted = _with_needs(only) if only else {check.id for check in CHECKS}
        self._results: dict[str, CheckResult] = {}
        self._started = time.time()
        self._here: ProbeResult | None = None
        self._runs: Runs | None = None

    def results(self) -> Iterator[CheckResult]:
        """All of them, in the catalog's order, as they come."""
        for check in CHECKS:
            yield self.result(check)

    def result(self, check: Check) -> CheckResult:
        """The check's result; all that share its process run with it."""
        if check.id not in self._results:
            together = [check] if check.place == "run" else [c for c in CHECKS if c.place == check.place]
            self._run(check.place, [c for c in together if c.id not in self._results])
        return self._results[check.id]

    def report(self) -> ConformanceReport:
        """All results, and what they were found on."""
        results = tuple(self.results())
        facts = self._facts()
        return ConformanceReport(
            vendor=self.vendor.name,
            distribution=self.vendor.distribution,
            chip=self._here.chip if self._here else None,
            ranks=self._runs.ranks if self._runs else None,
            device=facts.get("device"),
            emulated=facts.get("emulated", False),
            environment=_environment() | facts.get("environment", {}),
            started_unix_s=self._started,
            duration_s=time.time() - self._started,
            results=results,
        )

    def _facts(self) -> dict[str, Any]:
        """What workers have told of the device so far."""
        file = self.folder / FACTS_FILE
        facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        return facts

    def _run(self, place: Place, checks: Sequence[Check]) -> None:
        """Run what can be run of ``checks``, and say of the rest why not."""
        ready = [check for check in checks if self._is_ready(check)]
        if place != "launcher" and ready and (why := self._why_no_device(place)):
            for check in ready:
                self._end(check, "not run", why)
            ready = []
        outcomes = self._outcomes(place, ready) if ready else {}
        for check in ready:
            if check.id in outcomes:
                self._keep(check, outcomes[check.id])
        for check in ready:
            if check.id not in self._results:
                self._end(check, "not run", self._blocked(check) or "its process ended before it")

    def _is_ready(self, check: Check) -> bool:
        """Whether it is to run as far as can be known before its process starts; if not, its result says why."""
        if check.id not in self.wanted:
            self._end(check, "not run", "left out by --only")
        elif check.if_declared and not self.vendor.implements(check.hook):
            self._end(check, "not declared", f"the plugin leaves {check.hook} out")
        else:
            for need in CHECKS:
                if need.id in check.needs and need.place != check.place:
                    self.result(need)
            if why := self._blocked(check):
                self._end(check, "not run", why)
        return check.id not in self._results

    def _blocked(self, check: Check) -> str | None:
        verdicts: dict[str, Verdict] = {name: result.verdict for name, result in self._results.items()}
        need = blocker(check, verdicts)
        if need is None:
            return None
        result = self._results[need]
        # Of a chain, the first link is what a reader has to know.
        return f"needs {need}, which failed" if result.verdict == "failed" else result.reason

    def _why_no_device(self, place: Place) -> str | None:
        """Why the checks of ``place`` cannot run on this machine."""
        if self._runs is None:
            known = {chip.name for chip in self.vendor.chips}
            self._here = next((found for found in self.vendor.probe() if found.chip in known), None)
            if self._here is None or self._here.chip is None:
                return f"this machine holds no chip of {self.vendor.name}"
            ranks = RANKS if self._here.count is None else min(RANKS, self._here.count)
            self._runs = Runs(self.vendor, self._here.chip, ranks, self.folder)
        if place == "ranks" and self._runs.ranks < RANKS:
            return f"needs {RANKS} chips, this machine holds {self._runs.ranks}"
        if place == "tuned" and self._facts().get("emulated"):
            return "an emulated device says nothing of compiled runs"
        return None

    def _outcomes(self, place: Place, checks: Sequence[Check]) -> dict[str, Outcome]:
        vendor = self.vendor
        if place == "launcher":
            return run_checks(_session(vendor, checks, None, 1), self.folder)
        assert self._runs is not None
        if place == "run":
            return {check.id: attempt(check, self._runs) for check in checks}
        ranks = RANKS if place == "ranks" else 1
        if place == "tuned":
            plan = tuned_plan(vendor, self._runs.chip)
            if not plan.hyper_parameters.compile:
                reason = f"tuned runs on {plan.chip.name} do not compile"
                return {c.id: Outcome(check=c.id, verdict="not declared", reason=reason) for c in checks}
        else:
            precision = "fp32" if place == "ranks" else place
            plan = small_plan(vendor, self._runs.chip, ranks, settings={"precision": precision})
        return run_checks(_session(vendor, checks, plan, ranks), self.folder)

    def _keep(self, check: Check, outcome: Outcome) -> None:
        assert outcome.verdict is not None
        detail = outcome.detail if outcome.verdict == "passed" else None
        self._end(check, outcome.verdict, outcome.reason, detail, outcome.duration_s)

    def _end(
        self,
        check: Check,
        verdict: Verdict,
        reason: str | None,
        detail: str | None = None,
        duration_s: float | None = None,
    ) -> None:
        self._results[check.id] = CheckResult(
            id=check.id,
            hook=check.hook,
            proves=check.proves,
            verdict=verdict,
            reason=reason,
            detail=detail,
            duration_s=duration_s,
        )


def _session(vendor: Vendor, checks: Sequence[Check], plan: Plan | None, ranks: int) -> Session:
    names = tuple(check.id for check in checks)
    return Session(vendor=vendor.name, distribution=vendor.distribution, checks=names, plan=plan, ranks=ranks)


def _with_needs(only: Sequence[str]) -> set[str]:
    by_id = {check.id: check for check in CHECKS}
    wanted, open_ids = set[str](), list(only)
    while open_ids:
        check_id = open_ids.pop()
        wanted.add(check_id)
        open_ids += [need for need in by_id[check_id].needs if need not in wanted]
    return wanted


def _environment() -> dict[str, str]:
    """Versions that matter for a reader of the report."""
    facts = {"python": platform.python_version(), "os": f"{platform.system()} {platform.machine()}"}
    for name in SOFTWARE:
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return facts
