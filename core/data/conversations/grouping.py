"""Which samples make up a step: at random, or grouped by length and by whether they hold an image.

``grouped`` is ``group_by_modality_length`` of haotian-liu/LLaVA (``llava/train/llava_trainer.py``): a step holds
samples with images, or without, and its parts are about equally long in all.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.data.order import permutation

Part = list[int]
"""Samples of one micro-batch of one rank."""
Step = list[Part]


def shuffled(samples: int, parts: int, size: int, seed: Sequence[int]) -> list[Step]:
    """Steps of ``parts`` times ``size`` samples in random order; what does not fill a step is left out."""
    order = permutation(samples, seed).tolist()
    return [_cut(order[first : first + parts * size], parts) for first in _firsts(samples, parts * size)]


def grouped(
    lengths: Sequence[int], images: Sequence[bool], parts: int, size: int, seed: Sequence[int]
) -> list[Step]:
    """As ``shuffled``, but each step of one kind, and split so that its parts are about equally long in all.

    What is left over of both kinds makes mixed steps at the end; what fills no step of these is left out.
    """
    whole, left = [], []
    for number, kind in enumerate((True, False)):
        of_kind = [index for index, image in enumerate(images) if image is kind]
        order = [of_kind[position] for position in permutation(len(of_kind), [*seed, number])]
        firsts = _firsts(len(order), parts * size)
        whole += [order[first : first + parts * size] for first in firsts]
        left += order[len(firsts) * parts * size :]
    steps = [whole[position] for position in permutation(len(whole), [*seed, 2])]
    steps += [left[first : first + parts * size] for first in _firsts(len(left), parts * size)]
    return [even_parts(step, lengths, parts) for step in steps]


def even_parts(samples: Sequence[int], lengths: Sequence[int], parts: int) -> Step:
    """``samples`` in parts of equally many: from the longest on, each goes to the part that is shortest so far."""
    result: Step = [[] for _ in range(parts)]
    total = [0] * parts
    for sample in sorted(samples, key=lambda index: -lengths[index]):
        part = min((n for n in range(parts) if len(result[n]) < len(samples) // parts), key=total.__getitem__)
        result[part].append(sample)
        total[part] += lengths[sample]
    return result


def _firsts(samples: int, step: int) -> range:
    return range(0, samples - step + 1, step)


def _cut(samples: Sequence[int], parts: int) -> Step:
    size = len(samples) // parts
    return [list(samples[part * size : (part + 1) * size]) for part in range(parts)]
