"""Blocks whose products with weights run in 8 bits."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")

from core.errors import UsageError
from core.models.fp8 import use_fp8

CPU = torch.device("cpu")


def in_fp8(model, device=CPU):
    use_fp8(model, device)
    return model.to(device, torch.bfloat16)


@pytest.mark.parametrize("model", ["llama", "baichuan2"])
def test_gradients_are_those_of_bf16_but_for_rounding(make_model, run_backward, model):
    batch = torch.randint(0, 97, (2, 2, 32), generator=torch.Generator().manual_seed(3))
    expected = run_backward(make_model(model, deviation=0.05).to(torch.bfloat16), batch)
    found = run_backward(in_fp8(make_model(model, deviation=0.05)), batch)
    assert found[0] == pytest.approx(expected[0], rel=0.01)
    assert found[2].keys() == expected[2].keys()
    for name, gradient in expected[2].items():
        cosine = torch.cosine_similarity(found[2][name].float().flatten(), gradient.float().flatten(), dim=0)
        assert cosine > 0.98, name
    in_blocks = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(found[2][in_blocks], expected[2][in_blocks])


def test_only_linear_layers_of_blocks_are_swapped(make_model):
    model = make_model()
    before = {name: type(module) for name, module in model.named_modules()}
    use_fp8(model, CPU)
    swapped = {name for name, module in model.named_modules() if type(module) is not before[name]}
    assert swapped == {name for name, kind in before.items() if kind is torch.nn.Linear}
    assert len(swapped) == 3 * 7
    assert all(name.startswith("model.layers.") for name in swapped)


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_what_is_computed_again_is_the_same(make_model, run_backward, checkpointing):
    batch = torch.randint(0, 97, (2, 2, 32), generator=torch.Generator().manual_seed(3))
    expected = run_backward(in_fp8(make_model()), batch)
    model = in_fp8(make_model(activation_checkpointing=checkpointing))
    for name, gradient in run_backward(model, batch)[2].items():
        assert torch.equal(gradient, expected[2][name]), name


def test_a_device_without_such_products_is_told(make_model, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("compute capability >= 9.0 is needed\nat some place")

    monkeypatch.setattr(torch, "_scaled_mm", refuse)
    with pytest.raises(
        UsageError, match=r"cpu has no products in 8 bits: compute capability >= 9\.0 is needed\n"
    ) as raised:
        use_fp8(make_model(), CPU)
    assert raised.value.fix == "plan precision bf16"


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_compiled_blocks_multiply_in_8_bits_on_a_gpu(make_model, run_backward, checkpointing):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    spec = {"hidden_size": 384, "intermediate_size": 512}
    batch = torch.randint(0, 97, (2, 2, 256), generator=torch.Generator().manual_seed(3)).cuda()
    expected = run_backward(make_model(spec=spec, deviation=0.05).cuda(), batch)
    fast = {"attention": "sdpa", "loss": "chunked", "compile": True, "activation_checkpointing": checkpointing}
    found = run_backward(in_fp8(make_model(spec=spec, deviation=0.05, **fast), torch.device("cuda")), batch)
    assert found[0] == pytest.approx(expected[0], rel=0.01)
    for name, gradient in expected[2].items():
        cosine = torch.cosine_similarity(found[2][name].float().flatten(), gradient.flatten(), dim=0)
        assert cosine > 0.9, name  # those of queries are small differences: 0.957 on an H200
