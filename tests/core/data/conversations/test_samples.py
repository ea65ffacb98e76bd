"""Reading LLaVA's JSON: what is taken, what is left out and told of, and what is an error."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from core.data.conversations.samples import conversation_file, image_file, read_samples
from core.errors import UsageError
from core.notices import RecordWarning

GOOD = 200
"""Whole samples beside the damaged one, so that it is less than 1%."""


def test_the_image_comes_first_wherever_it_stood(write: Any, say: Any) -> None:
    file = write([
        {"id": "a", "image": "coco/a.jpg", "conversations": say("What is this?\n<image>", "A cat.")},
        {"id": "b", "conversations": say("Hello.", "Hi.", "And now?", "Bye.")},
        {"id": "c", "conversations": [{"from": "gpt", "value": "Welcome."}, *say("Hello.", "Hi.")]},
    ])  # fmt: skip
    samples, skipped = read_samples(file)
    assert [sample.turns for sample in samples] == [
        ("<image>\nWhat is this?", "A cat."),
        ("Hello.", "Hi.", "And now?", "Bye."),
        ("Hello.", "Hi."),
    ]
    assert [sample.image for sample in samples] == ["coco/a.jpg", None, None]
    assert [sample.words for sample in samples] == [6, 5, 2]
    assert skipped.count == 0


def damaged(say: Any) -> dict[str, tuple[Any, str]]:
    """What is wrong -> a dialogue (or a whole entry) and the reason that is told."""
    greeting = {"from": "gpt", "value": "Hi."}
    return {
        "empty dialogue": (talk([]), "its dialogue is empty"),
        "no answer": (talk(say("Hello.")), "it ends without an answer"),
        "only a greeting": (talk([greeting]), "it ends without an answer"),
        "last question": (talk(say("Hello.", "Hi.", "Why?")), "it ends without an answer"),
        "empty answer": (talk(say("Hello.", " ")), "turn 2 is empty"),
        "same speaker": (talk(say("Hello.") * 2), "turn 2 is of 'human', not of 'gpt'"),
        "no dialogue": ({"id": "x"}, "it has no list 'conversations'"),
        "no sample": ("x", "it has no list 'conversations'"),
        "image unsaid": (talk(say("Hi.", "Hi."), "a.jpg"), "stands in 0 turns"),
        "image in an answer": (talk(say("Hi.", "<image>"), "a.jpg"), "stands in 1 turns"),
        "image unnamed": (talk(say("<image>", "Hi.")), "says <image>, but names no image"),
        "image elsewhere": (talk(say("<image>", "Hi."), "../a.jpg"), "is no path below the folder"),
    }


def talk(conversations: Any, image: str | None = None) -> dict[str, Any]:
    return {"id": "x", "conversations": conversations} | ({} if image is None else {"image": image})


@pytest.mark.parametrize("what", damaged(lambda *turns: [{"from": "", "value": ""}]))
def test_a_damaged_sample_is_left_out_and_named(what: str, write: Any, say: Any) -> None:
    entry, why = damaged(say)[what]
    good = [{"id": str(number), "conversations": say("Hello.", "Hi.")} for number in range(GOOD)]
    file = write([*good, entry])
    with pytest.warns(RecordWarning, match=rf"conversations.json: sample 200 \(.*\) is left out: .*{why}"):
        samples, skipped = read_samples(file)
    assert (len(samples), skipped.count) == (GOOD, 1)


def test_many_damaged_samples_are_an_error(write: Any, say: Any) -> None:
    good = [{"id": str(number), "conversations": say("Hello.", "Hi.")} for number in range(97)]
    file = write([*good, *[{"id": "x", "conversations": []}] * 3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UsageError, match=r"2 of 100 samples are damaged, more than 1%; sample 98 \(x\)"):
            read_samples(file)


@pytest.mark.parametrize(
    ("content", "why"), [("{", "cannot be read as JSON"), ("{}", "holds no list"), ("[]", "holds no list")]
)
def test_another_file_is_an_error(content: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=why):
        read_samples(tmp_path / "a.json")


def test_the_file_is_found_in_its_folder(tmp_path: Path) -> None:
    for name in ("blip_laion_cc_sbu_558k.json", "blip_laion_cc_sbu_558k_meta.json"):
        (tmp_path / name).write_text(json.dumps([]), encoding="utf-8")
    assert conversation_file(tmp_path).name == "blip_laion_cc_sbu_558k.json"
    assert conversation_file(tmp_path / "blip_laion_cc_sbu_558k.json").name == "blip_laion_cc_sbu_558k.json"
    (tmp_path / "other.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UsageError, match=r"holds not one but blip_laion_cc_sbu_558k\.json, other\.json"):
        conversation_file(tmp_path)


def test_images_lie_beside_the_file_or_in_images(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "images/b.jpg"):
        (tmp_path / name).touch()
    assert image_file(tmp_path, "a.jpg") == tmp_path / "a.jpg"
    assert image_file(tmp_path, "b.jpg") == tmp_path / "images" / "b.jpg"
