"""Tiny models. Nothing here imports torch at the top, so the core-only environments can collect this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from schemas.hyperparameters import HyperParameters
from schemas.model import DecoderSpec

VOCABULARY = 97


def tiny_spec(model: str = "llama", **changes: Any) -> DecoderSpec:
    """Three blocks of six heads (no power of two, so that ALiBi's slopes interleave) of eight channels."""
    values: dict[str, Any] = {
        "factory": "core.models.llama:Llama2" if model == "llama" else "core.models.baichuan2:Baichuan2",
        "nominal_parameters": 1,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_layers": 3,
        "num_heads": 6,
        "num_kv_heads": 6,
        "vocab_size": VOCABULARY,
        "max_positions": 64,
        "norm_eps": 1e-5,
        "position": "rope" if model == "llama" else "alibi",
    }
    return DecoderSpec(**values | changes)


def tiny_hp(**changes: Any) -> HyperParameters:
    return HyperParameters(
        **{"precision": "fp32", "local_batch_size": 2, "sequence_length": 20, "learning_rate": 1e-3} | changes
    )


def tiny_model(
    model: str = "llama", *, spec: dict[str, Any] | None = None, deviation: float = 0.2, **hp: Any
) -> Any:
    """A model with large, distinct weights: at 0.02 attention is flat, and a wrong bias would not be seen."""
    import torch

    from core.models.baichuan2 import Baichuan2
    from core.models.llama import Llama2

    built = (Llama2 if model == "llama" else Baichuan2)(tiny_spec(model, **spec or {}), tiny_hp(**hp))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, deviation, generator=generator)
    built.apply_activation_checkpointing()
    built.compile_blocks()
    return built


def tiny_batch(length: int = 20) -> Any:
    """Input ids and labels ``[2, length]``; the first three labels of row 0 and the last of row 1 are ignored."""
    import torch

    generator = torch.Generator().manual_seed(11)
    input_ids, labels = torch.randint(0, VOCABULARY, (2, 2, length), generator=generator)
    labels[0, :3] = -100
    labels[1, -1] = -100
    return input_ids, labels


def losses_and_gradients(model: Any, batch: Any) -> tuple[float, float, dict[str, Any]]:
    """Objective, cross-entropy and every gradient after one backward pass."""
    model.zero_grad()
    objective, cross_entropy = model(*batch)
    objective.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return objective.item(), cross_entropy.item(), gradients


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_spec() -> Callable[..., DecoderSpec]:
    return tiny_spec


@pytest.fixture
def make_hp() -> Callable[..., HyperParameters]:
    return tiny_hp


@pytest.fixture
def make_model() -> Callable[..., Any]:
    return tiny_model


@pytest.fixture
def batch() -> Any:
    return tiny_batch()


@pytest.fixture
def run_backward() -> Callable[[Any, Any], tuple[float, float, dict[str, Any]]]:
    return losses_and_gradients


@pytest.fixture(autouse=True)
def _forget_compilations(request: pytest.FixtureRequest) -> Iterator[None]:
    """All blocks share the code that is compiled, of which torch keeps only so many versions."""
    yield
    if request.node.get_closest_marker("gpu"):
        torch = pytest.importorskip("torch")
        torch._dynamo.reset()
