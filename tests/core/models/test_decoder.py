"""What all decoders do: checkpointing, compiling, half precision, and building on meta."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.timeout(300)
MODELS = ["llama", "baichuan2"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("checkpointing", ["full", "selective"])
def test_checkpointing_changes_no_gradient(make_model, batch, run_backward, model, attention, checkpointing):  # noqa: PLR0917
    expected = run_backward(make_model(model, attention=attention), batch)
    decoder = make_model(model, attention=attention, activation_checkpointing=checkpointing)
    found = run_backward(decoder, batch)
    assert found[:2] == expected[:2]
    for name, gradient in expected[2].items():
        assert torch.equal(found[2][name], gradient), name


class _Operators(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts matrix products and silu in a backward pass."""

    def __init__(self):
        super().__init__()
        self.products = self.gates = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.products += operator is torch.ops.aten.mm.default
        self.gates += operator is torch.ops.aten.silu.default
        return operator(*args, **kwargs or {})


def _backward_operators(model, batch):
    objective, _ = model(*batch)
    with _Operators() as counted:
        objective.backward()
    return counted.products, counted.gates


def test_full_recomputes_products_and_selective_only_what_lies_between(make_model, batch):
    none = _backward_operators(make_model(), batch)
    full = _backward_operators(make_model(activation_checkpointing="full"), batch)
    selective = _backward_operators(make_model(activation_checkpointing="selective"), batch)
    assert none[1] == 0
    # Recomputing stops at the last tensor that the backward pass needs, before down_proj: 6 of 7 products.
    assert full == (none[0] + 3 * 6, 3)
    assert selective == (none[0], 3)


def test_without_gradients_nothing_is_checkpointed(make_model, batch):
    with torch.no_grad():
        expected, _ = make_model()(*batch)
        found, _ = make_model(activation_checkpointing="selective")(*batch)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("model", ["llama", pytest.param("baichuan2", marks=pytest.mark.slow)])
def test_compiled_blocks_give_the_same_loss_and_gradients(make_model, batch, run_backward, model, compiler):
    from torch._dynamo.utils import counters

    options = {"activation_checkpointing": "selective", "loss": "chunked", "z_loss": 1e-3}
    expected = run_backward(make_model(model, **options), batch)
    torch._dynamo.reset()
    counters.clear()
    compiled = make_model(model, compile=True, **options)
    found = run_backward(compiled, batch)
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    for name, gradient in expected[2].items():
        torch.testing.assert_close(found[2][name], gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item())
    assert set(compiled.state_dict()) == set(expected[2])
    # One for all three blocks, two for the loss and its scale, and one for NormHead's weight.
    assert counters["stats"]["unique_graphs"] == (3 if model == "llama" else 4)
    assert not counters["graph_break"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("loss", ["full", "chunked"])
@pytest.mark.parametrize("autocast", [False, True])
def test_bf16_and_autocast_follow_fp32(make_model, batch, model, attention, loss, autocast):  # noqa: PLR0917
    options = {"attention": attention, "loss": loss, "z_loss": 1e-4}
    expected, _ = make_model(model, **options)(*batch)
    decoder = make_model(model, **options)
    if not autocast:
        decoder = decoder.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        objective, cross_entropy = decoder(*batch)
    objective.backward()
    assert objective.dtype == cross_entropy.dtype == torch.float32
    assert objective.item() == pytest.approx(expected.item(), rel=0.03)
    assert all(parameter.grad.isfinite().all() for parameter in decoder.parameters())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_model_built_on_meta_works_once_it_is_filled(make_model, batch, model, attention):
    source = make_model(model, attention=attention)
    with torch.device("meta"):
        decoder = type(source)(source.spec, source.hp)
    assert not list(decoder.buffers())
    decoder.to_empty(device="cpu")
    decoder.load_state_dict(source.state_dict(), strict=True)
    assert torch.equal(decoder(batch[0]), source(batch[0]))


def test_z_loss_moves_the_objective_only(make_model, batch):
    plain, _ = make_model()(*batch)
    objective, cross_entropy = make_model(z_loss=0.1)(*batch)
    assert torch.equal(cross_entropy, plain.detach())
    assert objective > plain


@pytest.mark.gpu
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_the_fast_path_follows_the_plain_one_on_a_gpu(make_model, run_backward, model, checkpointing):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    spec = {"hidden_size": 384, "intermediate_size": 512}
    batch = torch.randint(0, 97, (2, 2, 256), generator=torch.Generator().manual_seed(3)).cuda()
    # Larger weights saturate the softmax of such wide heads, and bf16 then rounds into other attention.
    expected = run_backward(make_model(model, spec=spec, deviation=0.05).cuda(), batch)
    fast = {"attention": "sdpa", "loss": "chunked", "compile": True, "activation_checkpointing": checkpointing}
    found = run_backward(make_model(model, spec=spec, deviation=0.05, **fast).cuda().to(torch.bfloat16), batch)
    assert found[0] == pytest.approx(expected[0], rel=0.01)
    for name, gradient in expected[2].items():
        cosine = torch.cosine_similarity(found[2][name].float().flatten(), gradient.flatten(), dim=0)
        assert cosine > 0.99, name
