"""ALiBi's slopes, its bias, and what each kind of attention refuses."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from core.errors import UsageError
from core.models.attention import ContextCache, alibi_slopes, build_context

pytestmark = pytest.mark.timeout(120)
CPU = torch.device("cpu")


def test_slopes_of_a_power_of_two_are_the_papers():
    assert alibi_slopes(8) == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]


def test_slopes_of_40_heads_interleave_the_series_of_32_and_64():
    slopes = alibi_slopes(40)
    assert len(slopes) == 40
    assert slopes[:32] == pytest.approx([0.5 ** (0.25 * i) for i in range(1, 33)])
    # 2^(-1/8), 2^(-3/8), ... 2^(-15/8): the values in the released Baichuan2-13B.
    last = [0.917004, 0.771105, 0.648420, 0.545254, 0.458502, 0.385553, 0.324210, 0.272627]
    assert slopes[32:] == pytest.approx(last, abs=1e-6)


@pytest.mark.parametrize(("kind", "dtype"), [("eager", torch.float32), ("sdpa", torch.bfloat16)])
def test_the_bias_is_slope_times_distance(make_spec, kind, dtype):
    bias = build_context(make_spec("baichuan2"), kind, 5, CPU, torch.bfloat16).bias
    assert bias.shape == (1, 6, 5, 5)
    assert bias.dtype == dtype
    assert bias[0, 0, 4].tolist() == [-1.0, -0.75, -0.5, -0.25, 0.0]
    assert bias[0, 0, 0].tolist() == [0.0] + [-math.inf] * 4


def test_a_bf16_bias_is_exact_near_the_diagonal(make_spec):
    """Slope times the key's index would be off by up to 4 at 2048 keys."""
    bias = build_context(make_spec("baichuan2"), "sdpa", 2048, CPU, torch.bfloat16).bias
    exact = build_context(make_spec("baichuan2"), "eager", 2048, CPU, torch.bfloat16).bias
    assert exact[0, 0, -1].tolist() == [-0.25 * distance for distance in range(2047, -1, -1)]
    last = slice(2000, 2048)
    assert (bias[..., -1, last].float() - exact[..., -1, last]).abs().max() < 0.07


def test_causal_sdpa_builds_no_bias(make_spec):
    assert build_context(make_spec(), "sdpa", 8, CPU, torch.float32).bias is None


@pytest.mark.parametrize("model", ["llama", "baichuan2"])
@pytest.mark.parametrize("kind", ["eager", "sdpa"])
def test_no_position_sees_a_later_one(make_model, batch, model, kind):
    decoder = make_model(model, attention=kind)
    input_ids, _ = batch
    changed = input_ids.clone()
    changed[:, 12] = (changed[:, 12] + 1) % 97
    before, after = decoder(input_ids), decoder(changed)
    assert torch.equal(before[:, :12], after[:, :12])
    assert (before[:, 12:] - after[:, 12:]).abs().amin(dim=(0, 2)).max() > 0


@pytest.mark.slow
def test_flex_with_rotary_positions_and_grouped_heads(make_model, batch, compiler):
    with torch.no_grad():
        expected = make_model(spec={"num_kv_heads": 2}, attention="eager")(batch[0])
        found = make_model(spec={"num_kv_heads": 2}, attention="flex")(batch[0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


def test_flex_refuses_to_train_on_a_cpu(make_model, batch):
    with pytest.raises(UsageError, match="'flex' cannot train on a CPU") as raised:
        make_model("baichuan2", attention="flex")(*batch)
    assert "sdpa" in raised.value.fix


def reference_kernel(query, key, value, slopes):
    """What a vendor's kernel computes, with scores written out."""
    position = torch.arange(query.shape[2], dtype=torch.float32)
    bias = torch.zeros(1) if slopes is None else slopes[:, None, None] * (position - position[:, None])
    bias = bias.masked_fill(position > position[:, None], -math.inf)
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)


@pytest.mark.parametrize("model", ["llama", "baichuan2"])
def test_a_vendors_kernel_gets_rotated_states_and_slopes(make_model, batch, run_backward, model):
    by_vendor, eager = make_model(model, attention="vendor"), make_model(model, attention="eager")
    assert not by_vendor.has_vendor_attention
    by_vendor.use_attention(reference_kernel, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default)
    assert by_vendor.has_vendor_attention
    objective, _, gradients = run_backward(by_vendor, batch)
    expected_objective, _, expected = run_backward(eager, batch)
    assert objective == pytest.approx(expected_objective, rel=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("checkpointing", "calls"), [("none", 3), ("selective", 3), ("full", 6)])
def test_selective_checkpointing_keeps_what_a_vendors_kernel_computes(make_model, batch, checkpointing, calls):
    called = []

    @torch.library.custom_op(f"accelmark_test::counted_{checkpointing}", mutates_args=())
    def counted(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        called.append(query.shape)
        return value.clone()

    counted.register_autograd(lambda ctx, gradient: (None, None, gradient))
    operator = getattr(torch.ops.accelmark_test, f"counted_{checkpointing}").default
    model = make_model("baichuan2", attention="vendor", activation_checkpointing=checkpointing)
    model.use_attention(lambda query, key, value, slopes: operator(query, key, value), operator)
    objective, _ = model(*batch)
    objective.backward()
    assert called == [(2, 6, 20, 8)] * calls


def test_a_context_made_in_inference_mode_serves_a_training_step(make_model, batch):
    model = make_model("baichuan2", attention="sdpa")
    with torch.inference_mode():
        model(batch[0])
    objective, _ = model(*batch)
    objective.backward()
    assert model.lm_head.weight.grad.isfinite().all()


def test_another_length_gets_another_context(make_model, batch):
    model = make_model("baichuan2", attention="sdpa")
    short = batch[0][:, :7]
    expected = model(batch[0])
    torch.testing.assert_close(model(short), expected[:, :7], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(batch[0]), expected)


def test_only_the_last_context_is_kept(make_model):
    """A bias of 40 heads and 4096 tokens takes 1.3 GB."""
    contexts = ContextCache(make_model("baichuan2").spec, "sdpa")
    key = torch.device("cpu"), torch.float32
    first = contexts.get(8, *key)
    assert contexts.get(8, *key) is first
    assert contexts.get(7, *key).bias.shape[-1] == 7
    assert contexts.get(8, *key) is not first


def test_heads_that_are_split_over_processes_keep_their_slopes(make_model):
    spec = make_model("baichuan2").spec
    key = 8, torch.device("cpu"), torch.float32
    whole = ContextCache(spec, "eager").get(*key).bias
    half = spec.num_heads // 2
    parts = [ContextCache(spec, "eager", heads).get(*key).bias for heads in (slice(half), slice(half, None))]
    assert torch.equal(torch.cat(parts, dim=1), whole)


@pytest.mark.parametrize(("length", "contiguous"), [(384, True), (300, False)])
def test_flex_is_told_of_no_holes_only_where_its_mask_has_none(make_model, length, contiguous):
    context = ContextCache(make_model("llama").spec, "flex").get(length, torch.device("cpu"), torch.float32)
    mask = context.block_mask
    kinds = [
        (mask.kv_num_blocks, mask.kv_indices),
        (mask.q_num_blocks, mask.q_indices),
        (mask.full_kv_num_blocks, mask.full_kv_indices),
        (mask.full_q_num_blocks, mask.full_q_indices),
    ]
    rows = [
        row[:count].tolist()
        for counts, indices in kinds
        for count, row in zip(counts.flatten(), indices.flatten(0, -2), strict=True)
    ]
    assert all(row == list(range(row[0], row[0] + len(row))) for row in rows if row) is contiguous
    assert context.contiguous is contiguous


@pytest.mark.gpu
@pytest.mark.parametrize(("model", "kv_heads", "length"), [("baichuan2", 6, 300), ("llama", 2, 384)])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_flex_gradients_are_those_of_eager(  # noqa: PLR0917
    make_model, run_backward, model, kv_heads, length, compiled, checkpointing
):
    if not torch.cuda.is_available():
        pytest.skip("needs an accelerator on which FlexAttention has a backward pass")
    # FlexAttention's kernels take heads of 16 channels or more.
    spec = {"num_kv_heads": kv_heads, "hidden_size": 96}
    generator = torch.Generator().manual_seed(3)
    batch = torch.randint(0, 97, (2, 2, length), generator=generator).cuda()
    options = {"compile": compiled, "activation_checkpointing": checkpointing}
    flex = make_model(model, spec=spec, attention="flex", **options).cuda()
    eager = make_model(model, spec=spec, attention="eager").cuda()
    objective, _, gradients = run_backward(flex, batch)
    expected_objective, _, expected = run_backward(eager, batch)
    assert objective == pytest.approx(expected_objective, rel=1e-4)
    for name, gradient in expected.items():
        assert (gradients[name] - gradient).norm() / gradient.norm() < 1e-2, name


@pytest.mark.parametrize("model", ["llama", "baichuan2"])
@pytest.mark.parametrize("kind", ["eager", "sdpa"])
def test_documents_of_one_sequence_do_not_see_each_other(make_model, batch, model, kind):
    """Each gets the logits that it gets alone, from position 0 on; rows are cut at different places."""
    decoder = make_model(model, attention=kind)
    input_ids, _ = batch
    borders = [(0, 7, 20), (0, 12, 20)]
    document_ids = torch.tensor([[number // border for number in range(20)] for _, border, _ in borders])
    together = decoder(input_ids, document_ids=document_ids.clamp(max=1))
    for row, (begin, border, end) in enumerate(borders):
        for part in (slice(begin, border), slice(border, end)):
            alone = decoder(input_ids[row : row + 1, part])
            torch.testing.assert_close(together[row, part], alone[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together, decoder(input_ids))


@pytest.mark.parametrize("model", ["llama", pytest.param("baichuan2", marks=pytest.mark.slow)])
def test_flex_keeps_documents_apart_as_eager_does(make_model, batch, model, compiler):
    document_ids = torch.tensor([[0] * 7 + [1] * 13, [0] * 12 + [5] * 8])
    with torch.no_grad():
        found = make_model(model, attention="flex")(batch[0], document_ids=document_ids)
        expected = make_model(model, attention="eager")(batch[0], document_ids=document_ids)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
