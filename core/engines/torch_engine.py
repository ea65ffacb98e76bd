"""Engine ``torch``: one device, DDP or FSDP2, chosen by ZeRO stage and precision.

=====================  =======================================================================
fp32, tf32, amp        stage 0: parameters as they are, DDP on several ranks; 2, 3: FSDP2
bf16, fp16             fp32 main weights, gathered in 16 bits: FSDP2; stage 0 replicates them
bf16, bf16_stochastic  bf16 weights and moments; DDP or FSDP2 on several ranks
fp8                    as bf16; blocks multiply by their weights in 8 bits
LoRA, 16 bits          frozen weights in 16 bits, fp32 adapters, autocast; DDP or FSDP2 on several ranks
=====================  =======================================================================

Stage 3 frees gathered parameters after each block's forward and backward; stage 2 keeps them until the step's last
backward, and stage 3 does so with those of its ``gathered_layers``. With ``collectives=peer_copies`` stage 2 of
weights in 16 bits is that of ``peer_stage2``, in the place of FSDP2's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from core.checkpoint.tensors import read_part
from core.data.loader import StepBatch
from core.dtensors import as_dtensor, local_part
from core.engines.base import BuildModel, Engine, ModelFacts, OptimizerWrap, StepResult
from core.memory_estimate import is_stage2_among_peers, keeps_main_weights
from core.models.adapters import released_name
from core.models.decoder import Decoder
from core.models.initialise import count_parameters, place_dtensor, place_plain
from core.optimizer_state import LossScaler, moment
from core.optimizers import build_optimizer, takes_grad_scale
from core.trace import optimizer_range
from schemas.checkpoint import Part

if TYPE_CHECKING:  # torch 2.9 is the first that has what it needs; all else runs with older ones
    from core.engines.peer_stage2 import PeerStage2

TORCH_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
"""What weights are gathered in."""


class TorchEngine(Engine):
    """See the module's table."""

    def setup(self, build_model: BuildModel, optimizer_wrap: OptimizerWrap) -> ModelFacts:
        """Build on meta, shard, materialise this rank's part, initialise it, and build the optimizer."""
        model = self.decoder(build_model(0))
        counted = count_parameters(model)
        if self.hp.precision == "fp8":
            from core.models.fp8 import use_fp8

            use_fp8(model, self.device)
        model.apply_activation_checkpointing()
        model.compile_blocks()
        pure_bf16 = self.hp.optimizer_state == "bf16_stochastic"
        by_peers = self._is_stage2_among_peers()
        model = model.to(TORCH_DTYPES[self.hp.precision] if pure_bf16 or by_peers else torch.float32)
        self._narrow_frozen(model)
        sharded = self._is_sharded()
        self._staying_gathered: list[FSDPModule] = []
        if sharded and not by_peers:
            self._shard(model)
        self._place = place_dtensor if sharded else place_plain
        model.to_empty(device=self.device)
        self._peers: PeerStage2 | None = None
        if by_peers:
            from core.engines.peer_stage2 import PeerStage2

            state_type = torch.bfloat16 if pure_bf16 else torch.float32
            self._peers = PeerStage2(model, [*model.blocks, model.lm_head], self._mesh(), state_type)
        named = dict(model.named_parameters() if self._peers is None else self._peers.named_parameters())
        self.initialise(named.items(), self._place, naming=model.naming)
        self._named_parameters = {released_name(name): parameter for name, parameter in named.items()}
        if pure_bf16:  # replicas whose noise differs would drift apart; torch seeds each process at random
            torch.manual_seed(self.hp.seed)
        self._parameters = [parameter for parameter in named.values() if parameter.requires_grad]
        self._optimizer = optimizer_wrap(build_optimizer(self._parameters, self.hp), model)
        self._model: nn.Module = model if sharded or dist.get_world_size() == 1 else self._replicate(model)
        self._scaler = torch.amp.GradScaler(self.device.type, init_scale=2.0**16) if self.hp.scales_loss else None
        return self.facts(counted, self._optimizer)

    def step(self, batch: StepBatch, learning_rate: float) -> StepResult:
        """One optimizer step over GAS micro-batches."""
        scale, tokens = self.gradient_scale(batch)
        if self._peers is not None:
            self._peers.gather()
        cross_entropy = torch.zeros((), device=self.device)
        for number, micro_batch in enumerate(batch.micro_batches, start=1):
            last = number == len(batch.micro_batches)
            with self._gradient_sync(last), self.autocast():
                objective, entropy = self._model(**micro_batch)
            with self._gradient_sync(last):
                torch.autograd.backward(self._scaled(objective * scale))
            cross_entropy += entropy.detach()
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        if self._peers is not None:
            self._peers.reduced()
        with optimizer_range():
            norm = self._update()
        return StepResult(self.global_loss(cross_entropy, tokens), norm)

    def close(self) -> None:
        """Drop the model and its optimizer."""
        del self._model, self._optimizer, self._parameters, self._named_parameters, self._peers

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The one."""
        return [self._optimizer]

    @property
    def parts(self) -> tuple[Part, ...]:
        """Main weights, where there are some, are the parameters themselves."""
        main: tuple[Part, ...] = ("main_weights",) if self._keeps_main_weights() else ()
        return ("weights", *main, "exp_avg", "exp_avg_sq")

    def gather(self, part: Part) -> Iterator[tuple[str, Tensor]]:
        """See the base class."""
        rounded = part == "weights" and self._keeps_main_weights()
        for name, tensor in self._tensors(part):
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            yield name, whole.to(TORCH_DTYPES[self.hp.precision]) if rounded else whole

    def restore(self, part: Part, folder: Path) -> None:
        """See the base class."""
        read_part(self._tensors(part), folder, self._place)

    @property
    def scaler(self) -> LossScaler | None:
        """Torch's, in fp16."""
        return self._scaler

    def _tensors(self, part: Part) -> Iterator[tuple[str, Tensor]]:
        """This rank's own tensors, as parameters are: whole, or as DTensors."""
        for name, parameter in self._named_parameters.items():
            if part == "weights" or (part == "main_weights" and parameter.requires_grad):
                yield name, parameter.data
            elif parameter.requires_grad:
                held = moment(self._optimizer, parameter, part)
                if isinstance(parameter, DTensor) and not isinstance(held, DTensor):
                    # Some optimizers keep the plain local part.
                    held = as_dtensor(held, parameter, parameter.device_mesh, parameter.placements)
                yield name, held

    def _keeps_main_weights(self) -> bool:
        kept_apart = self._frozen_type() is not None  # the trained ones are fp32 themselves
        return keeps_main_weights(self.hp) and not kept_apart

    def trained_model(self) -> nn.Module:
        """Without DDP around it, which would only synchronise gradients."""
        model = self._model
        return model.module if isinstance(model, DistributedDataParallel) else model

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """See the base class."""
        if self._peers is not None:
            self._peers.gather()
        with super().evaluating() as model:
            yield model

    def _is_sharded(self) -> bool:
        return self._keeps_main_weights() or (self.hp.zero_stage > 0 and dist.get_world_size() > 1)

    def _shard(self, model: Decoder) -> None:
        """FSDP2 over the blocks, the head and the rest; stage 0 replicates by a shard group of one rank.

        The head apart: gathered with the embedding it would keep the first block waiting, and reduced with it the
        optimizer.
        """
        world = dist.get_world_size()
        if self.hp.zero_stage == 0:
            mesh = init_device_mesh(self.device.type, (world, 1), mesh_dim_names=("replicate", "shard"))
        else:
            mesh = self._mesh()
        dtype = None if self._frozen_type() is not None else TORCH_DTYPES.get(self.hp.precision)
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        # Angles and slopes, which come with the states, are fp32 on purpose.
        inner = replace(policy, cast_forward_inputs=False)
        reshard = self.hp.zero_stage == 3
        for number, block in enumerate(model.blocks):
            stays = number < self.hp.gathered_layers
            fully_shard(block, mesh=mesh, mp_policy=inner, reshard_after_forward=reshard and not stays)
        # Its backward pass comes right after its forward.
        fully_shard(model.lm_head, mesh=mesh, mp_policy=inner, reshard_after_forward=False)
        fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
        self._staying_gathered = [cast(FSDPModule, block) for block in model.blocks[: self.hp.gathered_layers]]
        if self.hp.collectives == "peer_copies":
            from core.engines.peer_copies import use_peer_copies

            sharded = [cast(FSDPModule, module) for module in (*model.blocks, model.lm_head, model)]
            use_peer_copies(sharded, mesh.get_group(), self.device, dtype or torch.float32)

    def _mesh(self) -> DeviceMesh:
        return init_device_mesh(self.device.type, (dist.get_world_size(),), mesh_dim_names=("shard",))

    def _is_stage2_among_peers(self) -> bool:
        """Whether shards go without FSDP2; what is not trained, tower or weights beside adapters, has no state."""
        trains_all = self.plan.vision is None and self.plan.lora is None
        return trains_all and is_stage2_among_peers(self.hp)

    def _replicate(self, model: Decoder) -> DistributedDataParallel:
        devices = None if self.device.type == "cpu" else [self.device]
        return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)

    def _frozen_type(self) -> torch.dtype | None:
        """The 16-bit type of weights that adapters leave as they are, which need no fp32 ones beside them."""
        return None if self.plan.lora is None else TORCH_DTYPES.get(self.hp.precision)

    def _narrow_frozen(self, model: nn.Module) -> None:
        frozen_type = self._frozen_type()
        for parameter in model.parameters():
            if not parameter.requires_grad and frozen_type is not None:
                parameter.data = parameter.data.to(frozen_type)

    def _autocast_dtype(self) -> torch.dtype | None:
        return TORCH_DTYPES[self.hp.autocast_dtype] if self.hp.precision == "amp" else self._frozen_type()

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """To the plan's type under precision ``amp``, and to that of the frozen weights beside adapters."""
        dtype = self._autocast_dtype()
        if dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=dtype)

    @contextlib.contextmanager
    def _gradient_sync(self, last: bool) -> Iterator[None]:
        """Replicated gradients travel once per step; sharded ones with every micro-batch, to stay sharded."""
        if isinstance(self._model, DistributedDataParallel) and not last:
            with self._model.no_sync():
                yield
        else:
            if isinstance(self._model, FSDPModule) and self.hp.zero_stage < 3:
                self._model.set_requires_gradient_sync(last or self.hp.zero_stage > 0)
                self._model.set_reshard_after_backward(last)
            for block in self._staying_gathered:
                block.set_reshard_after_backward(last)
            yield

    def _scaled(self, loss: Tensor) -> Tensor:
        return self._scaler.scale(loss) if self._scaler is not None else loss

    def _update(self) -> Tensor:
        """Clip, step and clear the gradients; the global norm before clipping."""
        if self._scaler is not None:
            self._scaler.unscale_(self._optimizer)
        norm = self._clip()
        if self._scaler is not None:
            self._scaler.step(self._optimizer)
            self._scaler.update()
        else:
            self._optimizer.step()
        # DDP's buckets stay: without a view into them, accumulated gradients would take as much beside them.
        replicated = isinstance(self._model, DistributedDataParallel)
        self._optimizer.zero_grad(set_to_none=not replicated)
        return norm

    def _clip(self) -> Tensor:
        """The global norm of the gradients, in fp32 whatever they are kept in; and no larger than the limit."""
        grads = [local_part(parameter.grad) for parameter in self._parameters if parameter.grad is not None]
        norms = torch._foreach_norm(grads, 2.0, dtype=torch.float32)
        square = torch.stack(norms).square().sum()
        if self._is_sharded() and self.hp.zero_stage > 0:  # every rank holds a part of each gradient
            self._sum_up(square)
        norm = square.sqrt()
        if self.hp.clip_grad_norm > 0:
            excess = ((norm + 1e-6) / self.hp.clip_grad_norm).clamp(min=1.0)
            if self._scaler is None and takes_grad_scale(self._optimizer):
                self._optimizer.grad_scale = excess  # type: ignore[attr-defined]
            else:
                torch._foreach_div_(grads, excess)
        return norm
