"""ZeRO stage 2 among peers: 16-bit weights on every rank, and a part of what is updated, gradients and moments.

FSDP2 moves a block's parameters as one buffer: it copies weights out of it once they are gathered, and gradients
into it before they are reduced, both in line with the products that wait for them. Here rows go from where they
are to where they are needed, beside the products.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from core.dtensors import as_dtensor
from core.engines.peer_copies import Window, compiled_on, make_window, mean_of_ranks, others
from core.errors import UsageError
from core.trace import communication_range

IN_FLIGHT = 2
"""Blocks whose gradients may wait to be reduced, in memory that a rank which is ahead waits for."""


class Unit:
    """Parameters whose gradients come together: those of a block, of the head, or all others."""

    def __init__(
        self, named: Sequence[tuple[str, nn.Parameter]], mesh: DeviceMesh, state_type: torch.dtype
    ) -> None:
        self.names = [name for name, _ in named]
        self.weights = [parameter for _, parameter in named]
        self._ranks, rank = mesh.size(), mesh.get_local_rank()
        own, self.slot = (sum(part.numel() for part in self.parts(self.weights, of)) for of in (rank, 0))
        """Numbers in this rank's rows, and room for those of any one: the first has the most."""
        device = self.weights[0].device
        self.main = torch.empty(own, device=device, dtype=state_type)
        self.gradient: Tensor | None = None
        self.awaited = len(self.weights)
        """Gradients that this backward pass has yet to bring."""
        self.gathered: torch.Event | None = None
        self._placed = mesh, rank
        self.parameters = [nn.Parameter(view) for view in self._as_dtensors(self.main)]

    def parts(self, tensors: Sequence[Tensor], rank: int) -> list[Tensor]:
        """Of whole tensors, the rows that belong to ``rank``; as DTensor shards dimension 0."""
        return [tensor.detach()[_rows(len(tensor), rank, self._ranks)] for tensor in tensors]

    def tell_gradients(self) -> None:
        """Let the optimizer find the rank's part of them."""
        assert self.gradient is not None, f"no gradient of {self.names}"
        for parameter, gradient in zip(self.parameters, self._as_dtensors(self.gradient), strict=True):
            parameter.grad = gradient

    def _as_dtensors(self, flat: Tensor) -> list[DTensor]:
        mesh, rank = self._placed
        parts = self.parts(self.weights, rank)
        views = torch.split(flat, [part.numel() for part in parts])
        return [
            as_dtensor(view.view(part.shape), weight, mesh, [Shard(0)])
            for view, part, weight in zip(views, parts, self.weights, strict=True)
        ]


class PeerStage2:
    """Weights of a model, and who holds what of their state.

    ``gather`` before a step's first forward pass, ``reduced`` after its last backward pass.
    """

    def __init__(
        self, model: nn.Module, modules: Sequence[nn.Module], mesh: DeviceMesh, state_type: torch.dtype
    ) -> None:
        """``modules`` of ``model`` travel each by itself, all else as one; weights need no values yet.

        ``state_type``: of what is updated and of gradients, fp32 or that of the weights.
        """
        _require_no_sharing(model)
        group, device = mesh.get_group(), next(model.parameters()).device
        self._state_type = state_type
        self._rank, self._ranks = group.rank(), group.size()
        self._gathering, self._reducing = (SideStream(make_window(group, device), device) for _ in range(2))
        self._in_flight: deque[tuple[torch.Event | None, list[Tensor]]] = deque()
        self._mean, self._add_mean = (compiled_on(device, function) for function in (mean_of_ranks, _add_mean))
        left = dict(model.named_parameters())
        names = {id(parameter): name for name, parameter in left.items()}
        self.units = []
        for module in modules:
            own = [(names[id(parameter)], left.pop(names[id(parameter)])) for parameter in module.parameters()]
            self.units.append(self._unit(module, own, mesh))
        self.units.insert(0, self._unit(model, list(left.items()), mesh))  # the embedding is needed first
        largest = max(unit.slot * unit.weights[0].element_size() for unit in self.units)
        self._gathering.window.reserve(largest)
        self._reducing.window.reserve(largest * self._ranks)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The model's name of each parameter, and what is updated of it, a DTensor."""
        for unit in self.units:
            yield from zip(unit.names, unit.parameters, strict=True)

    def gather(self) -> None:
        """Begin to bring all weights up to date; each module waits for its own when it is called."""
        side = self._gathering
        with communication_range(), side.behind_the_current_stream():
            for unit in self.units:
                unit.gradient = None
                mine = unit.weights[0].new_empty(unit.main.numel(), device="meta")
                side.window.part(self._rank, mine).copy_(unit.main)
                side.window.barrier()
                for peer in (self._rank, *others(self._rank, self._ranks)):
                    self._fetch(unit, peer)
                side.window.barrier()
                unit.gathered = side.event()

    def _fetch(self, unit: Unit, peer: int) -> None:
        offset = 0
        for rows in unit.parts(unit.weights, peer):
            rows.copy_(self._gathering.window.part(peer, rows, offset))
            offset += rows.numel()

    def reduced(self) -> None:
        """Let what follows wait for all gradients, and find them."""
        while self._in_flight:
            self._wait_for_the_oldest()
        for unit in self.units:
            unit.tell_gradients()

    def _unit(self, module: nn.Module, named: Sequence[tuple[str, nn.Parameter]], mesh: DeviceMesh) -> Unit:
        unit = Unit(named, mesh, self._state_type)

        def wait(*_: object) -> None:
            _wait_for(unit.gathered, unit.weights[0].device)

        def came(_: Tensor) -> None:
            unit.awaited -= 1
            if unit.awaited == 0:
                unit.awaited = len(unit.weights)
                self._reduce(unit)

        module.register_forward_pre_hook(wait)
        for weight in unit.weights:
            weight.register_post_accumulate_grad_hook(came)  # type: ignore[no-untyped-call]
        return unit

    def _reduce(self, unit: Unit) -> None:
        """Send each rank its rows of the gradients, and add up what the others send."""
        gradients = [weight.grad for weight in unit.weights if weight.grad is not None]
        side, own = self._reducing, unit.main.numel()
        like = gradients[0].new_empty(self._ranks, unit.slot, device="meta")
        with communication_range(), side.behind_the_current_stream():
            side.window.barrier()  # what came last has been added up
            for peer in (self._rank, *others(self._rank, self._ranks)):
                offset = self._rank * unit.slot
                for rows in unit.parts(gradients, peer):
                    side.window.part(peer, rows, offset).copy_(rows)
                    offset += rows.numel()
            side.window.barrier()
            received = side.window.part(self._rank, like)[:, :own]
            if unit.gradient is None:
                unit.gradient = torch.empty_like(unit.main)
                self._mean(received, unit.gradient)
            else:
                self._add_mean(received, unit.gradient)
            self._in_flight.append((side.event(), gradients))
        for weight in unit.weights:
            weight.grad = None
        if len(self._in_flight) > IN_FLIGHT:
            self._wait_for_the_oldest()

    def _wait_for_the_oldest(self) -> None:
        """Gradients may be freed only then: their memory is the current stream's."""
        event, gradients = self._in_flight.popleft()
        _wait_for(event, gradients[0].device)


class SideStream:
    """A stream beside the current one, on an accelerator, and the window that it alone uses."""

    def __init__(self, window: Window, device: torch.device) -> None:
        self.window = window
        self._device = device
        self._stream = None if device.type == "cpu" else torch.Stream(device=device)

    @contextmanager
    def behind_the_current_stream(self) -> Iterator[None]:
        """What is queued within goes to this stream, after all that has been queued so far."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.accelerator.current_stream(self._device))
        with self._stream:
            yield

    def event(self) -> torch.Event | None:
        """That all has run which was queued here so far; a CPU queues nothing."""
        return None if self._stream is None else self._stream.record_event()


def _require_no_sharing(model: nn.Module) -> None:
    """A weight of two modules would be gathered for one of them only."""
    known: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in known:
            raise UsageError(
                f"{name} is the same weight as {known[id(parameter)]}, and stage 2 among peers gathers each for "
                "one module",
                "plan collectives=library",
            )
        known[id(parameter)] = name


def _wait_for(event: torch.Event | None, device: torch.device) -> None:
    if event is not None:
        torch.accelerator.current_stream(device).wait_event(event)


def _rows(rows: int, rank: int, ranks: int) -> slice:
    each = math.ceil(rows / ranks)
    return slice(min(rank * each, rows), min((rank + 1) * each, rows))


def _add_mean(received: Tensor, total: Tensor) -> None:
    total.add_(received.float().mean(dim=0))
