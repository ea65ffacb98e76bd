"""Hooks of the launcher's side, asked in a process without torch."""

from __future__ import annotations

import contextlib
import itertools
import re
import sys
import time
from collections import Counter

from core import cases, plan
from core.cases import Config
from core.errors import UsageError
from core.plugins import Vendor
from core.testing.case import CASE
from core.testing.check import FailedError
from core.testing.small import POSITIONS, small_plan, small_request, tuned
from schemas.chip import ChipSpec
from schemas.units import Topology

PROBE_LIMIT_S = 15.0
"""A tool that a probe calls is given up after 10 s (``core.tools.TIMEOUT_S``)."""
RATIO_LIMIT = 2.1
"""Matrix units at most double their rate with each halving of the type; 2:4 sparsity would double it again."""
SPARSE = re.compile(r"spars|稀疏", re.IGNORECASE)
DENSE_AGAIN = re.compile(r"dense|halved|without|稠密|减半", re.IGNORECASE)


def chips_are_sourced(vendor: Vendor) -> str:
    """Names are distinct, and each number (or its absence) says where it comes from."""
    twice = [name for name, count in Counter(chip.name for chip in vendor.chips).items() if count > 1]
    if twice:
        raise FailedError(f"chip {twice[0]} is listed twice")
    for chip in vendor.chips:
        if not chip.memory_source.strip():
            raise FailedError(f"chip {chip.name}: memory_source is empty")
        for peak in chip.peaks:
            if not peak.source.strip():
                raise FailedError(f"chip {chip.name}: the {peak.precision} peak has no source")
    return f"{len(vendor.chips)} chips"


def peaks_are_dense(vendor: Vendor) -> str:
    """No source speaks of sparsity without undoing it, and no precision is more than twice the next wider one."""
    for chip in vendor.chips:
        for peak in chip.peaks:
            if peak.tflops and SPARSE.search(peak.source) and not DENSE_AGAIN.search(peak.source):
                raise FailedError(
                    f"chip {chip.name}: the source of the {peak.precision} peak speaks of sparsity "
                    f"({peak.source!r}); give the dense rate, and say so"
                )
        _require_ratios(chip)
    return f"{sum(peak.tflops is not None for chip in vendor.chips for peak in chip.peaks)} peaks"


def _require_ratios(chip: ChipSpec) -> None:
    for wide, narrow in (("tf32", "fp16"), ("tf32", "bf16"), ("fp16", "fp8"), ("bf16", "fp8")):
        slow, fast = chip.peak(wide).tflops, chip.peak(narrow).tflops  # type: ignore[arg-type]  # literals
        if slow and fast and fast > slow * RATIO_LIMIT:
            raise FailedError(
                f"chip {chip.name}: {narrow} {fast:g} is {fast / slow:.3g} times {wide} {slow:g}; "
                "dense rates at most double, so one of them is a sparse one"
            )


def probe_knows_its_chips(vendor: Vendor) -> str:
    """Asked twice, the same answer, in time, of chips that the plugin lists."""
    began = time.perf_counter()
    first = vendor.probe()
    took_s = time.perf_counter() - began
    if took_s > PROBE_LIMIT_S:
        raise FailedError(f"probe took {took_s:.1f} s; it is called before every run")
    if vendor.probe() != first:
        raise FailedError("probe gave another answer when it was asked again")
    known = {chip.name for chip in vendor.chips}
    for result in first:
        if result.chip is not None and result.chip not in known:
            raise FailedError(f"probe names chip {result.chip!r}, which `chips` does not list")
    return ", ".join(f"{r.count or 'any'} × {r.chip or r.device_name}" for r in first) or "none here"


def configs_can_be_planned(vendor: Vendor) -> str:
    """Every config that the plugin adds to an installed case is new there, and each of its runs can be planned."""
    planned = 0
    for _, _, loaded, _ in cases.installed():
        if loaded is None:
            continue
        taken = {config.value.name for config in loaded.configs if config.source != f"plugin {vendor.name}"}
        for value in vendor.hardware_configs(loaded.case):
            if value.name in taken:
                raise FailedError(f"case {loaded.case.name} has a config {value.name} of its own")
            for run in value.runs:
                request = plan.Request(loaded, Config(value, f"plugin {vendor.name}"), run, vendor)
                try:
                    plan.build(request)
                except UsageError as error:
                    what = f"{loaded.case.name} {value.name} {run.id}"
                    raise FailedError(f"{what} cannot be planned: {error.what}") from error
                planned += 1
    return f"{planned} runs"


def tuned_runs_can_be_planned(vendor: Vendor) -> str:
    """A tuned run on one and on four of each chip, of both kinds of positions; its steps compute what they did."""
    planned = 0
    for chip, ranks, position in itertools.product(vendor.chips, (1, 4), POSITIONS):
        settings = {"precision": "bf16", "model.position": position}
        request = small_request(vendor, chip.name, ranks, settings=settings)
        plain = plan.build(request)
        try:
            fast = plan.build(tuned(request))
        except UsageError as error:
            raise FailedError(f"a tuned run on {ranks} × {chip.name} cannot be planned: {error.what}") from error
        for what in ("tokens_per_step", "compute_precision"):
            _stays(what, getattr(plain, what), getattr(fast, what))
        _stays("optimizer_state", plain.hyper_parameters.optimizer_state, fast.hyper_parameters.optimizer_state)
        planned += 1
    return f"{planned} runs"


def _stays(what: str, plain: object, tuned: object) -> None:
    if plain != tuned:
        raise FailedError(f"tune makes {what} {tuned} of {plain}: that is other work, not faster work")


def chips_can_be_planned(vendor: Vendor) -> str:
    """A plan for each chip, whose variables are the same when it is made again."""
    names: set[str] = set()
    for chip in vendor.chips:
        first, second = (small_plan(vendor, chip.name, ranks=2).launch_env for _ in range(2))
        if first != second:
            changed = sorted(first.items() ^ second.items())[0][0]
            raise FailedError(f"launch_env gives another {changed} when it is asked again")
        names |= first.keys()
    return ", ".join(sorted(names)) or "no variables"


def no_torch_is_imported(vendor: Vendor) -> str:
    """Nothing that the checks before this one have called has loaded torch, by whatever way."""
    with contextlib.suppress(Exception):  # what is wrong with its answer is another check's business
        vendor.hardware_configs(CASE)
        vendor.tune(CASE, Topology(chip=vendor.chips[0].name, nodes=1, chips_per_node=1), {})
    if "torch" in sys.modules:
        raise FailedError("the plugin imports torch on the launcher's side; import it within the worker's hooks")
    return "chips, probe, hardware_configs, tune, launch_env"
