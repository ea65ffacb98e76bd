"""The conformance suite as pytest tests, for a vendor's own repository.

A test file there holds two lines::

    from core.testing.suite import *

    VENDOR = "acme"

Every check becomes a test; what this machine cannot show is skipped with the reason, never passed. To run one:
``pytest -k collect_memory.resets``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from core import plugins
from core.testing.catalog import CHECKS
from core.testing.check import Check
from core.testing.conformance import Conformance

__all__ = ["conformance", "test_conformance"]


@pytest.fixture(scope="module")
def conformance(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Conformance:
    """The checks of the vendor that the test file names as ``VENDOR`` (``NAME`` or ``NAME@DISTRIBUTION``)."""
    name = getattr(request.module, "VENDOR", None)
    if not isinstance(name, str):
        pytest.fail(f"{request.path.name} names no vendor; add a line like VENDOR = 'acme'", pytrace=False)
    return Conformance(plugins.select(name), Path(tmp_path_factory.mktemp("conformance")))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_conformance(conformance: Conformance, check: Check) -> None:
    """Fails with the check's reason; skipped where it was not declared or could not run."""
    result = conformance.result(check)
    if result.verdict == "failed":
        pytest.fail(f"{check.proves}: {result.reason}", pytrace=False)
    if result.verdict != "passed":
        pytest.skip(f"{result.verdict}: {result.reason}")
