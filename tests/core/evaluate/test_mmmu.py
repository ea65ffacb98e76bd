"""MMMU end to end, with models that know the answers of the embedded questions, or do not; and damaged files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
Image = pytest.importorskip("PIL.Image")
pytest.importorskip("sentencepiece")

from core.data.conversations.images import load_pixels
from core.data.embedded import cache_dir, embedded_tokenizer
from core.data.tokenizer import load
from core.errors import UsageError
from core.evaluate.catalog import Respondent, evaluator
from core.evaluate.mmmu.benchmark import MAX_NEW_TOKENS, _Asker, ask, evaluate, make
from core.evaluate.mmmu.embedded import embedded_questions
from core.evaluate.mmmu.questions import Question, read_questions
from core.notices import RecordWarning
from schemas.evaluation import EvaluationSpec
from schemas.model import VisionSpec

VISION = VisionSpec(hidden_size=8, intermediate_size=8, num_layers=2, num_heads=1, image_size=28, patch_size=14)
SPEC = EvaluationSpec(benchmark="MMMU", batch_size=3)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ACCELMARK_CACHE", str(tmp_path_factory.getbasetemp() / "mmmu-cache"))
    return iter(())


Asked = tuple[tuple[int, ...], float]
"""The ids of a prompt, and the sum of its pixels: many questions differ only in their picture."""


class Knowing(torch.nn.Module):
    """Says the answers that it was told to the prompts and pictures that it was told."""

    def __init__(self, says: dict[Asked, list[int]], eos: int) -> None:
        super().__init__()
        self.says, self.eos, self.images_seen = says, eos, 0

    def forward(self, input_ids: Any, pixel_values: Any, image_positions: Any) -> Any:
        places = torch.zeros(input_ids.numel(), dtype=torch.bool)
        places[image_positions] = True
        assert places.sum() == len(image_positions)
        self.images_seen = max(self.images_seen, len(image_positions) // VISION.image_tokens)
        held = iter(pixel_values)
        logits = torch.zeros(*input_ids.shape, 600)
        for row, ids in enumerate(input_ids.tolist()):
            images = int(places.view_as(input_ids)[row].sum()) // VISION.image_tokens
            seen = sum(next(held).sum().item() for _ in range(images))
            for (prompt, pictures), answer in self.says.items():
                if tuple(ids[: len(prompt)]) == prompt and seen == pytest.approx(pictures):
                    for said, token in enumerate([*answer, self.eos]):
                        if len(prompt) - 1 + said < len(ids):
                            logits[row, len(prompt) - 1 + said, token] = 1.0
        return logits


def respondent(model: Any, **changes: Any) -> Respondent:
    tokenizer = embedded_tokenizer(cache_dir(), 600)
    values = {"vocab_size": 600, "max_length": 2000, "vision": VISION} | changes
    return Respondent(model=model, device=torch.device("cpu"), tokenizer=tokenizer, **values)


def knowing(questions: tuple[Question, ...], *, wrong: bool = False) -> Knowing:
    tokenizer = load(embedded_tokenizer(cache_dir(), 600))
    asker = _Asker(respondent(None), VISION)
    says = {}
    for one in questions:
        answer = "(Z)" if wrong and one.options else "nothing" if wrong else one.answers[0]
        (ids,) = tokenizer.encode_batch([answer])
        pixels = sum(float(load_pixels(io.BytesIO(image), VISION.image_size, "").sum()) for image in one.images)
        says[tuple(asker._prompt(one)[0].ids), pixels] = ids
    return Knowing(says, tokenizer.eos_id or 0)


def test_a_model_that_knows_the_answers_has_them_all_right() -> None:
    make(SPEC)
    questions = read_questions(embedded_questions()).questions
    model, told = knowing(questions), []
    accuracy = evaluator("MMMU").evaluate(SPEC, respondent(model), lambda *done: told.append(done))
    assert (accuracy.value, accuracy.unparsable, accuracy.questions) == (1.0, 0.0, len(questions))
    assert {name: one.value for name, one in accuracy.subjects.items()} == {
        "Colours": 1,
        "Comparisons": 1,
        "Shapes": 1,
    }
    assert sum(one.questions or 0 for one in accuracy.subjects.values()) == accuracy.questions
    assert (accuracy.data, accuracy.skipped) == ("embedded", {})
    assert model.images_seen > SPEC.batch_size  # both pictures of a comparison
    assert told[-1] == (len(questions), len(questions))


def test_answers_that_name_no_option_are_wrong_and_counted() -> None:
    questions = read_questions(embedded_questions()).questions
    accuracy = evaluate(SPEC, respondent(knowing(questions, wrong=True)), lambda *_: None)
    choices = sum(bool(one.options) for one in questions)
    assert accuracy.value == 0
    assert accuracy.unparsable == pytest.approx(choices / len(questions))


def test_a_model_that_never_ends_is_stopped() -> None:
    class Endless(torch.nn.Module):
        calls = 0

        def forward(self, input_ids: Any, **_: Any) -> Any:
            self.calls += 1
            return torch.nn.functional.one_hot(torch.full_like(input_ids, 300), 600).float()

    model = Endless()
    questions = read_questions(embedded_questions()).questions[:4]
    ask(questions, respondent(model), 4, lambda *_: None)
    assert model.calls == MAX_NEW_TOKENS


def test_a_question_that_does_not_fit_is_told_of_and_wrong() -> None:
    questions = read_questions(embedded_questions()).questions[:2]
    told = rf"question {questions[0].name} has \d+ tokens, more than the model takes"
    with pytest.warns(RecordWarning, match=told):
        found = ask(questions, respondent(knowing(questions), max_length=50), 2, lambda *_: None)
    assert found == ["unparsable", "unparsable"]


def test_a_model_without_a_tower_cannot_be_asked() -> None:
    questions = read_questions(embedded_questions()).questions
    with pytest.raises(UsageError, match="the model has no vision tower"):
        ask(questions, respondent(None, vision=None), 4, lambda *_: None)


def row(number: int = 1, **changes: Any) -> dict[str, Any]:
    content = io.BytesIO()
    Image.new("RGB", (20, 10), (1, 2, 3)).save(content, format="PNG")
    image = {"bytes": content.getvalue(), "path": "a.png"}
    values: dict[str, Any] = {
        "id": f"validation_Art_Theory_{number}",
        "question": "What does <image 1> show?",
        "options": "['a cat', \"a dog's tail\"]",
        "explanation": "",
        "image_1": image,
        **{f"image_{n}": None for n in range(2, 8)},
        "answer": "B",
        "question_type": "multiple-choice",
        "subfield": "Drawing",
    }
    return values | changes


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    subject = folder / "Art_Theory"
    subject.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), subject / "validation-00000-of-00001.parquet")
    return folder


def test_the_hubs_layout(tmp_path: Path) -> None:
    open_row = row(2, question_type="open", options="[]", answer="['3', 'three']")
    (first, second) = read_questions(written(tmp_path, [row(), open_row])).questions
    assert first.subject == "Art_Theory"
    assert first.choices == {"A": "a cat", "B": "a dog's tail"}
    assert first.prompt == (
        "<image>\nWhat does <image 1> show?\n(A) a cat\n(B) a dog's tail\n\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert second.answers == ("3", "three")
    assert second.prompt.endswith("show?\nAnswer the question using a single word or phrase.")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"options": "['a cat']"}, "an option is missing"),
        ({"options": "['a cat', '']"}, "an option is missing"),
        ({"options": "['a cat'"}, "its options are no list"),
        ({"options": None}, "its options are no list"),
        ({"answer": "C"}, "its answer 'C' is none of its 2 options"),
        ({"answer": ""}, "it has no answer"),
        ({"question": " "}, "it asks nothing"),
        ({"question_type": "essay"}, "its type is 'essay'"),
        ({"question": "Compare <image 1> and <image 2>."}, "it speaks of image 2 and has 1"),
        ({"image_1": {"bytes": b"no image", "path": "a.png"}}, "image image_1 cannot be read"),
        ({"image_1": None, "image_2": row()["image_1"]}, "image_1 is missing"),
    ],
)
def test_a_damaged_question_is_left_out_and_named(changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    written(tmp_path, [*(row(n) for n in range(150)), row(150, **changes)])
    with pytest.warns(RecordWarning, match=rf"validation_Art_Theory_150 of .*parquet is left out: .*{why}"):
        found = read_questions(tmp_path)
    assert len(found.questions) == 150
    assert found.skipped == {"Art_Theory/validation-00000-of-00001.parquet": 1}


def test_many_damaged_questions_are_an_error(tmp_path: Path) -> None:
    written(tmp_path, [row(), row(2, answer="")])
    with pytest.raises(UsageError, match="1 of 2 samples are damaged, more than 1%"):
        read_questions(tmp_path)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ("truncated", r"validation-00000-of-00001\.parquet cannot be read as parquet"),
        ("columns", "lacks column 'options'"),
        ("nothing", r"holds no validation-\*\.parquet"),
    ],
)
def test_a_damaged_folder_is_an_error(damage: str, why: str, tmp_path: Path) -> None:
    if damage != "nothing":
        rows = [{"id": "validation_Art_1", "question": "Who?"}] if damage == "columns" else [row()]
        written(tmp_path, rows)
    if damage == "truncated":
        (file,) = tmp_path.rglob("*.parquet")
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UsageError, match=why):
        make(SPEC.model_copy(update={"path": str(tmp_path)}))
