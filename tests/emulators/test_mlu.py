"""The plugin cambricon on emulated MLU590s: the cases' configs end to end, losses as on the CPU, and fallbacks."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.usefixtures("mlu")
FALLS_BACK = "The operator 'aten::{}' is not currently supported on MLU and will fall back to run on the CPU."


def test_what_is_computed_on_the_host_is_right_and_told_or_refused() -> None:
    job = "import torch, torch_mlu; print(torch.ones(3, device='mlu').cumsum(0).tolist())"
    variables = os.environ | {"EMULATED_MISSING_OPERATORS": "aten::cumsum"}
    command = [sys.executable, "-c", job]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "[1.0, 2.0, 3.0]\n", done.stderr
    assert FALLS_BACK.format("cumsum") in done.stderr
    refusing = variables | {"ENABLE_FALLBACK_TO_CPU": "0"}
    done = subprocess.run(command, env=refusing, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "NotImplementedError: Could not run 'aten::cumsum" in done.stderr
