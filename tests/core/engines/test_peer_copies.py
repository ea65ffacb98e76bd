"""Windows are what vendors offer; what goes through them is tested with the engines, in test_parity.py."""

from __future__ import annotations

from typing import Any, cast

import pytest

torch = pytest.importorskip("torch")

from core.engines import peer_copies
from core.errors import DeviceError


def test_a_device_without_windows_is_a_device_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_copies, "_MAKERS", {})
    with pytest.raises(DeviceError, match=r"memory that ranks share, which .* does not offer for cpu") as error:
        peer_copies.make_window(cast(Any, None), torch.device("cpu"))
    assert error.value.fix == "plan collectives=library"


def test_every_rank_begins_with_another_one() -> None:
    assert [peer_copies._others(rank, 4) for rank in range(4)] == [[1, 2, 3], [2, 3, 0], [3, 0, 1], [0, 1, 2]]
