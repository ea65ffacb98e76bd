"""The validated facts of one run: measured by AccelMark, or taken from a published report."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from typing_extensions import Self

from schemas.base import SCHEMA_VERSION, Name, RecordId, Schema
from schemas.evaluation import Accuracy
from schemas.event import Status
from schemas.hyperparameters import OverrideValue, Precision
from schemas.plan import Plan
from schemas.profile import Profile
from schemas.units import Parallel, Topology


class Throughput(Schema):
    """Means over the measured window; a step's distribution beside it."""

    tokens_per_second_per_chip: PositiveFloat
    """Real tokens (without padding) per second and chip: the reports' ``token/p/s``."""
    padded_tokens_per_second_per_chip: PositiveFloat | None = None
    attended_length: PositiveFloat | None = None
    """Real length of the sequence that a token is in, mean over the tokens: the T of attention's FLOPs."""
    images_per_token: NonNegativeFloat = 0.0
    repeats: tuple[PositiveFloat, ...] = ()
    """Tokens per second and chip of each window, where several were measured; the value above is their mean."""
    spread: NonNegativeFloat | None = None
    """(largest - smallest) / mean of ``repeats``."""
    measured_steps: PositiveInt | None = None
    window_s: PositiveFloat | None = None
    step_time_mean_s: PositiveFloat | None = None
    step_time_median_s: PositiveFloat | None = None
    step_time_p5_s: PositiveFloat | None = None
    step_time_p95_s: PositiveFloat | None = None


class Mfu(Schema):
    """Model FLOPs utilisation as a fraction, by four rules; where one is None, ``missing`` says why."""

    flagperf: PositiveFloat | None = None
    palm: PositiveFloat | None = None
    causal: PositiveFloat | None = None
    hardware: PositiveFloat | None = None
    missing: str | None = None
    flops_per_token: dict[str, PositiveFloat] = {}
    formulas: dict[str, str] = {}
    peak_tflops: PositiveFloat | None = None
    peak_precision: str | None = None
    peak_source: str | None = None


class Memory(Schema):
    """Device memory in GiB, the largest over the ranks."""

    peak_allocated_gib: NonNegativeFloat | None = None
    peak_reserved_gib: NonNegativeFloat | None = None
    peak_device_gib: NonNegativeFloat | None = None
    capacity_gib: PositiveFloat | None = None
    allocation_retries: NonNegativeInt | None = None
    oom_count: NonNegativeInt | None = None


class Loss(Schema):
    """Mean cross-entropy per label token of the global batch."""

    first: float | None = None
    last: float | None = None
    """Of the last measured step: the table's ``loss``."""
    first_step: PositiveInt = 1
    """The optimizer step of the curves' first value; later than 1 where training went on from a checkpoint."""
    curve: tuple[float, ...] = ()
    """One value a step, warm-up included."""
    grad_norm_curve: tuple[float, ...] = ()
    step_time_curve_s: tuple[float, ...] = ()
    memory_allocated_curve_gib: tuple[float, ...] = ()


StartPhase = Literal["launch", "imports", "device", "data", "setup", "first_step", "warm_up"]
"""From the command to the first window: the launcher until a worker's first word; importing torch and the plugin;
taking the device and meeting the other ranks; data; model, weights and optimizer; the first step, which compiles;
the other steps of the warm-up."""


class Telemetry(Schema):
    """Over the measured window, per chip; None where the vendor cannot tell."""

    samples: NonNegativeInt = 0
    power_mean_w: NonNegativeFloat | None = None
    power_max_w: NonNegativeFloat | None = None
    temperature_max_c: float | None = None
    utilisation_mean_percent: NonNegativeFloat | None = None
    sm_clock_mean_mhz: NonNegativeFloat | None = None
    clock_limits: dict[str, NonNegativeFloat] | None = None
    """What held the clocks down -> share of the samples; empty where nothing did."""
    energy_per_token_j: PositiveFloat | None = None


class Parameters(Schema):
    """Counted from the built model."""

    total: PositiveInt
    trainable: NonNegativeInt
    embedding: NonNegativeInt
    forward_only: NonNegativeInt = 0
    """Frozen, and crossed by no gradient either."""


ConditionName = Literal["loss", "first_loss", "gradient_norm", "early_gradient_norm"]


class AlignmentCondition(Schema):
    """A mean relative error against the reference, and the largest that is allowed; see docs/alignment.md."""

    name: ConditionName
    first_step: PositiveInt
    last_step: PositiveInt
    """The error is the mean over these steps, both included."""
    error: NonNegativeFloat
    tolerance: PositiveFloat

    @property
    def holds(self) -> bool:
        """Whether the run is close enough to the reference."""
        return self.error <= self.tolerance


class Alignment(Schema):
    """How closely the run's curves follow a reference curve (是否精度对齐)."""

    reference: Name
    reference_sha256: str
    steps: PositiveInt
    """Optimizer steps that were compared: all of the reference."""
    conditions: tuple[AlignmentCondition, ...] = Field(min_length=1)
    recipe_differences: dict[str, str] = {}
    """Setting -> the run's and the reference's value, where the optimizer's recipe differs."""

    @property
    def aligned(self) -> bool:
        """The verdict: every condition holds."""
        return all(condition.holds for condition in self.conditions)


class Record(Schema):
    """One run. Fields that were not measured, or not published, are None."""

    schema_version: Literal[1] = SCHEMA_VERSION
    id: RecordId
    status: Status
    reason: str | None = None
    """One line, for every status but ok."""
    source: Literal["measured", "published"]
    official: bool
    unofficial_reason: str | None = None
    scaled_down: bool
    emulated: bool
    weights: Literal["random", "pretrained"]
    data: str
    """``generated`` or the data set's name."""

    case: Name
    vendor: Name
    chip: str
    topology: Topology
    engine: Name
    run: Name
    precision: Precision
    parallel: Parallel
    fix_hp: dict[str, OverrideValue] = {}

    throughput: Throughput | None = None
    mfu: Mfu = Mfu()
    memory: Memory = Memory()
    loss: Loss = Loss()
    accuracy: dict[str, Accuracy] = {}
    """Benchmark (``MMLU``) -> how well the trained model answered it."""
    aligned: bool | None = None
    """Whether the loss curve follows the reference (是否精度对齐); None where it was not compared."""
    alignment: Alignment | None = None
    """What ``aligned`` was judged by; None for published records, too."""
    telemetry: Telemetry = Telemetry()
    profile: Profile | None = None
    """Where the time of a step goes; None where no step was traced (``measure.profile_steps``)."""
    parameters: Parameters | None = None
    tokens_trained: NonNegativeInt | None = None
    epochs: NonNegativeInt | None = None
    data_manifest_sha256: str | None = None
    weights_sha256: str | None = None
    """Identifies the initial weights."""
    environment: dict[str, str] = {}
    math_mode: dict[str, str] = {}
    optimizer: str | None = None
    warnings: tuple[str, ...] = ()
    started_unix_s: NonNegativeFloat | None = None
    startup_seconds: dict[StartPhase, NonNegativeFloat] = {}
    """Where the time until the first window went, of rank 0; without ``launch`` where the command's start is not
    known, and empty where no window was begun."""
    duration_s: NonNegativeFloat | None = None
    command: str | None = None
    plan: Plan | None = None
    """None for published records."""

    @model_validator(mode="after")
    def _verdict_is_that_of_the_alignment(self) -> Self:
        if self.alignment is not None and self.aligned is not self.alignment.aligned:
            raise ValueError(f"aligned is {self.aligned}, its alignment says {self.alignment.aligned}")
        return self

    @property
    def rankable(self) -> bool:
        """Whether this row may stand in a ranking: measured in full on a real chip by an official plan."""
        stamped = self.scaled_down or self.emulated or not self.official
        return self.status == "ok" and not stamped
