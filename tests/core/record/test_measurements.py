"""What a record tells of speed, start, memory, loss and power, from what its ranks wrote."""

from __future__ import annotations

from typing import Any

import pytest

from schemas import event as ev
from schemas.chip import TelemetryReading
from tests.core.record.run_folder import MEASURED, WARMUP, MakeFolder, RunFolder


def test_throughput_is_of_all_ranks_over_the_slowest_ones_window(whole: RunFolder) -> None:
    throughput = whole.record().throughput
    assert throughput is not None
    assert throughput.tokens_per_second_per_chip == 2 * 2000 / 50.0 / 2
    assert throughput.padded_tokens_per_second_per_chip == 2 * 2560 / 50.0 / 2
    assert (throughput.measured_steps, throughput.window_s, throughput.step_time_mean_s) == (20, 50.0, 2.5)
    # Steps 3 to 22 took 2.03 to 2.22 s; the percentiles are steps that were measured.
    assert throughput.step_time_median_s == pytest.approx(2.125)
    assert throughput.step_time_p5_s == 2.03
    assert throughput.step_time_p95_s == 2.21


def test_tokens_of_a_replica_that_is_split_over_ranks_count_once(make_folder: MakeFolder) -> None:
    """TP2 DP2: two replicas, each read by two ranks."""
    folder = make_folder("toy-X1x1x4-base-1", "X1x1x4", engine="megatron", run={"fix_hp": {"tensor_parallel": 2}})
    for rank in range(4):
        folder.start(rank)
        folder.train(rank)
        folder.finish(rank)
    throughput = folder.record().throughput
    assert throughput is not None
    assert throughput.tokens_per_second_per_chip == 2 * 2000 / 40.0 / 4
    assert throughput.padded_tokens_per_second_per_chip == 2 * 2560 / 40.0 / 4


def test_repeats_are_told_each_with_mean_and_spread(make_folder: MakeFolder) -> None:
    folder = make_folder(run={"fix_hp": {"measure.repeat": 3}})
    for rank in (0, 1):
        folder.start(rank)
        for window_s in (40.0, 50.0, 40.0)[: 3 - rank]:  # rank 1 was lost in the third
            folder.train(rank, window_s=window_s)
    record = folder.record()
    assert record.throughput is not None
    assert record.throughput.repeats == (50.0, 40.0)
    assert record.throughput.tokens_per_second_per_chip == 45.0
    assert record.throughput.spread == pytest.approx(10 / 45)
    assert (record.throughput.window_s, record.throughput.measured_steps) == (90.0, 40)
    assert record.warnings == ("the 2 repeats spread by 22.2%, more than measure.max_spread (3.0%)",)


def test_a_single_window_has_no_spread(whole: RunFolder) -> None:
    throughput = whole.record().throughput
    assert throughput is not None
    assert (throughput.repeats, throughput.spread) == ((), None)


def test_half_of_the_ranks_windows_are_no_throughput(make_folder: MakeFolder) -> None:
    folder = make_folder()
    for rank in (0, 1):
        folder.start(rank)
    folder.train(0)
    assert folder.record().throughput is None


def test_mfu_is_of_the_plans_peak_and_the_built_models_parameters(whole: RunFolder) -> None:
    record = whole.record()
    assert record.mfu.flagperf == pytest.approx(6 * 7e9 * 40 / 989e12)
    assert record.mfu.flops_per_token["palm"] == 6 * 1000 + 12 * 4 * 64 * 2048
    assert (record.mfu.peak_tflops, record.mfu.peak_precision) == (989.0, "bf16")
    assert record.parameters is not None
    assert record.parameters.model_dump() == {"total": 1000, "trainable": 900, "embedding": 200, "forward_only": 0}


def test_a_scaled_down_run_has_no_flagperf_mfu_and_says_why(make_folder: MakeFolder) -> None:
    folder = make_folder(topology="X1x1x1", run={"fix_hp": {"model.num_layers": 2}})
    folder.start(0)
    folder.train(0)
    record = folder.record()
    assert record.scaled_down
    assert record.mfu.flagperf is None
    assert record.mfu.missing == "no flagperf number: the model is scaled down, and N_nominal is the full one's"
    assert record.mfu.palm == pytest.approx((6 * 1000 + 12 * 2 * 64 * 2048) * 50 / 989e12)


def test_the_time_until_the_window_is_told_by_what_it_went_into(make_folder: MakeFolder) -> None:
    folder = make_folder()
    for phase, at_s in (("start", 0.0), ("device", 5.0), ("data", 7.0), ("setup", 7.5), ("warmup", 10.0)):
        folder.now_s = at_s
        folder.emit(0, ev.PhaseEvent, phase=phase)
    folder.step(0, "warmup", 1, step_time_s=20.0)
    folder.now_s = 34.0
    folder.emit(0, ev.PhaseEvent, phase="measure")
    folder.outcome(exit_code=0, begun_unix_s=1e9 - 1.5)
    assert folder.record().startup_seconds == pytest.approx(
        {"launch": 1.5, "imports": 5, "device": 2, "data": 0.5, "setup": 2.5, "first_step": 20, "warm_up": 4}
    )


def test_where_the_command_began_unseen_or_no_window_was_reached_less_is_told(make_folder: MakeFolder) -> None:
    folder = make_folder()
    folder.start(0)
    assert folder.record().startup_seconds == {}
    folder.train(0)
    assert "launch" not in folder.record().startup_seconds


def test_memory_is_the_fullest_ranks(whole: RunFolder) -> None:
    memory = whole.record().memory
    assert (memory.peak_allocated_gib, memory.peak_reserved_gib, memory.capacity_gib) == (61.0, 70.0, 80.0)
    assert (memory.allocation_retries, memory.oom_count) == (1, 0)
    assert memory.peak_device_gib is None


def test_curves_are_rank_0s_warm_up_included(whole: RunFolder) -> None:
    loss = whole.record().loss
    assert loss.first_step == 1
    assert (loss.first, loss.last, len(loss.curve)) == (4.9, 5.0 - 2.2, WARMUP + MEASURED)
    assert loss.grad_norm_curve[:2] == (2.0, 3.0)
    assert loss.step_time_curve_s[-1] == 2.22
    assert loss.memory_allocated_curve_gib == (40.0,) * 22


def test_telemetry_counts_inside_the_window_only(make_folder: MakeFolder) -> None:
    folder = make_folder(topology="X1x1x1")
    folder.start(0)
    samples = ((1.0, 900.0, 90.0), (4.0, 500.0, 60.0), (30.0, 700.0, 70.0), (44.0, None, None), (50.0, 50.0, 80.0))
    waiting = list(samples)
    original = folder.emit

    def emit(rank: int, kind: type[Any], **fields: Any) -> None:
        original(rank, kind, **fields)
        while waiting and waiting[0][0] <= folder.now_s and kind is not ev.TelemetryEvent:
            _, watts, degrees = waiting.pop(0)
            reading = TelemetryReading(
                power_w=watts, temperature_c=degrees, memory_used_gib=None if watts is None else watts / 10
            )
            original(rank, ev.TelemetryEvent, reading=reading)

    folder.emit = emit  # type: ignore[method-assign]
    folder.train(0)
    folder.now_s = 50.0
    folder.finish(0)
    assert not waiting
    record = folder.record()
    telemetry = record.telemetry
    assert telemetry.samples == 3
    assert (telemetry.power_mean_w, telemetry.power_max_w, telemetry.temperature_max_c) == (600.0, 700.0, 70.0)
    assert (telemetry.utilisation_mean_percent, telemetry.sm_clock_mean_mhz) == (None, None)
    assert telemetry.energy_per_token_j == pytest.approx(600.0 / 50.0)
    # The vendor's reading has no device-wide peak, so the largest sample stands for it.
    assert record.memory.peak_device_gib == 70.0


@pytest.mark.parametrize("watts", [None, 0.0])
def test_a_vendor_that_reads_no_power_has_no_energy(make_folder: MakeFolder, watts: float | None) -> None:
    folder = make_folder(topology="X1x1x1")
    folder.start(0)
    folder.train(0)
    folder.now_s = 20.0
    folder.emit(0, ev.TelemetryEvent, reading=TelemetryReading(power_w=watts, utilisation_percent=97.0))
    telemetry = folder.record().telemetry
    assert (telemetry.samples, telemetry.power_mean_w, telemetry.energy_per_token_j) == (1, watts, None)
    assert telemetry.utilisation_mean_percent == 97.0


def test_slow_devices_and_slow_data_are_named(make_folder: MakeFolder) -> None:
    folder = make_folder("toy-X1x1x4-base-1", "X1x1x4")
    for rank in range(4):
        folder.start(rank)
        folder.emit(rank, ev.SpeedEvent, product_s=2e-5 if rank == 2 else 1e-5)
        folder.step(rank, "measure", 3, data_wait_s=0.9 if rank == 1 else 0.01)
    assert folder.record().warnings == (
        "straggler: rank 2's device alone takes 2.0 times the others' time (20 us for a product)",
        "straggler: rank 1 waits 0.9 s for its data in each step, the others 0.01 s",
    )


def test_ranks_that_are_alike_are_no_stragglers(make_folder: MakeFolder) -> None:
    folder = make_folder()
    for rank in (0, 1):
        folder.start(rank)
        folder.emit(rank, ev.SpeedEvent, product_s=1e-5 * (1 + 0.3 * rank))
        folder.step(rank, "measure", 3, data_wait_s=0.05 * rank)
    assert folder.record().warnings == ()
