"""What waits for what at stage 2 among peers; that it trains as FSDP2 does is in test_parity.py."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn

from core.engines import peer_stage2
from core.engines.peer_stage2 import PeerStage2
from core.errors import UsageError
from tests.core.engines.rank_threads import DELAY_S, RANKS, SharedWindows, on_ranks

STEPS, MICRO_BATCHES = 3, 2
SHAPES = ((5, 4), (4, 5), (2, 4))
"""Of the weights of three layers, each of which travels by itself; the last rank has a row less, or none."""


class Peers:
    """One rank's layers and its part of their state."""

    def __init__(self, rank: int, group: Any) -> None:
        self.rank = rank
        self.layers = [nn.Linear(shape[1], shape[0], bias=False) for shape in SHAPES]
        self.model = nn.Sequential(*self.layers)
        mesh = SimpleNamespace(size=lambda: RANKS, get_local_rank=lambda: rank, get_group=lambda: group)
        self.state = PeerStage2(self.model, self.layers[1:], cast(Any, mesh), torch.float32)

    def own(self, whole: Tensor) -> list[float]:
        """This rank's rows, one number after the other."""
        each = -(-len(whole) // RANKS)
        values: list[float] = whole[self.rank * each : (self.rank + 1) * each].flatten().tolist()
        return values


@pytest.fixture(params=range(RANKS))
def slow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The rank that takes its time; plain tensors stand for DTensors."""
    number: int = request.param
    shared = [SharedWindows(number, 1000), SharedWindows(number, 1000)]
    made = dict.fromkeys(range(RANKS), 0)

    def make_window(group: Any, _: object) -> Any:
        made[group.rank()] += 1
        return shared[made[group.rank()] - 1].of(group.rank())

    monkeypatch.setattr(peer_stage2, "make_window", make_window)
    monkeypatch.setattr(peer_stage2, "as_dtensor", lambda part, *_: part)
    return number


def weights_of(step: int) -> list[Tensor]:
    return [torch.arange(a * b).view(a, b) / 10 + step for a, b in SHAPES]


def late(function: Callable[..., None]) -> Callable[..., None]:
    def then(*arguments: Any) -> None:
        time.sleep(DELAY_S)
        function(*arguments)

    return then


def test_weights_and_gradients_are_those_of_the_step_however_slow_a_rank_is(slow: int) -> None:
    def work(rank: int, group: Any) -> None:
        peers = Peers(rank, group)
        if rank == slow:
            peers.state._mean, peers.state._add_mean = late(peers.state._mean), late(peers.state._add_mean)
        for step in range(STEPS):
            whole = weights_of(step)
            for unit, weight in zip(peers.state.units, whole, strict=True):
                unit.main.copy_(torch.tensor(peers.own(weight)))
            peers.state.gather()
            for layer, weight in zip(peers.layers, whole, strict=True):
                assert torch.equal(layer.weight, weight)
            for number in range(MICRO_BATCHES):
                peers.model(torch.full((1, 4), float(rank + 10 * number + step))).sum().backward()
            peers.state.reduced()
            for unit, gradient in zip(peers.state.units, gradients(whole, step), strict=True):
                assert unit.gradient is not None
                assert unit.gradient.tolist() == pytest.approx(peers.own(gradient), rel=1e-5)
                assert unit.parameters[0].grad is not None

    on_ranks(work)


def gradients(weights: list[Tensor], step: int) -> list[Tensor]:
    """The mean over ranks of what their micro-batches add up to; linear layers' are linear in their input."""
    total = sum((RANKS - 1) / 2 + 10 * number + step for number in range(MICRO_BATCHES))
    leaves = [weight.clone().requires_grad_() for weight in weights]
    states = torch.full((1, 4), float(total))
    for leaf in leaves:
        states = states @ leaf.t()
    return list(torch.autograd.grad(states.sum(), leaves))


def test_a_weight_of_two_modules_is_refused() -> None:
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    second.weight = first.weight
    group = SimpleNamespace(rank=lambda: 0, size=lambda: 1)
    mesh = SimpleNamespace(get_group=lambda: group)
    with pytest.raises(UsageError, match=r"1\.weight is the same weight as 0\.weight") as error:
        PeerStage2(nn.Sequential(first, second), [second], cast(Any, mesh), torch.float32)
    assert error.value.fix == "plan collectives=library"
