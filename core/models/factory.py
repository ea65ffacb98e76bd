"""A case's own model, from the factory that it names."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from core.models.decoder import Decoder
    from schemas.plan import Plan


def build_decoder(plan: Plan, stage: int = 0) -> Decoder:
    """The whole model, on the meta device; ``stage`` is 0, for nothing is split."""
    assert stage == 0
    module, _, name = plan.model.factory.partition(":")
    factory: Callable[..., Decoder] = getattr(importlib.import_module(module), name)
    vision = () if plan.vision is None else (plan.vision,)
    with torch.device("meta"):
        model = factory(plan.model, plan.hyper_parameters, *vision)
        if plan.lora is not None:
            from core.models.adapters import add_adapters

            add_adapters(model, plan.lora)
    return model
