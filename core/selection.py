"""Which runs a command line means on this machine."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from core import plugins
from core.cases import Config, LoadedCase, resolve
from core.engines.catalog import EngineSpec
from core.errors import DeviceError, UsageError
from core.plan import Request
from core.plugins import Present, Vendor
from schemas.hyperparameters import OverrideValue
from schemas.plan import Plan

EXTRA_PACKAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "conversations": ("multimodal", ("PIL",)),
    "MMMU": ("multimodal", ("PIL", "pyarrow")),
    "MMLU": ("evaluate", ("lm_eval",)),
    "lora": ("lora", ("peft",)),
    "fp8": ("fp8", ("torchao",)),
}
"""Format of data, benchmark, section or precision of the plan -> the extra that brings it, and its packages."""
CAN_BE_NONE = (
    "data.path",
    "evaluation.path",
    "measure.epochs",
    "pipeline_layers",
    "schedule_steps",
    "tokenizer.path",
    "weights",
)


@dataclass(frozen=True)
class Selection:
    """The options that choose and change runs."""

    case: str
    config: str | None = None
    run: str | None = None
    vendor: str | None = None
    engine: str | None = None
    sets: dict[str, OverrideValue] = field(default_factory=dict)


def parse_sets(assignments: list[str]) -> dict[str, OverrideValue]:
    """``--set key=value`` options; values are typed where they are applied."""
    sets: dict[str, OverrideValue] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not (key and equals):
            raise UsageError(f"--set {assignment!r} is not key=value", "write it like --set local_batch_size=2")
        # `none` is a value of its own elsewhere: offload=none.
        sets[key] = None if key in CAN_BE_NONE and value.lower() in ("none", "null") else value
    return sets


def choose(
    selection: Selection, warn: Callable[[str], None], world: tuple[int, int] | None = None
) -> list[Request]:
    """The runs to plan: of the named config, else of the one that fits this machine, else of the CPU default.

    ``warn`` is told of vendors that could not give their configs or look for their chips, which may be here.
    """
    loaded = resolve(selection.case)
    for name, reason in loaded.unasked.items():
        warn(f"vendor {name} gave no configs: {reason}")
    config, vendor = _config_and_vendor(loaded, selection, warn)
    runs = [config.run(selection.run)] if selection.run else list(config.value.runs)
    return [Request(loaded, config, run, vendor, selection.engine, selection.sets, world) for run in runs]


def _config_and_vendor(
    loaded: LoadedCase, selection: Selection, warn: Callable[[str], None]
) -> tuple[Config, Vendor]:
    if selection.config:
        config = loaded.config(selection.config)
        wanted = selection.vendor or config.value.vendor
        if wanted.partition("@")[0] != config.value.vendor:
            raise UsageError(
                f"config {selection.config} is of vendor {config.value.vendor!r}, not {wanted!r}",
                f"leave out --vendor, or choose a config of {wanted!r}",
            )
        return config, plugins.select(wanted)
    if selection.vendor:
        return _for_vendor(loaded, plugins.select(selection.vendor))
    present, failed = plugins.probe_all()
    for name, reason in failed.items():
        warn(f"vendor {name} could not look for its chips: {reason}")
    for found in sorted(present, key=_is_reference):  # the CPU only where nothing else has a config
        if fitting := _fitting(loaded, found):
            return fitting, found.vendor
    raise UsageError(f"case {loaded.case.name!r} has no config for this machine", f"name one: {_names(loaded)}")


def _for_vendor(loaded: LoadedCase, vendor: Vendor) -> tuple[Config, Vendor]:
    for result in vendor.probe():
        if fitting := _fitting(loaded, Present(vendor, result)):
            return fitting, vendor
    raise DeviceError(
        f"this machine holds no {vendor.name} chip that case {loaded.case.name!r} has a config for",
        f"name a config with --config: {_names(loaded)}",
    )


def _names(loaded: LoadedCase) -> str:
    return ", ".join(config.value.name for config in loaded.configs)


def _is_reference(present: Present) -> bool:
    # A probe may name a chip that its plugin does not list, which must not keep others from being found.
    return any(chip.reference for chip in present.vendor.chips if chip.name == present.result.chip)


def _fitting(loaded: LoadedCase, present: Present) -> Config | None:
    """The largest one-node config of this vendor's chip that the machine can hold."""
    chip, count = present.result.chip, present.result.count
    fitting = [
        config
        for config in loaded.configs
        if config.value.vendor == present.vendor.name
        and config.value.topology.chip == chip
        and config.value.topology.nodes == 1
        and (count is None or config.value.topology.chips_per_node <= count)
    ]
    return max(fitting, key=lambda config: config.value.topology.chips_per_node, default=None)


def require_packages(engine: EngineSpec) -> None:
    """DeviceError unless what the engine imports is installed."""
    missing = missing_packages(engine)
    if missing:
        raise DeviceError(
            f"engine {engine.name} needs {' and '.join(missing)}, not installed for {sys.executable}",
            f"pip install 'accelmark[{engine.extra}]', or take another engine with --engine",
        )


def require_extras(plan: Plan) -> None:
    """DeviceError unless what the plan's data, adapters, precision and evaluation import is installed."""
    wanted: list[str] = [plan.data.format, *([] if plan.evaluation is None else [plan.evaluation.benchmark])]
    wanted += [plan.hyper_parameters.precision, *([] if plan.lora is None else ["lora"])]
    needed = [EXTRA_PACKAGES[what] for what in wanted if what in EXTRA_PACKAGES]
    missing = {name: extra for extra, names in needed for name in names if not _is_there(name)}
    if missing:
        raise DeviceError(
            f"run {plan.run} of {plan.case} needs {' and '.join(missing)}, not installed for {sys.executable}",
            f"pip install 'accelmark[{','.join(sorted(set(missing.values())))}]'",
        )


def require_paths(plan: Plan) -> None:
    """UsageError unless all that the plan says is to be read lies on this machine."""
    paths = {
        "data.path": plan.data.path,
        "tokenizer.path": plan.tokenizer.path,
        "evaluation.path": None if plan.evaluation is None else plan.evaluation.path,
        "weights": plan.weights,
        "checkpoint.load": plan.checkpoint.load,
    }
    for key, path in paths.items():
        if path is not None and not Path(path).expanduser().exists():
            raise UsageError(
                f"{plan.origins[key]}: {key}={path} is not on this machine", f"correct {key}, or leave it out"
            )


def missing_packages(engine: EngineSpec) -> list[str]:
    """What ``engine`` imports and is not installed; nothing is imported but packages around a module."""
    return [name for name in engine.packages if not _is_there(name)]


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is missing, too
        return False


def require_chips(request: Request) -> None:
    """DeviceError unless this machine holds the chips that the config needs on one node."""
    topology = request.config.value.topology
    held = {result.chip: result.count for result in request.vendor.probe()}
    if topology.chip in held:
        count = held[topology.chip]
        if count is None or count >= topology.chips_per_node:
            return
    found = ", ".join(f"{count or 'any'} × {chip}" for chip, count in held.items()) or "none of this vendor's"
    raise DeviceError(
        f"config {topology} needs {topology.chips_per_node} × {topology.chip}, this machine holds {found}",
        "run it on such a machine, or see the plan with --dry-run",
    )
