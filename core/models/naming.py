"""What released checkpoints call a model's tensors, and which of its parameters hold several of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from core.models.fused import FusedRows


@dataclass(frozen=True)
class Naming:
    """How tensors of a checkpoint become a model's parameters, and these become what a checkpoint holds."""

    forms: Sequence[Mapping[str, str]] = ()
    """Of each form that the model was released in: beginning of a name there -> beginning of the parameter's."""
    unused: tuple[str, ...] = ()
    """Beginnings of names, as the model would call them, of tensors that it is built without."""
    longer: tuple[str, ...] = ()
    """Parameters that a checkpoint may hold more rows of; the first ones are taken."""
    fused: FusedRows = field(default_factory=dict)
    """Parameters that hold several tensors."""

    def tensors(self, name: str) -> tuple[str, ...]:
        """What is held by the parameter called ``name``, from its first row on; most hold what has their name."""
        return tuple(self.fused.get(name, (name,)))

    def split(self, name: str, whole: Tensor) -> list[tuple[str, Tensor]]:
        """The same with views of ``whole``, which has the parameter's shape."""
        if name not in self.fused:
            return [(name, whole)]
        rows = self.fused[name]
        return list(zip(rows, torch.split(whole, list(rows.values())), strict=True))

    def sources(self, stored: Iterable[str]) -> dict[str, str]:
        """Tensor, as the model calls it -> its name among those ``stored``; unknown ones keep theirs."""
        renamed = {self._own(name): name for name in stored}
        return {name: source for name, source in renamed.items() if not name.startswith(self.unused)}

    def _own(self, stored: str) -> str:
        for form in self.forms:
            for beginning, own in form.items():
                if stored.startswith(beginning):
                    return own + stored.removeprefix(beginning)
        return stored


PLAIN = Naming()
"""Of a model whose parameters are those that were released."""
