"""The device loader: the reader's batches in order, errors passed on, a prompt end."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

pytest.importorskip("torch")

import numpy as np
import torch

from core.data.loader import DeviceLoader, StepBatch, _Copier
from core.data.reader import TokenReader
from core.data.source import IGNORED_LABEL, DataFacts, MicroBatch
from core.errors import UsageError

CPU = torch.device("cpu")
GAS = 3


@pytest.fixture(scope="module")
def reader(token_folder: Callable[[int], Path]) -> TokenReader:
    return TokenReader(token_folder(801), 8, rank=1, world_size=2, local_batch_size=2, seed=1, verify=True)


@pytest.fixture
def open_loader() -> Iterator[Callable[..., DeviceLoader]]:
    loaders: list[DeviceLoader] = []

    def make(*args: object, **options: object) -> DeviceLoader:
        loaders.append(DeviceLoader(*args, **options))
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()


def _check(batch: StepBatch, reader: TokenReader, step: int) -> None:
    assert len(batch.micro_batches) == GAS
    for micro_step, micro_batch in enumerate(batch.micro_batches):
        inputs, labels = micro_batch["input_ids"], micro_batch["labels"]
        expected = reader.batch(step, micro_step, GAS).arrays
        assert inputs.dtype == labels.dtype == torch.int64
        assert inputs.is_contiguous()
        assert labels.is_contiguous()
        np.testing.assert_array_equal(inputs.cpu().numpy(), expected["input_ids"])
        np.testing.assert_array_equal(labels.cpu().numpy(), expected["labels"])
    assert (batch.label_tokens, batch.real_tokens, batch.padded_tokens) == (48, 48, 0)


def test_gives_the_readers_batches(reader: TokenReader, open_loader: Callable[..., DeviceLoader]) -> None:
    loader = open_loader(reader, GAS, CPU)
    for step in range(20):
        _check(next(loader), reader, step)


def test_starts_at_any_step(reader: TokenReader, open_loader: Callable[..., DeviceLoader]) -> None:
    for step, batch in zip(range(7, 12), open_loader(reader, GAS, CPU, start_step=7), strict=False):
        _check(batch, reader, step)


def test_steps_do_not_share_memory(reader: TokenReader, open_loader: Callable[..., DeviceLoader]) -> None:
    loader = open_loader(reader, GAS, CPU, depth=1)
    kept = [next(loader) for _ in range(6)]
    for step, batch in enumerate(kept):
        _check(batch, reader, step)


class _Probe(TokenReader):
    """Counts what was read; fails or blocks where it is told to."""

    fail_at: int | None = None

    def batch(self, step: int, micro_step: int, gradient_accumulation_steps: int) -> MicroBatch:
        self.last = step
        if step == self.fail_at:
            raise OSError("the disk is gone")
        return super().batch(step, micro_step, gradient_accumulation_steps)


@pytest.fixture
def probe(token_folder: Callable[[int], Path]) -> _Probe:
    return _Probe(token_folder(801), 8, rank=0, world_size=1, local_batch_size=2, seed=1, verify=False)


def test_error_is_raised_at_its_step_and_ends_the_thread(
    probe: _Probe, open_loader: Callable[..., DeviceLoader]
) -> None:
    probe.fail_at = 2
    loader = open_loader(probe, GAS, CPU)
    next(loader)
    next(loader)
    with pytest.raises(OSError, match="the disk is gone"):
        next(loader)
    assert not loader._thread.is_alive()
    with pytest.raises(StopIteration):
        next(loader)


def test_reads_ahead_but_not_without_bound(probe: _Probe, open_loader: Callable[..., DeviceLoader]) -> None:
    loader = open_loader(probe, GAS, CPU, depth=2)
    deadline = time.monotonic() + 10
    while not loader._ready.full() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert probe.last == 2  # two are ready, a third one waits for its place
    next(loader)
    deadline = time.monotonic() + 10
    while probe.last < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert probe.last == 3


def test_close_is_prompt_with_a_full_queue(probe: _Probe) -> None:
    loader = DeviceLoader(probe, GAS, CPU)
    next(loader)
    start = time.monotonic()
    loader.close()
    loader.close()
    assert time.monotonic() - start < 1
    assert not any(
        thread.name == "accelmark-data" and thread is loader._thread for thread in threading.enumerate()
    )
    assert list(loader) == []


def test_closing_ends_the_thread(probe: _Probe) -> None:
    with closing(DeviceLoader(probe, GAS, CPU)) as loader:
        next(loader)
    assert not loader._thread.is_alive()


def test_too_small_a_data_set_is_refused_at_once(probe: _Probe) -> None:
    with pytest.raises(UsageError, match="one global batch needs 120"):
        DeviceLoader(probe, 60, CPU)


class _Ragged:
    """Micro-batches with arrays of several types, and of shapes that differ between them."""

    own_process = False
    facts = DataFacts("ragged", "0" * 64, sequences=2, tokens=10)

    def steps_per_epoch(self, gradient_accumulation_steps: int) -> int:
        return 1

    def epochs_at(self, step: int, gradient_accumulation_steps: int) -> int:
        return step

    def batch(self, step: int, micro_step: int, gradient_accumulation_steps: int) -> MicroBatch:
        length = 5 + micro_step
        labels = np.full((1, length), IGNORED_LABEL)
        labels[0, 3:5] = 7
        arrays = {"input_ids": np.arange(length)[None], "labels": labels}
        if micro_step:
            arrays["pixel_values"] = np.full((1, 3, 2, 2), 0.5, dtype=np.float32)
        return MicroBatch(arrays, padded_tokens=micro_step)


def test_takes_any_arrays_and_counts_labels_and_padding_from_them(
    open_loader: Callable[..., DeviceLoader],
) -> None:
    batch = next(open_loader(_Ragged(), 2, CPU))
    text, image = batch.micro_batches
    assert (set(text), set(image)) == ({"input_ids", "labels"}, {"input_ids", "labels", "pixel_values"})
    assert (tuple(text["input_ids"].shape), tuple(image["input_ids"].shape)) == ((1, 5), (1, 6))
    assert image["pixel_values"].dtype == torch.float32
    assert (batch.label_tokens, batch.real_tokens, batch.padded_tokens) == (4, 10, 1)


def test_a_source_that_asks_for_it_is_read_in_another_process(open_loader: Callable[..., DeviceLoader]) -> None:
    class Tells(_Ragged):
        own_process = True

        def batch(self, step: int, micro_step: int, gradient_accumulation_steps: int) -> MicroBatch:
            if step == 5:
                raise UsageError("no fifth step", "stop before it")
            return MicroBatch({name: np.full((1, 2), os.getpid() + step) for name in ("input_ids", "labels")})

    loader = open_loader(Tells(), 2, CPU, start_step=3)
    (first, second), (third, _) = (next(loader).micro_batches for _ in range(2))
    process = int(first["input_ids"][0, 0]) - 3
    assert process != os.getpid()
    assert torch.equal(first["labels"], second["labels"])
    assert third["labels"][0, 0] == process + 4
    first["input_ids"].zero_()  # the memory is the batch's own
    with pytest.raises(UsageError, match="no fifth step"):
        next(loader)
    assert not psutil.pid_exists(process)


@pytest.mark.gpu
def test_copies_are_ordered_against_both_streams(
    reader: TokenReader, open_loader: Callable[..., DeviceLoader], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        pytest.skip("no accelerator")
    send = _Copier.send
    slow = torch.randn(2048, 2048, device=device)

    def late(copier: _Copier, host: list[MicroBatch]) -> object:
        # The copy starts late: who reads without waiting for it reads something else.
        with copier._module.stream(copier._stream):
            for _ in range(100):
                torch.tanh(slow @ slow)
        return send(copier, host)

    monkeypatch.setattr(_Copier, "send", late)
    loader = open_loader(reader, GAS, device)
    seen: list[StepBatch] = []
    for step in range(40):
        batch = next(loader)
        assert all(found.device.type == device.type for micro in batch.micro_batches for found in micro.values())
        # Then a busy stream: it reads the batch long after the host freed it, when later copies want its memory.
        for _ in range(200 if step >= 10 else 0):
            torch.tanh(slow @ slow)
        copies = [{name: found + 0 for name, found in micro.items()} for micro in batch.micro_batches]
        seen.append(dataclasses.replace(batch, micro_batches=copies))
        del batch
    assert loader._copier._pin
    for step, batch in enumerate(seen):
        _check(batch, reader, step)
