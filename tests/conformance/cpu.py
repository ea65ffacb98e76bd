"""The reference chip: everything but what a CPU cannot show.

Files here are named after vendors, so that pytest collects them only when they are asked for.
"""

from core.testing.suite import *

VENDOR = "cpu"
LEFT_OUT = {
    "hardware_configs.plannable",
    "tune.plannable",
    "optimizer_wrap.keeps_recipe",
    "build_model.tuned",
    "optimizer_wrap.tuned",
    "optimizer_wrap.tuned_checkpoint",
    "collect_telemetry.sane",
}
CANNOT_BE_SHOWN = {"init_device.refuses_missing", "chips.peaks_reached"}


def test_all_else_has_run(conformance):
    found = {result.id for result in conformance.results() if result.verdict != "passed"}
    assert found == LEFT_OUT | CANNOT_BE_SHOWN
