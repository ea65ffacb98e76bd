"""What moves through windows; that engines train by it as by collectives is in test_parity.py."""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

torch = pytest.importorskip("torch")

from core.engines import peer_copies
from core.engines.peer_copies import PeerAllGather, PeerReduceScatter
from core.errors import DeviceError

RANKS, NUMBERS, CALLS, DELAY_S = 3, 4, 4, 0.01
CPU = torch.device("cpu")


def test_a_device_without_windows_is_a_device_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_copies, "_MAKERS", {})
    with pytest.raises(DeviceError, match=r"memory that ranks share, which .* does not offer for cpu") as error:
        peer_copies.make_window(cast(Any, None), CPU)
    assert error.value.fix == "plan collectives=library"


def test_every_rank_begins_with_another_one() -> None:
    assert [peer_copies.others(rank, 4) for rank in range(4)] == [[1, 2, 3], [2, 3, 0], [3, 0, 1], [0, 1, 2]]


def test_an_older_torch_trains_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interface of FSDP2 that they implement came with torch 2.9; vendors' builds may be older."""
    monkeypatch.delattr("torch.distributed.fsdp._fully_shard._fsdp_api.AllGather")
    for name in ("torch_engine", "peer_stage2", "peer_copies"):
        monkeypatch.delitem(sys.modules, f"core.engines.{name}", raising=False)
    importlib.import_module("core.engines.torch_engine")
    with pytest.raises(DeviceError, match=r"need torch 2\.9 or later, this is \d") as error:
        importlib.import_module("core.engines.peer_copies")
    assert error.value.fix == "plan collectives=library"


class _Shared:
    """The windows of ranks that are threads of one process; those of ``slow`` take their time to copy."""

    def __init__(self, slow: int) -> None:
        self.slow = slow
        self.memories = [torch.zeros(RANKS * NUMBERS * 4, dtype=torch.uint8) for _ in range(RANKS)]
        self.met = threading.Barrier(RANKS, timeout=10)

    def of(self, rank: int) -> Any:
        def part(of: int, like: torch.Tensor, offset: int = 0) -> torch.Tensor:
            if rank == self.slow:
                time.sleep(DELAY_S)
            first = offset * like.element_size()
            return self.memories[of][first : first + like.nbytes].view(like.dtype).view(like.shape)

        def reserve(size_bytes: int) -> None:
            assert size_bytes <= self.memories[rank].numel()

        return SimpleNamespace(part=part, reserve=reserve, barrier=self.met.wait)


def _on_ranks(work: Callable[[int, Any], None]) -> None:
    """``work(rank, group)`` in a thread for each rank."""
    failed: list[BaseException] = []

    def rank_of(rank: int) -> None:
        try:
            work(rank, SimpleNamespace(rank=lambda: rank, size=lambda: RANKS))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=rank_of, args=(rank,)) for rank in range(RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def _number(call: int, rank: int) -> int:
    return 10 * call + rank


@pytest.mark.parametrize("slow", range(RANKS))
def test_a_rank_reads_what_its_peers_gather_now_however_slow_it_or_they_are(slow: int) -> None:
    shared = _Shared(slow)

    def work(rank: int, group: Any) -> None:
        gather = PeerAllGather(shared.of(rank))
        for call in range(CALLS):
            whole = gather.allocate((RANKS * NUMBERS,), dtype=torch.bfloat16, device=CPU)
            own = whole.view(RANKS, NUMBERS)[rank].fill_(_number(call, rank))
            gather(whole, own, group)
            assert whole.view(RANKS, NUMBERS)[:, 0].tolist() == [_number(call, peer) for peer in range(RANKS)]

    _on_ranks(work)


@pytest.mark.parametrize("slow", range(RANKS))
def test_a_rank_adds_up_what_its_peers_send_now_however_slow_it_or_they_are(slow: int) -> None:
    shared = _Shared(slow)

    def mean(received: torch.Tensor, out: torch.Tensor) -> None:
        time.sleep(DELAY_S)
        peer_copies.mean_of_ranks(received, out)

    def work(rank: int, group: Any) -> None:
        reduce = PeerReduceScatter(shared.of(rank), torch.bfloat16, CPU)
        if rank == slow:
            reduce._mean = mean
        for call in range(CALLS):
            sent = reduce.allocate((RANKS * NUMBERS,), dtype=torch.float32, device=CPU)
            total = reduce.allocate((NUMBERS,), dtype=torch.float32, device=CPU)
            assert (sent.dtype, total.dtype) == (torch.bfloat16, torch.float32)
            sent.view(RANKS, NUMBERS).copy_(torch.arange(RANKS)[:, None] * 100 + _number(call, rank))
            reduce(total, sent, group, torch.distributed.ReduceOp.AVG)
            expected = 100 * rank + sum(_number(call, peer) for peer in range(RANKS)) / RANKS
            assert total.tolist() == [expected] * NUMBERS

    _on_ranks(work)
