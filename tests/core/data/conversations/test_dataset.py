"""Format ``conversations`` of a plan: generated samples, the user's own, and plans that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("PIL")
pytest.importorskip("sentencepiece")

from core import cases, plan, plugins
from core.data.conversations import dataset
from core.data.conversations.generate import Picture
from core.data.embedded import embedded_tokenizer
from core.errors import UsageError
from schemas.plan import Plan


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELMARK_CACHE", str(cache))


def planned(run: str = "finetune", engine: str | None = None, **sets: Any) -> Plan:
    loaded = cases.resolve("llava1_5_13b")
    config = loaded.config("CPUx1x2")
    return plan.build(plan.Request(loaded, config, config.run(run), plugins.select("cpu"), engine, sets))


def test_generated_dialogues_follow_the_histogram_and_show_what_they_say() -> None:
    made = planned()
    dataset.make(made)
    reader = dataset.open_source(made, replica=0, verify=True)
    assert (reader.facts.name, reader.facts.sequences) == ("generated", 256)
    entries = json.loads(dataset._generated(made).read_text(encoding="utf-8"))
    texts = [entry for entry in entries if "image" not in entry]
    assert len(texts) / len(entries) == pytest.approx(40_688 / 665_298, abs=0.003)
    for entry in entries:
        if "image" in entry:
            picture = Picture.of(0, int(entry["image"].removesuffix(".jpg")))
            assert picture.colour in {turn["value"] for turn in entry["conversations"]}
    lengths = [n for step in range(20) for n in reader.batch(step, 0, 1).sequence_lengths or ()]
    assert max(lengths) <= 384
    assert len({*lengths}) > 5


def test_the_same_plan_reads_the_same_data_in_both_stages() -> None:
    facts = {}
    for run in ("finetune", "pretrain"):
        made = planned(run)
        dataset.make(made)
        facts[run] = dataset.open_source(made, replica=0, verify=False).facts
        assert facts[run] == dataset.open_source(made, replica=1, verify=False).facts
    assert facts["pretrain"].sha256 != facts["finetune"].sha256


def test_captions_are_one_image_each() -> None:
    made = planned("pretrain")
    dataset.make(made)
    batch = dataset.open_source(made, replica=1, verify=False).batch(3, 0, 1)
    assert batch.images == len(batch.arrays["input_ids"]) == 8
    assert (batch.arrays["labels"] != -100).any(axis=1).all()


def test_dropped_padding_is_not_counted_as_computed() -> None:
    made = planned()
    dataset.make(made)
    kept, dropped = (
        dataset.open_source(p, replica=0, verify=False).batch(2, 0, 1) for p in (made, planned(padding="dropped"))
    )
    assert kept.padded_tokens > 0
    assert dropped.padded_tokens == 0
    assert dropped.real_tokens == kept.real_tokens == len(dropped.arrays["kept"])
    real = dropped.arrays["labels"].flatten()[dropped.arrays["kept"]]
    assert (real != -100).sum() == kept.label_tokens


def test_dialogues_of_the_users_own(write: Any, say: Any, picture: Any, tmp_path: Path, cache: Path) -> None:
    file = write([
        {"id": str(n), "image": picture("a.png"), "conversations": say("<image>\nWho?", "Ben.")} for n in range(8)
    ])  # fmt: skip
    sets = {"data.path": str(file), "tokenizer.path": str(embedded_tokenizer(cache, 512))}
    reader = dataset.open_source(planned(**sets), replica=0, verify=True)
    assert (reader.facts.name, reader.facts.sequences) == ("LAION-CC-SBU + llava_v1_5_mix665k", 8)
    assert reader.batch(0, 0, 1).images == 4


def test_plans_that_cannot_be_read(tmp_path: Path, cache: Path) -> None:
    made = planned()
    small = embedded_tokenizer(cache, 512)
    wrong = {
        "the run names none": {"hyper_parameters": made.hyper_parameters.model_copy(update={"stage": None})},
        "has no vision tower": {"vision": None},
        "does not say how long": {"data": made.data.model_copy(update={"generated_lengths": None})},
        "a vocabulary of 512, the model one of 400": {
            "model": made.model.model_copy(update={"vocab_size": 400}),
            "tokenizer": made.tokenizer.model_copy(update={"path": str(small)}),
        },
    }
    for why, changes in wrong.items():
        with pytest.raises(UsageError, match=why):
            dataset.open_source(made.model_copy(update=changes), replica=0, verify=False)


def test_an_engine_that_takes_no_images_is_refused() -> None:
    with pytest.raises(UsageError, match="engine megatron takes no images"):
        planned(engine="megatron")


def test_a_smaller_tower_is_a_scaled_down_model() -> None:
    loaded = cases.resolve("llava1_5_13b")
    config = loaded.config("H200x1x4")
    vendor = plugins.select("nvidia")
    whole, smaller = (
        plan.build(plan.Request(loaded, config, config.value.runs[1], vendor, None, sets))
        for sets in ({}, {"vision.num_layers": 3})
    )
    assert (whole.scaled_down, smaller.scaled_down) == (False, True)
