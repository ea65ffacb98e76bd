"""A small plan and record, as a run on an accelerator would leave them; tests change what they are about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from schemas.base import Text
from schemas.case import Case, DataSpec, TokenizerSpec
from schemas.chip import ChipSpec, Peak
from schemas.hyperparameters import HyperParameters, Measure
from schemas.model import DecoderSpec
from schemas.plan import Plan
from schemas.record import Loss, Memory, Mfu, Record, Telemetry, Throughput


@pytest.fixture
def case() -> Case:
    return Case(
        name="toy_7b",
        task=Text(zh="自然语言理解", en="Natural language understanding"),
        model=DecoderSpec(
            factory="m:f", nominal_parameters=7_000_000_000, hidden_size=8, intermediate_size=16, num_layers=2,
            num_heads=2, num_kv_heads=2, vocab_size=32, max_positions=4096, norm_eps=1e-5,
        ),
        tokenizer=TokenizerSpec(vocab_size=32, add_bos=True, add_eos=False, source="the released model"),
        data=DataSpec(
            name="openwebtext", description=Text(zh="网页文本", en="web texts"), source="its authors, part_*.xz"
        ),
        hyper_parameters=HyperParameters(
            precision="bf16", local_batch_size=2, sequence_length=4096, learning_rate=1e-5
        ),
        reference="the paper",
    )  # fmt: skip


@pytest.fixture
def make_plan(case: Case) -> Callable[..., Plan]:
    def make(hp: dict[str, Any] | None = None, **changes: Any) -> Plan:
        values: dict[str, Any] = {
            "case": "toy_7b",
            "case_location": "toy_7b",
            "config": "X1x1x4",
            "run": "base",
            "vendor": "acme",
            "vendor_distribution": "acme-plugin",
            "engine": "torch",
            "chip": ChipSpec(
                name="X1", vendor="acme", memory_gb=80, memory_source="s",
                peaks=(Peak(precision="bf16", tflops=989.0, source="datasheet 1.2"),),
            ),
            "topology": "X1x1x4",
            "hyper_parameters": case.hyper_parameters.model_copy(update=hp or {}),
            "measure": Measure(),
            "model": case.model,
            "tokenizer": case.tokenizer,
            "data": case.data,
            "weights": None,
            "fix_hp": {},
            "remark": None,
            "origins": {"local_batch_size": "config_X1x1x4.py", "sequence_length": "case toy_7b"},
            "parallel": "TP1PP1DP4",
            "global_batch_size": 8,
            "tokens_per_step": 8 * 4096,
            "compute_precision": "bf16",
            "engine_config": {},
            "launch": (),
            "launch_env": {},
            "scaled_down": False,
            "official": True,
            "unofficial_reason": None,
        }  # fmt: skip
        return Plan(**(values | changes))

    return make


@pytest.fixture
def make_record(make_plan: Callable[..., Plan]) -> Callable[..., Record]:
    def make(plan: Plan | None = None, **changes: Any) -> Record:
        plan = plan or make_plan()
        values: dict[str, Any] = {
            "id": f"X1x1x4_{plan.run}",
            "status": "ok",
            "source": "measured",
            "official": plan.official,
            "scaled_down": plan.scaled_down,
            "emulated": False,
            "weights": "random",
            "data": "generated",
            "case": plan.case,
            "vendor": plan.vendor,
            "chip": "X1",
            "topology": plan.topology,
            "engine": plan.engine,
            "run": plan.run,
            "precision": plan.hyper_parameters.precision,
            "parallel": plan.parallel,
            "fix_hp": plan.fix_hp,
            "throughput": Throughput(
                tokens_per_second_per_chip=12431.6, measured_steps=48, window_s=31.24, step_time_mean_s=0.651,
                step_time_median_s=0.6502, step_time_p5_s=0.6498, step_time_p95_s=0.6604,
            ),
            "mfu": Mfu(
                flagperf=0.5279, palm=0.5906, causal=0.5543, hardware=0.5543, peak_tflops=989.0,
                peak_precision="bf16", peak_source="datasheet 1.2",
            ),
            "memory": Memory(
                peak_allocated_gib=61.03, peak_reserved_gib=66.5, peak_device_gib=68.21, capacity_gib=79.65
            ),
            "loss": Loss(
                first=10.4, last=7.314, curve=(10.4, 9.5, 8.7, 8.1, 7.7, 7.5, 7.4, 7.314),
                step_time_curve_s=(2.0, 0.66, 0.65, 0.65, 0.65, 0.65, 0.66, 0.65),
                memory_allocated_curve_gib=(40.0, 41.5, 41.5, 41.5, 41.5, 41.5, 41.5, 41.5),
            ),
            "telemetry": Telemetry(samples=31, power_mean_w=612.4, power_max_w=689.0, energy_per_token_j=0.04926),
            "environment": {"cpu": "Some CPU", "os": "Ubuntu 24.04", "driver": "570.1", "torch": "2.13.0"},
            "math_mode": {"tf32": "off"},
            "plan": plan,
        }  # fmt: skip
        return Record(**(values | changes))

    return make
