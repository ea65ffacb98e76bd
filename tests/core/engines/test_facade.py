"""``torch.cuda`` as the facade answers for it; each test in a process of its own, which it changes for good."""

from __future__ import annotations

import os
import subprocess
import sys
from textwrap import dedent

import pytest

pytest.importorskip("torch")

from tests.conftest import python_path

INSTALLED = """
    import torch
    from core.engines.megatron.facade import install
    install(torch.device("cpu"))
"""


def run(script: str, prepare: str = "") -> None:
    environment = os.environ | {"PYTHONPATH": python_path()}
    done = subprocess.run(
        [sys.executable, "-c", dedent(prepare) + dedent(script)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_tensors_on_cuda_are_on_the_device() -> None:
    script = """
    device = torch.cuda.current_device()
    assert torch.empty(1, device=device).device == torch.device("cpu")
    assert torch.zeros(1, device="cuda").device == torch.device("cpu")
    assert torch.zeros(1).cuda().device == torch.device("cpu")
    assert torch.zeros(1, device="meta").device == torch.device("meta")
    """
    run(script, INSTALLED)


def test_types_are_called_by_cudas_names() -> None:
    script = """
    assert torch.zeros(1).type() == "torch.cuda.FloatTensor"
    assert torch.zeros(1, dtype=torch.bfloat16).type() == "torch.cuda.BFloat16Tensor"
    assert torch.zeros(1).type(torch.float64).dtype is torch.float64
    """
    run(script, INSTALLED)


def test_a_second_time_and_for_cuda_nothing_is_done() -> None:
    run("""
    import torch
    from core.engines.megatron import facade
    before = torch.cuda.current_device
    facade.install(torch.device("cuda", 0))
    assert torch.cuda.current_device is before
    facade.install(torch.device("cpu"))
    after = torch.cuda.current_device
    facade.install(torch.device("cpu"))
    assert torch.cuda.current_device is after is not before
    """)
