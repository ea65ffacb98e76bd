"""Memory on the CPU, where torch keeps no statistics, and on devices whose module tells only some of them."""

import os
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from core import memory
from schemas.chip import Device

GIB = 1024**3
CPU = Device(torch_device="cpu", index=0, name="a CPU", collective_backend="gloo", math_mode={})
ACME = Device(torch_device="acme:1", index=1, name="X1", collective_backend="accl", math_mode={})
STATS = {
    "allocated_bytes.all.peak": 20 * GIB,
    "reserved_bytes.all.peak": 25 * GIB,
    "reserved_bytes.all.current": 24 * GIB,
    "num_alloc_retries": 2,
    "num_ooms": 1,
}


def test_peak_memory_is_the_process_s_against_the_machine_s():
    reading = memory.read_peaks(CPU)
    assert 0 < reading.peak_allocated_gib < reading.capacity_gib
    assert reading.peak_reserved_gib is None
    assert reading.peak_device_gib is None


def test_peak_memory_holds_what_was_freed():
    before = memory.read_peaks(CPU).peak_allocated_gib
    size = int(before * GIB) + 200 * 1024**2
    block = bytearray(size)
    del block
    assert memory.read_peaks(CPU).peak_allocated_gib >= size / GIB


def test_peak_memory_without_proc(monkeypatch, tmp_path):
    pytest.importorskip("resource")
    expected = memory.read_peaks(CPU).peak_allocated_gib
    monkeypatch.setattr(memory, "_PROCESS_STATUS", tmp_path / "absent")
    assert memory.read_peaks(CPU).peak_allocated_gib == pytest.approx(expected, rel=0.5)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the kernel keeps no resettable peak")
def test_the_peak_of_warm_up_is_forgotten():
    block = bytearray(300 * 1024**2)
    del block
    before = memory.read_peaks(CPU).peak_allocated_gib
    assert memory.reset_peaks(torch.device("cpu"))
    assert memory.read_peaks(CPU).peak_allocated_gib < before - 0.2


def test_a_peak_that_cannot_be_reset_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_RESET_PROCESS_PEAK", tmp_path)
    assert not memory.reset_peaks(torch.device("cpu"))
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace())
    assert not memory.reset_peaks(torch.device("cuda:0"))


@pytest.mark.parametrize(
    ("module", "device_peak_gib"),
    [
        # 18 GiB are used now, and 1 the allocator has given back
        (SimpleNamespace(memory_stats=lambda _: STATS, mem_get_info=lambda _: (30 * GIB, 48 * GIB)), 19),
        # never more than there is
        (SimpleNamespace(memory_stats=lambda _: STATS, mem_get_info=lambda _: (0, 48 * GIB)), 48),
        (SimpleNamespace(memory_stats=lambda _: STATS), None),
        (SimpleNamespace(mem_get_info=lambda _: (30 * GIB, 48 * GIB)), None),
        (SimpleNamespace(), None),
    ],
)
def test_a_device_tells_what_its_module_has(monkeypatch, module, device_peak_gib):
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    reading = memory.read_peaks(ACME)
    assert reading.peak_device_gib == device_peak_gib
    assert reading.peak_allocated_gib == (20 if hasattr(module, "memory_stats") else None)
    assert reading.peak_reserved_gib == (25 if hasattr(module, "memory_stats") else None)
    assert reading.oom_count == (1 if hasattr(module, "memory_stats") else None)
    assert reading.capacity_gib == (48 if hasattr(module, "mem_get_info") else None)
