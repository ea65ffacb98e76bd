"""Hyper-parameters, measuring window, and the typed overrides that layer over them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from typing_extensions import Self

from schemas.base import Schema
from schemas.units import ModuleNames, PipelineLayers

Precision = Literal["fp32", "tf32", "amp", "fp16", "bf16", "fp8"]
Attention = Literal["eager", "sdpa", "flex", "vendor"]
Checkpointing = Literal["none", "selective", "full"]
Stage = Literal["pretrain", "finetune"]
OptimizerState = Literal["fp32", "bf16_stochastic", "8bit"]
Packing = Literal["concat", "document_mask"]
Collectives = Literal["library", "peer_copies"]


class HyperParameters(Schema):
    """What a run trains with. Only these fields (and those of the plan's other sections) can be overridden."""

    stage: Stage | None = None
    """Which of several stages of one recipe a run is, where a recipe has several: it decides what is trained."""
    precision: Precision
    """What parameters are kept in and matrix products run in; see the precision table in docs/plan.md."""
    autocast_dtype: Literal["bf16", "fp16"] = "bf16"
    """The type that ``amp`` autocasts to; fp16 brings a loss scaler."""
    optimizer_state: OptimizerState = "fp32"
    """Main weights and Adam moments: fp32, or bf16 with stochastic rounding (8 bytes a parameter in all)."""

    local_batch_size: PositiveInt
    """LBS, sequences per rank and micro-batch."""
    sequence_length: PositiveInt
    """MPE, tokens per sequence."""
    packing: Packing = "concat"
    """Whether documents that share a sequence see each other: ``document_mask`` keeps them apart."""
    gradient_accumulation_steps: PositiveInt = 1
    """GAS, micro-batches per optimizer step."""

    padding: Literal["longest", "dropped"] = "longest"
    """Of batches whose sequences differ in length: each is padded to the longest, or padding is dropped and exists
    within attention only."""

    tensor_parallel: PositiveInt = 1
    sequence_parallel: bool = False
    """Split norms and residuals along the sequence over the tensor parallel ranks, too (arXiv 2205.05198)."""
    pipeline_parallel: PositiveInt = 1
    virtual_pipeline_stages: PositiveInt = 1
    """Stages that each pipeline rank holds; more than 1 interleaves them (arXiv 2104.04473)."""
    pipeline_layers: PipelineLayers | None = None
    """Layers of each stage, where they are not split evenly: ``19-20-21-20``, from the first layer on."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 0
    """What data parallel ranks shard: 0 nothing, 1 optimizer state, 2 + gradients, 3 + parameters."""
    gathered_layers: NonNegativeInt = 0
    """Of engine torch at stage 3: the first so many layers stay gathered until the step's last backward pass, as
    all do at stage 2."""
    collectives: Collectives = "library"
    """What moves the shards of engine torch: the vendor's collective library, or copies between the devices of a
    node, which send gradients in their own type and add them up in fp32."""
    offload: Literal["none", "optimizer"] = "none"
    """Keep the optimizer state in host memory (engine deepspeed)."""

    optimizer: Literal["adamw"] = "adamw"
    learning_rate: PositiveFloat
    min_learning_rate: NonNegativeFloat = 0.0
    schedule: Literal["constant", "linear", "cosine", "epoch"] = "constant"
    schedule_steps: PositiveInt | None = None
    """Optimizer steps until ``min_learning_rate`` is reached; needed by linear and cosine."""
    epoch_factor: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the rate after every epoch, of schedule ``epoch``."""
    lr_warmup_steps: NonNegativeInt = 0
    weight_decay: NonNegativeFloat = 0.0
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    adam_eps: PositiveFloat = 1e-8
    clip_grad_norm: NonNegativeFloat = 1.0
    """Largest global gradient norm; 0 does not clip."""
    z_loss: NonNegativeFloat = 0.0
    """Weight of the squared log-partition (Baichuan2's optional z-loss)."""
    seed: NonNegativeInt = 1234

    attention: Attention = "sdpa"
    activation_checkpointing: Checkpointing = "none"
    compile: bool = False
    """torch.compile of every decoder block."""
    loss: Literal["full", "chunked"] = "full"
    """Cross-entropy over all logits at once, or in chunks so that full fp32 logits never exist."""

    @property
    def scales_loss(self) -> bool:
        """Whether gradients exist in fp16, whose range takes a loss scaler."""
        return self.precision == "fp16" or (self.precision == "amp" and self.autocast_dtype == "fp16")


class LoraSpec(Schema):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685); all other weights stay as they are."""

    r: PositiveInt
    """Rank of the update of each target."""
    alpha: PositiveInt
    """The update is scaled by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the adapters' input."""
    target_modules: ModuleNames
    """The linear layers that get an adapter, by the last part of their name: ``q_proj+v_proj``."""


class Measure(Schema):
    """The measuring window: warm-up steps are dropped, then at least ``steps`` steps and ``min_window_s``."""

    warmup_steps: PositiveInt = 5
    steps: PositiveInt = 20
    min_window_s: NonNegativeFloat = 30.0
    """Applies on an accelerator; the reference chip stops after ``steps``."""
    epochs: PositiveInt | None = None
    """Passes over the data after which the run ends: the window then holds all steps that follow the warm-up, and
    an official record has at least ``steps`` and ``min_window_s`` of them."""
    repeat: PositiveInt = 1
    """Windows measured one after the other; the record carries each, their mean and their spread."""
    max_spread: NonNegativeFloat = 0.03
    """(largest - smallest) / mean of the repeats' throughput above which the record warns."""
    profile_steps: NonNegativeInt = 0
    """Steps after the last window that are traced, to tell where their time goes."""
    start_timeout_s: PositiveFloat = 600.0
    """How long a rank may take to start and meet the others; a run with one that takes longer is ended."""
    setup_timeout_s: PositiveFloat = 3600.0
    """How long data, model, compilation and the first step may each take."""
    timeout_s: PositiveFloat = 1800.0
    """How long each later step, and the end, may take."""

    @model_validator(mode="after")
    def _epochs_are_not_repeated(self) -> Self:
        if self.epochs is not None and self.repeat > 1:
            raise ValueError(f"a run of {self.epochs} epochs is one window; repeat {self.repeat} cannot be")
        return self


class CheckpointFolders(Schema):
    """Where training goes on from, and what it leaves behind; see docs/checkpoints.md."""

    load: str | None = None
    """A checkpoint's folder: training goes on with the step after it."""
    save: str | None = None
    """A folder that is not there yet: the checkpoint is written into it after the last step."""


OverrideValue = bool | int | float | str | None
Overrides = dict[str, OverrideValue]
"""Dotted field to value: ``gradient_accumulation_steps`` (a hyper-parameter), ``measure.steps``,
``model.num_layers``, ``data.path``, and ``lora.r`` or ``evaluation.shots`` where the case has them. Names and
types are checked where the layer is applied."""
