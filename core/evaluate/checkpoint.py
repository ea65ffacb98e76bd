"""A model to be asked outside of a run: from a run's folder, or from one with a released model's files."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from core.data.embedded import tokenizer_file
from core.data.tokenizer import TOKENIZER_FILE
from core.errors import UsageError
from core.models.adapters import add_adapters, is_adapter, load_adapters, released_name
from core.models.initialise import initialise_random, load_safetensors, place_plain
from core.record import read_plan
from core.training import ADAPTER_FOLDER
from core.worker import PLAN_FILE
from schemas.base import explain
from schemas.hyperparameters import HyperParameters, LoraSpec
from schemas.model import DecoderSpec, VisionSpec

if TYPE_CHECKING:
    from core.models.decoder import Decoder

CONFIG_FILE = "config.json"
_FACTORIES = {"llama": "core.models.llama:Llama2", "llava": "core.models.llava:Llava"}
"""``model_type`` of a released configuration -> who builds it."""


@dataclass(frozen=True)
class Checkpoint:
    """What the files say: the model's shape, and where its values are."""

    spec: DecoderSpec
    tokenizer: Path
    weights: Path | None
    """A folder of safetensors; None: the values that ``seed`` draws, as the run began with."""
    seed: int = 0
    lora: LoraSpec | None = None
    adapters: Path | None = None
    vision: VisionSpec | None = None


def read_checkpoint(folder: Path, tokenizer: Path | None) -> Checkpoint:
    """What is in ``folder``: a run of a case with adapters, or a model with ``config.json`` and safetensors.

    UsageError for a folder that is neither, and for a kind of model that core does not build.
    """
    if (folder / PLAN_FILE).is_file():
        plan = read_plan(folder)
        if plan.lora is None or not (folder / ADAPTER_FOLDER).is_dir():
            raise UsageError(
                f"{folder} is a run that kept no adapters",
                "give a finished run of a case with LoRA, or a model's folder",
            )
        weights = None if plan.weights is None else Path(plan.weights).expanduser()
        found = tokenizer or tokenizer_file(plan)
        seed = plan.hyper_parameters.seed
        return Checkpoint(plan.model, found, weights, seed, plan.lora, folder / ADAPTER_FOLDER)
    spec, vision = _shape(folder / CONFIG_FILE)
    return Checkpoint(spec, tokenizer or folder / TOKENIZER_FILE, folder, vision=vision)


def _shape(file: Path) -> tuple[DecoderSpec, VisionSpec | None]:
    """The language model's shape, and the tower's where there is one, as transformers writes them."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{file} cannot be read: {error}",
            "give a run's folder, or one with a model's config.json and safetensors",
        ) from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in _FACTORIES:
        raise UsageError(f"{file}: model_type {kind!r} is not known", f"give one of: {', '.join(_FACTORIES)}")
    images = config.get("vision_config")
    if kind == "llava" and not (isinstance(images, dict) and isinstance(config.get("text_config"), dict)):
        raise UsageError(
            f"{file} lacks text_config or vision_config", "give a LLaVA in transformers' layout (llava-hf)"
        )
    try:
        spec = DecoderSpec.model_validate(_decoder(config.get("text_config", config), _FACTORIES[kind]))
        if kind != "llava":
            return spec, None
        return spec, VisionSpec.model_validate(_vision(images, config.get("vision_feature_layer", -2)))
    except ValidationError as error:
        raise UsageError(explain(error, str(file)), "give the config.json that came with the weights") from error


def _decoder(config: Mapping[str, Any], factory: str) -> dict[str, Any]:
    return {
        "factory": factory,
        "nominal_parameters": 1,  # no FLOPs are counted
        "hidden_size": config.get("hidden_size"),
        "intermediate_size": config.get("intermediate_size"),
        "num_layers": config.get("num_hidden_layers"),
        "num_heads": config.get("num_attention_heads"),
        "num_kv_heads": config.get("num_key_value_heads", config.get("num_attention_heads")),
        "vocab_size": config.get("vocab_size"),
        "max_positions": config.get("max_position_embeddings"),
        "norm_eps": config.get("rms_norm_eps"),
        "rope_theta": config.get("rope_theta", 10000.0),
    }


def _vision(config: Mapping[str, Any], feature_layer: Any) -> dict[str, Any]:
    return {
        "hidden_size": config.get("hidden_size"),
        "intermediate_size": config.get("intermediate_size"),
        "num_layers": config.get("num_hidden_layers"),
        "num_heads": config.get("num_attention_heads"),
        "image_size": config.get("image_size"),
        "patch_size": config.get("patch_size"),
        "feature_layer": feature_layer,
        "norm_eps": config.get("layer_norm_eps", 1e-5),
    }


def load_model(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Decoder:
    """The model with its values on ``device``, in eval mode; UsageError where the files do not fit its shape."""
    module, _, name = checkpoint.spec.factory.partition(":")
    factory: Callable[..., Decoder] = getattr(importlib.import_module(module), name)
    unused = HyperParameters(precision="fp32", local_batch_size=1, sequence_length=1, learning_rate=1.0)
    with torch.device("meta"):
        model = factory(checkpoint.spec, unused, *([] if checkpoint.vision is None else [checkpoint.vision]))
        if checkpoint.lora is not None:
            add_adapters(model, checkpoint.lora)
    model = model.to(dtype).to_empty(device=device)
    base = [(released_name(name), own) for name, own in model.named_parameters() if not is_adapter(name)]
    if checkpoint.weights is None:
        initialise_random(base, checkpoint.spec, checkpoint.seed, place_plain)
    else:
        load_safetensors(base, checkpoint.weights, place_plain, naming=model.naming)
    if checkpoint.adapters is not None:
        load_adapters(model, checkpoint.adapters)
    return model.eval()
