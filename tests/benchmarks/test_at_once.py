"""Several processes work together, and none outlives one that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from core.errors import DeviceError, UsageError
from tests.benchmarks.at_once import Meet, at_once
from tests.conftest import python_path

FORGOTTEN = "from tests.benchmarks import test_at_once as t; t.at_once(t.partial(t.stays, t.Path({!r})), 2)"


def sees_others(folder: Path, index: int, meet: Meet) -> tuple[int, list[str]]:
    """Its own number, and who was there when all had met."""
    (folder / str(index)).touch()
    meet()
    return index, sorted(file.name for file in folder.iterdir())


def refuses(index: int, meet: Meet) -> None:
    if index == 1:
        raise UsageError("chip 1 is another one", "name it")
    meet()


def dies(index: int, meet: Meet) -> None:
    if index == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    meet()


def fails(index: int, meet: Meet) -> None:
    if index == 0:
        raise RuntimeError("out of memory, say")
    meet()


def stays(folder: Path, index: int, meet: Meet) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(60)


def test_each_has_its_number_and_they_wait_for_one_another(tmp_path: Path) -> None:
    assert at_once(partial(sees_others, tmp_path), 3) == [(index, ["0", "1", "2"]) for index in range(3)]


def test_an_error_of_one_is_told_though_others_wait_for_it() -> None:
    with pytest.raises(UsageError, match="chip 1 is another one") as raised:
        at_once(refuses, 2)
    assert raised.value.fix == "name it"


def test_one_that_dies_is_told_though_others_wait_for_it(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DeviceError, match="process 1 ended before its work was done: SIGKILL"):
        at_once(dies, 2)
    with pytest.raises(DeviceError, match="process 0 ended before its work was done: exit code 1"):
        at_once(fails, 2)
    assert "RuntimeError: out of memory, say" in capfd.readouterr().err


def test_none_outlives_its_parent(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORGOTTEN.format(str(tmp_path))]
    environment = {**os.environ, "PYTHONPATH": python_path()}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as parent:
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
        parent.kill()
    processes = [int(file.name) for file in tmp_path.iterdir()]
    wait_until(lambda: not any(map(alive, processes)))


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(holds: Callable[[], bool], within_s: float = 30) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)
