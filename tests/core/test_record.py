"""The record of a run, from what its ranks wrote and how its processes ended."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core import events
from core.errors import UsageError
from core.events import EventLog
from core.record import OUTCOME_FILE, Outcome, build_record, read_record, write_record
from core.report.run_report import write_run_report
from core.worker import PLAN_FILE
from schemas import event as ev
from schemas.chip import Device, MemoryReading, TelemetryReading
from schemas.evaluation import Accuracy
from schemas.plan import Plan
from schemas.record import Record

ROOT = Path(__file__).parents[2]
STEP_S = 2.0
WARMUP, MEASURED = 2, 20


class RunFolder:
    """A run's folder, filled by its ranks; time passes only where a test says so."""

    def __init__(self, folder: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
        folder.mkdir(parents=True)
        (folder / PLAN_FILE).write_text(plan.model_dump_json(), encoding="utf-8")
        self.folder, self.plan, self.now_s = folder, plan, 0.0
        clock = SimpleNamespace(monotonic=lambda: self.now_s, time=lambda: 1e9 + self.now_s)
        monkeypatch.setattr(events, "time", clock)
        self.logs: dict[int, EventLog] = {}

    def emit(self, rank: int, kind: type[Any], **fields: Any) -> None:
        if rank not in self.logs:
            self.logs[rank] = EventLog(self.folder, rank)
        self.logs[rank].emit(kind, **fields)

    def start(self, rank: int) -> None:
        """Up to the model."""
        self.now_s = 0.0
        for phase in ("start", "device", "data", "setup"):
            self.emit(rank, ev.PhaseEvent, phase=phase)
        device = Device(
            torch_device=f"acme:{rank}", index=rank, name="ACME X1", collective_backend="accl",
            math_mode={"tf32": "off"},
        )  # fmt: skip
        self.emit(
            rank, ev.DeviceEvent, device=device, environment={"driver": f"570.{rank}"}, host="h", pid=100 + rank
        )
        self.emit(rank, ev.DataEvent, data="generated", manifest_sha256="ab" * 32, sequences=512, tokens=10**6)
        self.emit(
            rank, ev.ModelEvent, parameters_total=1000, parameters_trainable=900, parameters_embedding=200,
            weights="random", optimizer="acme.FusedAdamW",
        )  # fmt: skip

    def step(self, rank: int, phase: str, step: int, **changes: Any) -> None:
        self.now_s += STEP_S
        values = {
            "step_time_s": STEP_S + step / 100,
            "loss": 5.0 - step / 10,
            "grad_norm": 1.0 + step,
            "learning_rate": 1e-5,
            "label_tokens": 100,
            "real_tokens": 100,
            "padded_tokens": 28,
            "memory_allocated_gib": 40.0,
        }
        self.emit(rank, ev.StepEvent, phase=phase, step=step, total_steps=None, **(values | changes))

    def train(self, rank: int, window_s: float = 40.0) -> None:
        """Warm-up and window; ends in second 44."""
        self.emit(rank, ev.PhaseEvent, phase="warmup")
        for step in range(1, WARMUP + 1):
            self.step(rank, "warmup", step)
        self.emit(rank, ev.PhaseEvent, phase="measure")
        for step in range(WARMUP + 1, WARMUP + MEASURED + 1):
            self.step(rank, "measure", step)
        self.emit(
            rank, ev.WindowEvent, window_s=window_s, steps=MEASURED, real_tokens=100 * MEASURED,
            padded_tokens=28 * MEASURED, epochs=3,
        )  # fmt: skip

    def finish(self, rank: int) -> None:
        memory = MemoryReading(
            peak_allocated_gib=60.0 + rank, peak_reserved_gib=70.0 - rank, peak_device_gib=None, capacity_gib=80.0,
            allocation_retries=rank, oom_count=0,
        )  # fmt: skip
        self.emit(rank, ev.MemoryEvent, memory=memory)
        self.now_s += 1.0
        self.emit(rank, ev.PhaseEvent, phase="finish")
        self.emit(rank, ev.FinishEvent)

    def fail(self, rank: int, status: str, reason: str, step: int | None = None) -> None:
        self.now_s += 1.0
        self.emit(rank, ev.ErrorEvent, status=status, step=step, reason=reason, traceback="...")

    def outcome(self, **values: Any) -> None:
        outcome = Outcome(command="accelmark run toy", **values)
        (self.folder / OUTCOME_FILE).write_text(outcome.model_dump_json(), encoding="utf-8")

    def record(self) -> Record:
        for log in self.logs.values():
            log.close()
        self.logs.clear()
        return build_record(self.folder)


MakeFolder = Callable[..., RunFolder]


@pytest.fixture
def make_folder(
    tmp_path: Path, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeFolder]:
    made: list[RunFolder] = []

    def make(name: str = "toy-X1x1x2-base-1", topology: str = "X1x1x2", **values: Any) -> RunFolder:
        made.append(RunFolder(tmp_path / name, make_plan(topology=topology, **values), monkeypatch))
        return made[-1]

    yield make
    for folder in made:
        for log in folder.logs.values():
            log.close()


@pytest.fixture
def whole(make_folder: MakeFolder) -> RunFolder:
    """A run of two ranks that ended well; rank 1 took longer."""
    folder = make_folder(run={"fix_hp": {"gradient_accumulation_steps": 4}})
    for rank in (0, 1):
        folder.start(rank)
        folder.train(rank, window_s=40.0 + rank * 10)
        folder.finish(rank)
    folder.outcome(exit_code=0)
    return folder


def test_what_was_run_is_the_plans(whole: RunFolder) -> None:
    record, plan = whole.record(), whole.plan
    assert (record.id, record.status, record.reason, record.source) == (
        "toy-X1x1x2-base-1",
        "ok",
        None,
        "measured",
    )
    assert (record.official, record.unofficial_reason) == (True, None)
    assert (record.scaled_down, record.emulated) == (False, False)
    assert (record.weights, record.data) == ("random", "generated")
    assert (record.case, record.vendor, record.chip, record.engine, record.run) == (
        "toy", "acme", "X1", "deepspeed", "base",
    )  # fmt: skip
    assert (record.topology.render(), record.parallel.render()) == ("X1x1x2", "TP1PP1DP2")
    assert (record.precision, record.fix_hp) == ("bf16", {"gradient_accumulation_steps": 4})
    assert (record.command, record.plan) == ("accelmark run toy", plan)
    assert record.rankable


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


def test_epochs_that_left_few_steps_make_the_record_unofficial(whole: RunFolder) -> None:
    plan = json.loads((whole.folder / PLAN_FILE).read_text(encoding="utf-8"))
    plan["measure"] |= {"epochs": 3, "steps": MEASURED + 1}
    (whole.folder / PLAN_FILE).write_text(json.dumps(plan), encoding="utf-8")
    record = whole.record()
    assert record.unofficial_reason == f"3 epochs left {MEASURED} measured steps, fewer than {MEASURED + 1}"


def test_the_accuracy_is_what_rank_0_told(whole: RunFolder) -> None:
    told = Accuracy(value=0.5, standard_error=0.1, questions=30, data="embedded", shots=5, mean_shots=4.5)
    whole.emit(0, ev.AccuracyEvent, benchmark="MMLU", accuracy=told)
    assert whole.record().accuracy == {"MMLU": told}


def test_what_the_reader_must_know_of_data_time_and_machine(whole: RunFolder) -> None:
    whole.emit(1, ev.WarningEvent, message="telemetry stopped")
    record = whole.record()
    assert record.tokens_trained == 22 * 2 * 100  # without padding
    assert (record.epochs, record.data_manifest_sha256) == (3, "ab" * 32)
    assert (record.environment, record.math_mode) == ({"driver": "570.0"}, {"tf32": "off"})
    assert (record.optimizer, record.warnings) == ("acme.FusedAdamW", ("telemetry stopped",))
    assert (record.started_unix_s, record.duration_s) == (1e9, 45.0)


def test_what_every_rank_warns_of_is_told_once(whole: RunFolder) -> None:
    for rank, message in ((0, "attention is slow"), (1, "attention is slow"), (1, "telemetry stopped")):
        whole.emit(rank, ev.WarningEvent, message=message)
    assert whole.record().warnings == ("attention is slow", "telemetry stopped")


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


@pytest.mark.parametrize(
    ("values", "window_s", "reason"),
    [
        ({}, 29.96, "the window took 30.0 s, less than 30.0 s"),
        ({}, 12.3, "the window took 12.3 s, less than 30.0 s"),
        ({}, 30.0, None),
        ({"topology": "REFx1x1"}, 3.0, None),
        ({"sets": {"seed": "1"}}, 3.0, "--set changed seed"),
    ],
)
def test_a_short_window_is_not_official(
    make_folder: MakeFolder, values: dict[str, Any], window_s: float, reason: str | None
) -> None:
    folder = make_folder(**({"topology": "X1x1x1"} | values))
    folder.start(0)
    folder.train(0, window_s)
    folder.finish(0)
    record = folder.record()
    assert (record.official, record.unofficial_reason) == (reason is None, reason)


def test_an_emulated_chip_or_device_is_told(make_folder: MakeFolder) -> None:
    folder = make_folder("a", topology="EMUx1x1")
    assert folder.record().emulated
    folder = make_folder("b", topology="X1x1x1")
    device = Device(torch_device="acme", index=0, name="n", collective_backend="gloo", math_mode={}, emulated=True)
    folder.emit(0, ev.DeviceEvent, device=device, environment={}, host="h", pid=1)
    record = folder.record()
    assert (record.emulated, record.rankable) == (True, False)
    assert (record.mfu.palm, record.mfu.missing) == (None, "an emulated device")


def test_prepared_data_and_weights_are_named_before_they_are_read(make_folder: MakeFolder) -> None:
    record = make_folder(sets={"data.path": "/data", "weights": "/weights"}).record()
    assert (record.data, record.weights) == ("openwebtext", "pretrained")


def test_a_run_that_goes_on_tells_what_training_began_with_and_where_its_curves_begin(
    make_folder: MakeFolder,
) -> None:
    folder = make_folder(topology="X1x1x1", sets={"weights": "/weights", "checkpoint.load": "/ck/a"})
    folder.start(0)  # from random weights, says the checkpoint
    folder.step(0, "warmup", 46)
    record = folder.record()
    assert (record.weights, record.loss.first_step) == ("random", 46)


def test_the_first_cause_counts_not_its_peers_lost_connection(make_folder: MakeFolder) -> None:
    folder = make_folder()
    for rank in (0, 1):
        folder.start(rank)
    folder.fail(0, "crashed", "RuntimeError: Connection closed by peer", step=3)
    folder.fail(1, "oom", "OutOfMemoryError: tried to allocate 20.00 GiB", step=3)
    folder.outcome(exit_code=1, lost={0: "ended with exit code 1", 1: "ended with exit code 1"})
    record = folder.record()
    assert record.status == "oom"
    assert record.reason == "rank 1 in step 3: OutOfMemoryError: tried to allocate 20.00 GiB"
    assert (record.throughput, record.mfu.missing, record.rankable) == (None, "nothing was measured", False)


def test_of_two_failed_ranks_the_earlier_is_told(make_folder: MakeFolder) -> None:
    folder = make_folder()
    folder.fail(1, "crashed", "KeyError: 'lm_head'")
    folder.fail(0, "crashed", "RuntimeError: Connection closed by peer")
    folder.outcome(exit_code=1, lost={1: "ended with exit code 1"})
    record = folder.record()
    assert (record.status, record.reason) == ("crashed", "rank 1 before the first step: KeyError: 'lm_head'")


def test_a_rank_that_was_killed_comes_before_the_peers_it_left(make_folder: MakeFolder) -> None:
    folder = make_folder()
    folder.start(0)
    folder.fail(0, "crashed", "RuntimeError: Connection closed by peer", step=9)
    folder.outcome(exit_code=1, lost={1: "was ended by signal 9 (SIGKILL)", 0: "ended with exit code 1"})
    record = folder.record()
    assert record.status == "crashed"
    assert record.reason == "rank 1 before it started was ended by signal 9 (SIGKILL)"


def test_a_rank_that_aborts_since_a_peer_is_gone_is_not_the_cause(make_folder: MakeFolder) -> None:
    folder = make_folder()
    folder.fail(0, "crashed", "KeyError: 'lm_head'", step=9)
    folder.outcome(exit_code=1, lost={1: "was ended by signal 6 (SIGABRT)", 0: "ended with exit code 1"})
    assert folder.record().reason == "rank 0 in step 9: KeyError: 'lm_head'"


def test_ranks_that_all_abort_are_told(make_folder: MakeFolder) -> None:
    folder = make_folder()
    folder.start(0)
    folder.outcome(exit_code=1, lost={1: "was ended by signal 6 (SIGABRT)", 0: "was ended by signal 6 (SIGABRT)"})
    record = folder.record()
    assert record.status == "crashed"
    assert record.reason == (
        "rank 1 before it started was ended by signal 6 (SIGABRT); "
        "rank 0 in phase setup was ended by signal 6 (SIGABRT)"
    )


def test_a_rank_that_ended_without_a_word(make_folder: MakeFolder) -> None:
    folder = make_folder()
    for rank in (0, 1):
        folder.start(rank)
        folder.train(rank)
    folder.finish(0)
    record = folder.record()  # without an outcome: the launcher was killed, too
    reason = "rank 1 after step 22 ended without a word, and so did their launcher"
    assert (record.status, record.reason) == ("crashed", reason)
    assert record.command == "unknown: the launcher did not end by itself"
    assert record.loss.last == 5.0 - 2.2


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


def test_a_rank_that_the_kernel_ended_for_lack_of_memory(make_folder: MakeFolder) -> None:
    folder = make_folder()
    for rank in (0, 1):
        folder.start(rank)
    folder.outcome(exit_code=1, lost={1: "was ended by signal 9 (SIGKILL)"}, oom_kills=1)
    record = folder.record()
    assert record.status == "oom"
    assert record.reason == (
        "rank 1 in phase setup was ended by signal 9 (SIGKILL), "
        "and the kernel ended 1 processes for lack of host memory"
    )


def test_a_lost_node_is_named_with_its_ranks(make_folder: MakeFolder) -> None:
    folder = make_folder("toy-X1x2x2-base-1", "X1x2x2")
    for rank in range(4):
        folder.start(rank)
    for rank in (0, 1):
        folder.fail(rank, "crashed", "RuntimeError: Connection closed by peer", step=9)
    folder.outcome(exit_code=1)
    reason = "node 1 (rank 2, 3) in phase setup ended without a word"
    assert (folder.record().status, folder.record().reason) == ("crashed", reason)


def test_a_hang_comes_before_what_ending_it_made_of_the_ranks(make_folder: MakeFolder) -> None:
    folder = make_folder()
    folder.fail(0, "crashed", "RuntimeError: Connection closed by peer", step=9)
    folder.outcome(hang="rank 1 is in nap (a.py:1)", exit_code=-9)
    assert (folder.record().status, folder.record().reason) == ("hang", "rank 1 is in nap (a.py:1)")


def two_nodes_that_hang(make_folder: MakeFolder) -> RunFolder:
    """Rank 3 sleeps in step 10; of node 1 what its ranks have sent is known."""
    folder = make_folder("toy-X1x2x2-base-1", "X1x2x2")
    for rank in range(4):
        folder.start(rank)
        folder.step(rank, "warmup", 9)
    return folder


def hangs(folder: RunFolder, rank: int, place: str, status: str = "hang") -> None:
    why = "no progress for 5 s (measure.timeout_s is 5)"
    folder.emit(rank, ev.ErrorEvent, status=status, step=10, reason=why, traceback="", place=place)


def test_of_ranks_that_watch_themselves_the_one_that_does_not_wait_is_told_first(make_folder: MakeFolder) -> None:
    folder = two_nodes_that_hang(make_folder)
    for rank in (0, 1):
        hangs(folder, rank, "waits in all_reduce")
    hangs(folder, 2, "waits in all_reduce", status="interrupted")
    hangs(folder, 3, "is in nap (a.py:1)")
    folder.outcome(exit_code=1, launched_nodes=0)
    assert folder.record().reason == (
        "node 1, rank 3 after step 9 is in nap (a.py:1); node 0, rank 0 waits in all_reduce; "
        "node 0, rank 1 waits in all_reduce; node 1, rank 2 waits in all_reduce: "
        "no progress for 5 s (measure.timeout_s is 5)"
    )


def test_a_rank_without_a_word_comes_before_those_that_wait(make_folder: MakeFolder) -> None:
    folder = two_nodes_that_hang(make_folder)
    for rank in (0, 1, 2):
        hangs(folder, rank, "waits in all_reduce")
    folder.outcome(exit_code=1, launched_nodes=0)
    reason = folder.record().reason or ""
    assert reason.startswith("node 1, rank 3 after step 9 gave no word; node 0, rank 0 waits in all_reduce; ")


def test_a_hang_that_a_launcher_saw_names_who_hangs_on_other_nodes(make_folder: MakeFolder) -> None:
    folder = two_nodes_that_hang(make_folder)
    folder.fail(0, "crashed", "RuntimeError: Connection closed by peer", step=10)
    hangs(folder, 2, "waits in all_reduce")
    hangs(folder, 3, "is in nap (a.py:1)")
    folder.outcome(exit_code=-9, hang="node 0, rank 0 waits in all_reduce: no progress for 5 s")
    assert folder.record().reason == (
        "node 1, rank 3 after step 9 is in nap (a.py:1); node 0, rank 0 waits in all_reduce: no progress for 5 s"
    )


def test_a_hang_on_the_launchers_own_node_needs_no_more_words(make_folder: MakeFolder) -> None:
    folder = two_nodes_that_hang(make_folder)
    for rank in (2, 3):
        hangs(folder, rank, "waits in all_reduce")
    folder.outcome(exit_code=-9, hang="node 0, rank 0 after step 9 is in nap (a.py:1): no progress for 5 s")
    assert folder.record().reason == "node 0, rank 0 after step 9 is in nap (a.py:1): no progress for 5 s"


def test_of_a_lost_rank_whose_events_are_elsewhere_only_the_others_are_known(make_folder: MakeFolder) -> None:
    folder = make_folder("toy-X1x2x2-base-1", "X1x2x2")
    for rank in range(3):
        folder.start(rank)
        folder.step(rank, "warmup", 9)
        folder.fail(rank, "crashed", "RuntimeError: Connection closed by peer", step=10)
    folder.outcome(exit_code=1)
    reason = "node 1 (rank 3) ended without a word; the others were heard of last after step 9"
    assert (folder.record().status, folder.record().reason) == ("crashed", reason)


def test_where_the_first_node_is_lost_another_one_has_a_record_of_what_it_knows(make_folder: MakeFolder) -> None:
    folder = make_folder("toy-X1x2x2-base-1", "X1x2x2")
    for rank in (2, 3):
        folder.start(rank)
        folder.step(rank, "warmup", 9)
        folder.fail(rank, "crashed", "RuntimeError: Connection closed by peer", step=10)
    folder.outcome(exit_code=1, node=1)
    record = folder.record()
    reason = "node 0 (rank 0, 1) ended without a word; the others were heard of last after step 9"
    assert (record.status, record.reason) == ("crashed", reason)
    assert record.tokens_trained == 400, "as far as this node's replicas tell"
    write_run_report(folder.folder, record, "en")
    assert reason in (folder.folder / "report.md").read_text(encoding="utf-8")


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


@pytest.mark.parametrize("steps", [0, 5])
def test_interrupted(make_folder: MakeFolder, steps: int) -> None:
    folder = make_folder()
    for rank in (0, 1):
        folder.start(rank)
    for step in range(1, steps + 1):
        folder.step(0, "warmup", step)
    folder.outcome(interrupted=True, exit_code=-15)
    record = folder.record()
    where = "after step 5" if steps else "in phase setup"
    assert (record.status, record.reason) == ("interrupted", f"interrupted {where}")


def test_a_rank_told_to_end_does_not_crash_as_its_peers_go(make_folder: MakeFolder) -> None:
    """torchrun passes SIGTERM on to all, and each is gone in its own time; nobody of ours saw how."""
    folder = make_folder()
    for rank in (0, 1):
        folder.start(rank)
        folder.step(rank, "measure", 7)
        folder.fail(rank, "interrupted", "ended by SIGTERM", step=8)
    folder.fail(0, "crashed", "RuntimeError: Connection closed by peer", step=8)
    record = folder.record()
    assert (record.status, record.reason) == ("interrupted", "rank 0 in step 8: ended by SIGTERM")


def test_hang(make_folder: MakeFolder) -> None:
    folder = make_folder()
    folder.start(0)
    folder.outcome(hang="no progress for 1801 s (measure.timeout_s is 1800)", exit_code=-9)
    record = folder.record()
    assert (record.status, record.reason) == ("hang", "no progress for 1801 s (measure.timeout_s is 1800)")


def test_not_a_number(make_folder: MakeFolder) -> None:
    folder = make_folder(topology="X1x1x1")
    folder.start(0)
    folder.step(0, "warmup", 1)
    folder.step(0, "warmup", 2, loss=None, grad_norm=None)
    folder.fail(0, "nan", "loss is nan and gradient norm nan in step 2", step=4)
    record = folder.record()
    assert (record.status, record.loss.curve, record.loss.grad_norm_curve) == ("nan", (4.9,), (2.0,))


def test_nothing_at_all_started(make_folder: MakeFolder) -> None:
    folder = make_folder()
    folder.outcome(exit_code=1)
    record = folder.record()
    assert record.status == "crashed"
    assert record.reason == "rank 0, 1 before any worker started (see agent.log) ended without a word"
    assert (record.started_unix_s, record.duration_s, record.tokens_trained) == (None, None, None)
    assert (record.parameters, record.environment, record.loss.first) == (None, {}, None)


def test_a_written_record_is_read_again(whole: RunFolder) -> None:
    built = whole.record()
    assert write_record(whole.folder) == built
    assert read_record(whole.folder / "record.json") == built


@pytest.mark.parametrize(
    ("file", "text", "what"),
    [
        (PLAN_FILE, "{}", "plan.json: case: this field is missing"),
        (
            OUTCOME_FILE,
            '{"command": "c", "exit_code": "x"}',
            "outcome.json: exit_code: Input should be a valid int",
        ),
        (OUTCOME_FILE, '{"command"', "outcome.json: (whole value): Invalid JSON"),
        ("events/rank00000.jsonl", '{"kind": "finish"}\n', "rank00000.jsonl (line 1 of this read): "),
    ],
)
def test_a_file_that_was_edited_is_named(whole: RunFolder, file: str, text: str, what: str) -> None:
    (whole.folder / file).write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as error:
        whole.record()
    assert what in error.value.what


def test_a_folder_that_was_renamed_is_told(whole: RunFolder) -> None:
    whole.record()
    renamed = whole.folder.rename(whole.folder.parent / "run 1 (copy)")
    with pytest.raises(UsageError) as error:
        build_record(renamed)
    assert "id: String should match pattern" in error.value.what
    assert "(got 'run 1 (copy)')" in error.value.what


def test_a_record_file_that_is_wrong_is_told_by_file_field_and_value(tmp_path: Path) -> None:
    good = ROOT / "cases/baichuan2_13b/records/published_H800x2x8_base.json"
    bad = tmp_path / "r.json"
    bad.write_text(good.read_text(encoding="utf-8").replace('"H800x2x8"', '"H800"'), encoding="utf-8")
    with pytest.raises(UsageError) as error:
        read_record(bad)
    assert f"{bad}: topology: 'H800' is not a Topology" in error.value.what
    assert error.value.fix == "correct r.json"
