"""``evaluate`` of a LLaVA's folder, as transformers writes it: MMMU, with the tower."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("pyarrow")
pytest.importorskip("PIL")
pytest.importorskip("sentencepiece")

from core.cli import main
from core.data.embedded import embedded_tokenizer
from core.evaluate.checkpoint import load_model, read_checkpoint

IMAGE_TOKEN, PATCHES = 511, 4


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ACCELMARK_CACHE", str(tmp_path / "cache"))
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=4, vocab_size=512, rms_norm_eps=1e-5, max_position_embeddings=1024,
        ),
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=28,
            patch_size=14,
        ),
        image_token_id=IMAGE_TOKEN,
    )  # fmt: skip
    torch.manual_seed(1)
    transformers.LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "llava")
    tokenizer = embedded_tokenizer(tmp_path / "cache", 512)
    (tmp_path / "llava" / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    return tmp_path / "llava"


def test_a_llavas_folder_is_asked_mmmu(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["data"], told["questions"]) == ("embedded", 20)
    assert {*told["subjects"]} == {"Colours", "Comparisons", "Shapes"}
    assert main(["evaluate", str(folder)]) == 0
    assert "of the answers unparsable): " in capsys.readouterr().out.splitlines()[-1]


def test_it_is_the_model_of_transformers(folder: Path) -> None:
    model = load_model(read_checkpoint(folder, None), torch.device("cpu"), torch.float32)
    reference = transformers.LlavaForConditionalGeneration.from_pretrained(folder).eval()
    ids = torch.arange(1, 21)[None]
    ids[0, 2 : 2 + PATCHES] = IMAGE_TOKEN
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours = model(input_ids=ids, pixel_values=pixels, image_positions=torch.arange(2, 2 + PATCHES))
        theirs = reference(input_ids=ids, pixel_values=pixels).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_what_it_cannot_be_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(folder), "--mmlu", "there"]) == 2
    assert "MMLU's questions there for a model with a vision tower" in capsys.readouterr().err
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({"model_type": "llava", "hidden_size": 32}), encoding="utf-8")
    assert main(["evaluate", str(folder)]) == 2
    assert "lacks text_config or vision_config" in capsys.readouterr().err
    file.write_text(json.dumps(config["text_config"] | {"model_type": "llama"}), encoding="utf-8")
    assert main(["evaluate", str(folder), "--mmmu", "there"]) == 2
    assert "MMMU's questions there for a model of text" in capsys.readouterr().err
