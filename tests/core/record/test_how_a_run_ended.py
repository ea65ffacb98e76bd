"""Status and reason of a run, from what its ranks said last and how its processes ended."""

from __future__ import annotations

import pytest

from core.report.run_report import write_run_report
from schemas import event as ev
from tests.core.record.run_folder import MakeFolder, RunFolder


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


def test_hang(make_folder: MakeFolder) -> None:
    folder = make_folder()
    folder.start(0)
    folder.outcome(hang="no progress for 1801 s (measure.timeout_s is 1800)", exit_code=-9)
    record = folder.record()
    assert (record.status, record.reason) == ("hang", "no progress for 1801 s (measure.timeout_s is 1800)")


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
