"""Which tokens each rank sees: no sample twice, the same global batch in every split, resumable."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("numpy")

import numpy as np

from core.data.manifest import TOKEN_FILE
from core.data.reader import TokenReader
from core.errors import UsageError

Make = Callable[[int], Path]
LENGTH = 4
small = st.integers(1, 4)
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def folder(token_folder: Make) -> Path:
    """100 samples of LENGTH tokens, and three tokens too few for another one."""
    return token_folder(100 * LENGTH + 1 + 3)


def _reader(folder: Path, rank: int = 0, world_size: int = 1, **options: Any) -> TokenReader:
    settings = {"local_batch_size": 2, "seed": 7, "verify": False, **options}
    return TokenReader(folder, LENGTH, rank=rank, world_size=world_size, **settings)


def _samples(reader: TokenReader, step: int, gas: int) -> list[list[int]]:
    """Sample numbers of each micro-batch; the tokens count up, so the first one tells the sample."""
    return [(reader.batch(step, micro, gas).arrays["input_ids"][:, 0] // LENGTH).tolist() for micro in range(gas)]


def _global(folder: Path, step: int, gas: int, dp: int, lbs: int) -> list[int]:
    """The samples of a global batch in their documented layout, ``[GAS, DP, LBS]``."""
    ranks = [_samples(_reader(folder, rank, dp, local_batch_size=lbs), step, gas) for rank in range(dp)]
    return [sample for micro in range(gas) for rank in ranks for sample in rank[micro]]


def test_inputs_and_labels(folder: Path) -> None:
    inputs, labels = _reader(folder, local_batch_size=3).batch(0, 0, 1).arrays.values()
    assert inputs.shape == labels.shape == (3, LENGTH)
    assert inputs.dtype == labels.dtype == np.int64
    assert (labels == inputs + 1).all()
    assert (inputs[:, 0] % LENGTH == 0).all()
    assert (np.diff(inputs, axis=1) == 1).all()
    labels[:] = -100
    assert (inputs >= 0).all()


def test_every_sample_can_be_read_to_its_last_label(folder: Path) -> None:
    reader = _reader(folder, local_batch_size=1)
    labels = [reader.batch(step, 0, 1).arrays["labels"] for step in range(100)]
    assert reader.sequences == 100
    assert max(int(one.max()) for one in labels) == 100 * LENGTH


@quick
@given(dp=small, gas=small, lbs=small, epoch=st.integers(0, 3))
def test_no_sample_twice_in_an_epoch(folder: Path, dp: int, gas: int, lbs: int, epoch: int) -> None:
    steps = _reader(folder, world_size=dp, local_batch_size=lbs).steps_per_epoch(gas)
    seen = [sample for step in range(steps) for sample in _global(folder, epoch * steps + step, gas, dp, lbs)]
    assert steps == 100 // (dp * gas * lbs)
    assert len(seen) == len(set(seen)) == steps * dp * gas * lbs


@quick
@given(data=st.data(), layout=st.tuples(small, small, small), step=st.integers(0, 200))
def test_global_batch_does_not_depend_on_the_split(
    folder: Path, data: st.DataObject, layout: tuple[int, int, int], step: int
) -> None:
    size = math.prod(layout)
    other_dp = data.draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
    other_gas = data.draw(st.sampled_from([n for n in range(1, size + 1) if size // other_dp % n == 0]))
    other = _global(folder, step, other_gas, other_dp, size // other_dp // other_gas)
    assert _global(folder, step, *layout) == other


def test_layout_of_a_global_batch(folder: Path) -> None:
    whole = _samples(_reader(folder, local_batch_size=12), 3, 1)[0]
    second_rank = _samples(_reader(folder, 1, 2, local_batch_size=2), 3, 3)
    assert second_rank == [whole[2:4], whole[6:8], whole[10:12]]


def test_any_step_can_be_the_first(folder: Path) -> None:
    steady = _reader(folder, 1, 2)
    curve = [_samples(steady, step, 2) for step in range(40)]
    for step in (0, 11, 12, 13, 39):
        assert _samples(_reader(folder, 1, 2), step, 2) == curve[step]
    assert _samples(steady, 3, 2) == curve[3]


def test_order_is_pinned(folder: Path) -> None:
    # Changing this order makes recorded loss curves incomparable.
    assert _samples(_reader(folder, local_batch_size=8), 0, 1)[0] == [37, 6, 32, 96, 98, 24, 90, 23]
    assert _samples(_reader(folder, local_batch_size=8), 12, 1)[0] == [63, 25, 11, 29, 57, 88, 36, 22]


def test_epochs_and_seeds_have_orders_of_their_own(folder: Path) -> None:
    first, second = (_samples(_reader(folder, local_batch_size=50, seed=7), step, 2) for step in (0, 1))
    other = _samples(_reader(folder, local_batch_size=50, seed=8), 0, 2)
    orders = [one[0] + one[1] for one in (first, second, other)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len({tuple(order) for order in [*orders, range(100)]}) == 4


def test_seed_and_epoch_do_not_stand_in_for_each_other(folder: Path) -> None:
    later = _samples(_reader(folder, local_batch_size=100, seed=7), 1, 1)
    next_seed = _samples(_reader(folder, local_batch_size=100, seed=8), 0, 1)
    assert later != next_seed


def test_epochs_at(folder: Path) -> None:
    reader = _reader(folder, world_size=3, local_batch_size=2)
    assert reader.steps_per_epoch(4) == 4
    assert [reader.epochs_at(step, 4) for step in (0, 3, 4, 7, 8, 400)] == [0, 0, 1, 1, 2, 100]


def test_data_set_smaller_than_a_global_batch(folder: Path) -> None:
    reader = _reader(folder, world_size=4, local_batch_size=2)
    assert reader.steps_per_epoch(12) == 1
    with pytest.raises(
        UsageError, match=r"'counting' holds 100 sequences of 4 tokens, .* needs 104 \(LBS 2 x GAS 13 x DP 4\)"
    ) as caught:
        reader.batch(0, 0, 13)
    assert "104 sequences or more" in caught.value.fix


def test_small_generated_data_names_its_setting(token_folder: Make) -> None:
    folder = token_folder(9)
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"generated": false', '"generated": true'))
    with pytest.raises(UsageError) as caught:
        _reader(folder, local_batch_size=3).steps_per_epoch(1)
    assert caught.value.fix.startswith("raise data.generated_sequences to 3")


def test_corruption_is_found_when_verifying(token_folder: Make) -> None:
    folder = token_folder(500)
    content = bytearray((folder / TOKEN_FILE).read_bytes())
    content[-1] ^= 128
    (folder / TOKEN_FILE).write_bytes(content)
    with pytest.raises(UsageError, match="corrupt"):
        _reader(folder, verify=True)


def test_truncation_is_found_by_every_rank(token_folder: Make) -> None:
    folder = token_folder(500)
    (folder / TOKEN_FILE).write_bytes((folder / TOKEN_FILE).read_bytes()[:-4])
    with pytest.raises(UsageError, match="has 1996 bytes, its manifest says 2000"):
        _reader(folder, verify=False)


def test_folder_without_data(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no prepared data set"):
        _reader(tmp_path)
