"""What lm-evaluation-harness needs from us: a task on documents in memory, and a model that scores."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask

from core.evaluate.scoring import Scorer

logging.getLogger("lm_eval").setLevel(logging.ERROR)


class Task(ConfigurableTask):  # type: ignore[misc]
    """A configured task whose prompts hold as many examples as there is room for."""

    def __init__(
        self,
        config: Mapping[str, Any],
        splits: Mapping[str, Sequence[Mapping[str, Any]]],
        length: Callable[[str], int],
        max_length: int,
    ) -> None:
        """``splits``: name -> documents; ``length``: tokens of a text, of which ``max_length`` fit."""
        self._splits, self._length, self._max_length = splits, length, max_length
        self.shots: list[int] = []
        """Examples before each question that was asked."""
        super().__init__(config=dict(config))

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """Nothing is fetched: the documents are here."""
        splits = {name: [dict(one) for one in split] for name, split in self._splits.items()}
        self.dataset = datasets.DatasetDict(
            {name: datasets.Dataset.from_list(one) for name, one in splits.items()}
        )

    def fewshot_context(self, doc: dict[str, Any], num_fewshot: int, **options: Any) -> Any:
        """The prompt with the first ``num_fewshot`` examples, or with as many of them as fit and exist."""
        most = min(num_fewshot, len(self._splits["dev"]))
        for shots in range(most, -1, -1):
            context = super().fewshot_context(doc, shots, **options)
            if shots == 0 or self._length(context) <= self._max_length:
                self.shots.append(shots)
                return context
        raise AssertionError("0 shots always return")


class LanguageModel(LM):  # type: ignore[misc]
    """The respondent as the harness sees it: one process, for the ranks share the work beneath."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self._scorer = scorer

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Of each request's continuation, and whether greedy decoding would give it."""
        return self._scorer.log_likelihoods([request.args for request in requests])

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Not asked for by multiple choice."""
        raise NotImplementedError

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Not asked for by multiple choice."""
        raise NotImplementedError
