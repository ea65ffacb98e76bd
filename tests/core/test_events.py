"""The event files: what one rank writes, the launcher follows and the record is read from."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from core.errors import UsageError
from core.events import EventLog, EventTail, read_events
from schemas import event as ev


def file_of(run_dir: Path, rank: int = 0) -> Path:
    return run_dir / "events" / f"rank{rank:05d}.jsonl"


def test_what_is_written_is_read_file_by_file(tmp_path: Path) -> None:
    logs = [EventLog(tmp_path, rank) for rank in (1, 0)]
    for log in logs:
        log.emit(ev.PhaseEvent, phase="start")
    logs[0].emit(ev.FinishEvent)
    for log in logs:
        log.close()
    assert [(event.rank, event.kind) for event in read_events(tmp_path)] == [
        (0, "phase"), (1, "phase"), (1, "finish"),
    ]  # fmt: skip
    assert all(event.time_unix_s > 1e9 and event.elapsed_s >= 0 for event in read_events(tmp_path))


def test_an_event_is_there_as_soon_as_it_was_emitted(tmp_path: Path) -> None:
    log = EventLog(tmp_path, 0)
    tail = EventTail(tmp_path)
    for phase in ("start", "data"):
        log.emit(ev.PhaseEvent, phase=phase)
        (event,) = tail.poll()
        assert isinstance(event, ev.PhaseEvent)
        assert event.phase == phase
    assert list(tail.poll()) == []
    log.close()


def test_a_run_that_has_not_begun_has_no_events(tmp_path: Path) -> None:
    assert list(EventTail(tmp_path).poll()) == []


def test_a_line_still_being_written_waits_for_its_end(tmp_path: Path) -> None:
    log = EventLog(tmp_path, 0)
    log.emit(ev.WarningEvent, message="温度过高")
    log.emit(ev.FinishEvent)
    log.close()
    whole = file_of(tmp_path).read_bytes()
    tail, seen = EventTail(tmp_path), []
    file_of(tmp_path).write_bytes(b"")
    for cut in range(len(whole)):  # also in the middle of a character
        with file_of(tmp_path).open("ab") as file:
            file.write(whole[cut : cut + 1])
        seen += [(event.kind, cut) for event in tail.poll()]
    assert seen == [("warning", whole.index(b"\n")), ("finish", len(whole) - 1)]


def test_a_rank_that_was_killed_while_writing_leaves_what_came_before(tmp_path: Path) -> None:
    log = EventLog(tmp_path, 0)
    log.emit(ev.PhaseEvent, phase="start")
    log.close()
    with file_of(tmp_path).open("a", encoding="utf-8") as file:
        file.write('{"time_unix_s": 1.0, "elap')
    assert [event.kind for event in read_events(tmp_path)] == ["phase"]


@pytest.mark.parametrize("line", ["not json", '{"kind": "phase", "phase": "lunch"}', '{"kind": "party"}', ""])
def test_a_broken_line_is_named_by_file_and_number(tmp_path: Path, line: str) -> None:
    log = EventLog(tmp_path, 3)
    log.emit(ev.PhaseEvent, phase="start")
    log.close()
    with file_of(tmp_path, 3).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(UsageError) as error:
        read_events(tmp_path)
    assert error.value.what.startswith(f"{file_of(tmp_path, 3)} (line 2 of this read): ")
    assert error.value.fix == "the event file was edited or cut; restore it"


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    log = EventLog(tmp_path, 0)
    threads = [
        threading.Thread(target=lambda: [log.emit(ev.WarningEvent, message="x" * 5000) for _ in range(20)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert len(read_events(tmp_path)) == 80
