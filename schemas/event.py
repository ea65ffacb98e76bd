"""Events: one JSON line each, appended and flushed by every rank to a file of its own."""

from __future__ import annotations

from typing import Annotated, Literal, Union

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, TypeAdapter

from schemas.base import Schema
from schemas.chip import Device, MemoryReading, TelemetryReading
from schemas.evaluation import Accuracy, Benchmark
from schemas.profile import Profile

Phase = Literal["start", "device", "data", "setup", "warmup", "measure", "profile", "save", "evaluate", "finish"]
Status = Literal["ok", "oom", "nan", "hang", "crashed", "interrupted", "invalid"]


class _Event(Schema):
    time_unix_s: NonNegativeFloat
    elapsed_s: NonNegativeFloat
    """Since this process started, by a monotonic clock; differences are taken of this one."""
    rank: NonNegativeInt


class PhaseEvent(_Event):
    """The rank entered a phase."""

    kind: Literal["phase"] = "phase"
    phase: Phase


class DeviceEvent(_Event):
    """The device is ready."""

    kind: Literal["device"] = "device"
    device: Device
    environment: dict[str, str]
    host: str
    pid: PositiveInt


class ModelEvent(_Event):
    """The model was built and wrapped by the engine."""

    kind: Literal["model"] = "model"
    parameters_total: PositiveInt
    parameters_trainable: NonNegativeInt
    parameters_embedding: NonNegativeInt
    parameters_forward_only: NonNegativeInt = 0
    weights: Literal["random", "pretrained"]
    optimizer: str
    """Class of the optimizer that really steps, after ``optimizer_wrap``."""
    weights_sha256: str | None = None
    """Identifies the initial weights; see ``core.models.fingerprint``."""
    notes: dict[str, str] = {}


class DataEvent(_Event):
    """The data set that is read."""

    kind: Literal["data"] = "data"
    data: str
    """``generated`` or the data set's name."""
    manifest_sha256: str
    sequences: PositiveInt
    tokens: PositiveInt | None = None
    """Real tokens of one epoch; None where counting them would take long."""


class StepEvent(_Event):
    """One optimizer step has ended on the device; ``loss`` is a mean over the global batch's labels."""

    kind: Literal["step"] = "step"
    phase: Literal["warmup", "measure"]
    step: PositiveInt
    """From 1, warm-up included."""
    total_steps: PositiveInt | None
    """How many there will be, once that is known."""
    step_time_s: NonNegativeFloat | None
    loss: float | None
    """None where it is not finite (an ``error`` event follows)."""
    grad_norm: float | None
    learning_rate: NonNegativeFloat
    label_tokens: NonNegativeInt
    """Of this rank."""
    real_tokens: NonNegativeInt
    padded_tokens: NonNegativeInt
    memory_allocated_gib: NonNegativeFloat | None = None
    data_wait_s: NonNegativeFloat | None = None
    """How long this rank waited for its batch; all ranks of a step share its time, but not this."""


class WindowEvent(_Event):
    """The measured window has ended: wall time between two device synchronisations."""

    kind: Literal["window"] = "window"
    window_s: NonNegativeFloat
    steps: PositiveInt
    real_tokens: NonNegativeInt
    padded_tokens: NonNegativeInt
    images: NonNegativeInt = 0
    squared_lengths: NonNegativeInt | None = None
    """Sum over the sequences of their real tokens, squared."""
    epochs: NonNegativeInt
    """Whole passes over the data set."""


class MemoryEvent(_Event):
    """Memory peaks, reset after warm-up."""

    kind: Literal["memory"] = "memory"
    memory: MemoryReading


class ProgressEvent(_Event):
    """How far this rank has come in a phase that has no steps."""

    kind: Literal["progress"] = "progress"
    done: NonNegativeInt
    total: PositiveInt


class AccuracyEvent(_Event):
    """The trained model was evaluated by all ranks."""

    kind: Literal["accuracy"] = "accuracy"
    benchmark: Benchmark
    accuracy: Accuracy


class TelemetryEvent(_Event):
    """One telemetry sample."""

    kind: Literal["telemetry"] = "telemetry"
    reading: TelemetryReading


class WarningEvent(_Event):
    """Something a reader of the record must know."""

    kind: Literal["warning"] = "warning"
    message: str


class HeartbeatEvent(_Event):
    """The process is alive; no progress by itself."""

    kind: Literal["heartbeat"] = "heartbeat"
    step: NonNegativeInt | None
    """The step that was begun last; None before the first."""


class SpeedEvent(_Event):
    """How long this rank's device takes alone, without a collective, for a fixed matrix product."""

    kind: Literal["speed"] = "speed"
    product_s: PositiveFloat


class ProfileEvent(_Event):
    """Where the time of a step goes, from steps that were traced after the window."""

    kind: Literal["profile"] = "profile"
    profile: Profile


class CheckpointEvent(_Event):
    """A checkpoint was read or written; on every rank, for every rank takes part."""

    kind: Literal["checkpoint"] = "checkpoint"
    action: Literal["loaded", "saved"]
    folder: str
    step: PositiveInt


class ErrorEvent(_Event):
    """The rank failed."""

    kind: Literal["error"] = "error"
    status: Status
    step: NonNegativeInt | None
    reason: str
    traceback: str
    exit_code: PositiveInt = 1
    place: str | None = None
    """Where its main thread was, when it could not say a word itself."""


class FinishEvent(_Event):
    """The rank did all its work."""

    kind: Literal["finish"] = "finish"


Event = Annotated[
    Union[
        PhaseEvent, DeviceEvent, ModelEvent, DataEvent, StepEvent, WindowEvent,
        MemoryEvent, ProgressEvent, AccuracyEvent, TelemetryEvent, WarningEvent, HeartbeatEvent, SpeedEvent,
        ProfileEvent, CheckpointEvent, ErrorEvent, FinishEvent,
    ],
    Field(discriminator="kind"),
]  # fmt: skip
EventAdapter: TypeAdapter[Event] = TypeAdapter(Event)
