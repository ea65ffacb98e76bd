"""Engine ``megatron`` on the CPU over gloo: however the model is split, it trains as one process of ``torch``.

All from the same weights, drawn by the names of the released checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("megatron.core")
safetensors_torch = pytest.importorskip("safetensors.torch")

from core.engines.megatron.model import require_known_parts
from core.engines.megatron.weights import released_names
from core.errors import UsageError
from core.models.baichuan2 import Baichuan2
from core.models.decoder import Decoder
from core.models.initialise import initialise_random, place_plain
from core.models.llama import Llama2
from schemas.hyperparameters import HyperParameters
from schemas.model import DecoderSpec
from tests.core.engines.conftest import RunJob, train

pytestmark = pytest.mark.megatron

TOLERANCE = 1e-5
"""Sums in another order move fp32 losses by about 1e-7, and by about 1e-6 after five steps."""
SHAPE: dict[str, Any] = {"model.num_layers": 4, "model.num_kv_heads": 2}
TP2, PP2, SP = {"tensor_parallel": 2}, {"pipeline_parallel": 2}, {"sequence_parallel": True}
SHARDED = {"zero_stage": 1}
FULL, SELECTIVE = ({"activation_checkpointing": kind} for kind in ("full", "selective"))
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one process": (1, {}),
    "TP2": (2, TP2),
    "TP2, SP, selective recompute": (2, TP2 | SP | SELECTIVE),
    "PP2": (2, PP2),
    "PP2, layers 1 and 3, full recompute": (2, PP2 | FULL | {"pipeline_layers": "1-3"}),
    "PP2, two stages a rank": (2, PP2 | {"virtual_pipeline_stages": 2}),
    "PP4": (4, {"pipeline_parallel": 4}),
    "DP2, distributed optimizer": (2, SHARDED),
    "TP2 x PP2, SP": (4, TP2 | PP2 | SP),
    "TP2 x DP2, SP": (4, TP2 | SP),
    "TP2 x DP2, SP, distributed optimizer": (4, TP2 | SP | SHARDED),
}


def assert_same(answer: dict[str, Any], reference: dict[str, Any], tolerance: float = TOLERANCE) -> None:
    assert answer["losses"] == pytest.approx(reference["losses"], rel=tolerance)
    assert answer["norms"] == pytest.approx(reference["norms"], rel=tolerance)
    assert answer["parameters"] == reference["parameters"]
    assert answer["held"] == answer["placed"]  # as the dry run says


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Engine ``torch`` in one process."""
    return train(tmp_path_factory.mktemp("reference"), "torch", 1, {"zero_stage": 0} | SHAPE)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_trains_as_one_process_of_torch(
    layout: str, reference: dict[str, Any], run_job: RunJob
) -> None:
    world, sets = LAYOUTS[layout]
    assert_same(run_job("megatron", world, {"zero_stage": 0} | SHAPE | sets), reference)
    assert reference["losses"][-1] < reference["losses"][0]


def test_hooks_reach_every_stage_and_the_optimizer(reference: dict[str, Any], run_job: RunJob) -> None:
    sets = SHAPE | SHARDED | PP2 | {"virtual_pipeline_stages": 2}
    answer = run_job("megatron", 2, sets, wrap=True)
    assert answer["stages"] == [0, 2]
    assert answer["optimizer"].endswith(".VendorsAdamW")
    # It is made with torch's defaults; its learning rate is the plan's from the first step on.
    assert answer["losses"][:2] == pytest.approx(reference["losses"][:2], rel=TOLERANCE * 100)


def test_a_mean_of_means_is_caught(reference: dict[str, Any], run_job: RunJob) -> None:
    faulty = run_job("megatron", 2, SHAPE | SHARDED, fault="mean_of_means")
    assert faulty["losses"] != pytest.approx(reference["losses"], rel=TOLERANCE)
    assert faulty["norms"] != pytest.approx(reference["norms"], rel=TOLERANCE * 10)


def test_alibi_and_the_normalised_head_are_split_too(run_job: RunJob) -> None:
    one = run_job("torch", 1, {"zero_stage": 0}, case="baichuan2_13b", steps=3)
    split = run_job("megatron", 2, {"zero_stage": 0} | TP2, case="baichuan2_13b", steps=3)
    assert_same(split, one)


def test_bf16_trains_like_fp32(reference: dict[str, Any], run_job: RunJob) -> None:
    answer = run_job("megatron", 2, SHAPE | SHARDED | {"precision": "bf16"})
    assert answer["losses"] == pytest.approx(reference["losses"], rel=0.01)
    assert answer["losses"] != reference["losses"]


@pytest.mark.parametrize("layout", [{"zero_stage": 0, "tensor_parallel": 2}, SHARDED], ids=["TP2", "sharded"])
def test_main_weights_begin_between_the_numbers_that_16_bits_have(
    layout: dict[str, object], run_job: RunJob
) -> None:
    """From rounded values, updates this small would at first change no parameter: losses are 3e-4 off then."""
    small = SHAPE | {"learning_rate": 2e-5, "schedule": "constant", "lr_warmup_steps": 0, "precision": "bf16"}
    plain = run_job("torch", 1, small | {"zero_stage": 0})
    assert run_job("megatron", 2, small | layout)["losses"] == pytest.approx(plain["losses"], rel=5e-5)


def test_compiled_parts_change_nothing_in_fp32(reference: dict[str, Any], run_job: RunJob) -> None:
    assert_same(run_job("megatron", 1, {"zero_stage": 0, "compile": True} | SHAPE), reference)


SMALL = DecoderSpec(
    factory="core.models.llama:Llama2", nominal_parameters=1, hidden_size=32, intermediate_size=48, num_layers=4,
    num_heads=4, num_kv_heads=2, vocab_size=64, max_positions=4096, norm_eps=1e-5,
)  # fmt: skip
HP = HyperParameters(precision="fp32", local_batch_size=1, sequence_length=32, learning_rate=1e-3)


@pytest.mark.parametrize("kind", [Llama2, Baichuan2])
def test_the_names_of_the_released_checkpoints(kind: type[Decoder]) -> None:
    names = {name for name, _ in kind(SMALL, HP).named_parameters()}
    assert released_names(SMALL, kind.attention_type) == names


def test_a_model_of_unknown_parts_is_told() -> None:
    class OwnAttention(torch.nn.Module):
        def __init__(self, spec: DecoderSpec) -> None:
            super().__init__()

    class OwnModel(Decoder):
        attention_type = OwnAttention

    with pytest.raises(UsageError) as error:
        require_known_parts(OwnModel(SMALL, HP))
    assert error.value.what == "engine megatron knows no counterpart of OwnAttention and Head of model OwnModel"
    assert error.value.fix == "train it with engine torch or deepspeed"


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A folder with the safetensors of a small Llama2."""
    model = Llama2(SMALL, HP)
    initialise_random(model.named_parameters(), SMALL, 7, place_plain)
    folder = tmp_path / "weights"
    folder.mkdir()
    safetensors_torch.save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def test_released_weights_load_into_a_split_model(
    released: Path, reference: dict[str, Any], run_job: RunJob
) -> None:
    sets = {"zero_stage": 0, "weights": str(released)} | SHAPE
    one = run_job("torch", 1, sets, steps=2)
    assert_same(run_job("megatron", 4, sets | TP2 | PP2, steps=2), one)
    assert one["losses"] != pytest.approx(reference["losses"][:2], rel=TOLERANCE)
