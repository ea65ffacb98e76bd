"""MetaX's cards call themselves CUDA, so nothing stands in for one: the launcher's side alone is checked."""

from core.testing.catalog import CHECKS
from core.testing.suite import *

VENDOR = "metax"
LEFT_OUT = {"hardware_configs.plannable", "tune.plannable"}


def test_all_that_needs_no_device_has_run(conformance):
    found = {result.id for result in conformance.results() if result.verdict == "passed"}
    assert found == {check.id for check in CHECKS if check.place == "launcher"} - LEFT_OUT
