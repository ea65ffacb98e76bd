"""Nodes with files that differ are told, on every rank alike."""

from __future__ import annotations

import pytest

dist = pytest.importorskip("torch.distributed")

from core.data.agreement import require_same
from core.errors import UsageError

OWN = "da" * 32


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Hashes of the ranks after this one."""
    found: list[str] = []

    def all_gather_object(told: list[str], own: str) -> None:
        told[:] = [own, *found]

    monkeypatch.setattr(dist, "get_world_size", lambda: 1 + len(found))
    monkeypatch.setattr(dist, "all_gather_object", all_gather_object)
    return found


def test_the_same_files_on_all_ranks_are_what_a_run_needs(others: list[str]) -> None:
    others += [OWN] * 2
    require_same("data 'wiki'", OWN, "copy them")


def test_other_files_on_one_rank_are_refused(others: list[str]) -> None:
    others += [OWN, "ab" * 32]
    with pytest.raises(UsageError) as error:
        require_same("data 'wiki'", OWN, "copy them")
    assert error.value.what == "data 'wiki' differ: hash dadadadadada on rank 0, abababababab on rank 2"
    assert error.value.fix == "copy them"
