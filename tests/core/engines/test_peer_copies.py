"""What moves through windows; that engines train by it as by collectives is in test_parity.py."""

from __future__ import annotations

import importlib
import sys
import time
from typing import Any, cast

import pytest

torch = pytest.importorskip("torch")

from core.engines import peer_copies
from core.engines.peer_copies import PeerAllGather, PeerReduceScatter
from core.errors import DeviceError
from tests.core.engines.rank_threads import DELAY_S, RANKS, SharedWindows, on_ranks

NUMBERS, CALLS = 4, 4
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


def _number(call: int, rank: int) -> int:
    return 10 * call + rank


@pytest.mark.parametrize("slow", range(RANKS))
def test_a_rank_reads_what_its_peers_gather_now_however_slow_it_or_they_are(slow: int) -> None:
    shared = SharedWindows(slow, RANKS * NUMBERS * 4)

    def work(rank: int, group: Any) -> None:
        gather = PeerAllGather(shared.of(rank))
        for call in range(CALLS):
            whole = gather.allocate((RANKS * NUMBERS,), dtype=torch.bfloat16, device=CPU)
            own = whole.view(RANKS, NUMBERS)[rank].fill_(_number(call, rank))
            gather(whole, own, group)
            assert whole.view(RANKS, NUMBERS)[:, 0].tolist() == [_number(call, peer) for peer in range(RANKS)]

    on_ranks(work)


@pytest.mark.parametrize("slow", range(RANKS))
def test_a_rank_adds_up_what_its_peers_send_now_however_slow_it_or_they_are(slow: int) -> None:
    shared = SharedWindows(slow, RANKS * NUMBERS * 4)

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

    on_ranks(work)
