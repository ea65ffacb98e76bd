"""Micro-batches of dialogues: labels, images, padding, cutting, and damaged images."""

from __future__ import annotations

from typing import Any

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("PIL")

from core.data.conversations.prompts import v1
from core.data.conversations.reader import ConversationReader, Layout, encode
from core.data.conversations.samples import Sample
from core.data.skipped import BadSampleError
from core.errors import UsageError
from core.notices import RecordWarning
from schemas.model import VisionSpec

VISION = VisionSpec(hidden_size=8, intermediate_size=8, num_layers=2, num_heads=1, image_size=28, patch_size=14)
PATCHES = 4


def layout(**changes: Any) -> Layout:
    values = {
        "template": "v1", "vision": VISION, "sequence_length": 300, "by_length": True, "drop_padding": False,
        "local_batch_size": 2, "world_size": 1, "seed": 5,
    }  # fmt: skip
    return Layout(**values | changes)


@pytest.fixture
def entries(say: Any, picture: Any) -> list[dict[str, Any]]:
    with_image = [
        {"id": f"i{n}", "image": picture(f"{n}.png"), "conversations": say("<image>\nWho?", "Ben. " * (n + 1))}
        for n in range(4)
    ]
    return [*with_image, *({"id": f"t{n}", "conversations": say("Who?", "Anna. " * 9)} for n in range(4))]


def test_a_batch_holds_what_its_samples_say(write: Any, entries: Any, tokenizer: Any) -> None:
    reader = ConversationReader(write(entries), tokenizer, layout(local_batch_size=8), rank=0, name="mine")
    batch = reader.batch(0, 0, 1)
    ids, labels = batch.arrays["input_ids"], batch.arrays["labels"]
    assert batch.images == 4
    assert batch.arrays["pixel_values"].shape == (4, 3, 28, 28)
    flat = np.zeros(ids.size, dtype=bool)
    flat[batch.arrays["image_positions"]] = True
    lengths, learnt = [], 0
    for row in range(8):
        (real,) = [n for n in batch.sequence_lengths if n == batch.sequence_lengths[row]][:1]
        image = flat.reshape(ids.shape)[row]
        assert image.sum() in (0, PATCHES)
        assert (labels[row, real - 1 :] == -100).all()
        shown = labels[row] != -100
        assert (labels[row, shown] == ids[row, 1:][shown[:-1]]).all()
        lengths.append(real)
        learnt += int(shown.sum())
    assert batch.label_tokens == learnt
    assert batch.padded_tokens == ids.size - sum(lengths)
    assert batch.real_tokens == sum(lengths)
    assert batch.squared_lengths == sum(real * real for real in lengths)


def test_ranks_and_micro_batches_share_one_global_batch(write: Any, entries: Any, tokenizer: Any) -> None:
    file = write(entries)

    def seen(world: int, gas: int) -> list[tuple[int, ...]]:
        size = 4 // world // gas
        rows = []
        for rank in range(world):
            of_rank = layout(world_size=world, local_batch_size=size)
            reader = ConversationReader(file, tokenizer, of_rank, rank=rank, name="mine")
            for micro_step in range(gas):
                batch = reader.batch(1, micro_step, gas)
                for row, real in zip(batch.arrays["input_ids"], batch.sequence_lengths, strict=True):
                    rows.append(tuple(row[:real].tolist()))
        return sorted(rows)

    assert seen(1, 1) == seen(2, 1) == seen(2, 2) == seen(1, 4)


def test_a_batch_of_text_brings_an_image_without_a_place(write: Any, say: Any, tokenizer: Any) -> None:
    file = write([{"id": str(n), "conversations": say("Who?", "Ben.")} for n in range(4)])
    batch = ConversationReader(file, tokenizer, layout(), rank=0, name="mine").batch(0, 0, 1)
    assert batch.images == 0
    assert batch.arrays["pixel_values"].shape == (1, 3, 28, 28)
    assert batch.arrays["image_positions"].size == 0


def test_a_broken_image_leaves_its_sample_out_and_is_named(
    write: Any, say: Any, picture: Any, tokenizer: Any, tmp_path: Any
) -> None:
    name = picture("a.png")
    entries = [{"id": str(n), "image": name, "conversations": say("<image>", "Ben.")} for n in range(150)]
    (tmp_path / "broken.png").write_bytes(b"no image")
    entries[0]["image"] = "broken.png"
    reader = ConversationReader(write(entries), tokenizer, layout(local_batch_size=150), rank=0, name="mine")
    with pytest.warns(RecordWarning, match=r"sample 0 is left out: image broken\.png cannot be read"):
        batch = reader.batch(0, 0, 1)
    assert (len(batch.arrays["input_ids"]), batch.images) == (149, 149)
    for damaged in (1, 2):
        entries[damaged]["image"] = "gone.png"
    reader = ConversationReader(write(entries), tokenizer, layout(local_batch_size=150), rank=0, name="mine")
    with pytest.raises(UsageError, match="2 of 150 samples are damaged"), pytest.warns(RecordWarning):
        reader.batch(0, 0, 1)


def test_a_batch_that_lost_all_samples_still_takes_part(
    write: Any, say: Any, picture: Any, tokenizer: Any, tmp_path: Any
) -> None:
    name = picture("a.png")
    entries = [{"id": str(n), "image": name, "conversations": say("<image>", "Ben.")} for n in range(120)]
    entries[7]["image"] = "gone.png"
    of_one = layout(local_batch_size=1, by_length=False)
    reader = ConversationReader(write(entries), tokenizer, of_one, rank=0, name="mine")
    with pytest.warns(RecordWarning, match="sample 7"):
        batches = [reader.batch(step, 0, 1) for step in range(120)]
    (empty,) = [batch for batch in batches if not batch.sequence_lengths]
    assert (empty.label_tokens, empty.real_tokens, empty.images) == (0, 0, 0)
    assert empty.arrays["input_ids"].shape == (1, 1)


def test_rows_whose_padding_costs_nothing_have_few_lengths(write: Any, entries: Any, tokenizer: Any) -> None:
    file = write(entries)

    def batch(**changes: Any) -> Any:
        return ConversationReader(file, tokenizer, layout(**changes), rank=0, name="mine").batch(0, 0, 1)

    whole = batch(local_batch_size=8)
    longest = max(whole.sequence_lengths)
    rounded, cut = (
        batch(local_batch_size=8, drop_padding=True, sequence_length=length) for length in (300, longest)
    )
    assert 128 < longest < 256
    lengths = [one.arrays["input_ids"].shape[1] for one in (whole, rounded, cut)]
    assert lengths == [longest, 256, longest]
    for name in ("input_ids", "labels"):
        assert (rounded.arrays[name][:, :longest] == whole.arrays[name]).all()
        flat = whole.arrays[name].flatten()[cut.arrays["kept"]]
        assert (rounded.arrays[name].flatten()[rounded.arrays["kept"]] == flat).all()
    rows, columns = np.divmod(rounded.arrays["image_positions"], 256)
    assert (rows * longest + columns == whole.arrays["image_positions"]).all()
    assert (rounded.padded_tokens, rounded.real_tokens) == (0, whole.real_tokens)


def test_a_long_dialogue_is_cut_and_an_image_is_not(tokenizer: Any) -> None:
    prompt = v1(Sample("x", ("<image>\nWho?", "Ben. " * 50), "a.jpg"), tokenizer)
    whole = encode(prompt, PATCHES, 10_000)
    cut = encode(prompt, PATCHES, len(whole.ids) - 30)
    assert cut.ids == whole.ids[:-30]
    assert cut.labels == whole.labels[:-30]
    assert whole.image_at is not None
    with pytest.raises(BadSampleError, match=f"its image ends at token {whole.image_at + PATCHES},"):
        encode(prompt, PATCHES, whole.image_at + PATCHES - 1)


def test_too_few_dialogues_for_a_global_batch(write: Any, say: Any, tokenizer: Any) -> None:
    file = write([{"id": str(n), "conversations": say("Who?", "Ben.")} for n in range(4)])
    reader = ConversationReader(file, tokenizer, layout(local_batch_size=3, world_size=2), rank=0, name="mine")
    with pytest.raises(UsageError, match=r"holds 4 dialogues, one global batch needs 6 \(LBS 3 x GAS 1 x DP 2\)"):
        reader.steps_per_epoch(1)
    assert reader.facts.sequences == 4


def test_epochs_are_counted(write: Any, entries: Any, tokenizer: Any) -> None:
    reader = ConversationReader(write(entries), tokenizer, layout(), rank=0, name="mine")
    assert reader.steps_per_epoch(2) == 2
    assert [reader.epochs_at(step, 2) for step in (0, 1, 2, 5)] == [0, 0, 1, 2]
    assert (
        reader.facts.sha256
        == ConversationReader(write(entries), tokenizer, layout(), rank=0, name="m").facts.sha256
    )
