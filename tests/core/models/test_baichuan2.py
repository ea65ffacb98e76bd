"""Baichuan 2 against a reference in fp64, written from the report and the released model's description."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from core.models.baichuan2 import Baichuan2

pytestmark = pytest.mark.timeout(120)
LAYERS, HEADS = 3, 6
# 2^(-8/4 * i) for four heads, then every other one of eight heads: 2^(-8/8 * i).
SLOPES = [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3]


def _norm(x, weight, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def _attention(x, packed, out):
    """One head after the other, with the released model's bias: slope times the key's index."""
    length, hidden = x.shape
    size = hidden // HEADS
    query, key, value = (x @ packed.T).split(hidden, dim=-1)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    heads = []
    for head, slope in enumerate(SLOPES):
        part = slice(head * size, (head + 1) * size)
        scores = query[:, part] @ key[:, part].T / math.sqrt(size) + slope * torch.arange(length)
        heads.append(scores.masked_fill(future, -math.inf).softmax(-1) @ value[:, part])
    return torch.cat(heads, dim=-1) @ out.T


def _reference_logits(weights, input_ids, eps):
    x = weights["model.embed_tokens.weight"][input_ids]
    for layer in range(LAYERS):
        w = {k.split(".", 3)[3]: v for k, v in weights.items() if k.startswith(f"model.layers.{layer}.")}
        normed = _norm(x, w["input_layernorm.weight"], eps)
        x = x + _attention(normed, w["self_attn.W_pack.weight"], w["self_attn.o_proj.weight"])
        normed = _norm(x, w["post_attention_layernorm.weight"], eps)
        gate, up = normed @ w["mlp.gate_proj.weight"].T, normed @ w["mlp.up_proj.weight"].T
        x = x + (gate * gate.sigmoid() * up) @ w["mlp.down_proj.weight"].T
    head = weights["lm_head.weight"]
    head = head / head.pow(2).sum(-1, keepdim=True).sqrt()
    return _norm(x, weights["model.norm.weight"], eps) @ head.T


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("loss", ["full", "chunked"])
def test_logits_and_gradients_are_those_of_the_reference(make_model, batch, attention, loss):
    model = make_model("baichuan2", attention=attention, loss=loss)
    input_ids, labels = batch
    weights = {name: value.double().requires_grad_() for name, value in model.state_dict().items()}
    logits = torch.stack([_reference_logits(weights, row, model.spec.norm_eps) for row in input_ids])
    torch.testing.assert_close(model(input_ids).double(), logits, rtol=1e-4, atol=1e-5)

    torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").backward()
    model(input_ids, labels)[0].backward()
    for name, parameter in model.named_parameters():
        expected = weights[name].grad
        error = (parameter.grad - expected).norm() / expected.norm()
        assert error < 1e-5, name


@pytest.mark.parametrize("length", [20, pytest.param(130, marks=pytest.mark.slow)])
def test_flex_gives_the_logits_of_eager(make_model, length, compiler):
    """Forward only: FlexAttention has no backward pass on a CPU."""
    input_ids = torch.randint(0, 97, (2, length), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = make_model("baichuan2", attention="eager")(input_ids)
        found = make_model("baichuan2", attention="flex")(input_ids)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


def test_names_are_those_of_the_released_checkpoints(make_model):
    parts = ("self_attn.W_pack", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    parts += ("input_layernorm", "post_attention_layernorm")
    expected = {f"model.layers.{layer}.{part}.weight" for layer in range(LAYERS) for part in parts}
    expected |= {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert set(make_model("baichuan2").state_dict()) == expected


def test_the_published_size(make_spec, make_hp):
    spec = make_spec(
        "baichuan2",
        hidden_size=5120,
        intermediate_size=13696,
        num_layers=40,
        num_heads=40,
        num_kv_heads=40,
        vocab_size=125696,
    )
    with torch.device("meta"):
        model = Baichuan2(spec, make_hp())
    assert sum(parameter.numel() for parameter in model.parameters()) == 13_896_668_160


def test_logits_do_not_see_the_length_of_the_heads_rows(make_model, batch):
    model = make_model("baichuan2")
    before = model(batch[0])
    with torch.no_grad():
        model.lm_head.weight.mul_(3.0)
    torch.testing.assert_close(model(batch[0]), before)
