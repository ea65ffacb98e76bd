"""Several linear layers of one input as one product.

Of three products of one input, gradients with respect to it are three products, too, and two additions over all of
it. One product whose inner dimension is as long as all of them together needs none, and is faster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

FusedRows = Mapping[str, Mapping[str, int]]
"""Parameter that holds several tensors of a released checkpoint, one below the other -> of each, name and rows."""


class Fused(nn.Module):
    """A module with layers of one input, without bias, whose weights are one parameter, ``<name>.weight``."""

    def __init__(self, name: str, in_features: int, parts: Mapping[str, int]) -> None:
        """``parts``: what released checkpoints call each layer, and how many features it gives."""
        super().__init__()
        self.fused_name, self.parts = name, dict(parts)
        self._sizes = list(parts.values())
        self.is_fused = True
        setattr(self, name, nn.Linear(in_features, sum(self._sizes), bias=False))

    def project(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Every layer's result ``[..., features]`` of ``hidden`` ``[..., in_features]``; views of one tensor."""
        if self.is_fused:
            return torch.split(getattr(self, self.fused_name)(hidden), self._sizes, dim=-1)
        return tuple(getattr(self, part)(hidden) for part in self.parts)

    def separate(self) -> None:
        """Has a layer for each part, by its released name, so that there can be adapters beside it."""
        weight = self.get_parameter(f"{self.fused_name}.weight")
        delattr(self, self.fused_name)
        for part, rows in zip(self.parts, torch.split(weight.detach(), self._sizes), strict=True):
            layer = nn.Linear(weight.shape[1], len(rows), bias=False, device="meta")
            layer.weight = nn.Parameter(rows.clone(), requires_grad=weight.requires_grad)
            setattr(self, part, layer)
        self.is_fused = False


def fused_rows(model: nn.Module) -> FusedRows:
    """Of all the parameters of ``model`` that are several tensors in its released checkpoint."""
    return {
        f"{prefix}{module.fused_name}.weight": {f"{prefix}{part}.weight": n for part, n in module.parts.items()}
        for prefix, module in _all_fused(model)
        if module.is_fused
    }


def separate(model: nn.Module, names: tuple[str, ...]) -> None:
    """Separates those of the fused layers of ``model`` that have a part of one of these names."""
    for _, module in _all_fused(model):
        if not module.parts.keys().isdisjoint(names):
            module.separate()


def linear_names(model: nn.Module) -> set[str]:
    """What released checkpoints call the linear layers of ``model``: the last word of each."""
    fused = [module for _, module in _all_fused(model)]
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return names.difference(module.fused_name for module in fused).union(*(module.parts for module in fused))


def _all_fused(model: nn.Module) -> Iterator[tuple[str, Fused]]:
    """With the beginning of their parameters' names."""
    for name, module in model.named_modules():
        if isinstance(module, Fused):
            yield f"{name}." if name else "", module
