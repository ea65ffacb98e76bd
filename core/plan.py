"""From layers of settings to one frozen plan, each value with the layer it came from.

Layers, weakest first: the case, the hardware config, the run's ``fix_hp``, ``--set``. What follows from them
(DP, GBS, DeepSpeed's JSON, the launch line) is derived here and written nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from core import launch, layout, metrics, tuning
from core.cases import Config, LoadedCase
from core.engines.catalog import EngineSpec, engine_spec
from core.engines.deepspeed_config import deepspeed_config
from core.engines.megatron.config import megatron_config
from core.errors import UsageError
from core.plan_checks import nearest, refusals
from core.plugins import Vendor
from core.proposal import Proposal
from core.settings import Layers, Settings, plain
from schemas.case import Run
from schemas.chip import ChipSpec
from schemas.hyperparameters import HyperParameters, Measure, OverrideValue
from schemas.model import DecoderSpec
from schemas.plan import Plan
from schemas.units import Parallel, Topology

TIMEOUTS = ("measure.start_timeout_s", "measure.setup_timeout_s", "measure.timeout_s")
INCIDENTAL = frozenset(
    {
        *("data.path", "tokenizer.path", "evaluation.path", "weights", "checkpoint.load", "checkpoint.save"),
        *("measure.steps", "measure.min_window_s", "measure.profile_steps", *TIMEOUTS),
    }
)
"""Where things lie, how long to wait and, above some minima, to measure: they do not make a record unofficial."""

MIN_STEPS = 20
MIN_WINDOW_S = 30.0
"""The shortest window an official record may have."""


@dataclass(frozen=True)
class Request:
    """What to plan: one run of one config, and what the command line adds."""

    loaded: LoadedCase
    config: Config
    run: Run
    vendor: Vendor
    engine: str | None = None
    """``--engine``."""
    sets: Mapping[str, OverrideValue] = field(default_factory=dict)
    """``--set``."""
    world: tuple[int, int] | None = None
    """Nodes and ranks per node, where another launcher has fixed them already."""

    @property
    def changed(self) -> tuple[str, ...]:
        """The settings that differ from the config: the run's changes and those of ``--set``."""
        return (*self.run.fix_hp, *(key for key in self.sets if key not in {*INCIDENTAL, *self.run.fix_hp}))

    @property
    def words(self) -> list[str]:
        """What another process is told on its command line to plan the same run."""
        words = [self.loaded.location, "--config", self.config.value.name, "--run", self.run.id]
        words += [] if self.engine is None else ["--engine", self.engine]
        for key, value in self.sets.items():
            words += ["--set", f"{key}={'none' if value is None else value}"]
        return words


def build(request: Request) -> Plan:
    """Resolve one run; UsageError, with the nearest plan that works, when it cannot be."""
    loaded, config, vendor = request.loaded, request.config, request.vendor
    layers, tuned = _layers(request)
    settings = layers.settings()
    hp, model = settings.hyper_parameters, settings.model
    chip = vendor.chip(config.value.topology.chip)
    topology = _topology(config, chip, request.world)
    engine, layers.origins["engine"] = _engine(request)
    _require_ability(engine_spec(engine), settings)
    proposal = _proposal(engine, chip, topology, settings)
    _refuse(proposal)
    parallel = Parallel(tp=hp.tensor_parallel, pp=hp.pipeline_parallel, dp=proposal.data_parallel)
    unofficial = _unofficial_reason(request, layers.origins["engine"], settings.measure, chip)
    plan = Plan(
        **vars(settings),
        case=loaded.case.name,
        case_location=loaded.location,
        config=config.value.name,
        run=request.run.id,
        vendor=vendor.name,
        vendor_distribution=vendor.distribution,
        engine=engine,
        chip=chip,
        topology=topology,
        fix_hp={key: plain(layers.values[key]) for key in dict.fromkeys((*tuned, *request.changed))},
        remark=request.run.remark,
        origins=layers.origins,
        parallel=parallel,
        global_batch_size=proposal.global_batch_size,
        tokens_per_step=proposal.global_batch_size * hp.sequence_length,
        placement=layout.placement(hp, model, parallel),
        compute_precision=metrics.compute_precision(hp),
        engine_config=_engine_config(engine, hp, model, parallel),
        launch=launch.command(topology, request.words),
        launch_env={},
        scaled_down=(model, settings.vision) != (loaded.case.model, loaded.case.vision),
        official=unofficial is None,
        unofficial_reason=unofficial,
    )
    return plan.model_copy(update={"launch_env": vendor.launch_env(plan)})


def _proposal(engine: str, chip: ChipSpec, topology: Topology, settings: Settings) -> Proposal:
    data = settings.data
    return Proposal(
        engine,
        chip,
        topology,
        settings.hyper_parameters,
        settings.model,
        generated_sequences=None if data.path is not None else data.generated_sequences,
        data_format=data.format,
        adapters=settings.lora is not None,
    )


def _engine_config(
    engine: str, hp: HyperParameters, model: DecoderSpec, parallel: Parallel
) -> dict[str, JsonValue]:
    """The engine's own configuration, where it has one."""
    if engine == "deepspeed":
        return deepspeed_config(hp)
    return megatron_config(hp, model, parallel) if engine == "megatron" else {}


def _layers(request: Request, tuned: Mapping[str, OverrideValue] | None = None) -> tuple[Layers, tuple[str, ...]]:
    """All of them, and the settings that were chosen for a tuned run and that the config's own would differ in.

    What is chosen lies below what the run and the command line ask for, but depends on it.
    """
    layers = Layers(request.loaded.case)
    layers.apply(request.config.value.defaults, request.config.source)
    chosen: tuple[str, ...] = ()
    if request.run.tuned:
        settings = _tuned(request) if tuned is None else tuned
        known = layers.values
        chosen = tuple(key for key in settings if key not in known or settings[key] != plain(known[key]))
        layers.apply({key: settings[key] for key in chosen}, f"tuned for {request.config.value.topology}")
    layers.apply(request.run.fix_hp, f"{request.config.source}, run {request.run.id}")
    layers.apply(request.sets, "--set")
    return layers, chosen


def _tuned(request: Request) -> dict[str, OverrideValue]:
    """What core chooses for a tuned run, and what the vendor would rather have, which core then reckons with."""
    case, config, vendor = request.loaded.case, request.config.value, request.vendor
    tuning.require(_engine(request)[0], text_alone=case.vision is None and case.lora is None)
    chip = vendor.chip(config.topology.chip)
    topology = _topology(request.config, chip, request.world)

    def planned(settings: Mapping[str, OverrideValue]) -> tuple[HyperParameters, DecoderSpec]:
        layers, _ = _layers(request, tuned=settings)
        return layers.section("", HyperParameters), layers.section("model.", DecoderSpec)

    untuned, _ = _layers(request, tuned={})
    untuned.settings()  # what a command line gives as text becomes a value
    given = {key: plain(untuned.values[key]) for key in (*request.run.fix_hp, *request.sets)}

    def choose(wanted: Mapping[str, OverrideValue]) -> tuning.Settings:
        # What moves shards is nothing to replicas, which may be the better choice all the same.
        fixed = {key: value for key, value in wanted.items() if key != "collectives"}
        return tuning.choose(*planned(wanted), chip, topology.world_size, {**fixed, **given})

    chosen = choose({})
    hp, model = planned(chosen)
    case = case.model_copy(update={"hyper_parameters": hp, "model": model})
    wanted = vendor.tune(case, topology, {**chosen, **given})
    return {key: value for key, value in wanted.items() if key not in given} | choose(wanted)


def _engine(request: Request) -> tuple[str, str]:
    """The engine and the layer that chose it."""
    config, run = request.config, request.run
    name, origin = config.value.engine, config.source
    if run.engine:
        name, origin = run.engine, f"{config.source}, run {run.id}"
    return (name, origin) if request.engine in (None, name) else (str(request.engine), "--engine")


def _topology(config: Config, chip: ChipSpec, world: tuple[int, int] | None) -> Topology:
    planned = config.value.topology
    if world is None or world == (planned.nodes, planned.chips_per_node):
        return planned
    actual = Topology(chip=planned.chip, nodes=world[0], chips_per_node=world[1])
    if not chip.reference:
        raise UsageError(
            f"the launcher started {actual.nodes} × {actual.chips_per_node} ranks, config {planned} plans "
            f"{planned.nodes} × {planned.chips_per_node}",
            f"start {planned.world_size} ranks, or add a config_{actual}.py to the case",
        )
    return actual


def _require_ability(engine: EngineSpec, settings: Settings) -> None:
    """UsageError where the engine lacks what the case needs; no setting could change that."""
    lacking = [] if settings.vision is None or engine.sees_images else ["takes no images"]
    lacking += [] if settings.lora is None or engine.trains_adapters else ["trains no LoRA adapters"]
    lacking += [] if settings.evaluation is None or engine.evaluates else ["evaluates no model"]
    if lacking:
        raise UsageError(f"engine {engine.name} {' and '.join(lacking)}", "use engine torch or deepspeed")


def _refuse(proposal: Proposal) -> None:
    found = refusals(proposal)
    if found:
        changes = " ".join(f"--set {key}={value}" for key, value in nearest(proposal).items())
        raise UsageError(
            "this plan cannot be: " + "; ".join(refusal.reason for refusal in found),
            f"the nearest plan that works: {changes}",
        )


def _unofficial_reason(request: Request, engine_origin: str, measure: Measure, chip: ChipSpec) -> str | None:
    changed = request.sets.keys() - INCIDENTAL
    if changed:
        return f"--set changed {', '.join(sorted(changed))}"
    if engine_origin == "--engine":
        return f"--engine {request.engine} replaced the config's"
    if measure.steps < MIN_STEPS:
        return f"{measure.steps} measured steps are fewer than {MIN_STEPS}"
    if not chip.reference and measure.min_window_s < MIN_WINDOW_S:
        return f"a window of {measure.min_window_s} s is shorter than {MIN_WINDOW_S} s"
    return None
