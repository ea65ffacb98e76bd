"""torch's side of the NVIDIA plugin, on a torch that is told it has GPUs; and on real ones where there are any."""

import os
import warnings
from functools import partial
from types import SimpleNamespace

import pytest

from core.errors import DeviceError
from core.plugins import load_alone
from plugins import nvidia

torch = pytest.importorskip("torch")

from core.optimizers import CompiledAdamW, takes_grad_scale

GIB = 1024**3


@pytest.fixture
def vendor():
    from core import defaults

    return load_alone("nvidia", "accelmark", defaults)


@pytest.fixture
def cuda(monkeypatch, restore_math_mode):
    """Two H200 as torch sees them; the devices that were selected."""
    selected: list[int] = []
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "so that it is put back")
    monkeypatch.delenv("CUDA_DEVICE_ORDER")
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", selected.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    return selected


def test_a_rank_takes_its_own_gpu(vendor, make_plan, cuda):
    device = vendor.init_device(make_plan(), 1)
    assert cuda == [1]
    assert (device.torch_device, device.type, device.index) == ("cuda:1", "cuda", 1)
    assert (device.name, device.collective_backend) == ("NVIDIA H200", "nccl")


def test_cuda_numbers_gpus_as_nvml_does_unless_the_user_says_otherwise(make_plan, cuda, monkeypatch):
    nvidia.init_device(make_plan(), 0)
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    nvidia.init_device(make_plan(), 0)
    assert os.environ["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"


@pytest.mark.parametrize("precision", ["fp32", "tf32", "amp", "fp16", "bf16", "fp8"])
def test_tf32_is_on_for_tf32_alone(make_plan, cuda, precision):
    torch.backends.cudnn.allow_tf32 = True
    mode = nvidia.init_device(make_plan(precision), 0).math_mode
    on = precision == "tf32"
    assert torch.backends.cuda.matmul.allow_tf32 is on
    assert torch.backends.cudnn.allow_tf32 is on
    assert mode["float32_matmul_precision"] == ("high" if on else "highest")
    assert mode["cudnn_allow_tf32"] == str(on)
    assert mode.keys() >= {"bf16_reduced_precision_reduction", "fp16_reduced_precision_reduction"}


def test_the_math_mode_is_pinned_without_warnings_and_can_be_read_by_torch_compile(make_plan, cuda):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for precision in ("tf32", "fp32", "tf32"):
            nvidia.init_device(make_plan(precision), 0)
            # What inductor and torch.backends.cudnn.flags read: raises where old and new switches are mixed.
            _ = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
            assert torch.get_float32_matmul_precision() == ("high" if precision == "tf32" else "highest")


def test_an_override_that_would_undo_the_planned_tf32_is_refused(make_plan, cuda, monkeypatch):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    nvidia.init_device(make_plan("bf16"), 0)
    with pytest.raises(DeviceError, match="NVIDIA_TF32_OVERRIDE=0") as error:
        nvidia.init_device(make_plan("tf32"), 0)
    assert error.value.fix == "unset it, or plan precision fp32"


@pytest.mark.parametrize(("built_with", "fix"), [(None, "install a CUDA build"), ("13.0", "check nvidia-smi")])
def test_no_gpu_is_a_device_error(make_plan, cuda, monkeypatch, built_with, fix):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_with)
    with pytest.raises(DeviceError, match="sees no CUDA device") as error:
        nvidia.init_device(make_plan(), 0)
    assert fix in error.value.fix
    assert error.value.exit_code == 3


def test_more_ranks_than_gpus_is_a_device_error(make_plan, cuda):
    with pytest.raises(DeviceError, match="local rank 2 has no GPU: 2 visible") as error:
        nvidia.init_device(make_plan(), 2)
    assert "CUDA_VISIBLE_DEVICES" in error.value.fix
    assert cuda == []


@pytest.mark.parametrize("name", ["NVIDIA H100 PCIe", "NVIDIA GeForce RTX 4090"])
def test_a_gpu_that_is_not_the_planned_chip_is_refused(make_plan, cuda, monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    with pytest.raises(DeviceError, match="the plan is for H200, but cuda:0 is") as error:
        nvidia.init_device(make_plan(), 0)
    assert name in error.value.what
    assert "config" in error.value.fix


def test_the_device_wide_peak_is_added_to_core_s_reading(vendor, make_plan, cuda, monkeypatch):
    stats = {
        "allocated_bytes.all.peak": 100 * GIB,
        "reserved_bytes.all.peak": 120 * GIB,
        "reserved_bytes.all.current": 110 * GIB,
        "num_alloc_retries": 3,
        "num_ooms": 0,
    }
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda _: stats)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (25 * GIB, 140 * GIB))
    device = vendor.init_device(make_plan(), 0)
    reading = vendor.collect_memory(device)
    assert (reading.peak_allocated_gib, reading.peak_reserved_gib, reading.capacity_gib) == (100, 120, 140)
    assert reading.peak_device_gib == 125  # 115 used now, and 10 that the allocator has given back
    assert (reading.allocation_retries, reading.oom_count) == (3, 0)

    stats["reserved_bytes.all.current"] = 20 * GIB  # another process took what was given back
    assert vendor.collect_memory(device).peak_device_gib == 140


@pytest.mark.usefixtures("cuda")
def test_the_environment_names_the_libraries_that_torch_loads(vendor, make_plan, plug_in, gpu, monkeypatch):
    plug_in(gpu("GPU-a"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    monkeypatch.setattr(torch.cuda, "nccl", SimpleNamespace(version=lambda: (2, 28, 9)))
    monkeypatch.setattr(nvidia, "version", {"nvidia-cudnn-frontend": "1.18.0"}.__getitem__)
    described = vendor.describe_environment(vendor.init_device(make_plan(), 0))
    expected = {
        "gpu": "NVIDIA H200",
        "cuda": "13.0",
        "cudnn": "91900",
        "nccl": "2.28.9",
        "cudnn_frontend": "1.18.0",
    }
    assert described.items() >= expected.items()
    assert described["nvidia_driver"] == "580.10"


# --- optimizer_wrap -------------------------------------------------------------------------------------------


def adamw(kind=torch.optim.AdamW, device="cpu"):
    """Of two groups of odd counts, one of which decays; a weight lies where no 16 bytes begin."""
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(20_000, generator=generator).to(device)
    decayed = [torch.nn.Parameter(flat[:8192].view(8, 1024)), torch.nn.Parameter(flat[8192:8199])]
    plain = [torch.nn.Parameter(flat[8199 : 8199 + 3072]), torch.nn.Parameter(flat[12_000:12_999].view(27, 37))]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    return kind(groups, lr=3e-2, betas=(0.9, 0.95), eps=1e-6)


def parameters(optimizer):
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def assert_goes_where_torchs_goes(ours, torchs, scale):
    """Both over four steps of a changing rate, on gradients that are divided by ``scale``, but not changed."""
    for step in range(1, 5):
        for one, other in zip(parameters(ours), parameters(torchs), strict=True):
            one.grad = (step * other.detach()).sin()
            other.grad = one.grad / scale
        for group in (*ours.param_groups, *torchs.param_groups):
            group["lr"] = 3e-2 / step
        given = [parameter.grad.clone() for parameter in parameters(ours)]
        ours.grad_scale = torch.tensor(scale, device=given[0].device)
        ours.step()
        torchs.step()
        assert all(torch.equal(p.grad, grad) for p, grad in zip(parameters(ours), given, strict=True))
        for one, other in zip(parameters(ours), parameters(torchs), strict=True):
            torch.testing.assert_close(one, other, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp32", "tf32", "amp"])
def test_core_s_compiled_adamw_takes_the_place_of_torch_s(make_plan, precision):
    given = adamw()
    compiled = nvidia.optimizer_wrap(given, make_plan(precision, compile=True))
    assert type(compiled) is CompiledAdamW
    assert takes_grad_scale(compiled)
    assert [id(p) for p in parameters(compiled)] == [id(p) for p in parameters(given)]
    for before, after in zip(given.param_groups, compiled.param_groups, strict=True):
        assert all(before[name] == after[name] for name in ("lr", "betas", "eps", "weight_decay"))
    assert_goes_where_torchs_goes(compiled, adamw(), 4.0)


@pytest.mark.parametrize(
    "settings",
    [
        {"compile": False},
        {"engine": "deepspeed"},
        {"engine": "megatron"},
        {"offload": "optimizer"},
        {"precision": "fp16"},
        {"precision": "amp", "autocast_dtype": "fp16"},
    ],
)
def test_other_plans_leave_the_optimizer_torch_s(make_plan, settings):
    assert nvidia.optimizer_wrap(adamw(), make_plan(**{"compile": True, **settings})) is None


@pytest.mark.parametrize("part", ["lora", "vision"])
def test_adapters_and_towers_are_left_to_torch_s(make_plan, part):
    plan = make_plan(compile=True)
    setattr(plan, part, "some")
    assert nvidia.optimizer_wrap(adamw(), plan) is None


class OwnAdamW(torch.optim.AdamW):
    """One that somebody's ``build_optimizer`` might give."""


@pytest.mark.parametrize("kind", [torch.optim.Adam, OwnAdamW])
def test_other_optimizers_stay(make_plan, kind):
    assert nvidia.optimizer_wrap(adamw(kind), make_plan(compile=True)) is None


# --- on real GPUs ---------------------------------------------------------------------------------------------


@pytest.fixture
def real(make_plan, restore_math_mode):
    """A function precision -> Device of the first real GPU."""
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    chip = nvidia.match(torch.cuda.get_device_name(0))
    if chip is None:
        pytest.skip(f"{torch.cuda.get_device_name(0)!r} is no chip of the plugin")
    return lambda precision: nvidia.init_device(make_plan(precision, chip), 0)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("precision", "low", "high"), [("fp32", 0, 1e-6), ("bf16", 0, 1e-6), ("tf32", 1e-5, 1e-2)]
)
def test_gpu_fp32_products_run_as_pinned(real, precision, low, high):
    real(precision)
    torch.manual_seed(0)
    a, b = (torch.randn(512, 512, device="cuda") for _ in range(2))
    exact = a.double() @ b.double()
    error = ((a @ b).double() - exact).norm() / exact.norm()
    assert low <= error.item() < high


@pytest.mark.gpu
def test_gpu_compiles_under_the_pinned_math_mode(real):
    real("tf32")
    product = torch.compile(lambda a, b: torch.relu(a @ b))
    a = torch.randn(64, 64, device="cuda")
    assert torch.allclose(product(a, a), torch.relu(a @ a), atol=1e-1)


@pytest.mark.gpu
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_gpu_compiled_adamw_goes_where_torch_s_fused_one_goes(real, make_plan, scale):
    real("fp32")
    torchs = adamw(partial(torch.optim.AdamW, fused=True), "cuda")
    compiled = nvidia.optimizer_wrap(adamw(device="cuda"), make_plan("fp32", compile=True))
    assert type(compiled) is CompiledAdamW
    assert_goes_where_torchs_goes(compiled, torchs, scale)


@pytest.mark.gpu
def test_gpu_probe_and_torch_see_the_same(real):
    pytest.importorskip("pynvml")
    results = nvidia.probe()
    assert sum(result.count for result in results) == torch.cuda.device_count()
    assert real("bf16").name in {result.device_name for result in results}


@pytest.mark.gpu
def test_gpu_memory_and_telemetry_are_plausible(real, vendor):
    pytest.importorskip("pynvml")
    device = real("bf16")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    block = torch.empty(4 * GIB, dtype=torch.uint8, device="cuda")
    block.fill_(1)
    del block
    torch.cuda.empty_cache()
    reading = vendor.collect_memory(device)
    assert 4 <= reading.peak_allocated_gib <= reading.peak_reserved_gib <= reading.peak_device_gib
    assert reading.peak_device_gib <= reading.capacity_gib
    sample = vendor.collect_telemetry(device)
    assert 10 < sample.power_w < 1500
    assert 10 < sample.temperature_c < 110
    assert 0 <= sample.utilisation_percent <= 100
    assert 100 < sample.sm_clock_mhz < 4000
    assert 0 < sample.memory_used_gib <= reading.capacity_gib + 4
    described = vendor.describe_environment(device)
    assert described.keys() >= {"gpu", "cuda", "cudnn", "nccl", "nvidia_driver", "gpu_power_limit_w"}
