"""Train under DeepSpeed with AccelMark's accelerator for devices that DeepSpeed does not know; say what it did.

Called with a file to meet in. The device is the CPU, with a torch module of the shape that vendors give theirs.
"""

from __future__ import annotations

import inspect
import json
import sys
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from schemas.chip import Device

calls: set[str] = set()


class Instant:
    """Stream and event of a device that has finished whatever it is asked for."""

    def __init__(self, **options: Any) -> None:
        pass

    def record(self, stream: Any = None) -> None:
        calls.add("record")

    def elapsed_time(self, end: Any) -> float:
        return 0.5

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    wait = wait_stream = wait_event = lambda self, other=None: None


class Module:
    """The CUDA-shaped torch module, with its calls noted."""

    Stream = Event = Instant
    default_generators = (torch.default_generator,)

    def __getattr__(self, name: str) -> Any:
        answers = {
            "is_available": True, "device_count": 1, "current_device": 0, "is_bf16_supported": True,
            "memory_allocated": 7, "max_memory_allocated": 8, "memory_reserved": 9, "max_memory_reserved": 10,
            "memory_stats": {"x": 1}, "mem_get_info": (30, 40), "current_stream": Instant(),
            "default_stream": Instant(), "get_rng_state": torch.get_rng_state(), "initial_seed": 1,
        }  # fmt: skip
        if name.startswith("__"):
            raise AttributeError(name)
        calls.add(name)
        return lambda *arguments, **keywords: answers.get(name)

    @contextmanager
    def stream(self, stream: Any) -> Any:
        yield

    device = stream


def train(store: str) -> tuple[list[float], Any]:
    """Three steps of a linear model at ZeRO stage 1."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    import deepspeed
    from deepspeed.accelerator import get_accelerator, set_accelerator

    from core.engines.deepspeed_accelerator import CudaShapedAccelerator

    torch.get_device_module = lambda device=None: Module()
    device = Device(torch_device="cpu", index=0, name="x", collective_backend="gloo", math_mode={})
    set_accelerator(CudaShapedAccelerator(device, "ACME_VISIBLE_DEVICES"))
    deepspeed.ops.__compatible_ops__ = {}
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 1},
        "bf16": {"enabled": True},
        "wall_clock_breakdown": True,
        "zero_allow_untested_optimizer": True,
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    losses = []
    for _ in range(3):
        loss = engine(torch.ones(1, 4, dtype=torch.bfloat16)).square().sum()
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses, get_accelerator()


def main() -> None:
    """Train, then ask the accelerator what DeepSpeed may ask it."""
    losses, accelerator = train(sys.argv[1])
    state = accelerator.get_rng_state(0)
    accelerator.set_rng_state(state, 0)
    environment: dict[str, str] = {}
    accelerator.set_visible_devices_envs(environment, [2, 0])
    accelerator.set_compile_backend("eager")
    told = {
        "losses": losses,
        "class": type(accelerator).__name__,
        "abstract": inspect.isabstract(type(accelerator)),
        "names": [accelerator.device_name(), accelerator.device_name(1), accelerator.current_device_name()],
        "backend": accelerator.communication_backend_name(),
        "synchronous": accelerator.is_synchronized_device(),
        "memory": [
            accelerator.memory_allocated(), accelerator.max_memory_allocated(), accelerator.memory_reserved(),
            accelerator.max_memory_cached(), accelerator.available_memory(), accelerator.total_memory(0),
        ],
        "types": [str(dtype) for dtype in accelerator.supported_dtypes()],
        "tensor": str(accelerator.BFloat16Tensor([1.0]).dtype),
        "on": accelerator.on_accelerator(torch.zeros(1)),
        "triton": accelerator.is_triton_supported(),
        "operator": accelerator.create_op_builder("FusedAdamBuilder").is_compatible(),
        "environment": environment,
        "compile": accelerator.get_compile_backend(),
        "graph": accelerator.create_graph(),
        "calls": sorted(calls),
    }  # fmt: skip
    print(json.dumps(told))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
