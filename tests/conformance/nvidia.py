"""NVIDIA's GPUs, where this machine holds one; else the launcher's side alone."""

import pytest

from core.testing.suite import *

VENDOR = "nvidia"
LEFT_OUT = {"hardware_configs.plannable"}


def test_all_else_has_run(conformance):
    report = conformance.report()
    if report.chip is None:
        pytest.skip("needs an NVIDIA GPU that the plugin knows")
    alone = {"init_device.collectives"} if report.ranks == 1 else set()
    assert {result.id for result in report.results if result.verdict != "passed"} == LEFT_OUT | alone
