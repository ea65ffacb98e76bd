"""FLOPs and MFU: the published numbers, the published formulas, and when there is no number."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest

from core.cases import resolve
from core.metrics import FORMULAS, FineTune, Work, flops_per_token, mfu
from schemas.chip import Peak
from schemas.hyperparameters import Checkpointing
from schemas.record import Parameters
from schemas.units import Percent

H800 = Peak(precision="bf16", tflops=989.0, source="datasheet")
A100 = Peak(precision="fp16", tflops=312.0, source="datasheet")
BAICHUAN2_PARAMETERS = 13_896_668_160
LLAMA2_PARAMETERS = 6_738_415_616


def work(
    case: Literal["baichuan2_13b", "llama2_7b"],
    checkpointing: Checkpointing = "none",
    fine_tune: FineTune = "full",
    **parameters: int,
) -> Work:
    model = resolve(case).case.model
    total = BAICHUAN2_PARAMETERS if case == "baichuan2_13b" else LLAMA2_PARAMETERS
    embedding = 2 * model.vocab_size * model.hidden_size
    counts = {"total": total, "trainable": total, "embedding": embedding} | parameters
    length = 2048 if case == "baichuan2_13b" else 4096
    return Work(model, Parameters(**counts), length, checkpointing, fine_tune=fine_tune)


@pytest.mark.parametrize(("tokens_per_second", "printed"), [(2068, "16.3%"), (2710, "21.4%")])
def test_the_published_mfu_of_baichuan2_on_h800(tokens_per_second: float, printed: str) -> None:
    shares = mfu(tokens_per_second, work("baichuan2_13b"), H800)
    assert shares.flagperf is not None
    assert Percent.of_fraction(shares.flagperf).render() == printed
    assert shares.flagperf == pytest.approx(6 * 13e9 * tokens_per_second / 989e12, rel=1e-12)
    assert (shares.peak_tflops, shares.peak_precision, shares.peak_source) == (989.0, "bf16", "datasheet")


def test_the_published_mfu_of_lora_on_a100() -> None:
    adapters = 2 * 32 * 8 * (4096 + 4096)  # rank 8 on q_proj and v_proj of 32 layers
    trained = work("llama2_7b", fine_tune="lora", total=LLAMA2_PARAMETERS + adapters, trainable=adapters)
    shares = mfu(4017, trained, A100)
    assert shares.flagperf == pytest.approx(0.3605, abs=5e-6)
    assert Percent.of_fraction(0.3605).render() == "36.1%"
    assert Percent.of_fraction(4 * 7e9 * 4017 / 312e12).render() == "36.1%"
    assert shares.formulas["flagperf"].startswith("4 * N_nominal")
    # Of the true parameters, frozen and trained.
    palm = 4 * LLAMA2_PARAMETERS + 6 * adapters + 12 * 32 * 4096 * 4096
    assert shares.flops_per_token["palm"] == palm
    lookup = 4 * 32000 * 4096
    assert shares.flops_per_token["causal"] == palm - lookup - 6 * 32 * 4096 * 4096


def test_palm_counts_true_parameters_and_attention() -> None:
    """Chowdhery et al., arXiv 2204.02311, appendix B: 6 N + 12 L H Q T."""
    flops = flops_per_token(work("baichuan2_13b"))
    assert flops["palm"] == 6 * 13_896_668_160 + 12 * 40 * 40 * 128 * 2048 == 88_413_173_760
    shares = mfu(5100, work("baichuan2_13b"), H800)
    assert shares.palm is not None
    assert Percent.of_fraction(shares.palm).render() == "45.6%"


def test_causal_leaves_out_half_the_scores_and_the_lookup() -> None:
    flops = flops_per_token(work("llama2_7b"))
    weights = LLAMA2_PARAMETERS - 32000 * 4096
    assert flops["causal"] == 6 * weights + 6 * 32 * 4096 * 4096


@pytest.mark.parametrize(
    ("checkpointing", "again"),
    [
        ("none", 0),
        ("selective", 0),
        ("full", 2 * (LLAMA2_PARAMETERS - 2 * 32000 * 4096) + 2 * 32 * 4096 * 4096),
    ],
)
def test_hardware_flops_count_what_checkpointing_computes_again(checkpointing: Checkpointing, again: int) -> None:
    flops = flops_per_token(work("llama2_7b", checkpointing))
    assert flops["hardware"] - flops["causal"] == again


def test_a_forward_pass_again_is_a_third_of_the_blocks_work() -> None:
    """Forward is one of three equal parts, so that HFU / MFU tends to 4/3 as the embedding loses weight."""
    flops = flops_per_token(work("llama2_7b", "full", embedding=0))
    lookup = 6 * 32000 * 4096
    assert (flops["hardware"] - flops["causal"]) * 3 == pytest.approx(flops["causal"] + lookup)


def test_every_number_comes_with_its_formula() -> None:
    for kind in ("full", "lora"):
        shares = mfu(100.0, work("llama2_7b", fine_tune=kind), A100)
        assert set(shares.formulas) == set(shares.flops_per_token) == {"flagperf", "palm", "causal", "hardware"}
        assert shares.formulas == FORMULAS[kind]
        for rule, per_token in shares.flops_per_token.items():
            assert getattr(shares, rule) == pytest.approx(100.0 * per_token / 312e12)


def test_a_scaled_down_model_has_no_share_of_its_nominal_parameters() -> None:
    small = replace(work("llama2_7b", total=10_000_000, embedding=1_000_000), scaled_down=True)
    shares = mfu(100.0, small, A100)
    assert shares.flagperf is None
    assert shares.missing == "no flagperf number: the model is scaled down, and N_nominal is the full one's"
    assert set(shares.flops_per_token) == set(shares.formulas) == {"palm", "causal", "hardware"}
    assert shares.palm == pytest.approx(100.0 * shares.flops_per_token["palm"] / 312e12)
    beyond = mfu(1e5, small, A100)  # 6.5 GFLOP a token: the scores of 32 layers
    assert (beyond.palm, beyond.missing) == (None, "palm would be 208.4%: over the 312.0 TFLOP/s fp16 peak")


@pytest.mark.parametrize(
    ("peak", "tokens_per_second", "missing"),
    [
        (Peak(precision="bf16", tflops=None, source="nobody has published it"), 2000.0,
         "no bf16 peak: nobody has published it"),
        (Peak(precision="fp32", tflops=19.5, source="datasheet"), 4017.0,
         "flagperf would be 865.2%: over the 19.5 TFLOP/s fp32 peak"),
    ],
)  # fmt: skip
def test_without_a_peak_or_beyond_it_there_is_a_reason_and_no_number(
    peak: Peak, tokens_per_second: float, missing: str
) -> None:
    shares = mfu(tokens_per_second, work("llama2_7b"), peak)
    rules: dict[str, Any] = {rule: getattr(shares, rule) for rule in FORMULAS["full"]}
    assert set(rules.values()) == {None}
    assert shares.missing == missing
    assert shares.flops_per_token["flagperf"] == 6 * 7e9
    assert shares.peak_tflops == peak.tflops


LLAVA_LANGUAGE, LLAVA_PROJECTOR = 13_015_864_320, 1024 * 5120 + 5120 + 5120 * 5120 + 5120
"""Of Llama-13B, whose vocabulary has 32,000 words; and two layers with biases."""
LLAVA_TOWER = 290_909_184
"""Of 23 layers of CLIP ViT-L/14-336."""


@pytest.mark.parametrize(
    ("fine_tune", "each", "trainable"),
    [("multimodal", 6, LLAVA_LANGUAGE + LLAVA_PROJECTOR), ("projector", 4, LLAVA_PROJECTOR)],
)
def test_llava_counts_the_tower_by_its_patches_and_frozen_weights_that_gradients_cross(
    fine_tune: FineTune, each: int, trainable: int
) -> None:
    case = resolve("llava1_5_13b").case
    assert case.vision is not None
    total = LLAVA_LANGUAGE + LLAVA_PROJECTOR + LLAVA_TOWER
    parameters = Parameters(total=total, trainable=trainable, embedding=2 * 32000 * 5120, forward_only=LLAVA_TOWER)
    images_per_token = 1 / 850
    patches = images_per_token * (case.vision.image_tokens + 1)
    trained = Work(case.model, parameters, 901.5, "full", fine_tune=fine_tune, patches_per_token=patches)
    flops = flops_per_token(trained)
    frozen = LLAVA_LANGUAGE + LLAVA_PROJECTOR - trainable
    attention = 12 * 40 * 5120 * 901.5
    palm = 6 * trainable + 4 * frozen + 2 * LLAVA_TOWER * 577 / 850 + attention
    assert flops["palm"] == pytest.approx(palm, rel=1e-12)
    assert flops["flagperf"] == each * 13e9
    assert flops["causal"] == pytest.approx(palm - each * 32000 * 5120 - attention / 2, rel=1e-12)
    recomputed = 2 * (LLAVA_LANGUAGE + LLAVA_PROJECTOR - 2 * 32000 * 5120) + attention / 6
    assert flops["hardware"] == pytest.approx(flops["causal"] + recomputed, rel=1e-12)
    assert {*FORMULAS[fine_tune]} == {*flops}


def test_the_counts_are_those_of_the_model_that_is_built() -> None:
    torch = pytest.importorskip("torch")
    from core.models.initialise import count_parameters
    from core.models.llava import Llava

    case = resolve("llava1_5_13b").case
    assert case.vision is not None
    with torch.device("meta"):
        counted = count_parameters(Llava(case.model, case.hyper_parameters, case.vision))
    assert counted.forward_only == LLAVA_TOWER
    assert counted.trainable == LLAVA_LANGUAGE + LLAVA_PROJECTOR
    assert counted.total == LLAVA_LANGUAGE + LLAVA_PROJECTOR + LLAVA_TOWER


def test_the_formulas_count_what_torch_counts() -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from core.models.initialise import count_parameters
    from core.models.llama import Llama2

    case, tokens = resolve("llama2_7b").case, 32
    spec = case.model.model_copy(
        update={"hidden_size": 32, "num_heads": 4, "num_kv_heads": 2, "intermediate_size": 48, "num_layers": 2}
    )
    kinds: tuple[Checkpointing, ...] = ("none", "selective", "full")
    counted, told = {}, {}
    for kind in kinds:
        hp = case.hyper_parameters.model_copy(update={"attention": "eager", "activation_checkpointing": kind})
        model, ids = Llama2(spec, hp), torch.zeros(1, tokens, dtype=torch.int64)
        model.apply_activation_checkpointing()
        with FlopCounterMode(display=False) as counter:
            objective, _ = model(ids, ids)
            objective.backward()
        counted[kind] = counter.get_total_flops() / tokens
        parameters = Parameters(**count_parameters(model)._asdict())
        told[kind] = flops_per_token(Work(spec, parameters, tokens, kind, "eager"))
    norms = 5 * 32  # weights without a product
    assert counted["none"] == told["none"]["palm"] - 6 * (32000 * 32 + norms)
    # Eager attention multiplies whole matrices, of which the formulas count half.
    attention = 2 * 2 * 32 * tokens
    again = {kind: flops["hardware"] - flops["causal"] for kind, flops in told.items()}
    assert counted["selective"] - counted["none"] == again["selective"] + attention
    last_products = 2 * 2 * 32 * 48
    assert counted["full"] - counted["none"] == again["full"] + attention - 2 * norms - last_products
