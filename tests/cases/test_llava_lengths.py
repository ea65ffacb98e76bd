"""The histogram of LLaVA's lengths is what its table says, and generated samples follow it."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

from core.data.lengths import LengthHistogram

CASE = Path(__file__).parents[2] / "cases" / "llava1_5_13b"
LONGEST = {"yes": 2048 - 576, "no": 2048}
WIDTH = {"finetune": 64, "pretrain": 2}
HIGHEST = {"finetune": 2048, "pretrain": 80}


def table() -> list[list[str]]:
    lines = (CASE / "LENGTHS.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return rows[2:]


def below(tokens: float, median: float, deviation: float) -> float:
    return 0.5 * (1 + math.erf(math.log(tokens / median) / (deviation * math.sqrt(2))))


def counts(samples: int, edges: list[int], longest: int, median: float, deviation: float) -> list[int]:
    """Samples per bin; the rest that rounding leaves goes where it was largest."""
    shares = [below(edge, median, deviation) if edge < longest else 1.0 for edge in edges]
    exact = [samples * (high - low) for low, high in pairwise([0.0, *shares])]
    whole = [int(value) for value in exact]
    by_rest = sorted(range(len(exact)), key=lambda n: whole[n] - exact[n])
    for n in by_rest[: samples - sum(whole)]:
        whole[n] += 1
    return whole


def histogram(stage: str) -> dict[str, object]:
    edges = list(range(WIDTH[stage], HIGHEST[stage] + 1, WIDTH[stage]))
    with_image, text_only = Counter[int](), Counter[int]()
    for row_stage, _, samples, image, median, deviation in table():
        if row_stage == stage:
            found = counts(int(samples), edges, LONGEST[image], float(median), float(deviation))
            (with_image if image == "yes" else text_only).update(dict(zip(edges, found, strict=True)))
    bins = [
        {"tokens": edge, "with_image": with_image[edge], "text_only": text_only[edge]}
        for edge in edges
        if with_image[edge] or text_only[edge]
    ]
    return {"source": "made by us, see LENGTHS.md", "bins": bins}


def test_the_histograms_are_those_of_the_table() -> None:
    committed = json.loads((CASE / "lengths.json").read_text(encoding="utf-8"))
    assert committed == {stage: histogram(stage) for stage in ("pretrain", "finetune")}


def test_what_is_known_of_the_data_holds() -> None:
    stages = json.loads((CASE / "lengths.json").read_text(encoding="utf-8"))
    finetune = LengthHistogram.model_validate(stages["finetune"])
    assert finetune.samples == 665_298
    assert finetune.text_share == 40_688 / 665_298
    assert LengthHistogram.model_validate(stages["pretrain"]).text_share == 0


def test_quantiles_give_the_histogram_back() -> None:
    stages = json.loads((CASE / "lengths.json").read_text(encoding="utf-8"))
    finetune = LengthHistogram.model_validate(stages["finetune"])
    drawn = [finetune.quantile((n + 0.5) / 20_000) for n in range(20_000)]
    assert abs(sum(not image for _, image in drawn) / 20_000 - finetune.text_share) < 1e-3
    for one in finetune.bins:
        expected = (one.with_image + one.text_only) / finetune.samples
        assert abs(sum(one.tokens - 64 < length <= one.tokens for length, _ in drawn) / 20_000 - expected) < 1e-3
