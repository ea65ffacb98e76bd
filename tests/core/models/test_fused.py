"""Layers of one input as one product: the same results as apart, the same memory, fewer products."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from core.models.fused import fused_rows, linear_names, separate
from tests.core.models.conftest import released_gradients

pytestmark = pytest.mark.timeout(120)
PARTS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")


@pytest.fixture
def both(make_model):
    """A model with two queries for each key, and the same one with a layer for every part."""
    fused, apart = (make_model(spec={"num_kv_heads": 3}, attention="sdpa") for _ in range(2))
    separate(apart, ("k_proj", "up_proj"))
    return fused, apart


def test_results_and_gradients_are_those_of_separate_layers(both, batch):
    gradients = []
    for model in both:
        model(*batch)[0].backward()
        gradients.append(released_gradients(model))
    torch.testing.assert_close(both[0](batch[0]), both[1](batch[0]), rtol=1e-5, atol=1e-5)
    assert gradients[0].keys() == gradients[1].keys() == {name for name, _ in both[0].released_weights()}
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-4, atol=1e-5)


def test_weights_and_their_names_are_those_of_separate_layers(both):
    fused, apart = (dict(model.released_weights()) for model in both)
    assert fused.keys() == apart.keys()
    assert all(torch.equal(tensor, apart[name]) for name, tensor in fused.items())
    assert linear_names(both[0]) == linear_names(both[1]) == {*PARTS, "o_proj", "down_proj"}
    assert not fused_rows(both[1])
    rows = fused_rows(both[0])["model.layers.1.self_attn.qkv_proj.weight"]
    beginning = "model.layers.1.self_attn."
    assert rows == {f"{beginning}{name}.weight": n for name, n in zip(PARTS, (48, 24, 24), strict=False)}


def _kept_bytes(model, batch):
    """Of all that the backward pass will read, parameters aside; a view keeps the whole of what it shows."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # the storage itself, or its address would be given away again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(*batch)
    return sum(storage.nbytes() for storage in kept.values())


def test_nothing_is_kept_for_the_backward_pass_that_separate_layers_would_not_keep(both, batch):
    """A view of the values would keep queries and keys beside their rotated copies."""
    fused, apart = (_kept_bytes(model, batch) for model in both)
    assert fused == apart


def test_only_what_has_a_part_of_that_name_is_separated(make_model):
    model = make_model()
    separate(model, ("v_proj", "o_proj"))
    names = {name.split(".")[-2] for name, _ in model.named_parameters()}
    assert names >= {"q_proj", "k_proj", "v_proj", "gate_up_proj"}
    assert names.isdisjoint({"qkv_proj", "gate_proj", "up_proj"})
