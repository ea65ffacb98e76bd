"""What released checkpoints call a model's tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Naming:
    """How names in a checkpoint become those of a model's parameters."""

    forms: Sequence[Mapping[str, str]] = ()
    """Of each form that the model was released in: beginning of a name there -> beginning of the parameter's."""
    unused: tuple[str, ...] = ()
    """Beginnings of names, as the model would call them, of tensors that it is built without."""
    longer: tuple[str, ...] = ()
    """Parameters that a checkpoint may hold more rows of; the first ones are taken."""

    def sources(self, stored: Iterable[str]) -> dict[str, str]:
        """Parameter -> its name among those ``stored``; what stands for no parameter keeps its name."""
        renamed = {self._parameter(name): name for name in stored}
        return {name: source for name, source in renamed.items() if not name.startswith(self.unused)}

    def _parameter(self, stored: str) -> str:
        for form in self.forms:
            for beginning, own in form.items():
                if stored.startswith(beginning):
                    return own + stored.removeprefix(beginning)
        return stored


PLAIN = Naming()
"""Of a model whose parameters are called as they were released."""
