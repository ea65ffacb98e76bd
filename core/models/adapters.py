"""Low-rank adapters by peft: added to a model, filled, and kept where peft finds them again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from core.errors import UsageError
from core.models.initialise import Place, T, parameter_seed

if TYPE_CHECKING:
    from peft import LoraConfig

    from core.models.decoder import Decoder
    from schemas.hyperparameters import LoraSpec

_NAME = "default"
"""peft's name of the only adapter."""
_BASE = ".base_layer."
_FILE = "adapter_model.safetensors"


def add_adapters(model: Decoder, lora: LoraSpec) -> None:
    """Put adapters beside the target modules and freeze everything else; on the meta device, before sharding.

    UsageError where the model has no module of such a name.
    """
    from peft import inject_adapter_in_model

    modules = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    unknown = [name for name in lora.target_modules.names if name not in modules]
    if unknown:
        raise UsageError(
            f"lora.target_modules names {unknown[0]!r}, which {type(model).__name__} does not have",
            f"choose among {', '.join(sorted(modules))}",
        )
    inject_adapter_in_model(_peft_config(lora), model, adapter_name=_NAME)
    for block in model.blocks:
        block.draws = lora.dropout > 0


def _peft_config(lora: LoraSpec) -> LoraConfig:
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules.names),
        bias="none",
    )


def is_adapter(name: str) -> bool:
    """Whether the parameter called ``name`` belongs to an adapter."""
    return ".lora_A." in name or ".lora_B." in name


def released_name(name: str) -> str:
    """What a parameter is called in the model without adapters."""
    return name.replace(_BASE, ".")


def initialise_adapters(targets: Iterable[tuple[str, T]], seed: int, place: Place[T]) -> None:
    """As peft does: ``A`` uniform within ±1/sqrt(inputs), ``B`` zero, so that the model begins unchanged.

    Every parameter has its own generator, as in ``initialise_random``.
    """
    for name, target in targets:
        full = torch.zeros(target.shape, device=target.device, dtype=torch.float32)
        if ".lora_A." in name:
            generator = torch.Generator(device=target.device).manual_seed(parameter_seed(seed, name))
            bound = 1 / math.sqrt(target.shape[1])
            full.uniform_(-bound, bound, generator=generator)
        place(target, full)


def save_adapters(tensors: Mapping[str, Tensor], lora: LoraSpec, base: str | None, folder: Path) -> None:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json``, which ``PeftModel.from_pretrained`` takes.

    ``tensors``: every adapter parameter by its name in the model, whole. ``base``: the weights it was trained on.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    kept = {f"base_model.model.{name.replace(f'.{_NAME}.', '.')}": full for name, full in tensors.items()}
    save_file({name: full.detach().cpu().contiguous() for name, full in kept.items()}, folder / _FILE)
    config = _peft_config(lora)
    config.base_model_name_or_path = base
    config.inference_mode = True
    config.save_pretrained(str(folder))


def load_adapters(model: nn.Module, folder: Path) -> None:
    """Fill the model's adapters from what ``save_adapters`` wrote; UsageError names the file and the tensor."""
    from safetensors.torch import load_file

    path = folder / _FILE
    try:
        stored = load_file(path)
    except Exception as error:
        raise UsageError(
            f"{path} cannot be read as safetensors: {error}", "give the folder of an adapter"
        ) from error
    parameters = {name: parameter for name, parameter in model.named_parameters() if is_adapter(name)}
    names = {f"base_model.model.{name.replace(f'.{_NAME}.', '.')}": name for name in parameters}
    wrong = sorted(names.keys() ^ stored.keys())
    wrong += [name for name in names if not wrong and stored[name].shape != parameters[names[name]].shape]
    if wrong:
        raise UsageError(f"{path}: tensor {wrong[0]} does not fit the model", "use the model it was trained on")
    with torch.no_grad():
        for name, own in names.items():
            cast(Tensor, parameters[own]).copy_(stored[name])
