"""The Cambricon plugin's AdamW in torch_mlu's fused kernel, computed by the emulated kernel on the CPU."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from core.notices import RecordWarning
from plugins import cambricon

torch = pytest.importorskip("torch")

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor

from core import optimizer_state
from plugins.cambricon.optimizer import FusedAdamW

KERNELS = Path(__file__).parents[1] / "emulators" / "torch_mlu" / "torch_mlu" / "kernels.py"


@pytest.fixture
def kernels():
    """torch_mlu's operators, for the CPU."""
    spec = spec_from_file_location("kernels", KERNELS)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    library = module.define("CPU")
    yield
    library._destroy()
    if hasattr(torch.ops.torch_mlu, "fused_adam"):
        del torch.ops.torch_mlu.fused_adam  # torch keeps what it has looked up


@pytest.fixture
def one_rank():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def adamw():
    generator = torch.Generator().manual_seed(0)
    decayed, plain = (torch.nn.Parameter(torch.randn(n, 4, generator=generator)) for n in (2, 3))
    groups = [{"params": [decayed], "weight_decay": 0.1}, {"params": [plain], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=3e-2, betas=(0.9, 0.95), eps=1e-6)


def parameters(optimizer):
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def test_the_fused_adamw_goes_where_torch_s_goes(make_plan, kernels):
    reference, given = adamw(), adamw()
    fused = cambricon.optimizer_wrap(given, make_plan())
    assert type(fused) is FusedAdamW
    assert [id(p) for p in parameters(fused)] == [id(p) for p in parameters(given)]
    for step in range(1, 4):
        for ours, torch_s in zip(parameters(fused), parameters(reference), strict=True):
            torch_s.grad = (step * torch_s.detach()).sin()
            ours.grad = torch_s.grad.clone()
        for group in (*fused.param_groups, *reference.param_groups):
            group["lr"] = 3e-2 / step
        fused.step()
        reference.step()
        for ours, torch_s in zip(parameters(fused), parameters(reference), strict=True):
            assert torch.allclose(ours, torch_s, rtol=1e-6)
            assert torch.allclose(fused.state[ours]["exp_avg"], reference.state[torch_s]["exp_avg"])
    assert optimizer_state.updates([fused]) == 3
    fused.zero_grad(set_to_none=True)
    before = [p.detach().clone() for p in parameters(fused)]
    fused.step()
    assert all(torch.equal(p, q) for p, q in zip(parameters(fused), before, strict=True)), "no gradient, no update"


def test_the_fused_adamw_steps_sharded_parameters_and_keeps_fp32_moments(kernels, one_rank):
    mesh = init_device_mesh("cpu", (1,))
    whole = torch.nn.Parameter(torch.ones(4, 2, dtype=torch.bfloat16))
    sharded = torch.nn.Parameter(distribute_tensor(whole.detach().clone(), mesh))
    fused = FusedAdamW(torch.optim.AdamW([whole, sharded], lr=0.5).param_groups)
    whole.grad, sharded.grad = torch.ones_like(whole), torch.ones_like(sharded)
    fused.step()
    assert torch.equal(sharded.to_local(), whole)
    assert (whole < 0.6).all()
    assert fused.state[sharded]["exp_avg"].dtype is torch.float32


def test_parts_of_a_group_that_step_by_themselves_count_their_own_updates(make_plan, kernels):
    """As ZeRO-3 has it: another part of the group's parameters in each call."""
    reference, fused = adamw(), cambricon.optimizer_wrap(adamw(), make_plan())
    reference.param_groups[1]["weight_decay"] = 0.1
    held = parameters(fused)
    for ours, torch_s in zip(held, parameters(reference), strict=True):
        ours.grad, torch_s.grad = torch.ones_like(ours), torch.ones_like(torch_s)
    group = fused.param_groups[0]
    parts = [group["params"], fused.param_groups.pop()["params"]]
    for _ in range(2):
        for group["params"] in parts:
            fused.step()
        reference.step()
    for ours, torch_s in zip(held, parameters(reference), strict=True):
        assert torch.allclose(ours, torch_s, rtol=1e-6)


class OwnAdamW(torch.optim.AdamW):
    """Somebody's own."""


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD, OwnAdamW])
def test_other_optimizers_stay(make_plan, kernels, kind):
    assert cambricon.optimizer_wrap(kind([torch.nn.Parameter(torch.zeros(2))], lr=1e-3), make_plan()) is None


def test_states_on_the_host_stay_torch_s(make_plan, kernels):
    assert cambricon.optimizer_wrap(adamw(), make_plan(offload="optimizer")) is None


def test_without_the_kernel_torch_s_adamw_steps_and_the_record_says_so(make_plan):
    with pytest.warns(RecordWarning, match="this torch_mlu has no fused AdamW"):
        assert cambricon.optimizer_wrap(adamw(), make_plan()) is None
