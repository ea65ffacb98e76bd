"""The list of checks: whole, in an order that works, and each of them callable."""

from __future__ import annotations

import inspect

import pytest

from core import HOOK_PROJECT, hookspecs
from core.errors import UsageError
from core.testing.catalog import CHECKS, check_called
from core.testing.session import function

HOOKS = {name for name, value in vars(hookspecs).items() if hasattr(value, f"{HOOK_PROJECT}_spec")}


def test_every_hook_has_a_check_and_every_check_a_hook() -> None:
    assert {check.hook for check in CHECKS} == HOOKS


def test_ids_differ_and_needs_come_first() -> None:
    seen: set[str] = set()
    for check in CHECKS:
        assert set(check.needs) <= seen, check.id
        assert check.id not in seen
        seen.add(check.id)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_a_check_calls_a_function_of_one_argument(check) -> None:
    if check.place not in ("launcher", "run"):
        pytest.importorskip("torch")
    assert len(inspect.signature(function(check)).parameters) == 1
    assert check.proves
    assert not check.proves.endswith(".")


def test_an_unknown_check_is_a_usage_error_that_names_the_known() -> None:
    with pytest.raises(UsageError, match="no check 'tf32'") as error:
        check_called("tf32")
    assert "init_device.pins_tf32" in error.value.fix
