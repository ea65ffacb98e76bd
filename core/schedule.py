"""The learning rate of each optimizer step."""

from __future__ import annotations

import math

from schemas.hyperparameters import HyperParameters


def learning_rate(hp: HyperParameters, step: int, epoch: int = 0) -> float:
    """Rate of step ``step`` (from 1) in ``epoch`` (from 0): linear warm-up, then constant or a decay.

    Schedule ``epoch`` multiplies by ``epoch_factor`` after every epoch; linear and cosine decay ends at
    ``min_learning_rate`` in step ``schedule_steps`` and stays there.
    """
    if step <= hp.lr_warmup_steps:
        return hp.learning_rate * step / hp.lr_warmup_steps
    if hp.schedule == "epoch":
        return max(hp.learning_rate * hp.epoch_factor**epoch, hp.min_learning_rate)
    if hp.schedule == "constant" or hp.schedule_steps is None:
        return hp.learning_rate
    done = (step - hp.lr_warmup_steps) / (hp.schedule_steps - hp.lr_warmup_steps)
    done = min(done, 1.0)
    share = 1 - done if hp.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return hp.min_learning_rate + (hp.learning_rate - hp.min_learning_rate) * share
