"""What a run's state says of rate, MFU, time left, and of ranks that keep the others waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from core import metrics
from core.progress import facts
from core.progress.state import RunState
from schemas import event as ev
from schemas.chip import MemoryReading
from schemas.plan import Plan
from tests.core.progress import recorded
from tests.core.progress.recorded import AT, Timed, error, phase, step

PlanOf = Callable[[int], Plan]


def state_of(plan: Plan, events: Iterable[Timed], ranks: range | None = None) -> RunState:
    state = RunState(plan, ranks or range(plan.topology.world_size), 0.0)
    for now_s, event in events:
        state.observe(event, now_s)
    return state


def test_rate_and_mfu_are_the_records(plan_of: PlanOf) -> None:
    plan = plan_of(8)
    state = state_of(plan, recorded.run(8))
    assert state.tokens_per_second_per_chip == 16384 / 2
    assert state.mfu is not None
    assert state.mfu.flagperf == pytest.approx(6 * 7e9 * 8192 / 989e12)
    work = metrics.Work.of(plan, state._parameters)  # type: ignore[arg-type]
    assert state.mfu == metrics.mfu(8192.0, work, plan.chip.peak("bf16"))


def test_with_padding_the_lengths_that_palm_counts_are_not_known_yet(plan_of: PlanOf) -> None:
    events = [(0.0, recorded.model()), (1.0, phase("measure")), (2.0, step(3, padded_tokens=5))]
    assert facts.mfu(state_of(plan_of(1), events)) == "34.8%"
    small = plan_of(1).model_copy(update={"scaled_down": True})
    assert facts.mfu(state_of(small, recorded.run(1))) == "PaLM 34.8%"
    assert facts.mfu(state_of(small, events)) is None


def test_the_rate_is_a_mean_over_the_window_and_each_repeat_has_its_own(plan_of: PlanOf) -> None:
    events = [(0.0, phase("measure")), (1.0, step(3, step_time_s=1.0)), (4.0, step(4, step_time_s=3.0))]
    state = state_of(plan_of(1), events)
    assert state.tokens_per_second_per_chip == 2 * 16384 / 4
    state.observe(phase("measure"), 5.0)
    assert state.tokens_per_second_per_chip is None
    state.observe(step(5, step_time_s=4.0), 9.0)
    assert state.tokens_per_second_per_chip == 4096
    state.observe(phase("finish"), 9.0)
    assert state.tokens_per_second_per_chip == 4096  # it stays to be read


def test_the_warm_up_of_a_run_that_goes_on_is_counted_from_its_checkpoint(plan_of: PlanOf) -> None:
    events = [(0.0, phase("warmup")), (1.0, step(46, None, phase="warmup")), (2.0, step(47, None, phase="warmup"))]
    state = state_of(plan_of(1), events)
    assert (state.step, state.total_steps) == (47, 45 + 2)


def test_in_warm_up_the_last_step_counts(plan_of: PlanOf) -> None:
    slow, fast = (step(n, None, phase="warmup", step_time_s=s) for n, s in ((1, 60.0), (2, 2.0)))
    state = state_of(plan_of(1), [(0.0, phase("warmup")), (60.0, slow), (62.0, fast)])
    assert (state.tokens_per_second_per_chip, state.left_s, facts.done(state)) == (8192, None, "2/2")


def test_a_phase_without_steps_counts_what_it_does(plan_of: PlanOf) -> None:
    state = state_of(
        plan_of(2), [*recorded.run(2, until=22), *((55.0, phase("evaluate", rank)) for rank in (0, 1))]
    )
    assert facts.done(state) == "22/22"
    for rank, done in ((0, 30), (1, 20)):
        state.observe(recorded.progress(rank, done, 100), 56.0)
    assert (state.stage, facts.done(state), state.left_s) == ("evaluate", "20/100", None)
    state.observe(phase("finish", 0), 57.0)
    state.observe(phase("finish", 1), 57.0)
    assert facts.done(state) == "22/22"


def test_a_replica_that_is_split_over_ranks_counts_once(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(topology="X1x1x4", engine="megatron", run={"fix_hp": {"tensor_parallel": 2}})
    state = state_of(plan, [(1.0, step(3, rank=rank)) for rank in range(4)])
    assert state.tokens_per_second_per_chip == 2 * 16384 / 2 / 4


def test_one_node_of_several_stands_for_the_others(plan_of: PlanOf) -> None:
    state = state_of(plan_of(16), [(1.0, step(3, rank=rank)) for rank in range(16)], range(8, 16))
    assert state.tokens_per_second_per_chip == 8192
    assert state.last_step is not None
    assert state.last_step.rank == 8


def test_the_time_left(plan_of: PlanOf) -> None:
    state = state_of(plan_of(2), recorded.run(2, until=12))
    assert (state.step, state.total_steps, state.left_s) == (12, 22, 20.0)


def test_the_run_is_where_its_last_rank_is(plan_of: PlanOf) -> None:
    state = state_of(plan_of(2), [(3.0, phase("measure", 0)), (4.0, phase("data", 1))])
    assert (state.stage, state.stage_since_s) == ("data", 4.0)
    state.observe(error(1), 5.0)  # one that has failed is waited for no longer
    assert state.stage == "measure"
    state.observe(error(0), 6.0)
    assert state.stage == "data"


def test_what_other_ranks_say_changes_nothing(plan_of: PlanOf) -> None:
    state = state_of(plan_of(1), [(1.0, phase("setup", 7)), (1.0, step(3, rank=7))])
    assert (state.stage, state.step, state.last_step) == ("launch", 0, None)


def test_memory_is_the_devices_where_telemetry_tells_and_the_peak_at_the_end(plan_of: PlanOf) -> None:
    state = state_of(plan_of(2), [(1.0, step(3, rank=1, memory_allocated_gib=41.0))])
    assert facts.memory(state) == "41.0 GiB (rank 1)"
    state.observe(recorded.sample(1, memory_used_gib=66.0), 2.0)
    state.observe(step(4, rank=1, memory_allocated_gib=41.0), 3.0)
    assert facts.memory(state) == "66.0 GiB (rank 1)"
    peaks = MemoryReading(peak_allocated_gib=50.0, peak_reserved_gib=55.0, peak_device_gib=None, capacity_gib=79.6)
    state.observe(ev.MemoryEvent(**AT, rank=0, memory=peaks), 4.0)
    assert facts.memory(state) == "66.0/79.6 GiB (rank 1)"


@pytest.mark.parametrize(("now_s", "told"), [(37.9, None), (41.0, "rank 3 at step 11 for 0:09")])
def test_a_rank_that_others_wait_for_is_named_after_three_steps_time(
    plan_of: PlanOf, now_s: float, told: str | None
) -> None:
    events = [
        e for e in recorded.run(8) if not (isinstance(e[1], ev.StepEvent) and (e[1].rank, e[1].step) == (3, 12))
    ]
    state = state_of(plan_of(8), events)
    for rank in range(8):
        if rank != 3:
            state.observe(step(13, rank=rank), now_s - 1)
    # Rank 3's step 11 ended in second 32, the telemetry of second 34 is no progress.
    assert facts.stalled(state, now_s) == told


def test_in_set_up_ranks_may_differ_by_seconds(plan_of: PlanOf) -> None:
    state = state_of(plan_of(2), [(1.0, phase("setup", 1)), (2.0, phase("warmup", 0))])
    assert facts.stalled(state, 10.9) is None
    assert facts.stalled(state, 11.1) == "rank 1 at setup for 0:10"


def test_of_many_that_are_late_the_first_is_named(plan_of: PlanOf) -> None:
    state = state_of(plan_of(256), recorded.run(256, late=(17, 200, 201)))
    assert facts.stalled(state, 34.0) == "rank 17 at setup for 0:34 and 2 more"


def test_a_run_that_stands_still_as_a_whole_is_told(plan_of: PlanOf) -> None:
    state = state_of(plan_of(8), recorded.run(8))
    assert facts.stalled(state, 44.0) is None
    assert facts.stalled(state, 34.0 + 75.0) == "no step for 1:15"


def test_a_run_that_is_done_does_not_stand_still(plan_of: PlanOf) -> None:
    state = state_of(plan_of(1), recorded.run(1))
    state.observe(ev.FinishEvent(**AT, rank=0), 35.0)
    assert (state.stage, facts.stalled(state, 500.0)) == ("done", None)


@pytest.mark.parametrize(
    ("ranks", "late", "failed", "told"),
    [
        (1, (), (), "measure: 1 rank"),
        (8, (), (), "measure: 8 ranks"),
        (8, (3,), (), "setup: rank 3; measure: 7 ranks"),
        (256, (3, 17, 40, 41, 42), (), "setup: rank 3, 17, 40-42; measure: 251 ranks"),
        (256, (1, 3, 5, 7, 9), (200,), "failed (oom): rank 200; setup: rank 1, 3, 5, 7 and more, 5 in all; "
         "measure: 250 ranks"),
        (4, (), (0, 1, 2, 3), "failed (oom): 4 ranks"),
    ],
)  # fmt: skip
def test_ranks_are_told_by_phase(
    plan_of: PlanOf, ranks: int, late: tuple[int, ...], failed: tuple[int, ...], told: str
) -> None:
    events = recorded.run(ranks, late=late) + [(40.0, error(rank)) for rank in failed]
    assert facts.stages(state_of(plan_of(ranks), events)) == told


def test_the_slowest_device_and_the_longest_wait_for_data(plan_of: PlanOf) -> None:
    state = state_of(plan_of(8), recorded.run(8))
    assert facts.slowest(state) == "rank 5 (device 2.00x), rank 2 (data 25.0%)"
    assert facts.slowest(state_of(plan_of(1), recorded.run(1))) is None


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (75, "1:15"), (3723, "1:02:03")])
def test_times(seconds: float, text: str) -> None:
    assert facts.clock(seconds) == text


def test_what_is_unknown_is_not_made_up(plan_of: PlanOf) -> None:
    state = RunState(plan_of(2), range(2), 0.0)
    for fact in (facts.loss, facts.rate, facts.mfu, facts.step_time, facts.memory, facts.power, facts.done):
        assert fact(state) is None
    assert facts.stages(state) == "launch: 2 ranks"
    state.observe(step(1, step_time_s=None, loss=None), 1.0)
    assert (facts.rate(state), facts.loss(state)) == (None, "not finite")
