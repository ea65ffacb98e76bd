"""``evaluate``: a run's folder and a Llama's are asked as the model in memory; other folders are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lm_eval")
pytest.importorskip("peft")
pytest.importorskip("sentencepiece")

from core.cases import resolve
from core.cli import main
from core.data.embedded import tokenizer_file
from core.evaluate.checkpoint import load_model, read_checkpoint
from core.models import adapters
from core.models.factory import build_decoder
from core.models.initialise import initialise_random, place_plain
from core.plan import Request, build
from core.plugins import select
from schemas.plan import Plan

pytestmark = pytest.mark.slow  # as test_mmlu: lm-eval alone takes a minute to be installed

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Plan, Any, Path]:
    """A run's plan and folder, and the model that it ended with."""
    monkeypatch.setenv("ACCELMARK_CACHE", str(tmp_path / "cache"))
    loaded = resolve("llama2_7b_finetune")
    config = loaded.config("CPUx1x2")
    small = {"model.hidden_size": 32, "model.intermediate_size": 48, "model.num_layers": 2}
    plan = build(Request(loaded, config, config.value.runs[0], select("cpu"), None, small))
    model = build_decoder(plan).to_empty(device=CPU)
    named = list(model.named_parameters())
    base = [(adapters.released_name(name), own) for name, own in named if not adapters.is_adapter(name)]
    initialise_random(base, plan.model, plan.hyper_parameters.seed, place_plain)
    own = {name: parameter for name, parameter in named if adapters.is_adapter(name)}
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in own.values():
            parameter.normal_(0.0, 0.5)
    folder = tmp_path / "run"
    assert plan.lora is not None
    adapters.save_adapters(own, plan.lora, None, folder / "adapter")
    (folder / "plan.json").write_text(plan.model_dump_json(), encoding="utf-8")
    return plan, model.eval(), folder


def test_a_runs_folder_gives_the_model_that_it_ended_with(
    run: tuple[Plan, Any, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, model, folder = run
    loaded = load_model(read_checkpoint(folder, None), CPU, torch.float32)
    ids = torch.arange(1, 30)[None]
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids), model(input_ids=ids))
    assert main(["evaluate", str(folder), "--shots", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["data"], told["questions"], told["shots"], told["cut_prompts"]) == ("embedded", 48, 1, 0)
    assert 0 <= told["value"] <= 1


def test_a_llamas_folder_is_read_by_its_config(
    run: tuple[Plan, Any, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    plan, model, _ = run
    base = {
        adapters.released_name(n): p.detach() for n, p in model.named_parameters() if not adapters.is_adapter(n)
    }
    folder = tmp_path / "llama"
    folder.mkdir()
    save_file(base, folder / "model.safetensors")
    spec = plan.model
    config = {
        "model_type": "llama", "hidden_size": spec.hidden_size, "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_layers, "num_attention_heads": spec.num_heads, "vocab_size": spec.vocab_size,
        "max_position_embeddings": 4096, "rms_norm_eps": spec.norm_eps,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.model").write_bytes(tokenizer_file(plan).read_bytes())
    assert main(["evaluate", str(folder), "--shots", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[-1].startswith("MMLU (the few embedded questions, 0 shots): ")
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}), encoding="utf-8")
    assert main(["evaluate", str(folder)]) == 2
    assert "model_type 'gpt2' is not known" in capsys.readouterr().err
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": None}), encoding="utf-8")
    assert main(["evaluate", str(folder)]) == 2
    assert "hidden_size" in capsys.readouterr().err


def test_a_folder_without_a_model_is_refused(
    run: tuple[Plan, Any, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(tmp_path / "nothing")]) == 2
    assert "config.json cannot be read" in capsys.readouterr().err
    _, _, folder = run
    (folder / "adapter").rename(folder / "elsewhere")
    assert main(["evaluate", str(folder)]) == 2
    assert "is a run that kept no adapters" in capsys.readouterr().err
