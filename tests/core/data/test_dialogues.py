"""Dialogues: the recipe's prompts and labels, every layout of the files, and what is done about bad ones."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numpy")
pytest.importorskip("sentencepiece")

from core.cases import resolve
from core.data import dialogues
from core.data.damage import Damage
from core.data.source import IGNORED_LABEL
from core.data.tokenizer import load
from core.errors import UsageError
from core.notices import RecordWarning
from core.plan import Request, build
from core.plugins import select
from schemas.plan import Plan

SAMPLES = [
    {"id": str(n), "dialogue": f"Anna: the boat {n}.\r\nBen: the tree.", "summary": f"The boat {n}."}
    for n in range(300)
]


@pytest.fixture
def make_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer_file: Path) -> Callable[..., Plan]:
    monkeypatch.setenv("ACCELMARK_CACHE", str(tmp_path / "cache"))
    loaded = resolve("llama2_7b_finetune")
    config = loaded.config("CPUx1x2")

    def make(path: Path | None, **sets: Any) -> Plan:
        given = {} if path is None else {"data.path": str(path), "tokenizer.path": str(tokenizer_file)}
        return build(Request(loaded, config, config.value.runs[0], select("cpu"), None, given | sets))

    return make


def write(folder: Path, samples: list[Any], kind: str = "json", name: str = "train") -> Path:
    file = folder / f"{name}.{kind}"
    if kind == "json":
        file.write_text(json.dumps(samples), encoding="utf-8")
    elif kind == "jsonl":
        file.write_text("\n".join(json.dumps(sample) for sample in samples) + "\n", encoding="utf-8")
    else:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(samples), file)
    return file


def test_prompt_and_labels_are_the_recipes(tokenizer_file: Path) -> None:
    tokenizer = load(tokenizer_file)
    sample = ("Anna: the boat.", "The boat.")
    found = dialogues.stream([sample, sample], tokenizer)
    prompt = tokenizer.processor.encode("Summarize this dialog:\nAnna: the boat.\n---\nSummary:\n")
    answer = tokenizer.processor.encode("The boat.")
    ids = [tokenizer.bos_id, *prompt, *answer, tokenizer.eos_id]
    assert found.ids.tolist() == ids * 2
    assert found.labels.tolist() == ([IGNORED_LABEL] * (1 + len(prompt)) + [*answer, tokenizer.eos_id]) * 2
    assert found.documents.tolist() == [0] * len(ids) + [1] * len(ids)


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet"])
def test_every_layout_of_the_files_gives_the_same_batches(
    make_plan: Callable[..., Plan], tmp_path: Path, kind: str
) -> None:
    reference = dialogues.open_source(make_plan(write(tmp_path, SAMPLES)), replica=0, verify=True)
    (tmp_path / kind).mkdir()
    write(tmp_path / kind, SAMPLES, kind)
    write(tmp_path / kind, [{"dialogue": "Another split.", "summary": "It."}], kind, "validation")
    found = dialogues.open_source(make_plan(tmp_path / kind), replica=0, verify=True)
    assert found.facts == reference.facts
    assert found.facts.name == "samsum"


def test_without_a_path_dialogues_are_generated_and_say_so(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(None)
    dialogues.make(plan)
    facts = dialogues.open_source(plan, replica=1, verify=False).facts
    assert facts.name == "generated"
    assert 0.7 < facts.sequences / plan.data.generated_sequences < 2


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"dialogue": " ", "summary": "It."}, "no dialogue"),
        ({"dialogue": "Anna: no.", "summary": ""}, "no summary"),
        ({"dialogue": "Anna: no."}, "no summary"),
        ({"dialogue": 7, "summary": "It."}, "no dialogue"),
        ("a text", "no dialogue"),
    ],
)
def test_a_bad_dialogue_is_left_out_counted_and_told_with_its_file(
    make_plan: Callable[..., Plan], tmp_path: Path, bad: Any, reason: str
) -> None:
    file = write(tmp_path, [*SAMPLES, bad])
    with pytest.warns(RecordWarning) as told:
        found = dialogues.open_source(make_plan(file), replica=0, verify=True)
    assert str(told[0].message) == f"dialogues were left out: {file}: {reason} (1)"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = dialogues.open_source(make_plan(write(tmp_path, SAMPLES)), replica=0, verify=True)
    assert found.facts == whole.facts


def test_a_line_that_is_no_json_counts_as_one_dialogue(tmp_path: Path) -> None:
    file = write(tmp_path, SAMPLES, "jsonl")
    file.write_text(file.read_text(encoding="utf-8") + '{"dialogue": "cut', encoding="utf-8")
    damage = Damage()
    assert len(list(dialogues.read_dialogues(file, damage))) == len(SAMPLES)
    assert damage.by_file == {str(file): 1}
    assert "not valid JSON (1)" in str(damage)


def test_more_than_one_percent_of_bad_dialogues_is_an_error(
    make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    file = write(tmp_path, [*SAMPLES, *[{"dialogue": "", "summary": "It."}] * 4])
    with pytest.raises(UsageError) as error:
        dialogues.open_source(make_plan(file), replica=0, verify=False)
    assert error.value.what == f"4 of 304 samples cannot be used, more than 1%: {file}: no dialogue (4)"


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_a_file_that_is_cut_off_is_an_error_that_names_it(
    make_plan: Callable[..., Plan], tmp_path: Path, kind: str
) -> None:
    file = write(tmp_path, SAMPLES, kind)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UsageError) as error:
        dialogues.open_source(make_plan(file), replica=0, verify=False)
    assert error.value.what.startswith(f"{file} cannot be read: ")


def test_what_cannot_be_opened_says_what_is_needed(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"holds no train\* file of \.json, \.jsonl, \.parquet"):
        dialogues.make(make_plan(tmp_path / "empty"))
    with pytest.raises(UsageError, match="no dialogue in"):
        dialogues.open_source(make_plan(write(tmp_path, [])), replica=0, verify=False)
    with pytest.raises(UsageError, match="the tokenizer has a vocabulary of 400, the model one of 320"):
        dialogues.open_source(
            make_plan(write(tmp_path, SAMPLES), **{"model.vocab_size": 320}), replica=0, verify=False
        )
    with pytest.raises(UsageError, match="no tokenizer is known for the data in"):
        dialogues.make(make_plan(tmp_path, **{"tokenizer.path": None}))


def test_a_tokenizer_without_ends_is_refused(tokenizer_file: Path) -> None:
    tokenizer = load(tokenizer_file)
    object.__setattr__(tokenizer, "eos_id", None)
    with pytest.raises(UsageError, match="no BOS or no EOS"):
        dialogues.stream([("a", "b")], tokenizer)
