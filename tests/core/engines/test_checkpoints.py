"""Every engine goes on from a checkpoint as if it had never stopped, whatever layout saved it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from core.checkpoint.folder import part_folder, read
from core.models.initialise import initialise_random, load_safetensors, place_plain
from core.models.llama import Llama2
from schemas.checkpoint import LossScale
from schemas.hyperparameters import HyperParameters
from schemas.model import DecoderSpec
from tests.core.engines.conftest import launch

TOLERANCE = 1e-5
"""Sums in another order move fp32 losses by about 1e-7 a step."""
Link = dict[str, Any]


def link(engine: str, **sets: object) -> Link:
    return {"engine": engine, "sets": {"zero_stage": 0} | sets}


Chains = dict[str, list[Link]]
Ran = tuple[Path, dict[str, list[list[float]]]]
"""Where the chains saved, and their links' losses."""
BF16, FP16 = {"precision": "bf16"}, {"precision": "fp16"}
STOCHASTIC = {"precision": "bf16", "optimizer_state": "bf16_stochastic"}
TORCH: Chains = {
    "fp32": [link("torch"), link("torch"), link("torch", zero_stage=2), link("torch", zero_stage=3)],
    "bf16": [
        link("torch", zero_stage=2, **BF16),
        link("torch", **BF16),
        link("torch", zero_stage=3, **BF16),
        link("torch", zero_stage=2, collectives="peer_copies", **BF16),
    ],
    "fp16": [link("torch", **FP16)] * 2,
    "stochastic": [link("torch", **STOCHASTIC)] * 2,
    "fp8": [link("torch", zero_stage=2, precision="fp8"), link("torch", precision="fp8")],
    "stochastic, sharded": [link("torch", zero_stage=3, **STOCHASTIC)] * 2,
    "stochastic, stage 2 among peers": [link("torch", zero_stage=2, collectives="peer_copies", **STOCHASTIC)] * 2,
    "forgetful": [link("torch"), link("torch") | {"fault": "forget_moments"}],
}
DEEPSPEED: Chains = {
    "fp32": [link("deepspeed", zero_stage=stage) for stage in (3, 0, 1, 2)],
    "bf16": [link("deepspeed", zero_stage=stage, **BF16) for stage in (2, 3)],
    "bf16, ZeRO-1": [link("deepspeed", zero_stage=1, **BF16)] * 2,  # accumulates in bf16, others do not
    "fp16": [link("deepspeed", **FP16)] * 2,
    "fp16, ZeRO-3": [link("deepspeed", zero_stage=3, **FP16)] * 2,
    "offload": [link("deepspeed", zero_stage=2, offload="optimizer")] * 2,
}
TP2, PP2, SP = {"tensor_parallel": 2}, {"pipeline_parallel": 2}, {"sequence_parallel": True}
SHAPE = {"model.num_layers": 4, "model.num_kv_heads": 2}
SHARDED = {"zero_stage": 1}
VIRTUAL = PP2 | {"virtual_pipeline_stages": 2}
MEGATRON: Chains = {
    "fp32": [link("megatron", **SHAPE, **layout) for layout in (TP2, PP2, SHARDED, VIRTUAL, TP2 | SP)],
    "distributed optimizer, bf16": [link("megatron", **SHAPE, **BF16, **SHARDED)] * 2,
    "from torch": [link("torch", **SHAPE), link("megatron", **SHAPE, **TP2), link("torch", **SHAPE, zero_stage=3)],
    "packed": [link("megatron", **layout) | {"case": "baichuan2_13b"} for layout in (TP2, SHARDED)],
    "forgetful": [link("megatron", **TP2), link("megatron", **PP2) | {"fault": "forget_moments"}],
}


def run_chains(folder: Path, chains: Chains) -> Ran:
    return folder, launch(folder, "checkpoint_job", 2, {"chains": chains, "folder": str(folder)})


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All of a checkpoint's, by part and name."""
    return {
        f"{part}: {name}": tensor
        for part in read(folder).parts
        for name, tensor in safetensors_torch.load_file(part_folder(folder, part) / "model.safetensors").items()
    }


def assert_same_tensors(one: Path, other: Path) -> None:
    own, others = tensors(one), tensors(other)
    assert own.keys() == others.keys()
    for name, tensor in own.items():
        assert tensor.dtype == others[name].dtype, name
        assert torch.equal(tensor, others[name]), name


def assert_goes_on(name: str, ran: Ran) -> None:
    """All links train on alike, and save what they loaded."""
    folder, losses = ran
    without_a_break, *resumed = losses[name]
    # A sum in another order can round a weight to the next of 16 bits.
    tolerance = TOLERANCE * 10 if "bf16" in name else TOLERANCE
    for number, found in enumerate(resumed, start=1):
        assert found == pytest.approx(without_a_break, rel=tolerance), f"{name}, link {number}"
        assert_same_tensors(folder / name / "0", folder / name / str(number))


def assert_forgetting_shows(ran: Ran) -> None:
    without_a_break, forgetful = ran[1]["forgetful"]
    assert forgetful[0] == pytest.approx(without_a_break[0], rel=TOLERANCE), "the weights are the same"
    assert forgetful[1:] != pytest.approx(without_a_break[1:], rel=TOLERANCE * 100)


def names(chains: Chains, *quick: str) -> list[Any]:
    """Of all chains but the faulty one, those that are not ``quick`` marked as slow."""
    honest = [name for name in chains if name != "forgetful"]
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in honest]


RunChain = Callable[[Chains, str], Ran]


@pytest.fixture(scope="module")
def run_chain(tmp_path_factory: pytest.TempPathFactory) -> RunChain:
    """Runs a chain once, for all tests that ask for it."""
    done: dict[tuple[int, str], Ran] = {}

    def once(chains: Chains, name: str) -> Ran:
        key = id(chains), name
        if key not in done:
            done[key] = run_chains(tmp_path_factory.mktemp("chain"), {name: chains[name]})
        return done[key]

    return once


@pytest.mark.parametrize("name", names(TORCH, "fp32", "bf16"))
def test_torch_goes_on(name: str, run_chain: RunChain) -> None:
    if name == "fp8":
        pytest.importorskip("torchao")
    assert_goes_on(name, run_chain(TORCH, name))


def test_forgotten_moments_show(run_chain: RunChain) -> None:
    assert_forgetting_shows(run_chain(TORCH, "forgetful"))


def test_what_is_saved_is_what_the_precision_keeps(run_chain: RunChain) -> None:
    moments = {"exp_avg": torch.float32, "exp_avg_sq": torch.float32}
    expected = {
        "fp32": {"weights": torch.float32} | moments,
        "bf16": {"weights": torch.bfloat16, "main_weights": torch.float32} | moments,
        "fp16": {"weights": torch.float16, "main_weights": torch.float32} | moments,
        "stochastic": dict.fromkeys(("weights", "exp_avg", "exp_avg_sq"), torch.bfloat16),
    }
    for name, kept in expected.items():
        folder = run_chain(TORCH, name)[0] / name / "0"
        assert {tensor.split(":")[0]: value.dtype for tensor, value in tensors(folder).items()} == kept
    scale = read(run_chain(TORCH, "fp16")[0] / "fp16" / "0").loss_scale
    assert scale == LossScale(scale=2.0**16, clean_steps=3)


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_transformers_reads_what_was_saved(name: str, run_chain: RunChain) -> None:
    transformers = pytest.importorskip("transformers")
    folder = run_chain(TORCH, name)[0] / name / "0"
    checkpoint = read(folder)
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder, dtype="auto").eval()
    assert next(theirs.parameters()).dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[name]
    ours = Llama2(checkpoint.plan.model, checkpoint.plan.hyper_parameters).to(theirs.dtype)
    load_safetensors(ours.named_parameters(), folder, place_plain)
    input_ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        expected = theirs(input_ids).logits
        assert torch.allclose(ours(input_ids), expected, atol=1e-5 if name == "fp32" else 1e-2)


@pytest.mark.deepspeed
@pytest.mark.parametrize("name", names(DEEPSPEED, "bf16"))
def test_deepspeed_goes_on(name: str, run_chain: RunChain) -> None:
    pytest.importorskip("deepspeed")
    assert_goes_on(name, run_chain(DEEPSPEED, name))


@pytest.mark.megatron
@pytest.mark.parametrize("name", names(MEGATRON, "fp32"))
def test_megatron_goes_on_in_another_layout(name: str, run_chain: RunChain) -> None:
    pytest.importorskip("megatron.core")
    assert_goes_on(name, run_chain(MEGATRON, name))


@pytest.mark.megatron
def test_moments_forgotten_between_layouts_show(run_chain: RunChain) -> None:
    pytest.importorskip("megatron.core")
    assert_forgetting_shows(run_chain(MEGATRON, "forgetful"))


@pytest.mark.megatron
def test_released_weights_come_back_bit_by_bit_from_every_layout(tmp_path: Path) -> None:
    pytest.importorskip("megatron.core")
    released = tmp_path / "released"
    released.mkdir()
    spec = DecoderSpec(
        factory="core.models.llama:Llama2", nominal_parameters=1, hidden_size=32, intermediate_size=48,
        num_layers=4, num_heads=4, num_kv_heads=2, vocab_size=64, max_positions=4096, norm_eps=1e-5,
    )  # fmt: skip
    model = Llama2(
        spec, HyperParameters(precision="bf16", local_batch_size=1, sequence_length=32, learning_rate=1e-3)
    )
    initialise_random(model.named_parameters(), spec, 7, place_plain)
    weights = {name: parameter.detach().to(torch.bfloat16) for name, parameter in model.named_parameters()}
    safetensors_torch.save_file(weights, released / "model.safetensors")
    layouts = {"TP1": {}, "TP2": TP2 | SHARDED, "PP2": PP2, "TP2 x PP2": TP2 | PP2}
    exports = {
        name: link("megatron", weights=str(released), **SHAPE, **BF16, **layout)
        for name, layout in layouts.items()
    }
    launch(tmp_path, "checkpoint_job", 4, {"exports": exports, "folder": str(tmp_path)})
    for name in layouts:
        saved = safetensors_torch.load_file(tmp_path / name / "model.safetensors")
        assert saved.keys() == weights.keys()
        assert all(torch.equal(saved[key], weights[key]) for key in weights), name
        assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
