"""MMLU: who knows the answers scores 100%, who guesses 25%, and a score is what the logits say."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lm_eval")
pytest.importorskip("sentencepiece")

from core.data.corpus import write_corpus
from core.data.tokenizer import load, train_sentencepiece
from core.errors import UsageError
from core.evaluate import mmlu, questions, scoring
from core.evaluate.catalog import Respondent
from core.notices import RecordWarning
from schemas.evaluation import Accuracy, EvaluationSpec

pytestmark = pytest.mark.slow  # lm-eval alone takes a minute to be installed

CPU = torch.device("cpu")
NAMES = ("abstract_algebra", "virology")
VOCABULARY = 400


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_corpus(folder / "corpus.jsonl", 0, 100_000)
    train_sentencepiece(folder / "corpus.jsonl", folder / "tokenizer.model", VOCABULARY)
    return folder / "tokenizer.model"


def rows(subject: str, count: int, shift: int = 0) -> list[list[str]]:
    """Questions of the published CSV layout; the answers go through all letters."""
    return [
        [
            f"{subject} {n + shift}, which one?",
            *(f"option {n} {place}" for place in range(4)),
            "ABCD"[(n + shift) * 7 % 4],
        ]
        for n in range(count)
    ]


@pytest.fixture
def make_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A folder of two subjects, which are all there are."""
    monkeypatch.setattr(mmlu, "SUBJECTS", NAMES)

    def make(asked: int = 6, kind: str = "csv") -> Path:
        folder = tmp_path / f"mmlu-{kind}"
        for subject in NAMES:
            write(folder, subject, "dev", rows(subject, 5, 100), kind)
            write(folder, subject, "test", rows(subject, asked), kind)
        return folder

    return make


def write(folder: Path, subject: str, split: str, table: list[list[str]], kind: str = "csv") -> Path:
    if kind == "csv":
        (folder / split).mkdir(parents=True, exist_ok=True)
        file = folder / split / f"{subject}_{split}.csv"
        with file.open("w", newline="", encoding="utf-8") as lines:
            csv.writer(lines).writerows(table)
        return file
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    (folder / subject).mkdir(parents=True, exist_ok=True)
    file = folder / subject / f"{split}-00000-of-00001.parquet"
    kept = [{"question": row[0], "choices": row[1:5], "answer": "ABCD".index(row[5])} for row in table]
    pq.write_table(pa.Table.from_pylist(kept), file)
    return file


class Knows(torch.nn.Module):
    """Reads the last question of the prompt, and answers with what ``answers`` says of it."""

    def __init__(self, tokenizer: Path, answers: dict[str, str]) -> None:
        super().__init__()
        self.processor, self.answers, self.calls = load(tokenizer).processor, answers, 0

    def forward(self, input_ids: Any) -> Any:
        self.calls += 1
        logits = torch.zeros(*input_ids.shape, VOCABULARY)
        for row, ids in enumerate(input_ids.tolist()):
            text = self.processor.decode([one for one in ids if one > 0])
            asked = max(self.answers, key=text.rfind)
            begin = len(self.processor.encode("Answer:"))
            logits[row, :, self.processor.encode(f"Answer: {self.answers[asked]}")[begin:]] = 10.0
        return logits


class Guesses(torch.nn.Module):
    """Logits drawn anew for every prompt."""

    def forward(self, input_ids: Any) -> Any:
        generator = torch.Generator().manual_seed(int(input_ids.sum()))
        return torch.randn(*input_ids.shape, VOCABULARY, generator=generator)


def respondent(model: Any, tokenizer: Path, **options: Any) -> Respondent:
    given = {"vocab_size": VOCABULARY, "max_length": 4096} | options
    return Respondent(model=model, device=CPU, tokenizer=tokenizer, **given)


def ask(folder: Path, model: Any, tokenizer: Path, shots: int = 5, **options: Any) -> Accuracy:
    spec = EvaluationSpec(benchmark="MMLU", shots=shots, batch_size=4, path=str(folder))
    with torch.no_grad():
        return mmlu.evaluate(spec, respondent(model, tokenizer, **options), lambda done, total: None)


def answers(asked: int) -> dict[str, str]:
    return {row[0]: row[5] for subject in NAMES for row in rows(subject, asked)}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_who_knows_the_answers_scores_all(
    make_folder: Callable[..., Path], tokenizer_file: Path, kind: str
) -> None:
    found = ask(make_folder(6, kind), Knows(tokenizer_file, answers(6)), tokenizer_file)
    assert (found.value, found.standard_error, found.questions, found.data) == (1.0, 0.0, 12, f"mmlu-{kind}")
    by_subject = {name: (score.value, score.questions) for name, score in found.subjects.items()}
    assert by_subject == dict.fromkeys(NAMES, (1.0, 6))
    assert (found.shots, found.mean_shots, found.cut_prompts, found.skipped) == (5, 5.0, 0, {})


def test_who_knows_half_of_them_scores_half(make_folder: Callable[..., Path], tokenizer_file: Path) -> None:
    known = answers(6)
    wrong = {
        question: "BCDA"["ABCD".index(letter)] for question, letter in known.items() if "virology" not in question
    }
    known |= wrong
    found = ask(make_folder(6), Knows(tokenizer_file, known), tokenizer_file)
    assert found.value == 0.5
    assert [found.subjects[name].value for name in NAMES] == [0.0, 1.0]
    assert found.standard_error == pytest.approx((0.25 / 11) ** 0.5)


def test_who_guesses_scores_a_quarter(make_folder: Callable[..., Path], tokenizer_file: Path) -> None:
    found = ask(make_folder(150), Guesses(), tokenizer_file, shots=0)
    assert found.standard_error == pytest.approx(0.025, rel=0.1)
    assert abs(found.value - 0.25) < 3 * found.standard_error


def tiny_llama() -> Any:
    from core.models.llama import Llama2
    from schemas.hyperparameters import HyperParameters
    from schemas.model import DecoderSpec

    spec = DecoderSpec(
        factory="core.models.llama:Llama2", nominal_parameters=1, hidden_size=32, intermediate_size=48,
        num_layers=2, num_heads=4, num_kv_heads=4, vocab_size=VOCABULARY, max_positions=4096, norm_eps=1e-5,
    )  # fmt: skip
    hp = HyperParameters(precision="fp32", local_batch_size=1, sequence_length=64, learning_rate=1e-3)
    torch.manual_seed(0)
    model = Llama2(spec, hp).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    return model


def test_the_score_is_what_the_logits_of_the_same_prompts_say(
    make_folder: Callable[..., Path], tokenizer_file: Path
) -> None:
    model = tiny_llama()
    found = ask(make_folder(8), model, tokenizer_file, shots=2)
    assert {name: score.value for name, score in found.subjects.items()} == {
        name: direct_accuracy(model, load(tokenizer_file), name, 8) for name in NAMES
    }
    assert 0 < found.value < 1


def direct_accuracy(model: Any, tokenizer: Any, subject: str, asked: int) -> float:
    """Prompts written out here, one forward pass for each letter, the most likely of the four."""
    prompt = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
    for row in rows(subject, 2, 100):
        prompt += f"{row[0]}\nA. {row[1]}\nB. {row[2]}\nC. {row[3]}\nD. {row[4]}\nAnswer: {row[5]}\n\n"
    right = 0
    for row in rows(subject, asked):
        text = f"{prompt}{row[0]}\nA. {row[1]}\nB. {row[2]}\nC. {row[3]}\nD. {row[4]}\nAnswer:"
        scores = [log_likelihood(model, tokenizer, text, f" {letter}") for letter in "ABCD"]
        right += "ABCD"[scores.index(max(scores))] == row[5]
    return right / asked


def log_likelihood(model: Any, tokenizer: Any, context: str, continuation: str) -> float:
    ids = [tokenizer.bos_id, *tokenizer.processor.encode(context + continuation)]
    begin = 1 + len(tokenizer.processor.encode(context))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]))[0].log_softmax(-1)
    return sum(float(logits[place - 1, ids[place]]) for place in range(begin, len(ids)))


def test_a_prompt_without_room_holds_fewer_examples_and_says_so(
    make_folder: Callable[..., Path], tokenizer_file: Path
) -> None:
    folder, model = make_folder(6), Knows(tokenizer_file, answers(6))
    scorer = scoring.Scorer(respondent(model, tokenizer_file), 4, lambda done, total: None)
    one = (
        "abstract algebra 0, which one?\nA. option 0 0\nB. option 0 1\nC. option 0 2\nD. option 0 3\nAnswer: A\n\n"
    )
    room = 100 + 3 * scorer.length(one)
    found = ask(folder, model, tokenizer_file, max_length=room)
    assert found.value == 1.0
    assert found.cut_prompts == 12
    assert found.mean_shots is not None
    assert 1 <= found.mean_shots <= 3


def test_two_ranks_share_the_prompts_with_as_many_passes_each(
    tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [("A question " * length, f" {letter}") for length in range(1, 8) for letter in "ABCD"]
    gathered: list[Any] = []
    monkeypatch.setattr(scoring.dist, "all_reduce", lambda found: gathered.append(found.clone()))

    def scores(rank: int, world_size: int) -> tuple[list[tuple[float, bool]], int]:
        model = Knows(tokenizer_file, {"A question": "C"})
        asked = respondent(model, tokenizer_file, rank=rank, world_size=world_size)
        return scoring.Scorer(asked, 2, lambda done, total: None).log_likelihoods(pairs), model.calls

    whole, alone = scores(0, 1)
    passes = [scores(rank, 2)[1] for rank in range(2)]
    assert passes[0] == passes[1] == -(-alone // 2)
    scores_together, greedy_together = (gathered[0] + gathered[1]).tolist()
    assert scores_together == pytest.approx([score for score, _ in whole])
    assert greedy_together == [greedy for _, greedy in whole]


def test_a_continuation_of_several_tokens_is_their_sum(tokenizer_file: Path) -> None:
    model, context, continuation = tiny_llama(), "The boat", " was near the harbour"
    scorer = scoring.Scorer(respondent(model, tokenizer_file), 1, lambda done, total: None)
    with torch.no_grad():
        ((found, _),) = scorer.log_likelihoods([(context, continuation)])
    assert scorer.length(context + continuation) - scorer.length(context) > 1
    assert found == pytest.approx(log_likelihood(model, load(tokenizer_file), context, continuation), rel=1e-4)


def test_the_embedded_questions_say_that_they_are(
    tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELMARK_CACHE", str(tmp_path))
    mmlu.make(EvaluationSpec(benchmark="MMLU"))
    told: list[tuple[int, int]] = []
    spec = EvaluationSpec(benchmark="MMLU", shots=5, batch_size=8)
    found = mmlu.evaluate(spec, respondent(Guesses(), tokenizer_file), lambda *done: told.append(done))
    assert (found.data, found.questions, len(found.subjects)) == ("embedded", 48, 3)
    assert told[-1][0] == told[-1][1] > 0
    folder = next(tmp_path.glob("questions-*"))
    read = questions.read_subjects(folder, mmlu.EMBEDDED_SUBJECTS, mmlu.Damage())
    asked = [one for subject in read.values() for one in (*subject.questions, *subject.examples)]
    assert all(len(set(one.choices)) == 4 for one in asked)
    assert {one.answer for one in asked} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (["What?", "a", "b", "c", "A"], "an option is missing"),
        (["What?", "a", "", "c", "d", "A"], "an option is missing"),
        (["", "a", "b", "c", "d", "A"], "no question"),
        (["What?", "a", "b", "c", "d", "E"], "no answer"),
        (["What?"], "an option is missing"),
    ],
)
def test_a_bad_question_is_left_out_counted_and_told(
    make_folder: Callable[..., Path], tokenizer_file: Path, bad: list[str], reason: str
) -> None:
    folder = make_folder(200)
    file = write(folder, "virology", "test", [*rows("virology", 3), bad])
    with pytest.warns(RecordWarning, match=f"virology_test.csv: {reason} \\(1\\)"):
        found = ask(folder, Guesses(), tokenizer_file, shots=0)
    assert (found.questions, found.skipped) == (203, {str(file): 1})


def test_more_than_one_percent_of_bad_questions_is_an_error(make_folder: Callable[..., Path]) -> None:
    folder = make_folder(6)
    write(folder, "virology", "test", [["What?", "a"]])
    with pytest.raises(UsageError, match=r"1 of 17 samples cannot be used, more than 1%: .*virology_test\.csv"):
        mmlu.make(EvaluationSpec(benchmark="MMLU", path=str(folder)))


def test_a_missing_subject_is_named(make_folder: Callable[..., Path]) -> None:
    folder = make_folder(6)
    (folder / "dev" / "virology_dev.csv").unlink()
    with pytest.raises(UsageError, match="lacks 1 of 2 subjects: virology"):
        mmlu.make(EvaluationSpec(benchmark="MMLU", path=str(folder)))
    write(folder, "virology", "dev", rows("virology", 5))
    write(folder, "virology", "test", [])
    with pytest.raises(UsageError, match=r"subject virology in .* holds no question"):
        mmlu.make(EvaluationSpec(benchmark="MMLU", path=str(folder)))


def test_a_parquet_file_that_is_cut_off_or_of_another_kind_is_named(make_folder: Callable[..., Path]) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    folder = make_folder(6, "parquet")
    spec = EvaluationSpec(benchmark="MMLU", path=str(folder))
    file = folder / "virology" / "test-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(UsageError, match=r"virology/test-00000-of-00001\.parquet cannot be read"):
        mmlu.make(spec)
    pq.write_table(pa.table({"question": ["What?"]}), file)
    with pytest.raises(UsageError, match="column 'answer' is missing"):
        mmlu.make(spec)


def test_all_57_subjects_are_known() -> None:
    assert len(questions.SUBJECTS) == len(set(questions.SUBJECTS)) == 57


def test_a_tokenizer_that_is_not_the_models_is_refused(tokenizer_file: Path) -> None:
    with pytest.raises(UsageError, match="the tokenizer has a vocabulary of 400, the model one of 300"):
        scoring.Scorer(respondent(Guesses(), tokenizer_file, vocab_size=300), 1, lambda done, total: None)


def test_the_harness_stays_quiet(make_folder: Callable[..., Path], tokenizer_file: Path, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        ask(make_folder(2), Guesses(), tokenizer_file)
    assert [record for record in caplog.records if record.name.startswith("lm_eval")] == []
