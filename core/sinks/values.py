"""What sinks are told: names are grouped by ``/``, units are in the names."""

from __future__ import annotations

from core.progress.state import RunState
from core.report.cells import used_memory_gib
from schemas.plan import Plan
from schemas.record import Record

Setting = str | int | float | bool


def settings(plan: Plan) -> dict[str, Setting]:
    """The plan's identity and hyper-parameters, flat; what is None is left out."""
    identity: dict[str, Setting | None] = {
        "case": plan.case,
        "config": plan.config,
        "run": plan.run,
        "vendor": plan.vendor,
        "chip": plan.chip.name,
        "topology": plan.topology.render(),
        "engine": plan.engine,
        "parallel": plan.parallel.render(),
        "global_batch_size": plan.global_batch_size,
        "scaled_down": plan.scaled_down,
        "official": plan.official,
    }
    parameters = plan.hyper_parameters.model_dump(mode="json")
    measure = {f"measure.{name}": value for name, value in plan.measure.model_dump(mode="json").items()}
    both = identity | parameters | measure
    return {
        name: value if isinstance(value, (str, int, float)) else str(value)
        for name, value in both.items()
        if value is not None
    }


def of_step(state: RunState) -> dict[str, float]:
    """What is known after the last step: the loss of that step, rates of the window so far."""
    step, shares = state.last_step, state.mfu
    if step is None:
        return {}
    readings = [rank.reading for rank in state.ranks.values()]
    values = {
        "train/loss": step.loss,
        "train/grad_norm": step.grad_norm,
        "train/learning_rate": step.learning_rate,
        "speed/step_time_s": step.step_time_s,
        "speed/tokens_per_second_per_chip": state.tokens_per_second_per_chip,
        "speed/mfu_flagperf": shares.flagperf if shares else None,
        "speed/mfu_palm": shares.palm if shares else None,
        "device/memory_max_gib": _largest([rank.memory_gib for rank in state.ranks.values()]),
        "device/power_mean_w": _mean([reading.power_w for reading in readings]),
        "device/temperature_max_c": _largest([reading.temperature_c for reading in readings]),
        "device/utilisation_mean_percent": _mean([reading.utilisation_percent for reading in readings]),
    }
    return {name: value for name, value in values.items() if value is not None}


def of_record(record: Record) -> dict[str, float]:
    """The run's result, as far as there is one."""
    throughput = record.throughput
    values = {
        "result/tokens_per_second_per_chip": throughput.tokens_per_second_per_chip if throughput else None,
        "result/mfu_flagperf": record.mfu.flagperf,
        "result/mfu_palm": record.mfu.palm,
        "result/memory_gib": used_memory_gib(record),
        "result/energy_per_token_j": record.telemetry.energy_per_token_j,
        "result/loss": record.loss.last,
    } | {f"result/{benchmark}": accuracy.value for benchmark, accuracy in record.accuracy.items()}
    return {name: value for name, value in values.items() if value is not None}


def _largest(values: list[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
