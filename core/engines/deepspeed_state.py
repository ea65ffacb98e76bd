"""Main weights and Adam's moments inside of DeepSpeed's optimizers, by parameter, whole.

At stage 0 they are tensors of the parameter's shape; from stage 1 on, parts of flat buffers on every rank, which
DeepSpeed's ``safe_get_*`` and ``safe_set_*`` know.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from core.optimizer_state import LossScaler, allocate, moment
from schemas.checkpoint import Part


class DeepSpeedState:
    """Of one engine at ZeRO stage ``stage``; ``optimizer`` is the one that DeepSpeed steps."""

    def __init__(self, engine: Any, optimizer: torch.optim.Optimizer, stage: int) -> None:
        self.optimizer = optimizer
        self._engine, self._stage = engine, stage
        outer = engine.optimizer
        groups = zip(getattr(outer, "fp16_groups", ()), getattr(outer, "fp32_groups", ()), strict=True)
        self._mains = {} if stage else {p: main for ps, mains in groups for p, main in zip(ps, mains, strict=True)}

    def read(self, parameter: nn.Parameter, part: Part) -> Tensor:
        """The whole tensor of a parameter that is trained, on every rank; all of them take part."""
        if self._stage == 0:
            main = self._mains.get(parameter, parameter)
            return main if part == "main_weights" else moment(self.optimizer, main, part)
        if part != "main_weights":
            moment(self.optimizer, next(iter(self.optimizer.state)), part)
        whole: Tensor = (
            safe_get_full_fp32_param(parameter)
            if part == "main_weights"
            else safe_get_full_optimizer_state(parameter, part)
        )
        return whole

    @torch.no_grad()
    def write(self, parameter: nn.Parameter, part: Part, whole: Tensor) -> None:
        """Put this rank's part of ``whole`` into its place."""
        if self._stage == 0:
            main = self._mains.get(parameter, parameter)
            (main if part == "main_weights" else moment(self.optimizer, main, part)).copy_(whole)
        elif self._stage < 3:
            if part == "main_weights":
                safe_set_full_fp32_param(parameter, whole)
            else:
                safe_set_full_optimizer_state(parameter, whole, part)
        else:
            own = self._partition(parameter, whole)
            if part == "main_weights":
                safe_set_local_fp32_param(parameter, own)
            else:
                safe_set_local_optimizer_state(parameter, own, part)

    def allocate(self) -> None:
        """Make the moments, and link them to the parameters as DeepSpeed does after the first step."""
        outer = self._engine.optimizer
        if self._stage < 3:
            allocate(self.optimizer)
            if self._stage > 0:
                outer._lazy_init_hp_params_optimizer_state()
            return
        (group,) = self.optimizer.param_groups  # core builds one
        held = group["params"]
        for flat in outer.fp32_partitioned_groups_flat:
            group["params"] = [flat]
            allocate(self.optimizer)
        group["params"] = held

    @property
    def scaler(self) -> LossScaler | None:
        """Torch's under autocast to fp16, else DeepSpeed's own."""
        outer = self._engine.optimizer
        torchs = self._engine.torch_autocast_z0_gradscaler or getattr(outer, "torch_autocast_gradscaler", None)
        own: LossScaler | None = torchs or getattr(outer, "loss_scaler", None)
        return own or getattr(outer, "loss_scale_config", None)

    @staticmethod
    def _partition(parameter: Any, whole: Tensor) -> Tensor:
        """This rank's equal share of the flat tensor; the last ones are filled up."""
        size = parameter.ds_tensor.numel()
        flat = nn.functional.pad(whole.flatten(), (0, size * dist.get_world_size() - whole.numel()))
        return flat.narrow(0, size * dist.get_rank(), size)
