"""Plans that cannot be: why, and what to change; whatever was asked for, the nearest plan can be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import proposal as proposals
from core.engines.catalog import ENGINES, EngineSpec, engine_spec
from core.plan_checks import CHECKS, nearest, refusals
from core.proposal import Proposal
from schemas.chip import ChipSpec
from schemas.hyperparameters import HyperParameters
from schemas.model import DecoderSpec
from schemas.units import PipelineLayers, Topology

MODEL: dict[str, Any] = {
    "factory": "m:f", "nominal_parameters": 1, "hidden_size": 96, "intermediate_size": 96, "num_layers": 6,
    "num_heads": 12, "num_kv_heads": 12, "vocab_size": 100, "max_positions": 4096, "norm_eps": 1e-5,
}  # fmt: skip
HP: dict[str, Any] = {
    "precision": "bf16",
    "local_batch_size": 1,
    "sequence_length": 2048,
    "learning_rate": 1e-5,
    "zero_stage": 3,
}
MEGATRON_LIKE = replace(ENGINES[0], name="split", model_parallel=True, zero_stages=(0, 1, 2, 3))
"""An engine that splits models, which the checks must be able to plan for."""


def chip(*, reference: bool = False) -> ChipSpec:
    return ChipSpec(name="X1", vendor="acme", memory_gb=80, memory_source="s", peaks=(), reference=reference)


def proposal(engine: str = "torch", world: int = 16, *, reference: bool = False, **changes: Any) -> Proposal:
    model = {key: changes.pop(key) for key in MODEL.keys() & changes.keys()}
    sequences = changes.pop("sequences", 512)
    about = {key: changes.pop(key) for key in ("data_format", "adapters") if key in changes}
    nodes = changes.pop("nodes", 1)
    return Proposal(
        engine=engine,
        chip=chip(reference=reference),
        topology=Topology(chip="X1", nodes=nodes, chips_per_node=world // nodes),
        hp=HyperParameters(**(HP | changes)),
        model=DecoderSpec(**(MODEL | model)),
        generated_sequences=sequences,
        **about,
    )


@pytest.fixture
def split_engine(monkeypatch: pytest.MonkeyPatch) -> str:
    def spec(name: str) -> EngineSpec:
        return MEGATRON_LIKE if name == "split" else engine_spec(name)

    monkeypatch.setattr(proposals, "engine_spec", spec)
    return "split"


@pytest.mark.parametrize("engine", [engine.name for engine in ENGINES])
def test_an_ordinary_plan_is_not_refused(engine: str) -> None:
    ordinary = proposal(engine, zero_stage=engine_spec(engine).zero_stages[-1])
    assert refusals(ordinary) == []
    assert nearest(ordinary) == {}


@pytest.mark.parametrize(
    ("values", "reason", "change"),
    [
        ({"tensor_parallel": 2}, "engine torch splits no model over ranks (TP2PP1)",
         {"tensor_parallel": 1, "pipeline_parallel": 1}),
        ({"adapters": True, "precision": "bf16", "optimizer_state": "bf16_stochastic"},
         "adapters are few: they keep an fp32 optimizer state, not bf16_stochastic", {"optimizer_state": "fp32"}),
        ({"padding": "dropped"}, "data of format tokens has no padding to drop (padding dropped)",
         {"padding": "longest"}),
        ({"packing": "document_mask"},
         "data of format tokens does not keep documents apart (packing document_mask)", {"packing": "concat"}),
        ({"engine": "megatron", "zero_stage": 1, "packing": "document_mask", "data_format": "dialogues"},
         "engine megatron does not keep documents apart (packing document_mask)", {"packing": "concat"}),
        ({"engine": "deepspeed", "precision": "fp8"},
         "engine deepspeed does not run precision fp8 (only fp32, tf32, amp, fp16, bf16)",
         {"precision": "bf16"}),
        ({"zero_stage": 2, "gathered_layers": 3},
         "engine torch at ZeRO stage 2 has no layers that could stay gathered (gathered_layers 3)",
         {"gathered_layers": 0}),
        ({"gathered_layers": 99}, "gathered_layers 99 of 6 layers", {"gathered_layers": 6}),
        ({"zero_stage": 0, "collectives": "peer_copies"},
         "engine torch at ZeRO stage 0 on 16 ranks has no shards of FSDP2 for peer copies to move",
         {"collectives": "library"}),
        ({"nodes": 2, "zero_stage": 3, "collectives": "peer_copies"},
         "peer copies do not leave a node, X1x2x8 has more", {"collectives": "library"}),
        ({"zero_stage": 1}, "engine torch has no ZeRO stage 1 (only 0, 2, 3)", {"zero_stage": 2}),
        ({"engine": "deepspeed", "optimizer_state": "bf16_stochastic"},
         "engine deepspeed keeps no bf16_stochastic optimizer state (only fp32)", {"optimizer_state": "fp32"}),
        ({"optimizer_state": "8bit"}, "engine torch keeps no 8bit optimizer state (only fp32, bf16_stochastic)",
         {"optimizer_state": "fp32"}),
        ({"optimizer_state": "bf16_stochastic", "precision": "amp"},
         "optimizer_state bf16_stochastic goes with precision bf16 or fp8, not amp", {"optimizer_state": "fp32"}),
        ({"engine": "deepspeed", "zero_stage": 0},
         "DeepSpeed keeps no fp32 main weights for bf16 at ZeRO stage 0", {"zero_stage": 1}),
        ({"offload": "optimizer"}, "engine torch does not offload the optimizer state", {"offload": "none"}),
        ({"engine": "deepspeed", "offload": "optimizer", "zero_stage": 0, "precision": "fp32"},
         "offload needs a sharded optimizer (ZeRO stage 1 to 3)", {"zero_stage": 1}),
        ({"sequence_length": 4097}, "sequence_length 4097 is beyond the model's 4096 positions",
         {"sequence_length": 4096}),
        ({"attention": "flex", "reference": True}, "FlexAttention has no backward pass on the CPU",
         {"attention": "sdpa"}),
        ({"precision": "fp8", "adapters": True}, "precision fp8 is not there for adapters", {"precision": "bf16"}),
        ({"precision": "fp8", "data_format": "conversations"},
         "precision fp8 is not there for data of format conversations", {"precision": "bf16"}),
        ({"precision": "fp8", "sequence_length": 2044},
         "precision fp8 takes multiples of 16, not tokens of a micro-batch 2044", {"precision": "bf16"}),
        ({"precision": "fp8", "hidden_size": 72, "intermediate_size": 24},
         "precision fp8 takes multiples of 16, not hidden_size 72, intermediate_size 24, channels of all keys 72",
         {"precision": "bf16"}),
        ({"engine": "megatron", "attention": "vendor", "zero_stage": 1},
         "engine megatron has no place for attention of the vendor's own", {"attention": "flex"}),
        ({"attention": "vendor", "packing": "document_mask", "data_format": "dialogues"},
         "attention of the vendor's own does not keep documents apart", {"attention": "flex"}),
        ({"attention": "vendor", "packing": "document_mask", "data_format": "dialogues", "reference": True},
         "attention of the vendor's own does not keep documents apart", {"attention": "sdpa"}),
        ({"engine": "deepspeed", "compile": True},
         "ZeRO stage 3 gathers parameters in module hooks, which torch.compile cannot trace", {"compile": False}),
        ({"schedule": "cosine"}, "schedule cosine does not say how many steps it takes", {"schedule_steps": 1000}),
        ({"schedule_steps": 300, "lr_warmup_steps": 300},
         "lr_warmup_steps 300 leaves nothing of schedule_steps 300", {"lr_warmup_steps": 3}),
        ({"sequences": 15}, "one step takes GBS = 16 sequences, the generated data has 15",
         {"data.generated_sequences": 16}),
    ],
)  # fmt: skip
def test_each_check_tells_the_reason_and_the_change(
    values: dict[str, Any], reason: str, change: dict[str, Any]
) -> None:
    (refusal,) = refusals(proposal(**values))
    assert (refusal.reason, refusal.change) == (reason, change)
    assert nearest(proposal(**values)) == change


@pytest.mark.parametrize(
    ("values", "reason", "change"),
    [
        ({"tensor_parallel": 3}, "TP3 × PP1 = 3 does not divide the 16 chips of X1x1x16", (2, 1)),
        ({"tensor_parallel": 8}, "TP8 does not divide 12 attention heads and 12 key/value heads", (4, 1)),
        ({"num_kv_heads": 2, "tensor_parallel": 4}, "TP4 does not divide 12 attention heads and 2 key/value heads",
         (2, 1)),
        ({"pipeline_parallel": 4}, "PP4 does not divide 6 layers", (1, 2)),
        ({"tensor_parallel": 4, "pipeline_parallel": 8}, "TP4 × PP8 = 32 does not divide the 16 chips of X1x1x16",
         (4, 2)),
        # Changed one by one, TP or PP would go back and forth between what world size and layers allow.
        ({"world": 30, "tensor_parallel": 3, "pipeline_parallel": 6},
         "TP3 × PP6 = 18 does not divide the 30 chips of X1x1x30", (1, 6)),
    ],
)  # fmt: skip
def test_a_split_that_cannot_be(
    split_engine: str, values: dict[str, Any], reason: str, change: tuple[int, int]
) -> None:
    wanted = proposal(split_engine, **values)
    assert reason in [refusal.reason for refusal in refusals(wanted)]
    assert nearest(wanted) == dict(zip(("tensor_parallel", "pipeline_parallel"), change, strict=True))


MEGATRON: dict[str, Any] = {"engine": "megatron", "zero_stage": 1, "vocab_size": 96}


def layers(text: str) -> PipelineLayers:
    return PipelineLayers.parse(text)


@pytest.mark.parametrize(
    ("values", "reason", "change"),
    [
        ({"precision": "fp16"}, "engine megatron does not run precision fp16 (only fp32, tf32, amp, bf16)",
         {"precision": "bf16"}),
        ({"precision": "amp", "autocast_dtype": "fp16"}, "engine megatron runs amp with no fp16 (only bf16)",
         {"autocast_dtype": "bf16"}),
        ({"zero_stage": 3}, "engine megatron has no ZeRO stage 3 (only 0, 1)", {"zero_stage": 1}),
        ({"loss": "chunked"}, "engine megatron computes no chunked loss (only full)", {"loss": "full"}),
        ({"z_loss": 1e-4}, "engine megatron has no z-loss (z_loss is 0.0001)", {"z_loss": 0.0}),
        ({"tensor_parallel": 4, "vocab_size": 90},
         "TP4 does not divide the intermediate size 96 and the vocabulary of 90",
         {"tensor_parallel": 2, "pipeline_parallel": 1}),
        ({"virtual_pipeline_stages": 2}, "2 virtual pipeline stages need a pipeline (PP is 1)",
         {"virtual_pipeline_stages": 1}),
        ({"pipeline_parallel": 2, "virtual_pipeline_stages": 2, "gradient_accumulation_steps": 2},
         "PP2 × 2 virtual stages do not divide 6 layers", {"virtual_pipeline_stages": 1}),
        ({"pipeline_parallel": 2, "virtual_pipeline_stages": 3, "gradient_accumulation_steps": 5},
         "interleaved stages take micro-batches in groups of PP2, which does not divide GAS 5",
         {"gradient_accumulation_steps": 6}),
        ({"pipeline_layers": "6"}, "pipeline_layers 6 needs a pipeline (PP is 1)", {"pipeline_layers": None}),
        ({"pipeline_parallel": 4, "pipeline_layers": "2-2-2"},
         "pipeline_layers 2-2-2 has 3 stages and 6 layers, the model 4 stages and 6 layers",
         {"pipeline_layers": layers("2-2-1-1")}),
        ({"pipeline_parallel": 2, "pipeline_layers": "4-3"},
         "pipeline_layers 4-3 has 2 stages and 7 layers, the model 2 stages and 6 layers",
         {"pipeline_layers": layers("3-3")}),
        ({"sequence_parallel": True},
         "sequence_parallel: has no tensor parallel ranks to split over (TP is 1)", {"sequence_parallel": False}),
        ({"sequence_parallel": True, "tensor_parallel": 2, "sequence_length": 2047},
         "sequence_parallel: TP2 does not divide 2047", {"sequence_parallel": False}),
        ({"activation_checkpointing": "selective", "tensor_parallel": 2},
         "selective checkpointing under TP2 gives wrong gradients without sequence_parallel",
         {"sequence_parallel": True}),
        ({"activation_checkpointing": "selective", "tensor_parallel": 2, "sequence_length": 2047},
         "selective checkpointing under TP2 gives wrong gradients without sequence_parallel",
         {"activation_checkpointing": "full"}),
    ],
)  # fmt: skip
def test_what_megatron_would_do_wrong_or_not_at_all(
    values: dict[str, Any], reason: str, change: dict[str, Any]
) -> None:
    (refusal,) = refusals(proposal(**(MEGATRON | values)))
    assert (refusal.reason, refusal.change) == (reason, change)
    assert nearest(proposal(**(MEGATRON | values))) == change


@pytest.mark.parametrize(
    "values",
    [
        {"pipeline_parallel": 4, "pipeline_layers": "1-2-2-1"},
        {"pipeline_parallel": 2, "virtual_pipeline_stages": 2, "pipeline_layers": "1-1-2-2",
         "gradient_accumulation_steps": 2},
        {"pipeline_parallel": 2, "virtual_pipeline_stages": 3, "gradient_accumulation_steps": 4},
        {"tensor_parallel": 4, "pipeline_parallel": 2, "sequence_parallel": True,
         "activation_checkpointing": "selective", "compile": True},
    ],
)  # fmt: skip
def test_what_megatron_can_do(values: dict[str, Any]) -> None:
    assert refusals(proposal(**(MEGATRON | values))) == []


def test_a_split_that_can_be_is_left_alone(split_engine: str) -> None:
    wanted = proposal(split_engine, tensor_parallel=4, pipeline_parallel=2)
    assert (refusals(wanted), wanted.data_parallel, wanted.global_batch_size) == ([], 2, 2)


def test_prepared_data_may_be_of_any_length() -> None:
    assert refusals(proposal(sequences=None)) == []


def test_every_check_has_an_example_above() -> None:
    """So that a new check gets one: each is made to refuse by some proposal of these tests."""
    examples = [
        proposal("torch", tensor_parallel=5, pipeline_parallel=4, precision="fp8", zero_stage=1, world=6),
        proposal("deepspeed", zero_stage=0, offload="optimizer", optimizer_state="8bit", sequences=1),
        proposal("deepspeed", compile=True, sequence_length=5000, schedule="linear"),
        proposal("torch", attention="flex", reference=True),
        proposal("megatron", attention="vendor"),
        proposal("megatron", loss="chunked", z_loss=1e-4, precision="amp", autocast_dtype="fp16"),
        proposal("megatron", tensor_parallel=8, activation_checkpointing="selective"),
        proposal("megatron", virtual_pipeline_stages=2, sequence_parallel=True, pipeline_layers="6"),
        proposal("megatron", pipeline_parallel=2, virtual_pipeline_stages=2),
        proposal("torch", packing="document_mask", adapters=True, optimizer_state="bf16_stochastic"),
        proposal("torch", padding="dropped"),
        proposal("torch", precision="fp8", adapters=True),
        proposal("megatron", precision="fp8"),
        proposal("deepspeed", collectives="peer_copies", gathered_layers=1),
    ]
    silent = [check.__name__ for check in CHECKS if not any(check(example) for example in examples)]
    assert silent == []


HYPER_PARAMETERS = st.fixed_dictionaries(
    {
        "tensor_parallel": st.integers(1, 12),
        "pipeline_parallel": st.integers(1, 12),
        "virtual_pipeline_stages": st.integers(1, 6),
        "pipeline_layers": st.none()
        | st.lists(st.integers(1, 9), min_size=1, max_size=12).map(lambda counts: "-".join(map(str, counts))),
        "sequence_parallel": st.booleans(),
        "activation_checkpointing": st.sampled_from(["none", "selective", "full"]),
        "loss": st.sampled_from(["full", "chunked"]),
        "z_loss": st.sampled_from([0.0, 1e-4]),
        "autocast_dtype": st.sampled_from(["bf16", "fp16"]),
        "precision": st.sampled_from(["fp32", "tf32", "amp", "fp16", "bf16", "fp8"]),
        "optimizer_state": st.sampled_from(["fp32", "bf16_stochastic", "8bit"]),
        "zero_stage": st.integers(0, 3),
        "offload": st.sampled_from(["none", "optimizer"]),
        "local_batch_size": st.integers(1, 64),
        "gradient_accumulation_steps": st.integers(1, 64),
        "sequence_length": st.integers(1, 10_000),
        "schedule": st.sampled_from(["constant", "linear", "cosine"]),
        "schedule_steps": st.none() | st.integers(1, 2000),
        "lr_warmup_steps": st.integers(0, 3000),
        "attention": st.sampled_from(["eager", "sdpa", "flex", "vendor"]),
        "compile": st.booleans(),
    }
)
MODELS = st.builds(
    lambda layers, kv_heads, group: {
        "num_layers": layers, "num_kv_heads": kv_heads, "num_heads": kv_heads * group,
        "hidden_size": 8 * kv_heads * group,
    },
    st.integers(1, 30), st.integers(1, 16), st.integers(1, 4),
)  # fmt: skip


@settings(max_examples=300)
@given(
    engine=st.sampled_from([engine.name for engine in ENGINES] + ["split"]),
    world=st.integers(1, 64),
    reference=st.booleans(),
    sequences=st.none() | st.integers(1, 1000),
    hp=HYPER_PARAMETERS,
    model=MODELS,
)
def test_the_nearest_plan_can_be(
    *, engine: str, world: int, reference: bool, sequences: int | None, hp: dict[str, Any], model: dict[str, Any]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            proposals, "engine_spec", lambda name: MEGATRON_LIKE if name == "split" else engine_spec(name)
        )
        wanted = proposal(engine, world, reference=reference, sequences=sequences, **hp, **model)
        changes = nearest(wanted)
        assert bool(changes) == bool(refusals(wanted))
        generated = changes.get("data.generated_sequences", sequences)
        changed = {key: value for key, value in changes.items() if "." not in key}
        again = proposal(engine, world, reference=reference, sequences=generated, **(hp | changed), **model)
        assert refusals(again) == []
        assert again.data_parallel >= 1
