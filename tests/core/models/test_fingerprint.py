"""The hash of the initial weights: the same for the same values, whoever places them; another for others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from safetensors.torch import save_file

from core import plan, plugins
from core.cases import resolve
from core.models import fingerprint, initialise
from core.models.fingerprint import weights_sha256
from schemas.plan import Plan

CPU = torch.device("cpu")


@pytest.fixture
def planned() -> Callable[..., Plan]:
    def make(**sets: Any) -> Plan:
        loaded = resolve("llama2_7b")
        config = loaded.config("CPUx1x2")
        request = plan.Request(loaded, config, config.value.runs[0], plugins.select("cpu"), "torch", sets)
        return plan.build(request)

    return make


def test_random_weights_follow_from_seed_deviation_and_initialiser(
    planned: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = weights_sha256(planned(), CPU)
    assert weights_sha256(planned(precision="amp", attention="eager", zero_stage=0), CPU) == known
    assert weights_sha256(planned(seed=7), CPU) != known
    assert weights_sha256(planned(**{"model.initializer_range": 0.01}), CPU) != known
    monkeypatch.setattr(initialise, "parameter_seed", lambda seed, name: seed)
    assert weights_sha256(planned(), CPU) != known


def test_a_checkpoint_is_not_the_weights_alone(planned: Callable[..., Plan], tmp_path: Path) -> None:
    save_file({"a.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    alone = weights_sha256(planned(weights=str(tmp_path)), CPU)
    assert weights_sha256(planned(**{"checkpoint.load": str(tmp_path)}), CPU) != alone


def test_the_last_bit_of_a_value_does_not_matter(
    planned: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = weights_sha256(planned(), CPU)
    draw = initialise.initialise_random

    def other_cpu(named: Any, spec: Any, seed: int, place: Any, **options: Any) -> None:
        draw(named, spec, seed, lambda target, full: place(target, full.nextafter(full + 1)), **options)

    monkeypatch.setattr(fingerprint, "initialise_random", other_cpu)
    assert weights_sha256(planned(), CPU) == known


def save(folder: Path, *files: dict[str, torch.Tensor]) -> Path:
    """A folder of one file, or of several with their index."""
    folder.mkdir()
    names = {}
    for number, tensors in enumerate(files):
        file = f"model-{number}.safetensors"
        save_file(tensors, folder / file)
        names |= dict.fromkeys(tensors, file)
    if len(files) > 1:
        index = {"weight_map": names}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def test_a_checkpoint_is_told_by_its_tensors(planned: Callable[..., Plan], tmp_path: Path) -> None:
    def sha256(name: str, *files: dict[str, torch.Tensor]) -> str:
        return weights_sha256(planned(weights=str(save(tmp_path / name, *files))), CPU)

    one, two = torch.arange(2000.0), torch.arange(6.0).reshape(2, 3)
    known = sha256("whole", {"a.weight": one, "b.weight": two})
    assert sha256("split", {"b.weight": two}, {"a.weight": one}) == known
    assert sha256("buffer", {"a.weight": one, "b.weight": two, "rotary_emb.inv_freq": one + 0}) == known
    others = {
        "value": {"a.weight": one + 1, "b.weight": two},
        "shape": {"a.weight": one, "b.weight": two.T.contiguous()},
        "type": {"a.weight": one.half(), "b.weight": two},
        "name": {"a.weight": one, "c.weight": two},
        "fewer": {"a.weight": one},
    }
    found = [sha256(name, tensors) for name, tensors in others.items()]
    assert len({known, *found}) == 1 + len(others)
