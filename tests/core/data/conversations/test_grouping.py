"""Steps of random samples, and of samples of like length and kind."""

from __future__ import annotations

import pytest

pytest.importorskip("numpy")

from core.data.conversations.grouping import even_parts, grouped, shuffled

LENGTHS = [3 + 7 * number % 50 for number in range(103)]
IMAGES = [number % 4 != 0 for number in range(103)]


def samples(steps: list[list[list[int]]]) -> list[int]:
    return [sample for step in steps for part in step for sample in part]


def test_every_sample_once_and_in_another_order_each_epoch() -> None:
    steps, later = shuffled(103, 4, 5, (1, 0)), shuffled(103, 4, 5, (1, 1))
    assert [[len(part) for part in step] for step in steps] == [[5] * 4] * 5
    assert len(set(samples(steps))) == 100
    assert samples(steps) != samples(later)
    assert steps == shuffled(103, 4, 5, (1, 0))


def test_grouped_steps_are_of_one_kind_but_the_last() -> None:
    steps = grouped(LENGTHS, IMAGES, 2, 5, (1, 0))
    kinds = [{IMAGES[sample] for part in step for sample in part} for step in steps]
    assert len(steps) == 10
    assert kinds[-1] == {True, False}
    assert all(len(kind) == 1 for kind in kinds[:-1])
    assert {True} in kinds
    assert {False} in kinds
    assert len(set(samples(steps))) == 100


def test_the_global_batch_is_the_same_however_it_is_split() -> None:
    whole, split = (grouped(LENGTHS, IMAGES, parts, 20 // parts, (1, 0)) for parts in (1, 4))
    assert [{*samples([step])} for step in whole] == [{*samples([step])} for step in split]


def test_parts_are_about_equally_long() -> None:
    parts = even_parts(range(40), LENGTHS, 4)
    totals = [sum(LENGTHS[sample] for sample in part) for part in parts]
    assert [len(part) for part in parts] == [10] * 4
    assert max(totals) - min(totals) <= 0.05 * sum(totals) / 4


def test_one_kind_alone_is_grouped_too() -> None:
    assert len(samples(grouped(LENGTHS, [False] * 103, 2, 5, (1, 0)))) == 100
    assert grouped(LENGTHS[:3], [True] * 3, 2, 5, (1, 0)) == []
