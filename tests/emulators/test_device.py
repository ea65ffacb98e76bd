"""The emulated device by itself: what it counts, computes and refuses."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

MIB = 1024**2


def test_it_says_what_it_is(device_type, device_module):
    assert device_module.__emulated__
    assert torch.accelerator.current_accelerator().type == device_type
    assert device_module.is_available()
    assert device_module.device_count() == 8


def test_memory_is_counted(device_type, device_module):
    device_module.empty_cache()
    device_module.reset_peak_memory_stats()
    before = device_module.memory_allocated()
    free_before, total = device_module.mem_get_info()
    block = torch.empty(4 * MIB, dtype=torch.uint8, device=device_type)
    small = torch.empty(3, device=device_type)
    assert device_module.memory_allocated() - before == 4 * MIB + 512
    del block, small
    assert device_module.memory_allocated() == before
    assert device_module.max_memory_allocated() - before == 4 * MIB + 512
    assert free_before - device_module.mem_get_info()[0] == 4 * MIB + 512
    again = torch.empty(4 * MIB, dtype=torch.uint8, device=device_type)
    assert free_before - device_module.mem_get_info()[0] == 4 * MIB + 512, "what was given back is used again"
    del again
    device_module.empty_cache()
    assert device_module.mem_get_info() == (free_before, total)
    device_module.reset_peak_memory_stats()
    assert device_module.max_memory_allocated() == before


def test_what_does_not_fit_is_out_of_memory(device_type, device_module):
    total = device_module.mem_get_info()[1]
    ooms = device_module.memory_stats()["num_ooms"]
    with pytest.raises(torch.OutOfMemoryError, match=rf"{device_type.upper()} out of memory\. Tried to allocate"):
        torch.empty(total + 1, dtype=torch.uint8, device=device_type)
    stats = device_module.memory_stats()
    assert stats["num_ooms"] == ooms + 1
    assert stats["num_alloc_retries"] >= 1


def test_devices_do_not_mix(device_type, device_module):
    here, there = torch.ones(2, device=f"{device_type}:0"), torch.ones(2, device=f"{device_type}:1")
    assert device_module.memory_allocated(1) > 0
    for other in (there, torch.ones(2)):
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            here + other
    assert torch.equal((here + there.to(here.device)).cpu(), torch.full((2,), 2.0))
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.ones(2, device=f"{device_type}:8")


def test_a_seed_gives_what_it_gives_on_the_cpu(device_type, device_module):
    torch.manual_seed(5)
    on_cpu = torch.randn(4)
    torch.manual_seed(5)
    state = device_module.get_rng_state()
    drawn = torch.randn(4, device=device_type)
    assert torch.equal(drawn.cpu(), on_cpu)
    device_module.set_rng_state(state)
    assert torch.equal(torch.randn(4, device=device_type), drawn)


def test_gradients_equal_the_cpu_s(device_type):
    def gradients(device):
        torch.manual_seed(0)
        layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True).to(device)
        out = layer(torch.arange(48.0, device=device).sin().view(1, 3, 16))
        torch.nn.functional.cross_entropy(out[0], torch.tensor([1, 2, 3], device=device)).backward()
        return [parameter.grad.cpu() for parameter in layer.parameters()]

    for ours, cpu in zip(gradients(device_type), gradients("cpu"), strict=True):
        assert torch.allclose(ours, cpu, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("transposed", [True, False])
def test_convolutions_equal_the_cpu_s(device_type, transposed):
    def output_and_gradients(device):
        torch.manual_seed(0)
        layer = (torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d)(3, 4, 2, stride=2).to(device)
        image = torch.arange(96.0, device=device).cos().view(2, 3, 4, 4).requires_grad_()
        out = layer(image)
        out.square().sum().backward()
        return [out, image.grad, layer.weight.grad, layer.bias.grad]

    for ours, cpu in zip(output_and_gradients(device_type), output_and_gradients("cpu"), strict=True):
        assert ours.device.type == device_type
        assert torch.allclose(ours.cpu(), cpu, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_products_in_the_low_precision_and_softmax_in_fp32(device_type, dtype):
    a = torch.randn(8, 8, device=device_type, requires_grad=True)
    with torch.autocast(device_type, dtype=dtype):
        product = a @ a
        assert product.dtype is dtype
        assert torch.nn.functional.linear(a, a).dtype is dtype
        assert torch.softmax(product, -1).dtype is torch.float32
        assert torch.nn.functional.rms_norm(product, (8,)).dtype is torch.float32
        assert (product + a).dtype is torch.float32
    assert (a @ a).dtype is torch.float32
    product.float().sum().backward()
    assert a.grad.dtype is torch.float32


def test_events_tell_time_and_streams_have_identities(device_type, device_module):
    start, end = (device_module.Event(enable_timing=True) for _ in range(2))
    start.record()
    torch.randn(256, 256, device=device_type).square().sum().item()
    end.record()
    end.synchronize()
    assert 0 < start.elapsed_time(end) < 60_000
    stream = device_module.Stream()
    with device_module.stream(stream):
        assert device_module.current_stream() == stream
    assert device_module.current_stream() == device_module.default_stream() != stream


def test_tensors_are_saved_loaded_and_pinned(device_type, tmp_path):
    kept = torch.arange(4, device=device_type)
    torch.save({"kept": kept}, tmp_path / "file.pt")
    loaded = torch.load(tmp_path / "file.pt", weights_only=True)["kept"]
    assert loaded.device == kept.device
    assert torch.equal(loaded, kept)
    pinned = torch.ones(3, pin_memory=True)
    assert pinned.is_pinned()
    assert not torch.ones(3).is_pinned()
    assert torch.equal(kept[:3].copy_(pinned, non_blocking=True).cpu(), pinned.long())
