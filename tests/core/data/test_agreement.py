"""Nodes with data that differ are told, on every rank alike."""

from __future__ import annotations

import pytest

dist = pytest.importorskip("torch.distributed")

from core.data.agreement import require_same
from core.data.source import DataFacts
from core.errors import UsageError

OWN = DataFacts("wiki", "da" * 32, sequences=8, tokens=64)


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Hashes of the ranks after this one."""
    found: list[str] = []

    def all_gather_object(told: list[str], own: str) -> None:
        told[:] = [own, *found]

    monkeypatch.setattr(dist, "get_world_size", lambda: 1 + len(found))
    monkeypatch.setattr(dist, "all_gather_object", all_gather_object)
    return found


def test_the_same_data_on_all_ranks_is_what_a_run_needs(others: list[str]) -> None:
    others += [OWN.sha256] * 2
    require_same(OWN)


def test_other_data_on_one_rank_is_refused(others: list[str]) -> None:
    others += [OWN.sha256, "ab" * 32]
    with pytest.raises(UsageError) as error:
        require_same(OWN)
    assert error.value.what == "data 'wiki' has hash dadadadadada on rank 0, but abababababab on rank 2"
    assert "all nodes" in error.value.fix
