"""A third party's vendor plugin that is the CPU, and misbehaves once: tests install it in a folder of its own.

``SABOTAGE`` in the environment is ``<action> <moment> <rank> <step>``; a step is counted from 1, where the moment
has one. Moments: ``init`` (before the ranks meet), ``forward`` (before the step's gradients are reduced),
``optimizer`` (after that, and before the loss is), ``memory`` (after the measured window).
"""

from __future__ import annotations

import os
import resource
import signal
import time

import psutil

from core import hookimpl
from plugins import cpu
from schemas.case import HardwareConfig, Run
from schemas.chip import ChipSpec

ACCELMARK_HOOK_API = 1
TINY = {
    "model.hidden_size": 32, "model.intermediate_size": 48, "model.num_layers": 2, "model.num_heads": 2,
    "model.num_kv_heads": 2, "model.vocab_size": 512, "precision": "fp32", "zero_stage": 1, "sequence_length": 32,
    "local_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-3, "measure.warmup_steps": 2,
    "measure.steps": 6, "data.generated_sequences": 64,
}  # fmt: skip
_words = [*os.environ.get("SABOTAGE", "").split(), "", "", "", ""]
ACTION, MOMENT, RANK, STEP = _words[0], _words[1], int(_words[2] or -1), int(_words[3] or 0)

launch_env = cpu.launch_env
prepare_engine = cpu.prepare_engine
describe_environment = cpu.describe_environment
steps_done = 0


@hookimpl
def chips():
    return [ChipSpec(name="SABO", vendor="saboteur", memory_gb=None, memory_source="-", peaks=(), reference=True)]


@hookimpl
def probe():
    return [{"chip": "SABO", "device_name": "a CPU", "count": None}]


@hookimpl
def hardware_configs(case):
    stage = {"torch": 0, "deepspeed": 1}
    return [
        HardwareConfig(
            vendor="saboteur", topology=f"SABO{shape}", engine="torch", defaults=TINY | {"zero_stage": 0},
            runs=tuple(
                Run(id=engine, engine=engine, fix_hp={"zero_stage": stage[engine]}) for engine in stage
            ),
        )
        for shape in ("x1x2", "x2x1", "x2x2")
    ]  # fmt: skip


@hookimpl
def init_device(plan, local_rank):
    strike("init")
    if ACTION == "slow_data" and int(os.environ["RANK"]) == RANK:
        _slow_data()
    return cpu.init_device(plan)


@hookimpl(wrapper=True)
def build_model(case, plan, device, stage):
    model = yield
    model.register_forward_pre_hook(lambda *_: strike("forward"))
    model.register_forward_hook(_spoil)
    return model


@hookimpl
def optimizer_wrap(optimizer):
    optimizer.register_step_post_hook(_stepped)
    return optimizer


@hookimpl
def collect_memory():
    strike("memory")  # the reading itself is core's


def strike(moment: str) -> None:
    """Do the damage, if this is the rank, moment and step for it."""
    here = (moment, int(os.environ.get("RANK", "-1"))) == (MOMENT, RANK)
    if here and (moment in ("init", "memory") or steps_done + 1 == STEP):
        ACTIONS.get(ACTION, lambda: None)()


def _stepped(*_):
    global steps_done  # noqa: PLW0603 - what a plugin would do, too
    strike("optimizer")
    steps_done += 1


def _spoil(_module, _inputs, outputs):
    here = (int(os.environ["RANK"]), steps_done + 1) == (RANK, STEP)
    if here and ACTION in ("nan", "inf"):
        return tuple(output * float(ACTION) for output in outputs)
    if here and ACTION == "inf_gradient":
        outputs[0].register_hook(lambda gradient: gradient * float("inf"))
    return outputs


def _slow_data() -> None:
    from core.data.reader import TokenReader

    batch = TokenReader.batch
    TokenReader.batch = lambda *args: (time.sleep(0.1), batch(*args))[1]


def _launcher() -> int:
    return psutil.Process(os.getppid()).ppid()


def _device_oom() -> None:
    import torch

    torch.empty(1 << 55, dtype=torch.uint8)


def _host_oom() -> None:
    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
    leak = []
    while True:
        leak.append(bytearray(1 << 20))


def _interrupt(times: int, number: int = signal.SIGINT) -> None:
    for _ in range(times):
        os.kill(_launcher(), number)
        time.sleep(0.3)
    time.sleep(600)


def _receive() -> None:
    import torch
    import torch.distributed as dist

    dist.recv(torch.zeros(1), src=1 - RANK)


def _raise() -> None:
    raise ValueError("the plugin has a bug\nwith a second line")


def _jump() -> None:
    real = time.time
    time.time = lambda: real() - 86400.0


def _no_more_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))


ACTIONS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "kill_agent": lambda: (os.kill(os.getppid(), signal.SIGKILL), time.sleep(60)),
    "terminate_agent": lambda: (os.kill(os.getppid(), signal.SIGTERM), time.sleep(60)),
    "interrupt_agent": lambda: (os.kill(os.getppid(), signal.SIGINT), time.sleep(60)),
    "kill_launcher": lambda: (os.kill(_launcher(), signal.SIGKILL), time.sleep(60)),
    "device_oom": _device_oom,
    "host_oom": _host_oom,
    "sleep": lambda: time.sleep(600),
    "late": lambda: time.sleep(3),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "receive": _receive,
    "raise": _raise,
    "interrupt": lambda: _interrupt(1),
    "interrupt_twice": lambda: _interrupt(2),
    "terminate": lambda: _interrupt(1, signal.SIGTERM),
    "jump": _jump,
    "no_more_files": _no_more_files,
}
