"""Engine ``deepspeed``: ZeRO stages 0 to 3, configured by the JSON that the plan derived."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from core.checkpoint.tensors import read_part
from core.data.loader import StepBatch
from core.engines.base import BuildModel, Engine, ModelFacts, OptimizerWrap, StepResult
from core.engines.deepspeed_state import DeepSpeedState
from core.models.adapters import released_name
from core.models.initialise import count_parameters, place_plain
from core.optimizer_state import LossScaler
from core.optimizers import build_optimizer
from core.trace import optimizer_range
from schemas.checkpoint import Part

PARAMETER_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""What parameters are kept in; DeepSpeed keeps the fp32 main weights itself. Else fp32."""


class _Whole(NamedTuple):
    """A parameter that may have been sharded, and what it looks like whole."""

    parameter: nn.Parameter
    shape: torch.Size
    device: torch.device


class DeepSpeedEngine(Engine):
    """Hands the model and a torch optimizer to ``deepspeed.initialize``."""

    def setup(self, build_model: BuildModel, optimizer_wrap: OptimizerWrap) -> ModelFacts:
        """Build and initialise the model on the device, then let DeepSpeed shard it.

        The whole model lies on each device for a moment, in its own precision and without optimizer state.
        """
        model = self.decoder(build_model(0))
        counted = count_parameters(model)
        model.apply_activation_checkpointing()
        model.compile_blocks()
        model = model.to(PARAMETER_DTYPES.get(self.hp.precision, torch.float32))
        model.to_empty(device=self.device)
        self.initialise(model.named_parameters(), place_plain, naming=model.naming)
        self._shapes = {released_name(name): parameter.shape for name, parameter in model.named_parameters()}
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = optimizer_wrap(build_optimizer(trained, self.hp), model)
        # None of DeepSpeed's own operators is used. Its table of the usable ones is made, with half a minute of
        # compiler calls, when it is first looked at: for a collective in shared memory, which gloo does without.
        deepspeed.ops.__compatible_ops__ = {}
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=dict(self.plan.engine_config), dist_init_required=False
        )
        self._state = DeepSpeedState(self._engine, optimizer, self.hp.zero_stage)
        self.fill_main_weights(self._wholes(model), self._write_main_weight, naming=model.naming)
        return self.facts(counted, optimizer)

    def step(self, batch: StepBatch, learning_rate: float) -> StepResult:
        """One optimizer step over GAS micro-batches; the last ``engine.step`` is the one that updates."""
        scale, tokens = self.gradient_scale(batch)
        cross_entropy = torch.zeros((), device=self.device)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        for micro_batch in batch.micro_batches:
            objective, entropy = self._engine(**micro_batch)
            # The scale already spans all micro-batches, so DeepSpeed must not divide by GAS again.
            self._engine.backward(objective * scale, scale_wrt_gas=False)
            cross_entropy += entropy.detach()
            norm = self._unsharded_norm()
            with optimizer_range():
                self._engine.step()
        known = self._engine.get_global_grad_norm() if norm is None else norm
        return StepResult(self.global_loss(cross_entropy, tokens), self._as_tensor(known))

    def close(self) -> None:
        """DeepSpeed aborts at exit unless its engine is destroyed while the process group is alive."""
        self._engine.destroy()
        del self._engine, self._optimizer, self._state
        gc.collect()
        dist.barrier()

    def leave(self) -> None:
        """DeepSpeed keeps groups for itself, which a later run would take for its own."""
        deepspeed.comm.destroy_process_group()

    def trained_model(self) -> nn.Module:
        """DeepSpeed's engine, whose forward autocasts and gathers as in training."""
        engine: nn.Module = self._engine
        return engine

    def whole(self, parameter: nn.Parameter) -> Tensor:
        """The full value of a parameter, of which ZeRO stage 3 leaves this rank a part only."""
        with deepspeed.zero.GatheredParameters([parameter], enabled=self.hp.zero_stage == 3):
            return parameter.detach().clone()

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The one inside of DeepSpeed's."""
        return [self._state.optimizer]

    @property
    def parts(self) -> tuple[Part, ...]:
        """Main weights beside 16-bit parameters."""
        main: tuple[Part, ...] = ("main_weights",) if self.hp.precision in PARAMETER_DTYPES else ()
        return ("weights", *main, "exp_avg", "exp_avg_sq")

    @property
    def scaler(self) -> LossScaler | None:
        """DeepSpeed's, or torch's under autocast."""
        return self._state.scaler if self.hp.scales_loss else None

    def gather(self, part: Part) -> Iterator[tuple[str, Tensor]]:
        """See the base class."""
        for name, parameter in self._parameters_of(part):
            yield name, self.whole(parameter) if part == "weights" else self._state.read(parameter, part)

    def restore(self, part: Part, folder: Path) -> None:
        """See the base class."""

        def place(parameter: nn.Parameter, whole: Tensor) -> None:
            self._state.write(parameter, part, whole)

        read_part(self._parameters_of(part), folder, place, shapes=self._shapes)

    def allocate_state(self) -> None:
        """DeepSpeed links the moments to the parameters after the first step."""
        self._state.allocate()

    def _wholes(self, model: nn.Module) -> Iterator[tuple[str, _Whole]]:
        for name, parameter in model.named_parameters():
            yield name, _Whole(parameter, self._shapes[released_name(name)], self.device)

    def _write_main_weight(self, target: _Whole, full: Tensor) -> None:
        if target.parameter.requires_grad:
            self._state.write(target.parameter, "main_weights", full.to(target.device))

    def _parameters_of(self, part: Part) -> list[tuple[str, nn.Parameter]]:
        named = self._engine.module.named_parameters()
        return [(released_name(name), p) for name, p in named if part == "weights" or p.requires_grad]

    def _unsharded_norm(self) -> Tensor | None:
        """The norm at the accumulation boundary of stage 0 in fp32, which DeepSpeed clips by but does not tell."""
        told = self.hp.zero_stage > 0 or self.hp.precision == "fp16"
        if told or not self._engine.is_gradient_accumulation_boundary():
            return None
        return nn.utils.get_total_norm([p.grad for p in self._engine.module.parameters() if p.grad is not None])

    def _as_tensor(self, norm: Tensor | float | None) -> Tensor | None:
        return None if norm is None else torch.as_tensor(norm, dtype=torch.float32, device=self.device)
