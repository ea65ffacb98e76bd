"""``build_model`` and ``optimizer_wrap`` on the small case, on one worker without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.cases import resolve
from core.engines.base import load_engine
from core.models.decoder import Decoder
from core.models.factory import build_decoder
from core.models.initialise import count_parameters, initialise_random, place_plain
from core.optimizers import build_optimizer
from core.testing.check import DeviceScene, FailedError
from core.testing.small import POSITIONS, small_plan, tuned_plan
from schemas.hyperparameters import Checkpointing
from schemas.plan import Plan

LOSS_ERROR = 1e-3
REPEAT_ERROR = 1e-4
"""Kernels that add up in another order differ in the last bits."""
TUNED_ERROR = 5e-2
"""Of a weight's gradient in bf16: 1e-2 was seen. Scores off by a tenth make 1e-1, without ALiBi's slopes 7e-1."""
STEP_ERROR = 1e-3
"""Of the way that weights went; another batch or learning rate is off by tens of percent."""
SETTINGS = ("lr", "betas", "eps", "weight_decay")
KINDS: tuple[Checkpointing, ...] = ("none", "selective", "full")
CPU = torch.device("cpu")

Trained = tuple[list[float], dict[str, Tensor]]
"""Losses of AdamW steps, and the first step's gradients by weight (fp64, on the CPU)."""


def builds_the_model(scene: DeviceScene) -> str:
    """The case's own parameters, and on the device the loss that core's model has on the CPU."""
    model = _model(scene, scene.plan)
    expected, found = count_parameters(build_decoder(scene.plan)), count_parameters(model)
    if found != expected:
        raise FailedError(f"build_model has {found}, the case {expected}")
    on_cpu, _ = _train(_own(scene.plan), scene.plan, CPU)
    on_device, _ = _train(model, scene.plan, scene.torch_device)
    error = abs(on_device[0] / on_cpu[0] - 1)
    if not error <= LOSS_ERROR:  # NaN is over every limit
        raise FailedError(f"the model's loss is {on_device[0]:.6f}, core's on the CPU {on_cpu[0]:.6f}")
    return f"{found.total} parameters, loss off by {error:.1e}"


def training_repeats(scene: DeviceScene) -> str:
    """The same weights and batches, twice: the same losses."""
    first, second = (
        _train(_model(scene, scene.plan), scene.plan, scene.torch_device, steps=4)[0] for _ in range(2)
    )
    errors = [abs(a / b - 1) for a, b in zip(first, second, strict=True)]
    if not all(error <= REPEAT_ERROR for error in errors):
        raise FailedError(f"the same four steps gave losses {_told(first)} and {_told(second)}")
    return "bit by bit" if first == second else f"within {max(errors):.1e}"


def checkpointing_changes_nothing(scene: DeviceScene) -> str:
    """Recomputed activations give the loss and gradients that kept ones give."""
    kept, *recomputed = (_checkpointed(scene.plan, kind) for kind in KINDS)
    expected = _train(_model(scene, kept), kept, scene.torch_device)
    worst = 0.0
    for plan in recomputed:
        found = _train(_model(scene, plan), plan, scene.torch_device)
        worst = max(worst, _require_near(plan, found, expected, REPEAT_ERROR))
    return f"within {worst:.1e}"


def tuned_runs_train_alike(scene: DeviceScene) -> str:
    """In bf16, as tuned runs compile, attend and compute the loss: the loss and gradients of core's on the CPU."""
    told = []
    for position in POSITIONS:
        plain = small_plan(scene.vendor, scene.plan.chip.name, settings={"model.position": position})
        expected = _train(_own(plain), plain, CPU)
        worst = 0.0
        for kind in KINDS:
            plan = _checkpointed(tuned_plan(scene.vendor, plain.chip.name, position), kind)
            scene.prepare(plan)
            model = _model(scene, plan).to(torch.bfloat16)
            found = _train(model, plan, scene.torch_device)
            worst = max(worst, _require_near(plan, found, expected, TUNED_ERROR))
        told.append(f"{position} by {plan.hyper_parameters.attention} within {worst:.1e}")
        torch.compiler.reset()  # or sizes that differ from check to check are taken for sizes that vary
    return ", ".join(told)


def optimizer_keeps_the_recipe(scene: DeviceScene) -> str:
    """The same parameters, groups and settings, and after every step the weights that AdamW has on the CPU."""
    model = _model(scene, scene.plan)
    given = build_optimizer(model.parameters(), scene.plan.hyper_parameters)
    settings = [{name: group[name] for name in SETTINGS} for group in given.param_groups]
    wrapped: Any = scene.vendor.optimizer_wrap(given, model, scene.plan, scene.device)
    if not isinstance(wrapped, torch.optim.Optimizer):
        raise FailedError(f"optimizer_wrap returned a {type(wrapped).__name__}, no torch.optim.Optimizer")
    _require_same(wrapped, list(model.parameters()), settings)
    error = _follow(wrapped, model, scene.plan)
    return f"{type(wrapped).__qualname__}, within {error:.1e}"


def _require_same(
    wrapped: torch.optim.Optimizer, given: list[nn.Parameter], settings: list[dict[str, Any]]
) -> None:
    held = [parameter for group in wrapped.param_groups for parameter in group["params"]]
    if [id(parameter) for parameter in held] != [id(parameter) for parameter in given]:
        raise FailedError(f"the wrapped optimizer has {len(held)} other parameters than the {len(given)} given")
    found = [{name: group.get(name) for name in SETTINGS} for group in wrapped.param_groups]
    for before, after in zip(settings, found, strict=False):
        for name in SETTINGS:
            if before[name] != after[name]:
                raise FailedError(f"the wrapped optimizer has {name} {after[name]}, given was {before[name]}")
    if len(found) != len(settings):
        raise FailedError(f"the wrapped optimizer has {len(found)} parameter groups, given were {len(settings)}")


def _follow(wrapped: torch.optim.Optimizer, model: nn.Module, plan: Plan) -> float:
    """Step beside torch's AdamW on the CPU with the same gradients and a changing rate; the largest difference."""
    held = list(model.parameters())
    mirror = [nn.Parameter(parameter.detach().cpu().clone()) for parameter in held]
    start = [parameter.detach().clone() for parameter in mirror]
    reference = build_optimizer(mirror, plan.hyper_parameters)
    generator, worst = torch.Generator().manual_seed(1), 0.0
    for step in range(1, 5):
        for parameter, copy in zip(held, mirror, strict=True):
            copy.grad = torch.randn(copy.shape, generator=generator)
            parameter.grad = copy.grad.to(parameter.device)
        for group in (*wrapped.param_groups, *reference.param_groups):
            group["lr"] = plan.hyper_parameters.learning_rate / step
        wrapped.step()
        reference.step()
        way = torch.stack([(a - b).norm() for a, b in zip(mirror, start, strict=True)]).norm()
        off = torch.stack([(a.detach().cpu() - b).norm() for a, b in zip(held, mirror, strict=True)]).norm()
        error = float((off / way).detach())
        if not error <= STEP_ERROR:
            raise FailedError(
                f"after step {step} the weights are off by {error:.1%} of the way that AdamW went: the optimizer "
                "has another batch, schedule or rule than the plan"
            )
        worst = max(worst, error)
    return worst


def _checkpointed(plan: Plan, kind: Checkpointing) -> Plan:
    hp = plan.hyper_parameters.model_copy(update={"activation_checkpointing": kind})
    return plan.model_copy(update={"hyper_parameters": hp})


def _require_near(plan: Plan, found: Trained, expected: Trained, limit: float) -> float:
    """The largest relative error of the first loss and of each weight's gradient; FailedError: over ``limit``."""
    errors = {"loss": abs(found[0][0] / expected[0][0] - 1)}
    for name, exact in expected[1].items():
        errors[f"gradient of {name}"] = float((found[1][name] - exact).norm() / exact.norm())
    hp = plan.hyper_parameters
    for what, error in errors.items():
        if not error <= limit:
            raise FailedError(
                f"with {hp.activation_checkpointing} checkpointing and {plan.model.position} by {hp.attention}, "
                f"the {what} is off by {error:.1e}"
            )
    return max(errors.values())


def _model(scene: DeviceScene, plan: Plan) -> Decoder:
    """What the plugin builds, as engine torch sets it up, on the device with the values that every device gets."""
    case = resolve(plan.case_location).case
    built = scene.vendor.build_model(case, plan, scene.device, 0)
    model = load_engine("torch")(plan, scene.device).decoder(built)
    model.apply_activation_checkpointing()
    model.compile_blocks()
    model.to_empty(device=scene.torch_device)
    _initialise(model, plan)
    return model


def _own(plan: Plan) -> Decoder:
    """Core's model on the CPU, with the same values."""
    model = build_decoder(plan).to_empty(device=CPU)
    _initialise(model, plan)
    return model


def _initialise(model: Decoder, plan: Plan) -> None:
    """Drawn on the CPU: each type of device has a generator of its own."""
    named = model.named_parameters()
    initialise_random(named, plan.model, plan.hyper_parameters.seed, place_plain, device=CPU)


def write_weights(folder: Path, plan: Plan) -> None:
    """The small case's initial weights as safetensors, for runs on every device to start from."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    named = _own(plan).named_parameters()
    save_file({name: value.detach() for name, value in named}, folder / "model.safetensors")


def _train(model: Decoder, plan: Plan, device: torch.device, *, steps: int = 1) -> Trained:
    """Train on random tokens, the same for every model."""
    generator = torch.Generator().manual_seed(2)
    optimizer = build_optimizer(model.parameters(), plan.hyper_parameters)
    losses, first = [], dict[str, Tensor]()
    for _ in range(steps):
        tokens = torch.randint(0, plan.model.vocab_size, (2, 65), generator=generator)
        objective, entropy = model(tokens[:, :-1].to(device), tokens[:, 1:].to(device))
        optimizer.zero_grad()
        torch.autograd.backward(objective / tokens[:, 1:].numel())
        if not first:
            named = model.named_parameters()
            first = {name: p.grad.detach().cpu().double() for name, p in named if p.grad is not None}
        optimizer.step()
        losses.append(float(entropy.item()) / tokens[:, 1:].numel())
    return losses, first


def _told(losses: list[float]) -> str:
    return ", ".join(f"{loss:.6f}" for loss in losses)
