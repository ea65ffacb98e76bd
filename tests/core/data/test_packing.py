"""Packing: no token and no label is lost, whatever the lengths and however the batch is split."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numpy")

import numpy as np

from core.data.packing import PackedReader, Stream
from core.data.source import IGNORED_LABEL

PAD = 0
lengths = st.lists(st.integers(1, 30), min_size=1, max_size=20)


def stream(document_lengths: list[int]) -> Stream:
    """Tokens count up from 1; the first third of each document is a prompt."""
    ids = np.arange(1, sum(document_lengths) + 1)
    labels, documents = ids.copy(), np.repeat(np.arange(len(document_lengths)), document_lengths)
    for start, length in zip(np.cumsum([0, *document_lengths]), document_lengths, strict=False):
        labels[start : start + 1 + length // 3] = IGNORED_LABEL
    return Stream(ids, labels, documents, pad_id=PAD)


def reader(document_lengths: list[int], rank: int = 0, world_size: int = 1, **options: Any) -> PackedReader:
    given = {"sequence_length": 8, "document_mask": False, "local_batch_size": 2, "seed": 3} | options
    return PackedReader(stream(document_lengths), name="toy", rank=rank, world_size=world_size, **given)


def epoch(document_lengths: list[int], world_size: int, gas: int, number: int = 0, **options: Any) -> list[Any]:
    """Every micro-batch of every rank."""
    readers = [reader(document_lengths, rank, world_size, **options) for rank in range(world_size)]
    steps = readers[0].steps_per_epoch(gas)
    return [
        one.batch(number * steps + step, micro, gas)
        for step in range(steps)
        for micro in range(gas)
        for one in readers
    ]


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_an_epoch_holds_every_token_and_every_label_once(
    document_lengths: list[int], world_size: int, gas: int, local_batch_size: int
) -> None:
    batches = epoch(document_lengths, world_size, gas, local_batch_size=local_batch_size)
    inputs = np.concatenate([batch.arrays["input_ids"].ravel() for batch in batches])
    labels = np.concatenate([batch.arrays["labels"].ravel() for batch in batches])
    whole = stream(document_lengths)
    assert sorted(inputs[inputs != PAD]) == list(whole.ids)
    # The first token of a document is never a label: nothing comes before it that could predict it.
    assert sorted(labels[labels != IGNORED_LABEL]) == [label for label in whole.labels if label != IGNORED_LABEL]
    assert sum(batch.real_tokens for batch in batches) == len(whole.ids)
    assert sum(batch.padded_tokens for batch in batches) == np.count_nonzero(inputs == PAD)
    assert all(batch.arrays["input_ids"].shape == (local_batch_size, 8) for batch in batches)


def test_a_label_is_the_next_token_also_across_the_border_of_two_sequences() -> None:
    for batch in epoch([40], 1, 1):
        inputs, labels = batch.arrays["input_ids"], batch.arrays["labels"]
        counted = labels != IGNORED_LABEL
        assert np.array_equal(labels[counted], inputs[counted] + 1)
        assert counted.any()


def test_a_document_mask_tells_which_document_each_token_is_of() -> None:
    for batch in epoch([5, 9, 3], 1, 1, document_mask=True):
        inputs, documents = batch.arrays["input_ids"], batch.arrays["document_ids"]
        expected = np.where(inputs == PAD, -1, np.where(inputs <= 5, 0, np.where(inputs <= 14, 1, 2)))
        assert np.array_equal(documents, expected)
    assert "document_ids" not in epoch([5, 9, 3], 1, 1)[0].arrays


def test_epochs_differ_in_order_and_seeds_too() -> None:
    def first(**options: Any) -> list[int]:
        return [int(batch.arrays["input_ids"].max()) for batch in epoch([200], 1, 1, **options)]

    assert first() != first(number=1)
    assert first() != first(seed=4)
    assert sorted(first(local_batch_size=1)) == sorted(first(local_batch_size=1, number=1))


def test_facts_tell_tokens_and_identify_the_labels() -> None:
    facts = reader([5, 9, 3]).facts
    assert (facts.name, facts.sequences, facts.tokens) == ("toy", 3, 17)
    assert facts.sha256 == reader([5, 9, 3], rank=1, world_size=2).facts.sha256
    assert facts.sha256 != reader([5, 8, 4]).facts.sha256
    one = reader([5, 9, 3])
    assert [one.epochs_at(step, 1) for step in range(5)] == [0, 0, 1, 1, 2]


def test_padding_does_not_count_as_length_of_a_sequence() -> None:
    """MFU counts the products of attention by it: those of real tokens with each other."""
    (batch,) = epoch([5, 6], 1, 1, local_batch_size=4)  # 8 and 3 tokens, and two rows of padding
    assert batch.padded_tokens == 4 * 8 - 11
    assert batch.squared_lengths == 8 * 8 + 3 * 3


def test_documents_that_do_not_see_each_other_are_sequences_of_their_own() -> None:
    (batch,) = epoch([5, 6], 1, 1, local_batch_size=4, document_mask=True)
    assert batch.real_tokens == 11
    assert batch.squared_lengths == 5 * 5 + 3 * 3 + 3 * 3
