"""Engine ``megatron``: megatron-core's schedules, data parallelism and distributed optimizer."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import (
    USING_PYTORCH_OPTIMIZER,
    MegatronOptimizer,
    OptimizerConfig,
    get_megatron_optimizer,
)
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel.random import initialize_rng_tracker
from torch import Tensor, nn

from core.checkpoint.tensors import read_part
from core.data.loader import StepBatch
from core.data.source import IGNORED_LABEL
from core.engines.base import BuildModel, Engine, ModelFacts, OptimizerWrap, StepResult
from core.engines.megatron.config import HALF_PRECISIONS, megatron_config
from core.engines.megatron.state import MegatronState
from core.engines.megatron.weights import Released, Split, place, released_names, released_tensors
from core.models.factory import build_decoder
from core.models.initialise import ParameterCount
from core.optimizers import build_optimizer
from core.trace import optimizer_range
from schemas.checkpoint import Part

MicroBatches = Iterator[Mapping[str, Tensor]]


class MegatronEngine(Engine):
    """One pipeline rank: its stages, and the schedule that passes micro-batches through them.

    Gradients are averaged over the replicas, so the summed loss is scaled as for the other engines.
    """

    def setup(self, build_model: BuildModel, optimizer_wrap: OptimizerWrap) -> ModelFacts:
        """Build and fill this rank's stages, give them to Megatron's data parallelism, and build the optimizer."""
        hp = self.hp
        interleaved = hp.virtual_pipeline_stages if hp.virtual_pipeline_stages > 1 else None
        parallel_state.initialize_model_parallel(
            hp.tensor_parallel, hp.pipeline_parallel, interleaved, create_gloo_process_groups=False
        )
        # Nothing is drawn at random in a step; this tracker does not keep generators for it.
        initialize_rng_tracker(inference_rng_tracker=True)
        self.data_group = parallel_state.get_data_parallel_group()
        first = parallel_state.get_pipeline_model_parallel_rank()
        own = range(first, hp.pipeline_parallel * hp.virtual_pipeline_stages, hp.pipeline_parallel)
        stages = [build_model(stage) for stage in own]
        self._released: dict[str, Released] = {}
        self._fill(stages)
        counted = self._count(stages)
        self._arguments = megatron_config(hp, self.plan.model, self.plan.parallel)
        self._chunks = self._replicate(stages)
        self._optimizer = self._build_optimizer(optimizer_wrap)
        self._state = MegatronState(self._optimizer, self.data_group)
        self.fill_main_weights(self._released.items(), partial(self._write, "main_weights"), self._elsewhere)
        self._run_schedule = get_forward_backward_func()
        self._cross_entropy = self._scale = torch.zeros((), device=self.device)
        return self.facts(counted, self._optimizer.chained_optimizers[0].optimizer)

    def step(self, batch: StepBatch, learning_rate: float) -> StepResult:
        """One optimizer step; every rank learns the loss, which only the last stage computes."""
        self._scale, tokens = self.gradient_scale(batch)
        self._cross_entropy = torch.zeros((), device=self.device)
        for chunk in self._chunks:
            chunk.zero_grad_buffer()
        self._optimizer.zero_grad()
        self._run_schedule(
            forward_step_func=self._forward,
            data_iterator=[iter(batch.micro_batches) for _ in self._chunks],
            model=self._chunks,
            num_microbatches=len(batch.micro_batches),
            seq_length=self.hp.sequence_length,
            micro_batch_size=self.hp.local_batch_size,
        )
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        with optimizer_range():
            norm = self._update()
        if parallel_state.get_tensor_model_parallel_rank() > 0:
            self._cross_entropy.zero_()  # tensor parallel ranks of the last stage have all computed the same
        return StepResult(self.global_loss(self._cross_entropy, tokens), norm)

    def close(self) -> None:
        """Drop the model, its optimizer and Megatron's process groups."""
        del self._chunks, self._optimizer, self._state, self._released
        gc.collect()
        dist.barrier()
        parallel_state.destroy_model_parallel()

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Torch's, or the vendor's, inside of Megatron's."""
        return [chained.optimizer for chained in self._optimizer.chained_optimizers]

    @property
    def parts(self) -> tuple[Part, ...]:
        """Main weights beside 16-bit parameters."""
        main: tuple[Part, ...] = ("main_weights",) if self.hp.precision in HALF_PRECISIONS else ()
        return ("weights", *main, "exp_avg", "exp_avg_sq")

    def gather(self, part: Part) -> Iterator[tuple[str, Tensor]]:
        """See the base class: the ranks of a stage join a tensor, and the first of them sends it to rank 0."""
        dtype = self._chunks[0].config.params_dtype if part == "weights" else torch.float32
        if part == "weights" and self._arguments["data_parallel"]["use_distributed_optimizer"]:
            for chunk in self._chunks:  # else each replica has its own share of them up to date until it goes on
                chunk.start_param_sync(force_sync=True)
        rank = dist.get_rank()
        for name, (shape, owner) in self._owners().items():
            if name in self._released:
                whole = self._join(self._released[name], part)
            else:
                whole = torch.empty(shape if rank == 0 else 0, dtype=dtype, device=self.device)
            if owner != 0 and rank == owner:
                dist.send(whole, 0)
            elif owner != 0 and rank == 0:
                dist.recv(whole, owner)
            yield name, whole

    def restore(self, part: Part, folder: Path) -> None:
        """See the base class."""
        read_part(self._released.items(), folder, partial(self._write, part))

    def _owners(self) -> dict[str, tuple[torch.Size, int]]:
        """All tensors in one order on every rank, with their shapes and the first rank of those that hold them."""
        told: list[dict[str, torch.Size]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(told, {name: target.shape for name, target in self._released.items()})
        owners: dict[str, tuple[torch.Size, int]] = {}
        for rank, held in enumerate(told):
            for name, shape in held.items():
                owners.setdefault(name, (shape, rank))
        return owners

    def _join(self, target: Released, part: Part) -> Tensor:
        """The whole tensor from the parts of the tensor parallel ranks."""
        group, size = parallel_state.get_tensor_model_parallel_group(), target.split.size
        rows = []
        for piece in target.pieces:
            held = piece.parameter.detach() if part == "weights" else self._state.read(piece.parameter, part)
            own = piece.view(held).contiguous()
            parts = [torch.empty_like(own) for _ in range(size)]
            dist.all_gather(parts, own, group=group)
            rows.append(piece.whole(parts))
        return torch.cat(rows)

    def _fill(self, stages: list[nn.Module]) -> None:
        """Values by the names of the released checkpoint, the same for every way of splitting."""
        attention = type(build_decoder(self.plan)).attention_type
        split = Split(
            parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_tensor_model_parallel_world_size()
        )
        for stage in stages:
            self._released |= released_tensors(stage, self.plan.model, attention, split)
        self._elsewhere = released_names(self.plan.model, attention) - self._released.keys()
        self.initialise(self._released.items(), place, self._elsewhere)

    def _write(self, part: Part, target: Released, full: Tensor) -> None:
        for piece, own in target.parts(full):
            self._state.write(piece.parameter, piece.view, part, own)

    def _count(self, stages: list[nn.Module]) -> ParameterCount:
        """Of the whole model: split parameters count as often as they are split, and pipeline ranks add up."""
        tp = parallel_state.get_tensor_model_parallel_world_size()
        total = embedding = 0
        for stage in stages:
            for name, parameter in stage.named_parameters():
                numel = parameter.numel() * (tp if getattr(parameter, "tensor_model_parallel", False) else 1)
                total += numel
                embedding += numel if name.startswith(("embedding.", "output_layer.")) else 0
        counts = torch.tensor([total, embedding], device=self.device)
        dist.all_reduce(counts, group=parallel_state.get_pipeline_model_parallel_group())
        total, embedding = counts.tolist()
        return ParameterCount(total=total, trainable=total, embedding=embedding)

    def _replicate(self, stages: list[nn.Module]) -> list[DistributedDataParallel]:
        config = DistributedDataParallelConfig(**self._arguments["data_parallel"])
        chunks = [
            # Only the first stage of a rank communicates when no other computation is left to hide it.
            DistributedDataParallel(stage.config, config, stage, disable_bucketing=number > 0)
            for number, stage in enumerate(stages)
        ]
        no_sync = [chunk.no_sync for chunk in chunks]
        for chunk in chunks:
            chunk.config.finalize_model_grads_func = finalize_model_grads
            if config.overlap_grad_reduce:
                chunk.config.no_sync_func = no_sync if len(chunks) > 1 else no_sync[0]
        return chunks

    def _build_optimizer(self, optimizer_wrap: OptimizerWrap) -> MegatronOptimizer:
        """Megatron's, each optimizer inside of it being core's (torch's fused AdamW) or the vendor's.

        No parameter is spared from weight decay, as in the other engines.
        """
        stage = self._chunks[0].config
        config = OptimizerConfig(params_dtype=stage.params_dtype, **self._arguments["optimizer"])
        optimizer = get_megatron_optimizer(
            config, self._chunks, config_overrides={}, use_gloo_process_groups=False
        )
        model = nn.ModuleList(chunk.module for chunk in self._chunks)
        for chained in optimizer.chained_optimizers:
            chained.optimizer = self._swap(chained.optimizer, lambda inner: optimizer_wrap(inner, model))
        return optimizer

    def _swap(
        self,
        megatrons: torch.optim.Optimizer,
        wrap: Callable[[torch.optim.Optimizer], torch.optim.Optimizer],
    ) -> torch.optim.Optimizer:
        """The optimizer that steps in place of ``megatrons``, with its parameters and the marks of its groups.

        The distributed optimizer's parameters can be views, which no constructor takes: it gets aliases of them.
        """
        groups = [dict(group) for group in megatrons.param_groups]
        if USING_PYTORCH_OPTIMIZER:  # TransformerEngine's and Apex's are fused already
            leaves = [{"params": [p if p.is_leaf else p.detach() for p in group["params"]]} for group in groups]
            megatrons = build_optimizer(leaves, self.hp)
        wrapped = wrap(megatrons)
        for group, marked in zip(wrapped.param_groups, groups, strict=True):
            group["params"] = marked["params"]
            group.update({key: value for key, value in marked.items() if key not in group})
        return wrapped

    def _forward(self, micro_batches: MicroBatches, model: nn.Module) -> tuple[Tensor, Any]:
        """Megatron's ``forward_step_func``; stages other than the first take their input from the one before."""
        micro_batch = next(micro_batches)
        input_ids, labels = micro_batch["input_ids"], micro_batch["labels"]
        output = model(input_ids, position_ids=None, attention_mask=None, labels=labels)
        return output, partial(self._objective, labels)

    def _objective(self, labels: Tensor, losses: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The scaled sum over labels of ``losses`` ``[B, S]``, times GAS, which the schedule divides it by."""
        total = (losses.float() * (labels != IGNORED_LABEL)).sum()
        self._cross_entropy = self._cross_entropy + total.detach()
        return total * (self._scale * self.hp.gradient_accumulation_steps), {}

    def _update(self) -> Tensor:
        """Clip and step; the global norm before clipping. Megatron's own clipping waits for the device.

        Each optimizer knows which gradients it counts in a norm, and over which ranks.
        """
        self._optimizer.prepare_grads()
        square = torch.zeros((), device=self.device)
        for chained in self._optimizer.chained_optimizers:
            counted = chained.get_main_grads_for_grad_norm()
            own = torch.zeros((), device=self.device)
            if counted:
                own = torch.stack(torch._foreach_norm(counted, 2.0, dtype=torch.float32)).square().sum()
            dist.all_reduce(own, group=chained.get_grad_stats_parallel_group())
            square += own
        norm = square.sqrt()
        if self.hp.clip_grad_norm > 0:
            coefficient = (self.hp.clip_grad_norm / (norm + 1e-6)).clamp(max=1.0)
            for chained in self._optimizer.chained_optimizers:
                grads = [p.grad for p in chained.get_parameters() if p.grad is not None]
                torch._foreach_mul_(grads, coefficient)
        self._optimizer.step_with_ready_grads()
        return norm
