"""MMLU by lm-evaluation-harness: its task, its prompts and its scoring, on local files and a model in memory.

Every rank builds all prompts, and all ranks share the forward passes (``core.evaluate.scoring``).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core import notices
from core.data.damage import Damage
from core.data.embedded import cache_dir
from core.errors import UsageError
from core.evaluate.catalog import Progress, Respondent
from core.evaluate.embedded_questions import EMBEDDED_SUBJECTS, embedded_questions
from core.evaluate.questions import LETTERS, SUBJECTS, Question, Subject, read_subjects
from schemas.evaluation import EMBEDDED, Accuracy, EvaluationSpec, Score

_TEXT = "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:"
"""As in the harness's own ``tasks/mmlu/default/_default_template_yaml``."""


def make(spec: EvaluationSpec) -> None:
    """As ``core.evaluate.catalog.Evaluator``: reads all questions."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise UsageError(
            "MMLU is asked by lm-evaluation-harness, which is not installed", "pip install 'accelmark[evaluate]'"
        ) from None
    _read(spec, Damage())


def evaluate(spec: EvaluationSpec, respondent: Respondent, progress: Progress) -> Accuracy:
    """As ``core.evaluate.catalog.Evaluator``. Prompts that are too long go without their last examples."""
    from lm_eval.evaluator import evaluate as run

    from core.evaluate.harness import LanguageModel, Task
    from core.evaluate.scoring import Scorer

    damage = Damage()
    subjects = _read(spec, damage)
    if damage.by_file and respondent.rank == 0:
        notices.notify(f"questions were left out: {damage}")
    scorer = Scorer(respondent, spec.batch_size, progress)
    tasks = {
        name: Task(_config(name, spec), _splits(subject), scorer.length, respondent.max_length)
        for name, subject in subjects.items()
    }
    found = run(
        LanguageModel(scorer), {"tasks": tasks, "groups": {}, "group_map": {}}, bootstrap_iters=0, log_samples=True
    )
    right = {name: [float(sample["acc"]) for sample in found["samples"][name]] for name in tasks}
    shots = [number for task in tasks.values() for number in task.shots]
    return Accuracy(
        **_score([one for subject in right.values() for one in subject]).model_dump(),
        data=EMBEDDED if spec.path is None else Path(spec.path).name,
        subjects={name: _score(answers) for name, answers in right.items()},
        shots=spec.shots,
        mean_shots=statistics.fmean(shots),
        cut_prompts=sum(number < spec.shots for number in shots),
        skipped=dict(damage.by_file),
    )


def _read(spec: EvaluationSpec, damage: Damage) -> Mapping[str, Subject]:
    if spec.path is None:
        return read_subjects(embedded_questions(cache_dir()), EMBEDDED_SUBJECTS, damage)
    return read_subjects(Path(spec.path).expanduser(), SUBJECTS, damage)


def _score(right: Sequence[float]) -> Score:
    """The mean, and its standard error as the harness computes it: of a sample, with n - 1."""
    count, mean = len(right), statistics.fmean(right)
    error = math.sqrt(mean * (1 - mean) / (count - 1)) if count > 1 else None
    return Score(value=mean, standard_error=error, questions=count)


def _config(name: str, spec: EvaluationSpec) -> dict[str, Any]:
    about = name.replace("_", " ")
    return {
        "task": name,
        "dataset_path": "local",
        "test_split": "test",
        "fewshot_split": "dev",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": spec.shots,
        "output_type": "multiple_choice",
        "description": f"The following are multiple choice questions (with answers) about {about}.\n\n",
        "doc_to_text": _TEXT,
        "doc_to_choice": list(LETTERS),
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def _splits(subject: Subject) -> dict[str, list[dict[str, Any]]]:
    splits = {"dev": subject.examples, "test": subject.questions}
    return {name: [_document(question) for question in questions] for name, questions in splits.items()}


def _document(question: Question) -> dict[str, Any]:
    return {"question": question.question, "choices": list(question.choices), "answer": question.answer}
