"""Batches on the device, read and copied ahead of the training loop by a thread."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.data.reader import TokenReader

_POLL_S = 0.05
_JOIN_S = 5.0
"""Longer only when a read hangs (a lost network file system), which must not hang the end of the run."""


@dataclass(frozen=True)
class StepBatch:
    """What one rank trains on in one optimizer step."""

    micro_batches: list[tuple[Tensor, Tensor]]
    """GAS pairs of input ids and labels, int64 ``[LBS, S]``, on the device."""
    label_tokens: int
    """Labels that count in the loss, of this rank."""
    real_tokens: int
    padded_tokens: int
    """Positions filled with padding; packed data has none."""


class DeviceLoader:
    """Iterates over the optimizer steps from ``start_step`` (from 0) on, without end.

    ``depth`` steps are kept ready on the device. An error of the reading thread is raised where the step is asked
    for. Call ``close`` at the end: a daemon thread in a device call can crash an interpreter that shuts down.
    """

    def __init__(
        self,
        reader: TokenReader,
        gradient_accumulation_steps: int,
        device: torch.device,
        start_step: int = 0,
        depth: int = 2,
    ) -> None:
        """Start reading; ``UsageError`` when the data set does not fill one global batch."""
        reader.steps_per_epoch(gradient_accumulation_steps)
        self._reader, self._gas, self._start_step = reader, gradient_accumulation_steps, start_step
        self._copier = _Copier(device)
        self._ready: queue.Queue[tuple[Tensor, Any] | BaseException] = queue.Queue(depth)
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
        tokens, copied = item
        self._copier.receive(tokens, copied)
        pairs = [(micro[0], micro[1]) for micro in tokens]
        labels = sum(pair[1].numel() for pair in pairs)
        return StepBatch(micro_batches=pairs, label_tokens=labels, real_tokens=labels, padded_tokens=0)

    def close(self) -> None:
        """Stop the thread; the iteration ends. May be called twice."""
        self._stop.set()
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

    def _read(self, step: int) -> Tensor | None:
        """Tokens of one step, ``[GAS, 2, LBS, S]`` (inputs, labels); None when told to stop."""
        shape = (self._gas, 2, self._reader.local_batch_size, self._reader.sequence_length)
        host = self._copier.host_buffer(shape)
        target = host.numpy()
        for micro_step in range(self._gas):
            if self._stop.is_set():
                return None
            target[micro_step] = self._reader.batch(step, micro_step, self._gas)
        return host

    def _offer(self, item: tuple[Tensor, Any] | BaseException) -> bool:
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return True
        return False


class _Copier:
    """Copies from host to device on a stream of its own; on the CPU it hands the tensor over as it is."""

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

    def host_buffer(self, shape: tuple[int, ...]) -> Tensor:
        """An int64 buffer, pinned where the vendor can; it is filled before ``send`` and not touched after."""
        if self._pin:
            try:
                return torch.empty(shape, dtype=torch.int64, pin_memory=True)
            except RuntimeError:
                self._pin = False
        return torch.empty(shape, dtype=torch.int64)

    def send(self, host: Tensor) -> tuple[Tensor, Any]:
        """The tensor on the device, and the event that its copy ends with."""
        if self._device.type == "cpu":
            return host, None
        with self._module.stream(self._stream):
            # From pageable memory an asynchronous copy may read after the buffer is gone.
            tokens = host.to(self._device, non_blocking=self._pin)
            return tokens, self._stream.record_event()

    def receive(self, tokens: Tensor, copied: Any) -> None:
        """Let the consumer's stream wait for the copy, and keep the memory until that stream is done with it."""
        if copied is not None:
            current = self._module.current_stream(self._device)
            current.wait_event(copied)
            tokens.record_stream(current)
