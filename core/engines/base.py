"""What every engine does the same way, and what each must implement."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from core.checkpoint.folder import began_with
from core.checkpoint.tensors import read_weights
from core.data.loader import StepBatch
from core.engines.catalog import engine_spec
from core.errors import DeviceError, UsageError
from core.models.adapters import initialise_adapters, is_adapter, released_name
from core.models.decoder import Decoder
from core.models.initialise import ParameterCount, Place, T, initialise_random, load_safetensors
from core.models.naming import PLAIN, Naming
from core.optimizer_state import LossScaler, allocate
from schemas.checkpoint import Part
from schemas.chip import Device
from schemas.plan import Plan

BuildModel = Callable[[int], nn.Module]
"""Pipeline stage -> its model, without values yet; the bound hook ``build_model``."""
OptimizerWrap = Callable[[torch.optim.Optimizer, nn.Module], torch.optim.Optimizer]
"""The bound hook ``optimizer_wrap``."""


@dataclass(frozen=True)
class ModelFacts:
    """What was really built."""

    parameters: ParameterCount
    weights: Literal["random", "pretrained"]
    """What training began with, before any checkpoint."""
    optimizer: str
    """Class of the optimizer that steps."""


@dataclass(frozen=True)
class StepResult:
    """Scalars of one optimizer step, left on the device so that reading them is the loop's decision."""

    loss: Tensor
    """Mean cross-entropy over the label tokens of the global batch; 0 where it has none."""
    grad_norm: Tensor | None
    """Global gradient norm before clipping; None where the engine does not tell."""


class Engine(ABC):
    """Trains one model on this rank's device; ranks are data parallel unless the engine says otherwise."""

    def __init__(self, plan: Plan, device: Device) -> None:
        self.plan = plan
        self.hp = plan.hyper_parameters
        self.device = torch.device(device.torch_device)
        self.data_group: dist.ProcessGroup | None = None
        """The ranks that hold the other parts of the batch; None for all ranks."""

    @abstractmethod
    def setup(self, build_model: BuildModel, optimizer_wrap: OptimizerWrap) -> ModelFacts:
        """Build, shard and initialise the model and its optimizer. Called once, before the first step."""

    @abstractmethod
    def step(self, batch: StepBatch, learning_rate: float) -> StepResult:
        """One optimizer step over GAS micro-batches."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the model, so that the process group can be destroyed."""

    def leave(self) -> None:
        """Leave the process group, after ``close``; another run may follow in this process."""
        dist.destroy_process_group()

    def trained_model(self) -> nn.Module:
        """What is called outside of training; of an engine whose spec says that it ``evaluates``."""
        raise NotImplementedError

    def autocast(self) -> AbstractContextManager[object]:
        """What a forward pass runs under; nothing by default."""
        return nullcontext()

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """The model in eval mode and without gradients; every rank must call it equally often."""
        model = self.trained_model()
        model.eval()
        with torch.no_grad(), self.autocast():
            yield model
        model.train()

    def adapters(self) -> dict[str, Tensor]:
        """Every adapter parameter by its name in the model, whole; a collective where they are sharded."""
        own = [pair for pair in self.trained_model().named_parameters() if is_adapter(pair[0])]
        return {name: self.whole(parameter) for name, parameter in own}

    def whole(self, parameter: nn.Parameter) -> Tensor:
        """The full value of a parameter, of which this rank may hold a part only."""
        return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach()

    @property
    @abstractmethod
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers that step on this rank."""

    @property
    @abstractmethod
    def parts(self) -> tuple[Part, ...]:
        """What a checkpoint of this run holds for every weight."""

    @abstractmethod
    def gather(self, part: Part) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of ``part``, whole, by its weight's released name; on rank 0, on others it may be anything.

        All ranks take part, in the same order. One tensor is whole at a time, so take each to its end before the
        next is asked for. Frozen weights have no moments, and no main weights; the others' exist after a step.
        """

    @abstractmethod
    def restore(self, part: Part, folder: Path) -> None:
        """Read ``part`` from the safetensors in ``folder``; called after ``setup`` and ``allocate_state``.

        Not for ``weights``, which ``setup`` has filled.
        """

    def allocate_state(self) -> None:
        """Make the optimizer's state before the first step does."""
        for optimizer in self.optimizers:
            allocate(optimizer)

    @property
    def scaler(self) -> LossScaler | None:
        """The loss scaler; None where there is none."""
        return None

    def facts(self, counted: ParameterCount, optimizer: torch.optim.Optimizer) -> ModelFacts:
        """What ``setup`` returns; ``counted`` was taken before sharding hid the full shapes."""
        kind = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
        return ModelFacts(counted, began_with(self.plan), kind)

    def decoder(self, model: nn.Module) -> Decoder:
        """``model``, if it is a whole one as core builds it; DeviceError when a vendor's hook built another.

        UsageError where the plan wants attention of the vendor's own, and there is none.
        """
        if isinstance(model, Decoder):
            if self.hp.attention == "vendor" and not model.has_vendor_attention:
                raise UsageError(
                    f"attention 'vendor' is a kernel that a vendor's plugin puts into the model, and that of "
                    f"{self.plan.vendor!r} puts none",
                    "choose attention 'sdpa'",
                )
            return model
        raise DeviceError(
            f"hook build_model returned a {type(model).__name__}, engine {self.plan.engine} trains a Decoder",
            f"return a core.models.decoder.Decoder from the plugin of vendor {self.plan.vendor!r}",
        )

    def initialise(
        self,
        targets: Iterable[tuple[str, T]],
        place: Place[T],
        elsewhere: Collection[str] = (),
        naming: Naming = PLAIN,
    ) -> None:
        """Fill what ``targets`` name, one tensor at a time, from the plan's checkpoint, its weights or at random.

        Adapters are new, but from a checkpoint. ``elsewhere``: names of the model's tensors that other ranks fill.
        ``naming``: what checkpoints call them.
        """
        given = list(targets)
        if self.plan.checkpoint.load is not None:
            checkpoint = Path(self.plan.checkpoint.load).expanduser()
            named = [(released_name(name), target) for name, target in given]
            read_weights(named, checkpoint, place, exact="main_weights" not in self.parts)
            return
        if self.plan.lora is not None:
            initialise_adapters([pair for pair in given if is_adapter(pair[0])], self.hp.seed, place)
        targets = [(released_name(name), target) for name, target in given if not is_adapter(name)]
        if self.plan.weights is not None:
            load_safetensors(targets, Path(self.plan.weights), place, elsewhere=elsewhere, naming=naming)
        else:
            initialise_random(targets, self.plan.model, self.hp.seed, place)

    def fill_main_weights(
        self,
        targets: Iterable[tuple[str, T]],
        place: Place[T],
        elsewhere: Collection[str] = (),
        naming: Naming = PLAIN,
    ) -> None:
        """As ``initialise``, where a framework keeps main weights beside 16-bit parameters.

        Its own are the parameters' values, which were rounded to 16 bits: from there, updates of less than half a
        step between two 16-bit numbers would at first change no parameter at all, where on engine torch they
        change their share of them. A checkpoint's are restored later.
        """
        if "main_weights" in self.parts and self.plan.checkpoint.load is None:
            self.initialise(targets, place, elsewhere, naming)

    def gradient_scale(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        """Factor for a rank's summed loss, and the global batch's label tokens, both on the device.

        Data parallel gradients are averaged over the ranks, so the sum over a rank's labels is multiplied by
        DP / (label tokens of the whole global batch): uneven labels weigh as they should, which a mean of the
        ranks' means gets wrong. A global batch without any (of prompts longer than a sequence, say) counts as
        having one: its loss and gradients are 0 then, and not 0 / 0.
        """
        # Filled on the device: a copy from the host would wait for everything that is queued there.
        tokens = torch.full((), float(batch.label_tokens), dtype=torch.float32, device=self.device)
        self._sum_up(tokens, self.data_group)
        tokens.clamp_(min=1.0)
        return self.plan.parallel.dp / tokens, tokens

    def global_loss(self, cross_entropy_sum: Tensor, tokens: Tensor) -> Tensor:
        """Mean cross-entropy over the global batch from this rank's sum."""
        total = cross_entropy_sum.detach().clone()
        self._sum_up(total)
        return total / tokens

    @staticmethod
    def _sum_up(number: Tensor, group: dist.ProcessGroup | None = None) -> None:
        """Over the group, in place; of one rank without a collective, which would cost host time in every step."""
        if dist.get_world_size(group) > 1:
            dist.all_reduce(number, group=group)


def load_engine(name: str) -> type[Engine]:
    """The engine class called ``name``; imports its framework."""
    module, _, attribute = engine_spec(name).implementation.partition(":")
    loaded: type[Engine] = getattr(importlib.import_module(module), attribute)
    return loaded
