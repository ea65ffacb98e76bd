"""How a worker joins the others: bound to its device where the collective library can make use of it."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from schemas.chip import Device

dist = pytest.importorskip("torch.distributed")


@pytest.mark.parametrize(
    ("device", "splits", "asked_for", "bound"),
    [("cuda:1", True, "cuda:1", "cuda:1"), ("cuda:1", False, "cuda:1", None), ("cpu", False, None, None)],
)
def test_only_a_group_that_can_be_split_stays_bound(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    splits: bool,
    asked_for: str | None,
    bound: str | None,
) -> None:
    """MCCL cannot split, and torch makes the groups of a mesh by splitting a bound one."""
    from core.process_group import join as join_group

    asked: dict[str, Any] = {}
    world = SimpleNamespace(
        bound_device_id=None, _get_backend=lambda where: SimpleNamespace(supports_splitting=splits)
    )

    def join(backend: str, **options: Any) -> None:
        asked.update(options, backend=backend)
        world.bound_device_id = options["device_id"]

    monkeypatch.setattr(dist, "init_process_group", join)
    monkeypatch.setattr(dist, "group", SimpleNamespace(WORLD=world))
    acme = Device(torch_device=device, index=1, name="X1", collective_backend="accl", math_mode={})
    join_group(acme, timedelta(seconds=5))
    assert asked["backend"] == "accl"
    assert str(asked["device_id"]) == str(asked_for)
    assert str(world.bound_device_id) == str(bound)
