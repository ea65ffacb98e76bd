"""Llama 2 against transformers' LlamaForCausalLM."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from core.models.llama import Llama2

pytestmark = pytest.mark.timeout(120)
LAYERS = 3


def _reference(model):
    spec = model.spec
    config = transformers.LlamaConfig(
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_kv_heads,
        vocab_size=spec.vocab_size,
        max_position_embeddings=spec.max_positions,
        rms_norm_eps=spec.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    reference = transformers.LlamaForCausalLM(config)
    reference.load_state_dict(model.state_dict(), strict=True)
    return reference


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kv_heads", [6, 2, 1])
def test_logits_and_gradients_are_those_of_transformers(make_model, batch, attention, kv_heads):
    model = make_model(spec={"num_kv_heads": kv_heads, "rope_theta": 500.0}, attention=attention)
    reference = _reference(model)
    input_ids, labels = batch

    logits = reference(input_ids).logits
    torch.testing.assert_close(model(input_ids), logits, rtol=1e-5, atol=2e-5)

    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    loss.backward()
    objective, cross_entropy = model(input_ids, labels)
    assert objective is cross_entropy
    torch.testing.assert_close(objective, loss, rtol=1e-6, atol=1e-4)
    objective.backward()
    expected = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        gradient = expected[name].grad
        assert (parameter.grad - gradient).norm() < 1e-5 * gradient.norm(), name


def test_names_are_those_of_the_released_checkpoints(make_model):
    parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    parts += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm")
    expected = {f"model.layers.{layer}.{part}.weight" for layer in range(LAYERS) for part in parts}
    expected |= {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert set(make_model().state_dict()) == expected


@pytest.mark.parametrize(
    ("sizes", "parameters"),
    [
        ((4096, 11008, 32, 32, 32), 6_738_415_616),
        ((8192, 28672, 80, 64, 8), 68_976_648_192),
    ],
)
def test_the_published_sizes(make_spec, make_hp, sizes, parameters):
    hidden, intermediate, layers, heads, kv_heads = sizes
    spec = make_spec(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        vocab_size=32000,
    )
    with torch.device("meta"):
        model = Llama2(spec, make_hp())
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert len(model.blocks) == layers
