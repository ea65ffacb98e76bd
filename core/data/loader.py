"""Batches on the device, read (by a process, where a thread would be in the way) and copied ahead by a thread."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.data.preparer import Preparer
from core.data.source import Array, DataSource, MicroBatch

_POLL_S = 0.05
_JOIN_S = 5.0
"""Longer only when a read hangs (a lost network file system), which must not hang the end of the run."""


@dataclass(frozen=True)
class StepBatch:
    """What one rank trains on in one optimizer step."""

    micro_batches: Sequence[Mapping[str, Tensor]]
    """Of each of GAS micro-batches the keyword arguments of the model's ``forward``, on the device: ``input_ids``
    and ``labels``, int64 ``[B, S]``, and what else the data holds. Shapes may differ between micro-batches."""
    label_tokens: int
    """Labels that count in the loss, of this rank."""
    real_tokens: int
    padded_tokens: int
    """Positions filled with padding; packed data has none."""
    images: int = 0
    squared_lengths: int = 0
    """As those of a ``MicroBatch``."""


class DeviceLoader:
    """Iterates over the optimizer steps from ``start_step`` (from 0) on, without end.

    ``depth`` steps are kept ready on the device. An error of the reading thread is raised where the step is asked
    for. Call ``close`` at the end: a daemon thread in a device call can crash an interpreter that shuts down.
    """

    def __init__(
        self,
        source: DataSource,
        gradient_accumulation_steps: int,
        device: torch.device,
        start_step: int = 0,
        depth: int = 2,
    ) -> None:
        """Start reading; ``UsageError`` when the data set does not fill one global batch."""
        self.steps_per_epoch = source.steps_per_epoch(gradient_accumulation_steps)
        """Optimizer steps in a pass over the data."""
        self._source, self._gas, self._start_step = source, gradient_accumulation_steps, start_step
        self._copier = _Copier(device)
        self._preparer = Preparer(self._micro_batches, start_step) if source.own_process else None
        self._ready: queue.Queue[tuple[StepBatch, Any] | BaseException] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="accelmark-data", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[StepBatch]:
        return self

    def __next__(self) -> StepBatch:
        if self._stop.is_set():
            raise StopIteration
        item = self._ready.get()
        if isinstance(item, BaseException):
            self.close()
            raise item
        batch, copied = item
        self._copier.receive(batch, copied)
        return batch

    def epochs_at(self, step: int) -> int:
        """Whole passes over the data before ``step`` (from 0)."""
        return self._source.epochs_at(step, self._gas)

    def close(self) -> None:
        """Stop the thread; the iteration ends. May be called twice."""
        self._stop.set()
        if self._preparer is not None:
            self._preparer.close()
        self._thread.join(_JOIN_S)

    def _work(self) -> None:
        try:
            self._copier.enter_thread()
            for step in itertools.count(self._start_step):
                host = self._read(step)
                if host is None or not self._offer(self._copier.send(host)):
                    return
        except BaseException as error:
            self._offer(error)

    def _read(self, step: int) -> list[MicroBatch] | None:
        """The micro-batches of one step; None when told to stop."""
        if self._preparer is not None:
            return self._preparer.next_step()
        return None if self._stop.is_set() else self._micro_batches(step)

    def _micro_batches(self, step: int) -> list[MicroBatch]:
        return [self._source.batch(step, micro_step, self._gas) for micro_step in range(self._gas)]

    def _offer(self, item: tuple[StepBatch, Any] | BaseException) -> bool:
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return True
        return False


class _Copier:
    """Copies from host to device on a stream of its own; on the CPU it hands arrays over as they are."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pin = device.type != "cpu"
        if device.type == "cpu":
            return
        # Streams of all vendors follow torch.cuda's names there.
        self._module = torch.get_device_module(device)
        if device.index is None:
            self._device = torch.device(device.type, self._module.current_device())
        self._stream = self._module.Stream(device=self._device)

    def enter_thread(self) -> None:
        """The current device belongs to the thread; pinning memory on device 0 would open a context there."""
        if self._device.type != "cpu":
            self._module.set_device(self._device)

    def send(self, micro_batches: Sequence[MicroBatch]) -> tuple[StepBatch, Any]:
        """The step on the device, and the event that its copies end with."""
        if self._device.type == "cpu":
            return _step_batch(micro_batches, torch.from_numpy), None
        with self._module.stream(self._stream):
            batch = _step_batch(micro_batches, self._to_device)
            return batch, self._stream.record_event()

    def _to_device(self, array: Array) -> Tensor:
        """A copy that is on its way; the allocator of pinned memory keeps the buffer until it has arrived."""
        host = torch.from_numpy(array)
        if self._pin:
            try:
                host = host.pin_memory()
            except RuntimeError:
                self._pin = False
        # From pageable memory an asynchronous copy may read after the buffer is gone.
        return host.to(self._device, non_blocking=self._pin)

    def receive(self, batch: StepBatch, copied: Any) -> None:
        """Let the consumer's stream wait for the copies, and keep the memory until that stream is done with it."""
        if copied is None:
            return
        current = self._module.current_stream(self._device)
        current.wait_event(copied)
        for micro_batch in batch.micro_batches:
            for tensor in micro_batch.values():
                tensor.record_stream(current)


def _step_batch(micro_batches: Sequence[MicroBatch], place: Callable[[Array], Tensor]) -> StepBatch:
    return StepBatch(
        micro_batches=[{name: place(array) for name, array in micro.arrays.items()} for micro in micro_batches],
        label_tokens=sum(micro.label_tokens for micro in micro_batches),
        real_tokens=sum(micro.real_tokens for micro in micro_batches),
        padded_tokens=sum(micro.padded_tokens for micro in micro_batches),
        images=sum(micro.images for micro in micro_batches),
        squared_lengths=sum(micro.squared_lengths for micro in micro_batches),
    )
