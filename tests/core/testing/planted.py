"""Plugins derived from the CPU's, each with one fault; every fault has the one check that is meant for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

SOUND = """
from core import hookimpl
from plugins import cpu
from plugins.cpu import describe_environment, init_device, launch_env, prepare_engine, probe
from schemas.chip import Peak, TelemetryReading

ACCELMARK_HOOK_API = 1
PEAKS = {}
SOURCE = "datasheet, dense"


@hookimpl
def chips():
    peaks = tuple(Peak(precision=p, tflops=tflops, source=SOURCE) for p, tflops in PEAKS.items())
    return [c.model_copy(update={"vendor": __name__, "peaks": peaks}) for c in cpu.chips()]
"""


@dataclass(frozen=True)
class Fault:
    """One plugin: what is wrong, as source behind ``SOUND``, and the check that must fail."""

    name: str
    caught_by: str
    says: str
    source: str
    own_process: bool = False
    """Whether it would harm the process that looks for it."""


FAULTS = (
    Fault(
        "peak_never_reset",
        "collect_memory.resets",
        "0.5 GiB were freed and the peaks reset",
        """
highest_gib = 0.0


@hookimpl(wrapper=True)
def collect_memory():
    global highest_gib
    reading = yield
    highest_gib = max(highest_gib, reading.peak_allocated_gib)
    return reading.model_copy(update={"peak_allocated_gib": highest_gib})
""",
    ),
    Fault(
        "tf32_left_on",
        "init_device.pins_fp32",
        "an fp32 mm is off by",
        """
@hookimpl
def init_device(plan):
    # TF32 as matrix units have it: operands keep 10 of their 23 bits.
    import torch

    def rounded(x):
        x = x.contiguous()
        return (x.view(torch.int32) & -(1 << 13)).view(torch.float32) if x.dtype is torch.float32 else x

    def mm(a, b):
        return torch.bmm(rounded(a)[None], rounded(b)[None])[0]

    global switched
    switched = torch.library.Library("aten", "IMPL")
    switched.impl("mm", mm, "CPU")
    return cpu.init_device(plan)
""",
    ),
    Fault(
        "optimizer_changes_batch",
        "optimizer_wrap.keeps_recipe",
        "after step 1 the weights are off by 100.0%",
        """
@hookimpl
def optimizer_wrap(optimizer):
    step, calls = optimizer.step, []

    def every_second(*given):
        calls.append(given)
        return step(*given) if len(calls) % 2 == 0 else None

    optimizer.step = every_second
    return optimizer
""",
    ),
    Fault(
        "weights_become_nan",
        "optimizer_wrap.keeps_recipe",
        "after step 1 the weights are off by nan%",
        """
@hookimpl
def optimizer_wrap(optimizer, model):
    optimizer.step = lambda: [parameter.data.fill_(float("nan")) for parameter in model.parameters()]
    return optimizer
""",
    ),
    Fault(
        "moments_out_of_sight",
        "optimizer_wrap.checkpoint",
        "keeps no exp_avg",
        """
@hookimpl
def optimizer_wrap(optimizer):
    # An AdamW whose state has names of its own.
    import torch

    class OwnAdamW(torch.optim.AdamW):
        def step(self):
            for state in self.state.values():
                state["exp_avg"] = state.pop("momentum")
            super().step()
            for state in self.state.values():
                state["momentum"] = state.pop("exp_avg")

    taken = ("params", "lr", "betas", "eps", "weight_decay")
    return OwnAdamW([{name: group[name] for name in taken} for group in optimizer.param_groups])
""",
    ),
    Fault(
        "forgets_its_updates",
        "optimizer_wrap.checkpoint",
        "% of the way: the optimizer that optimizer_wrap gives",
        """
@hookimpl
def optimizer_wrap(optimizer):
    # Bias correction begins anew with every optimizer that is made.
    import torch

    class OwnAdamW(torch.optim.AdamW):
        updates = 0

        def step(self):
            self.updates += 1
            for state in self.state.values():
                state["step"].fill_(self.updates - 1)
            super().step()

    taken = ("params", "lr", "betas", "eps", "weight_decay")
    return OwnAdamW([{name: group[name] for name in taken} for group in optimizer.param_groups])
""",
    ),
    Fault(
        "wrong_type",
        "describe_environment.tells",
        "hook describe_environment: torch_threads: Input should be a valid string (got 4)",
        """
@hookimpl
def describe_environment():
    return {"torch_threads": 4}
""",
    ),
    Fault(
        "zero_for_unknown",
        "collect_telemetry.sane",
        "power_w is 0 on a device at work",
        """
@hookimpl
def collect_telemetry():
    return TelemetryReading(power_w=0, temperature_c=41, utilisation_percent=0)
""",
    ),
    Fault(
        "dies",
        "describe_environment.tells",
        "was ended by signal 6 (SIGABRT)",
        """
@hookimpl
def describe_environment():
    import os

    os.abort()
""",
        own_process=True,
    ),
    Fault(
        "sparse_mixed_with_dense",
        "chips.dense_peaks",
        "bf16 1979 is 4 times tf32 495",
        'PEAKS = {"fp32": 67, "tf32": 495, "bf16": 1979}',
    ),
    Fault(
        "sparse_by_its_source",
        "chips.dense_peaks",
        "speaks of sparsity",
        'PEAKS = {"bf16": 1979}\nSOURCE = "datasheet, with sparsity"',
    ),
    Fault(
        "unstable_environment",
        "launch_env.plans",
        "launch_env gives another PORT",
        """
asked = []


@hookimpl
def launch_env():
    asked.append(1)
    return {"PORT": str(len(asked))}
""",
    ),
    Fault(
        "unknown_chip",
        "probe.known_chips",
        "names chip 'X9', which `chips` does not list",
        """
@hookimpl
def probe():
    from schemas.chip import ProbeResult

    return [ProbeResult(chip="X9", device_name="a CPU", count=1)]
""",
    ),
    Fault(
        "config_that_cannot_be",
        "hardware_configs.plannable",
        "llama2_7b CPUx1x3 base cannot be planned",
        """
@hookimpl
def hardware_configs(case):
    from schemas.case import HardwareConfig, Run

    if case.name == "llama2_7b":
        defaults = {"tensor_parallel": 3}
        where = {"vendor": __name__, "topology": "CPUx1x3", "engine": "megatron"}
        return [HardwareConfig(**where, defaults=defaults, runs=[Run(id="base")])]
""",
    ),
    Fault(
        "less_work_for_speed",
        "tune.plannable",
        "tune makes tokens_per_step",
        """
@hookimpl
def tune(chosen):
    return {"local_batch_size": 1}
""",
    ),
    Fault(
        "torch_on_the_launcher",
        "launcher.no_torch",
        "imports torch on the launcher's side",
        "import sys, types\nsys.modules.setdefault('torch', types.ModuleType('torch'))",
        own_process=True,
    ),
)


COMPILES = """
@hookimpl
def tune():
    return {"compile": True, "attention": "vendor"}


@hookimpl(wrapper=True)
def build_model(plan):
    import torch

    model = yield
    if plan.hyper_parameters.attention == "vendor":
        model.use_attention(attend, torch.ops.aten.softmax.int)
    return model


def attend(query, key, value, slopes):
    import torch

    place = torch.arange(query.shape[2])
    bias = torch.where(place > place[:, None], -torch.inf, 0.0)
    if slopes is not None:
        bias = bias + slopes[:, None, None] * place
    scores = (query @ key.mT).float() / query.shape[-1] ** 0.5 + bias
    return torch.softmax(scores, -1).to(value.dtype) @ value


@hookimpl
def optimizer_wrap(optimizer, plan):
    from core.optimizers import CompiledAdamW, adamw_groups

    return CompiledAdamW(adamw_groups(optimizer), {}) if plan.hyper_parameters.compile else None
"""
"""Without a fault, behind ``SOUND``: tuned runs compile, with attention and an optimizer of the plugin's own."""

ONLY_COMPILED = """
@hookimpl
def optimizer_wrap(optimizer, plan, broken=optimizer_wrap):
    return broken(optimizer) if plan.hyper_parameters.compile else None
"""
"""Behind a fault of the optimizer: one that only compiled runs have."""


def only_compiled(name: str, caught_by: str) -> Fault:
    """The fault of that name, in compiled runs alone."""
    (fault,) = (fault for fault in FAULTS if fault.name == name)
    source = f"{COMPILES}\n{fault.source}\n{ONLY_COMPILED}"
    return replace(fault, name=f"{name}_compiled", caught_by=caught_by, source=source)


COMPILED_FAULTS = (
    only_compiled("optimizer_changes_batch", "optimizer_wrap.tuned"),
    only_compiled("forgets_its_updates", "optimizer_wrap.tuned_checkpoint"),
    Fault(
        "attends_without_slopes",
        "build_model.tuned",
        "with none checkpointing and alibi by vendor, the gradient of ",
        f"""
{COMPILES}
def attend(query, key, value, slopes, right=attend):
    return right(query, key, value, None)
""",
    ),
)


def install(folder: Path) -> None:
    """Put a distribution with all of them into ``folder``, which goes on PYTHONPATH."""
    info = folder / "planted-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: planted\nVersion: 1.0\n", encoding="utf-8")
    names = "".join(f"{fault.name} = {fault.name}\n" for fault in (*FAULTS, Fault("sound", "", "", "")))
    (info / "entry_points.txt").write_text(f"[accelmark.vendors]\n{names}", encoding="utf-8")
    (folder / "sound.py").write_text(SOUND, encoding="utf-8")
    for fault in FAULTS:
        (folder / f"{fault.name}.py").write_text(f"{SOUND}\n{fault.source}", encoding="utf-8")
