"""Memory that GPUs of a node share: operations on a driver that notes them, and training on real GPUs."""

import ctypes
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from core.errors import DeviceError
from plugins import nvidia
from tests.conftest import python_path

torch = pytest.importorskip("torch")
pytest.importorskip("torch.distributed._symmetric_memory")  # torch 2.11 does not import it by itself

from core.engines import peer_copies
from plugins.nvidia import symmetric_memory
from plugins.nvidia.symmetric_memory import FLAG_BYTES, SymmetricWindow

STREAM = 77


class Driver:
    """libcuda as far as it is called: what was queued, by what name."""

    def __init__(self):
        self.queued, self.code = [], 0

    def __getattr__(self, name):
        def operation(stream, address, value, flags):
            self.queued.append((name, stream.value, address.value, value.value, flags.value))
            return self.code

        return operation


class Symmetric:
    """torch's symmetric memory of three ranks in one process."""

    def __init__(self):
        self.memories, self.refuses = [], False

    def empty(self, size, dtype, device):
        self.memories = [torch.full((size,), 255, dtype=dtype) for _ in range(3)]
        return self.memories[1]

    def rendezvous(self, memory, group):
        if self.refuses:
            raise RuntimeError("no peer access")
        return self

    def get_buffer(self, rank, sizes, dtype, storage_offset=0):
        first = storage_offset * dtype.itemsize
        size = dtype.itemsize * torch.Size(sizes).numel()
        return self.memories[rank][first : first + size].view(dtype).view(sizes)


@pytest.fixture
def symmetric(monkeypatch):
    found = Symmetric()
    monkeypatch.setattr(torch.distributed, "_symmetric_memory", found)
    return found


@pytest.fixture
def driver(monkeypatch):
    found = Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: found)
    return found


@pytest.fixture
def window(monkeypatch, driver, symmetric):
    """Of the second of three ranks."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=STREAM))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(symmetric_memory.dist, "barrier", lambda group: None)
    return SymmetricWindow(SimpleNamespace(rank=lambda: 1, size=lambda: 3), torch.device("cpu"))


def test_parts_lie_behind_the_flags_which_start_at_zero(window, symmetric):
    window.reserve(64)
    assert all(memory.numel() == FLAG_BYTES + 64 for memory in symmetric.memories)
    assert not symmetric.memories[1][:FLAG_BYTES].any()
    part = window.part(2, torch.zeros(2, 3, dtype=torch.bfloat16), offset=4)
    assert (part.shape, part.dtype) == ((2, 3), torch.bfloat16)
    assert part.data_ptr() == symmetric.memories[2].data_ptr() + FLAG_BYTES + 4 * 2


def test_memory_grows_and_never_shrinks(window, symmetric, monkeypatch):
    window.reserve(64)
    first = symmetric.memories[1]
    window.reserve(8)
    assert symmetric.memories[1] is first
    held, empty = [], symmetric.empty

    def noting(*size, **about):
        held.extend((window._memory, window._handle))
        return empty(*size, **about)

    monkeypatch.setattr(symmetric, "empty", noting)
    window.reserve(128)
    assert held == [None, None]  # else there must be room for both
    assert symmetric.memories[1].numel() == FLAG_BYTES + 128


def test_a_barrier_tells_the_others_and_waits_for_them(window, driver, symmetric):
    window.reserve(64)
    window.barrier()
    window.barrier()
    at = [memory.data_ptr() for memory in symmetric.memories]
    second = [
        ("cuStreamWriteValue32_v2", STREAM, at[0] + 4, 2, 0),
        ("cuStreamWriteValue32_v2", STREAM, at[2] + 4, 2, 0),
        ("cuStreamWaitValue32_v2", STREAM, at[1], 2, 0),
        ("cuStreamWaitValue32_v2", STREAM, at[1] + 8, 2, 0),
    ]
    assert driver.queued[4:] == second
    assert [number for *_, number, _ in driver.queued[:4]] == [1, 1, 1, 1]


def test_gpus_without_peer_access_are_a_device_error(window, symmetric):
    symmetric.refuses = True
    with pytest.raises(DeviceError, match=r"NVIDIA H200 cannot reach .*: no peer access") as error:
        window.reserve(64)
    assert "collectives=library" in error.value.fix


def test_a_driver_that_refuses_is_a_device_error(window, driver):
    window.reserve(64)
    driver.code = 801
    with pytest.raises(DeviceError, match="cuStreamWriteValue32_v2 of CUDA's driver failed with code 801"):
        window.barrier()


def test_windows_are_offered_where_the_plan_asks_for_them(make_plan, monkeypatch):
    offered = {}
    monkeypatch.setattr(peer_copies, "_MAKERS", offered)
    nvidia.prepare_engine(make_plan())
    assert offered == {}
    nvidia.prepare_engine(make_plan(collectives="peer_copies"))
    assert offered == {"cuda": SymmetricWindow}


@pytest.mark.gpu
@pytest.mark.parametrize("stage", [2, 3])
def test_gpu_copies_between_peers_train_as_nccl_does(tmp_path, stage):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs 2 GPUs")
    library, copies = (losses_of_two_gpus(tmp_path, by, stage) for by in ("library", "peer_copies"))
    assert copies == pytest.approx(library, rel=1e-3)
    assert library[-1] < library[0]


def losses_of_two_gpus(folder, collectives, stage):
    """Of a small Llama, which starts alike and sees the same data."""
    sets = {
        "model.hidden_size": 512, "model.intermediate_size": 1408, "model.num_layers": 3, "model.num_heads": 4,
        "model.num_kv_heads": 4, "sequence_length": 512, "zero_stage": stage, "measure.min_window_s": 0,
        "collectives": collectives,
    }  # fmt: skip
    words = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    run = [sys.executable, "-m", "core.run", "cases/llama2_7b", "--config", "H200x1x2", "--run", "tuned", *words]
    where = folder / collectives
    environment = os.environ | {"PYTHONPATH": python_path(), "ACCELMARK_CACHE": str(folder)}
    subprocess.run([*run, "--out", str(where)], check=True, env=environment)
    (record,) = where.glob("*/record.json")
    return json.loads(record.read_text())["loss"]["curve"]
