"""What every engine does the same way."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

from core import defaults
from core.data.loader import StepBatch
from core.engines.torch_engine import TorchEngine
from core.errors import DeviceError, UsageError
from core.models.llama import Llama2
from schemas.chip import Device
from schemas.plan import Plan

CPU = Device(torch_device="cpu", index=0, name="CPU", collective_backend="gloo", math_mode={})


@pytest.fixture
def plan(make_plan: Callable[..., Plan]) -> Plan:
    factory = {"model.factory": "core.models.llama:Llama2"}
    return make_plan(topology="REFx1x1", engine="torch", sets=factory | {"zero_stage": 0})


def test_core_builds_the_cases_model_without_values(plan: Plan) -> None:
    model = defaults.build_model(plan, 0)
    assert isinstance(model, Llama2)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert TorchEngine(plan, CPU).decoder(model) is model


def test_a_vendor_without_attention_of_its_own_is_told(make_plan: Callable[..., Plan]) -> None:
    sets = {"model.factory": "core.models.llama:Llama2", "zero_stage": 0, "attention": "vendor"}
    plan = make_plan(topology="REFx1x1", engine="torch", sets=sets)
    model = defaults.build_model(plan, 0)
    with pytest.raises(UsageError, match="and that of 'acme' puts none") as error:
        TorchEngine(plan, CPU).decoder(model)
    assert error.value.fix == "choose attention 'sdpa'"
    model.use_attention(lambda query, key, value, slopes: value, torch.ops.aten.clone.default)
    assert TorchEngine(plan, CPU).decoder(model) is model


def test_a_hook_that_builds_something_else_is_told(plan: Plan) -> None:
    with pytest.raises(DeviceError) as error:
        TorchEngine(plan, CPU).decoder(torch.nn.Linear(1, 1))
    assert error.value.what == "hook build_model returned a Linear, engine torch trains a Decoder"
    assert error.value.fix == "return a core.models.decoder.Decoder from the plugin of vendor 'acme'"


def test_a_global_batch_without_labels_moves_nothing(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not 0 / 0, which would leave NaN in all weights."""
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 1)
    engine = TorchEngine(plan, CPU)
    scale, tokens = engine.gradient_scale(StepBatch((), label_tokens=0, real_tokens=8, padded_tokens=0))
    objective = torch.zeros((), requires_grad=True)
    (objective * scale).backward()
    assert objective.grad is not None
    assert objective.grad.isfinite()
    assert engine.global_loss(torch.zeros(()), tokens).item() == 0.0
