"""Saving and going on in one process: what is written when, and what cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

import torch.distributed as dist
from safetensors.torch import load_file, save_file

from core.checkpoint import folder as folders
from core.checkpoint import training
from core.errors import DeviceError, UsageError
from tests.core.engines.job import Job, set_up

REACHED = training.Reached(step=2, weights="random", data_manifest_sha256="da" * 32)


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def job(**sets: object) -> Job:
    case = str(sets.pop("case", "llama2_7b"))
    return set_up({"engine": "torch", "case": case, "sets": {"zero_stage": 0} | sets}, rank=0, world=1)


def trained() -> Job:
    ready = job()
    ready.train(1, 2)
    return ready


def nothing(done: int, total: int) -> None:
    pass


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    training.save(trained().engine, tmp_path / "saved", REACHED, nothing)
    return tmp_path / "saved"


def load(folder: Path) -> Job:
    ready = job(**{"checkpoint.load": str(folder)})
    training.load(ready.engine, folder, folders.read(folder), nothing)
    return ready


def test_every_part_is_told_of_when_it_is_done(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    parts = [(1, 3), (2, 3), (3, 3)]
    training.save(trained().engine, tmp_path / "saved", REACHED, lambda *done: told.append(done))
    assert told == parts
    ready = job(**{"checkpoint.load": str(tmp_path / "saved")})
    training.load(
        ready.engine, tmp_path / "saved", folders.read(tmp_path / "saved"), lambda *done: told.append(done)
    )
    assert told == parts * 2
    assert ready.facts.weights == "random"


def test_adapters_go_on_and_frozen_weights_have_no_moments(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    first = job(case="llama2_7b_finetune", precision="bf16")
    first.train(1, 2)
    training.save(first.engine, tmp_path / "saved", REACHED, nothing)
    weights, moments = (load_file(tmp_path / "saved" / part / "model.safetensors") for part in ("", "exp_avg"))
    assert "model.layers.0.self_attn.q_proj.weight" in weights, "as it is released"
    assert weights.keys() > moments.keys() == {name for name in weights if ".lora_" in name}
    assert not (tmp_path / "saved" / folders.CONFIG).exists()
    second = job(case="llama2_7b_finetune", precision="bf16", **{"checkpoint.load": str(tmp_path / "saved")})
    training.load(second.engine, tmp_path / "saved", folders.read(tmp_path / "saved"), nothing)
    state = torch.get_rng_state()
    losses = second.train(3, 4)
    torch.set_rng_state(state)
    assert losses == first.train(3, 4)


def test_main_weights_go_on_in_fp32(tmp_path: Path) -> None:
    first = job(precision="bf16")
    first.train(1, 2)
    training.save(first.engine, tmp_path / "saved", REACHED, nothing)
    main = load_file(tmp_path / "saved" / "main_weights" / "model.safetensors")
    second = job(precision="fp32", **{"checkpoint.load": str(tmp_path / "saved")})
    assert all(torch.equal(tensor, main[name]) for name, tensor in second.engine.gather("weights"))


def test_a_checkpoint_that_is_cut_short_is_never_taken_for_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = trained()

    def cut(path: Path, _: str) -> NoReturn:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(training, "write_text", cut)
        with pytest.raises(UsageError, match=r"saved cannot be written: .*No space left"):
            training.save(ready.engine, tmp_path / "saved", REACHED, nothing)
    assert [path.name for path in tmp_path.iterdir()] == ["saved.partial"]
    with pytest.raises(UsageError, match="holds no whole checkpoint"):
        folders.read(tmp_path / "saved.partial")
    with pytest.raises(UsageError, match=r"saved\.partial cannot be written: .*File exists"):
        training.save(ready.engine, tmp_path / "saved", REACHED, nothing)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        training.save(trained().engine, tmp_path / "file" / "saved", REACHED, nothing)


def test_a_model_that_transformers_does_not_know_gets_no_config(tmp_path: Path, saved: Path) -> None:
    assert (saved / folders.CONFIG).exists()
    baichuan = job(case="baichuan2_13b")
    baichuan.train(1, 1)
    training.save(baichuan.engine, tmp_path / "baichuan", REACHED, nothing)
    assert folders.read(tmp_path / "baichuan").plan.case == "baichuan2_13b"
    assert not (tmp_path / "baichuan" / folders.CONFIG).exists()


@pytest.mark.parametrize("part", ["weights", "exp_avg"])
def test_a_missing_tensor(part: str, saved: Path) -> None:
    file = folders.part_folder(saved, part) / "model.safetensors"  # type: ignore[arg-type]
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file)
    with pytest.raises(UsageError, match=r"lacks tensor model\.norm\.weight"):
        load(saved)


def test_a_missing_part(saved: Path) -> None:
    (saved / "exp_avg_sq" / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"exp_avg_sq holds 0 \*\.safetensors files"):
        load(saved)


def test_a_file_that_was_cut(saved: Path) -> None:
    file = saved / "exp_avg" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UsageError, match="cannot be read as safetensors"):
        load(saved)


def test_the_generator_goes_on_on_the_same_ranks_only(saved: Path) -> None:
    checkpoint = folders.read(saved)
    state = torch.get_rng_state()
    torch.rand(3)
    load(saved)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    other = checkpoint.plan.model_copy(update={"engine": "deepspeed"})
    ready = job(**{"checkpoint.load": str(saved)})
    training.load(ready.engine, saved, checkpoint.model_copy(update={"plan": other}), nothing)
    assert not torch.equal(torch.get_rng_state(), state)


def test_an_optimizer_without_moments_is_told(tmp_path: Path) -> None:
    ready = job()
    ready.engine._optimizer = torch.optim.SGD(ready.engine._parameters, lr=1.0)  # type: ignore[attr-defined]
    with pytest.raises(DeviceError, match="SGD keeps no exp_avg"):
        training.save(ready.engine, tmp_path / "saved", REACHED, nothing)
