"""Batches of dialogues: tokenized, with their images, padded to the longest, as they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.data.conversations.grouping import Step, grouped, shuffled
from core.data.conversations.images import Pixels, load_pixels
from core.data.conversations.prompts import IMAGE_ID, TEMPLATES, Prompt, Template
from core.data.conversations.samples import Sample, image_file, read_samples
from core.data.skipped import BadSampleError
from core.data.source import IGNORED_LABEL, DataFacts, MicroBatch
from core.data.tokenizer import Tokenizer
from core.errors import UsageError
from schemas.model import VisionSpec

ROW_MULTIPLE = 128
"""Where padding costs next to nothing, rows are this many tokens long, or a multiple of it. Fused attention works
in tiles of that size anyway, and cuDNN plans its kernels anew, in 0.27 s, for each length that it meets."""


@dataclass(frozen=True)
class Layout:
    """How samples become batches."""

    template: Template
    vision: VisionSpec
    sequence_length: int
    """Longer dialogues are cut."""
    by_length: bool
    """Group samples of like length and kind, or draw them at random."""
    drop_padding: bool
    """Tell the model which positions are real, so that it computes no others."""
    local_batch_size: int
    world_size: int
    """Data parallel ranks."""
    seed: int


@dataclass
class Encoded:
    """One sample as the model takes it."""

    ids: list[int]
    labels: list[int]
    """Of each position, what it has to predict."""
    image_at: int | None = None
    """Where the first token of the image stands."""
    pixels: Pixels | None = None


class ConversationReader:
    """Batches of one data parallel rank, a pure function of the step.

    A step of an epoch is the same samples in whatever way it is split over ranks and micro-batches. Damaged
    samples are left out and told of; one whose image turns out to be broken makes its micro-batch smaller by one.
    """

    own_process = True  # tokenizing, and decoding, resizing and normalising images

    def __init__(self, file: Path, tokenizer: Tokenizer, layout: Layout, *, rank: int, name: str) -> None:
        """Read the dialogues; UsageError for a file in another layout, or with many damaged samples."""
        self._samples, self._skipped = read_samples(file)
        self._folder, self._tokenizer, self._layout, self._rank = file.parent, tokenizer, layout, rank
        self._name = name
        self._sha256 = _hash(file, tokenizer)
        self._lengths = [sample.words for sample in self._samples]
        self._with_image = [sample.image is not None for sample in self._samples]
        self._steps: tuple[tuple[int, int], list[Step]] | None = None
        self._steps_per_epoch: dict[int, int] = {}

    @property
    def facts(self) -> DataFacts:
        """What the record says of it; the tokens are not counted, for that takes minutes."""
        return DataFacts(self._name, self._sha256, len(self._samples), None)

    def steps_per_epoch(self, gradient_accumulation_steps: int) -> int:
        """Optimizer steps in an epoch; ``UsageError`` when the data set does not fill one global batch."""
        known = self._steps_per_epoch.get(gradient_accumulation_steps)
        if known is not None:
            return known
        layout = self._layout
        global_batch_size = gradient_accumulation_steps * layout.world_size * layout.local_batch_size
        steps = len(self._epoch(0, gradient_accumulation_steps))
        if not steps:
            raise UsageError(
                f"data set {self._name!r} holds {len(self._samples)} dialogues, one global batch needs "
                f"{global_batch_size} (LBS {layout.local_batch_size} x GAS {gradient_accumulation_steps} x DP "
                f"{layout.world_size})",
                "use a larger data set (data.generated_sequences), or lower LBS or GAS",
            )
        self._steps_per_epoch[gradient_accumulation_steps] = steps
        return steps

    def epochs_at(self, step: int, gradient_accumulation_steps: int) -> int:
        """Whole passes over the data set before ``step`` (from 0)."""
        return step // self.steps_per_epoch(gradient_accumulation_steps)

    def batch(self, step: int, micro_step: int, gradient_accumulation_steps: int) -> MicroBatch:
        """This rank's micro-batch ``micro_step`` of ``step``, both from 0."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch(gradient_accumulation_steps))
        parts = self._epoch(epoch, gradient_accumulation_steps)[step_in_epoch]
        encoded = []
        for index in parts[micro_step * self._layout.world_size + self._rank]:
            sample = self._samples[index]
            try:
                encoded.append(self._encode(sample))
            except BadSampleError as bad:
                self._skipped.add(sample.name, str(bad))
        return padded(encoded, self._layout)

    def _epoch(self, epoch: int, gradient_accumulation_steps: int) -> list[Step]:
        key = epoch, gradient_accumulation_steps
        if self._steps is None or self._steps[0] != key:
            layout = self._layout
            parts, size = gradient_accumulation_steps * layout.world_size, layout.local_batch_size
            seed = (layout.seed, epoch)
            if layout.by_length:
                steps = grouped(self._lengths, self._with_image, parts, size, seed)
            else:
                steps = shuffled(len(self._samples), parts, size, seed)
            self._steps = key, steps
        return self._steps[1]

    def _encode(self, sample: Sample) -> Encoded:
        layout = self._layout
        prompt = TEMPLATES[layout.template](sample, self._tokenizer)
        encoded = encode(prompt, layout.vision.image_tokens, layout.sequence_length)
        if sample.image is not None:
            file = image_file(self._folder, sample.image)
            encoded.pixels = load_pixels(file, layout.vision.image_size, sample.image)
        return encoded


def encode(prompt: Prompt, image_tokens: int, longest: int) -> Encoded:
    """Make room for the image's tokens, cut at ``longest``, and shift the labels."""
    ids, trained = prompt.ids, prompt.trained
    image_at = ids.index(IMAGE_ID) if IMAGE_ID in ids else None
    if image_at is not None:
        ids = [*ids[:image_at], *[0] * image_tokens, *ids[image_at + 1 :]]
        trained = [*trained[:image_at], *[False] * image_tokens, *trained[image_at + 1 :]]
        if image_at + image_tokens > longest:
            raise BadSampleError(
                f"its image ends at token {image_at + image_tokens}, beyond the length of {longest}"
            )
    labels = [token if learnt else IGNORED_LABEL for token, learnt in zip(ids[1:], trained[1:], strict=True)]
    return Encoded(ids[:longest], [*labels, IGNORED_LABEL][:longest], image_at)


def padded(batch: Sequence[Encoded], layout: Layout) -> MicroBatch:
    """The samples as rows of the longest one's length.

    Where padding is dropped, with the positions to keep, ``kept``; rows are then as long as the next multiple of
    ``ROW_MULTIPLE``, or as the longest dialogue may be. Where none has an image, one of zeros takes part that
    belongs to no position. A batch that lost all of its samples is one padded token.
    """
    drop = layout.drop_padding
    length = max((len(sample.ids) for sample in batch), default=1)
    if drop and batch:
        length = min(-(-length // ROW_MULTIPLE) * ROW_MULTIPLE, layout.sequence_length)
    rows = max(len(batch), 1)
    ids = np.zeros((rows, length), dtype=np.int64)
    labels = np.full((rows, length), IGNORED_LABEL, dtype=np.int64)
    starts = []
    for row, sample in enumerate(batch):
        ids[row, : len(sample.ids)] = sample.ids
        labels[row, : len(sample.ids)] = sample.labels
        if sample.image_at is not None:
            starts.append(row * length + sample.image_at)
    lengths = [len(sample.ids) for sample in batch]
    arrays = {"input_ids": ids, "labels": labels, **image_arrays(starts, _pixels(batch), layout.vision)}
    if drop:
        real = [row * length + np.arange(lengths[row], dtype=np.int64) for row in range(len(batch))]
        arrays["kept"] = np.concatenate(real) if real else np.zeros(1, dtype=np.int64)
    return MicroBatch(
        arrays,
        padded_tokens=0 if drop and batch else ids.size - sum(lengths),
        images=len(starts),
        sequence_lengths=tuple(lengths),
    )


def image_arrays(
    starts: Sequence[int], pixels: Sequence[Pixels], vision: VisionSpec
) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.int64 | np.float32]]]:
    """The model's arguments for images whose tokens start at ``starts`` of the flattened batch."""
    size, tokens = vision.image_size, vision.image_tokens
    positions = np.asarray(starts, dtype=np.int64)[:, None] + np.arange(tokens, dtype=np.int64)
    return {
        "pixel_values": np.stack(pixels) if pixels else np.zeros((1, 3, size, size), dtype=np.float32),
        "image_positions": positions.reshape(-1),
    }


def _pixels(batch: Sequence[Encoded]) -> list[Pixels]:
    return [sample.pixels for sample in batch if sample.pixels is not None]


def _hash(file: Path, tokenizer: Tokenizer) -> str:
    digest = hashlib.sha256(tokenizer.sha256.encode())
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
