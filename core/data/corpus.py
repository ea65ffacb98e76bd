"""A corpus generated from a seed: small sentences of an English-like template grammar.

Every choice is one byte of a SHAKE-128 stream, which is the same on every platform and Python version; of
``random.Random`` only ``random()`` is promised to stay, not ``choice`` or ``randrange``. The words of a slot
follow Zipf's law and belong to the topic of the document, so there is structure to learn on three scales:
spelling, sentence and document.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

CORPUS_VERSION = 1
"""Of the grammar; raised whenever the same seed gives other bytes."""

_BLOCK_BYTES = 1 << 16
_SENTENCE_BYTES = 16
"""Random bytes of one sentence: its template and at most 15 slots."""

_Slot = tuple[str, ...]
"""256 entries, one for each value of a byte; a frequent word stands there often."""
_Template = tuple[_Slot, ...]

_HERO = "@"
"""Stands for the name of the document's main person until the document is complete."""

# A phrase that fills one slot is written with underscores.
_NAMES = "Anna Ben Clara David Emma Felix Grace Henry Ida Jonas Karin Leo Maria Nora Oscar Paula"
_DETERMINERS = "the this every another that our one his"
_ADJECTIVES = (
    "old small red quiet heavy new bright cold broken long green clean tall dark warm strange simple golden narrow"
)
_ADVERBS = "slowly again carefully quickly alone together gently twice silently kindly"
_TIMES = "in_the_morning at_night after_the_rain before_dawn on_Sunday in_winter for_three_days at_noon last_year"
_LINKS = "and_then because so while but until"

_TOPICS = (
    (
        "boat sailor net harbour fish rope wave anchor lamp captain island storm",
        "pulled carried followed repaired painted watched caught lost",
        "near_the_harbour under_the_bridge by_the_sea on_the_deck behind_the_island",
    ),
    (
        "garden tree seed flower gardener bird apple fence path well bee spade",
        "watered planted cut found moved counted covered cleaned",
        "under_the_tree in_the_garden beside_the_well behind_the_fence along_the_path",
    ),
    (
        "train station driver ticket bridge wheel engine signal letter window clock suitcase",
        "stopped opened missed checked sold heard started closed",
        "at_the_station on_the_platform in_the_tunnel over_the_bridge by_the_window",
    ),
    (
        "kitchen cook bread soup knife table guest spoon fire plate oven recipe",
        "baked cooked tasted served ordered burned shared washed",
        "in_the_kitchen at_the_table near_the_oven next_to_the_fire in_the_cellar",
    ),
    (
        "school teacher pupil book lesson question answer map pencil number word page",
        "read wrote explained learned copied forgot solved repeated",
        "in_the_classroom on_the_board at_the_desk in_the_library across_the_yard",
    ),
    (
        "machine worker tool factory plan motor wire screw shift box hammer model",
        "built tested measured fixed lifted turned sorted replaced",
        "in_the_factory at_the_bench on_the_roof beside_the_motor in_the_long_hall",
    ),
)
"""Nouns, verbs and places of each topic."""


def documents(seed: int) -> Iterator[str]:
    """The endless stream of documents of a seed: ASCII, 6 to 29 sentences of about 40 letters each."""
    topics = [_templates(*topic) for topic in _TOPICS]
    names = _slot(_NAMES)
    stream = _sentence_bytes(seed)
    for head in stream:
        templates = topics[head[0] % len(topics)]
        sentences = [_sentence(templates, choice) for choice in itertools.islice(stream, 6 + head[1] % 24)]
        yield " ".join(sentences).replace(_HERO, names[head[2]])


def write_corpus(path: Path, seed: int, size_bytes: int) -> int:
    """Write documents as JSON lines ``{"text": ...}`` until ``size_bytes`` are reached; returns the bytes written.

    The last document is whole. A shorter corpus of the same seed is a prefix of a longer one.
    """
    written = 0
    with path.open("wb") as file:
        for text in documents(seed):
            if written >= size_bytes:
                break
            # The grammar holds nothing that JSON would escape.
            written += file.write(b'{"text": "%b"}\n' % text.encode("ascii"))
    return written


def _sentence_bytes(seed: int) -> Iterator[bytes]:
    for counter in itertools.count():
        block = hashlib.shake_128(b"accelmark corpus %d %d" % (seed, counter)).digest(_BLOCK_BYTES)
        for start in range(0, _BLOCK_BYTES, _SENTENCE_BYTES):
            yield block[start : start + _SENTENCE_BYTES]


def _sentence(templates: Sequence[_Template], choice: bytes) -> str:
    template = templates[choice[0] % len(templates)]
    words = " ".join([slot[byte] for slot, byte in zip(template, choice[1:], strict=False)])
    return words[0].upper() + words[1:] + "."


def _templates(*topic: str) -> tuple[_Template, ...]:
    noun, verb, place = (_slot(words) for words in topic)
    det, adj, adverb = _slot(_DETERMINERS), _slot(_ADJECTIVES), _slot(_ADVERBS)
    time, link = _slot(_TIMES), _slot(_LINKS)
    hero, said, was, but = _slot(_HERO), _slot("said_that"), _slot("was"), _slot("but")
    return (
        (det, adj, noun, verb, det, noun, place),
        (hero, verb, det, noun, link, hero, verb, det, adj, noun),
        (time, hero, verb, det, adj, noun, place),
        (hero, said, det, noun, was, adj),
        (det, noun, was, adj, but, hero, verb, det, noun, adverb),
        (hero, adverb, verb, det, noun, time),
        (det, noun, verb, det, noun, link, det, adj, noun, was, adj),
        (place, det, adj, noun, adverb, verb, det, noun),
    )


def _slot(text: str) -> _Slot:
    """Spread words over the values of a byte by Zipf's law: the k-th is about k**-1.5 as frequent as the first."""
    words = [word.replace("_", " ") for word in text.split()]
    # A square root is rounded correctly on every platform, a power is not.
    weights = [1 / (rank * math.sqrt(rank)) for rank in range(1, len(words) + 1)]
    ends = itertools.accumulate(256 * weight / math.fsum(weights) for weight in weights)
    slot: list[str] = []
    for word, end in zip(words, ends, strict=True):
        slot += [word] * (round(end) - len(slot))
    return tuple(slot)
