"""The process that prepares batches: what it gives, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator

import psutil
import pytest

np = pytest.importorskip("numpy")

from core.data.preparer import Preparer
from core.data.source import MicroBatch
from core.errors import RunError, UsageError
from core.notices import RecordWarning, notify
from tests.conftest import python_path


def told(*numbers: int) -> list[MicroBatch]:
    return [MicroBatch({name: np.full((1, 1), number) for name in ("input_ids", "labels")}) for number in numbers]


def numbers(step: list[MicroBatch]) -> list[int]:
    return [int(micro.arrays["input_ids"][0, 0]) for micro in step]


@pytest.fixture
def prepare() -> Iterator[Callable[..., Preparer]]:
    made: list[Preparer] = []

    def start(read: Callable[[int], list[MicroBatch]], start_step: int = 0) -> Preparer:
        made.append(Preparer(read, start_step))
        return made[-1]

    yield start
    for one in made:
        one.close()


def test_gives_one_step_after_the_other(prepare: Callable[..., Preparer]) -> None:
    large = np.arange(3_000_000, dtype=np.float32).reshape(3, 1000, 1000)  # more than the pipe holds

    def read(step: int) -> list[MicroBatch]:
        arrays = {
            "input_ids": np.full((1, 1), step),
            "labels": np.full((1, 1), -100),
            "pixel_values": large + step,
        }
        return [MicroBatch(arrays, padded_tokens=2, images=3, sequence_lengths=(4,))]

    preparer = prepare(read, 7)
    for step in range(7, 10):
        (found,), (expected,) = preparer.next_step(), read(step)
        for name, array in expected.arrays.items():
            np.testing.assert_array_equal(found.arrays[name], array)
            assert found.arrays[name].dtype == array.dtype
            assert found.arrays[name].flags.writeable
        assert (found.padded_tokens, found.images, found.sequence_lengths) == (2, 3, (4,))


def test_an_error_arrives_with_its_words_and_its_traceback(prepare: Callable[..., Preparer]) -> None:
    def read(step: int) -> list[MicroBatch]:
        if step == 1:
            notify("a sample is left out")
            raise UsageError("the data is damaged", "fetch it again")
        return told(step)

    preparer = prepare(read)
    assert numbers(preparer.next_step()) == [0]
    with (
        pytest.warns(RecordWarning, match="a sample is left out"),
        pytest.raises(UsageError, match="the data is damaged") as raised,
    ):
        preparer.next_step()
    assert (raised.value.what, raised.value.fix) == ("the data is damaged", "fetch it again")
    assert "in read" in str(raised.value.__cause__)


class _OfALibraryError(Exception):
    def __init__(self, file: str, line: int) -> None:
        super().__init__(f"{file}:{line} is wrong")


def test_an_error_that_cannot_be_made_again_keeps_its_text(prepare: Callable[..., Preparer]) -> None:
    def read(step: int) -> list[MicroBatch]:
        raise _OfALibraryError("a.jpg", 3)

    with pytest.raises(RuntimeError, match=r"^_OfALibraryError: a\.jpg:3 is wrong$"):
        prepare(read).next_step()


def test_warnings_arrive_with_their_step(prepare: Callable[..., Preparer]) -> None:
    def read(step: int) -> list[MicroBatch]:
        if step != 1:
            notify(f"sample {step} is left out")
        return told(step)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        preparer = prepare(read)
        seen = []
        for _ in range(3):
            preparer.next_step()
            seen.append([(str(one.message), one.category) for one in caught])
            caught.clear()
    assert seen == [[("sample 0 is left out", RecordWarning)], [], [("sample 2 is left out", RecordWarning)]]


def test_a_process_that_was_killed_is_told_with_its_signal(prepare: Callable[..., Preparer]) -> None:
    def read(step: int) -> list[MicroBatch]:
        if step:
            os.kill(os.getpid(), signal.SIGKILL)
        return told(os.getpid())

    preparer = prepare(read)
    preparer.next_step()
    with pytest.raises(RunError, match="the process that prepares batches is gone: SIGKILL") as raised:
        preparer.next_step()
    assert "dmesg" in raised.value.fix


def test_it_is_ended_by_close_and_not_by_signals(prepare: Callable[..., Preparer]) -> None:
    def read(step: int) -> list[MicroBatch]:
        if step > 1:
            time.sleep(60)
        return told(os.getpid())

    preparer = prepare(read)
    (pid,) = numbers(preparer.next_step())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, number)
    assert numbers(preparer.next_step()) == [pid]
    failed: list[BaseException] = []

    def wait() -> None:
        try:
            preparer.next_step()
        except RunError as error:
            failed.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    started = time.monotonic()
    preparer.close()
    preparer.close()
    thread.join(10)
    assert time.monotonic() - started < 5
    assert len(failed) == 1
    assert not psutil.pid_exists(pid)


ENDLESS = """
import os, sys, time
from core.data.preparer import Preparer
def read(step):
    print(os.getpid(), flush=True)
    time.sleep(600)
preparer = Preparer(read, 0)
sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["killed", "at its end"])
def test_it_does_not_outlive_its_parent(end: str) -> None:
    environment = os.environ | {"PYTHONPATH": python_path()}
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        process = psutil.Process(int(parent.stdout.readline()))
        if end == "killed":
            parent.kill()
        parent.stdin.close()
        process.wait(10)
        assert parent.wait(10) == (-signal.SIGKILL if end == "killed" else 0)
    assert not process.is_running()
