"""A case (model × data set × task) and its hardware configs."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator
from typing_extensions import Self

from schemas.base import Name, Schema, Text
from schemas.evaluation import EvaluationSpec
from schemas.hyperparameters import HyperParameters, LoraSpec, Measure, Overrides
from schemas.model import DecoderSpec, VisionSpec
from schemas.units import Topology


class TokenizerSpec(Schema):
    """The tokenizer the published runs used; the embedded data trains a small one of the same kind."""

    kind: Literal["sentencepiece"] = "sentencepiece"
    vocab_size: PositiveInt
    add_bos: bool
    add_eos: bool
    source: str
    """Where the file comes from, for a person; nothing is fetched."""
    path: str | None = None
    """A SentencePiece model, or the folder with its ``tokenizer.model``, for runs that tokenize: None takes the
    one in the folder of the weights, or the embedded one."""


DataFormat = Literal["tokens", "dialogues", "conversations"]
"""``tokens``: text in a file of token ids, packed without gaps.
``dialogues``: files of dialogues with a summary each, made into prompts and packed.
``conversations``: dialogues and the files of their images, in LLaVA's layout."""


class DataSpec(Schema):
    """The data set: what the published runs used, and where prepared tokens lie, if they do."""

    name: str
    format: DataFormat = "tokens"
    description: Text
    source: str
    """Where it comes from, for a person; nothing is fetched."""
    path: str | None = None
    """A folder in the format (for ``tokens``, written by ``prepare``); None trains on generated data."""
    generated_sequences: PositiveInt = 512
    """Length of the generated data, in sequences of the run."""
    generated_lengths: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")] | None = None
    """``module:name`` of how long generated ``conversations`` are: stage -> ``core.data.lengths.LengthHistogram``;
    None for other data."""


class Case(Schema):
    """A model × data set × task, with the defaults that every hardware config starts from."""

    name: Name
    task: Text
    model: DecoderSpec
    tokenizer: TokenizerSpec
    data: DataSpec
    hyper_parameters: HyperParameters
    measure: Measure = Measure()
    weights: str | None = None
    """A folder of safetensors to start from; None is random initialisation."""
    vision: VisionSpec | None = None
    """The tower that makes tokens of images; None for a model of text."""
    lora: LoraSpec | None = None
    """The adapters to train; None trains the model's own weights."""
    evaluation: EvaluationSpec | None = None
    """What the trained model is asked after the measured window."""
    reference: str
    """Where the recipe was published."""


class Run(Schema):
    """One row of a performance table: the config plus its overrides."""

    id: Name
    engine: Name | None = None
    """Another engine than the config's, for this row."""
    tuned: bool = False
    """Leave speed to the framework: what ``core/tuning.py`` chooses for plan and chip lies under ``fix_hp``."""
    fix_hp: Overrides = {}
    remark: str | None = None
    """A remark printed behind the last change in the ``fix_hp`` cell."""


class HardwareConfig(Schema):
    """One file of a case: the hardware, the engine, and the runs measured on it."""

    vendor: Name
    topology: Topology
    engine: Name
    defaults: Overrides = {}
    """Over the case's values; see ``Overrides``."""
    runs: tuple[Run, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique_runs(self) -> Self:
        twice = [name for name, n in Counter(run.id for run in self.runs).items() if n > 1]
        if twice:
            raise ValueError(f"run ids must differ within a config; {twice[0]!r} is there twice")
        return self

    @property
    def name(self) -> str:
        """The topology, which names the config's file: ``config_<name>.py``."""
        return self.topology.render()
