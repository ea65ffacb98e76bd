"""A rank that waits for others in vain ends itself, and says so, where no launcher does it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from textwrap import dedent

import pytest

from core.events import of_kind, read_events
from schemas import event as ev
from tests.conftest import python_path

SCRIPT = """
    import sys, time
    from pathlib import Path
    from core import guard
    from core.events import EventLog
    from core.watch import RankWatch
    from schemas.hyperparameters import Measure

    guard.HEARTBEAT_S = guard._OWN_WORD_S = 0.1
    folder = Path(sys.argv[1])
    log = EventLog(folder, 0)
    (folder / "stacks").mkdir()
    watch = RankWatch(0, Measure(), time.monotonic())
    close = lambda code: (folder / "closed").write_text(str(code))
    guard.Guard(log, folder, lambda: 4, watch, close, lambda: True, alone=True, orderly=True)
    time.sleep(60)  # in a collective that never ends
"""


def test_a_rank_ends_itself_when_another_one_has_failed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", dedent(SCRIPT), tmp_path],
        env={"PYTHONPATH": python_path()},
        timeout=30,
        check=False,
    )
    assert (done.returncode, (tmp_path / "closed").read_text(encoding="utf-8")) == (1, "1")
    (error,) = of_kind(read_events(tmp_path), ev.ErrorEvent)
    assert (error.status, error.step, error.place) == ("interrupted", 4, "is in <module> (<string>:16)")
    assert error.reason == "ended, for another rank has failed"


def test_a_failure_is_told_while_the_main_thread_waits_on_the_store(tmp_path: Path) -> None:
    """As it does when a rank never comes: a rank's own connection is locked then."""
    torch_store = pytest.importorskip("torch").distributed.TCPStore
    from core import gather

    within = timedelta(seconds=20)
    store = torch_store("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=within)
    other = torch_store("127.0.0.1", store.port, is_master=False, timeout=within)
    aside = gather.beside(store)
    waiting = threading.Thread(target=store.wait, args=(["rank 1"], within), daemon=True)
    waiting.start()
    time.sleep(0.2)
    assert not gather.has_failure(aside)
    log = gather.event_file(tmp_path, 1)
    log.parent.mkdir()
    log.write_text("its last words\n", encoding="utf-8")
    gather.exchange(other, tmp_path, 1, 2, failed=True)
    deadline = time.monotonic() + 10  # nobody confirms that a value was set
    while not gather.has_failure(aside):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    here = gather.event_file(tmp_path / "node0", 1)
    here.parent.mkdir(parents=True)
    gather.exchange(aside, tmp_path / "node0", 0, 2, failed=True)
    assert here.read_text(encoding="utf-8") == "its last words\n"
    other.set("rank 1", "here")
    waiting.join(5)
