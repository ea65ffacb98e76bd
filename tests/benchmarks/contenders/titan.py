"""torchtitan's own Trainer on a Llama of the work's shape: per-block compile, FSDP2, no checkpointing.

Its model, loss, optimizer and step are its own; only the tokens are ours, and the clock around its ``train_step``.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks.contenders.harness import MicroBatch, Step, main, parser
from tests.benchmarks.work import Work

NAME = "accelmark_work"


class NoData:
    """In the place of torchtitan's data loader, which a Trainer asks for."""


def build(work: Work, given: argparse.Namespace, device: torch.device) -> Step:
    """torchtitan's Trainer, and a step with it."""
    from torchtitan.protocols.train_spec import register_train_spec
    from torchtitan.train import Trainer

    register_train_spec(NAME, train_spec(work))
    trainer: Any = Trainer(job_config(work, given.micro_batch))
    losses: list[Tensor] = []
    forward_backward = trainer.forward_backward_step

    def keep_loss(**arguments: Any) -> Tensor:
        losses.append(forward_backward(**arguments).detach())
        return losses[-1]

    trainer.forward_backward_step = keep_loss

    def step(micro_batches: list[MicroBatch]) -> Tensor:
        losses.clear()
        trainer.step += 1
        read = [({"input": input_ids}, labels) for input_ids, labels in micro_batches]
        trainer.train_step(trainer.batch_generator(read))
        return torch.stack(losses).sum() * work.gpus  # it divides by the tokens of all ranks

    return step


def train_spec(work: Work) -> Any:
    """torchtitan's for Llama 3, with the work's shape and without tokenizer and data."""
    import dataclasses

    from torchtitan.models.llama3 import get_train_spec

    spec = get_train_spec()
    return dataclasses.replace(
        spec,
        model_args={NAME: model_arguments(work)},
        build_tokenizer_fn=None,
        build_dataloader_fn=lambda **_: NoData(),
        state_dict_adapter=None,
    )


def model_arguments(work: Work) -> Any:
    """The shape; torchtitan rounds 8/3 of the hidden size up to a multiple, which here is the size itself."""
    from torchtitan.models.llama3 import TransformerModelArgs

    model = work.model
    return TransformerModelArgs(
        dim=model.hidden_size,
        n_layers=model.num_layers,
        n_heads=model.num_heads,
        n_kv_heads=model.num_kv_heads,
        vocab_size=model.vocab_size,
        multiple_of=model.intermediate_size,
        norm_eps=model.norm_eps,
        rope_theta=model.rope_theta,
    )


def job_config(work: Work, micro_batch: int) -> Any:
    """Its settings, as its TOML files would give them; no log line, checkpoint or validation in the window."""
    from torchtitan.config import JobConfig

    config: Any = JobConfig()
    config.job.dump_folder = tempfile.mkdtemp(prefix="torchtitan-")
    config.model.name, config.model.flavor = NAME, NAME
    config.optimizer.lr, config.optimizer.eps = work.learning_rate, work.adam_eps
    config.optimizer.beta1, config.optimizer.beta2 = work.adam_beta1, work.adam_beta2
    config.optimizer.weight_decay = work.weight_decay
    config.lr_scheduler.warmup_steps, config.lr_scheduler.decay_ratio = 1, 0.0
    training = config.training
    training.local_batch_size = micro_batch
    training.global_batch_size = work.sequences * work.gpus
    training.seq_len, training.max_norm, training.steps = work.sequence_length, work.clip_grad_norm, 1_000_000
    training.dtype = "bfloat16" if work.optimizer_state == "bf16" else "float32"
    config.activation_checkpoint.mode = "none"
    config.compile.enable = True
    config.metrics.log_freq = 1_000_000_000
    return config


def options() -> argparse.ArgumentParser:
    """No more than every contender has."""
    return parser(__doc__)


if __name__ == "__main__":
    main(build, options(), tokens_on_host=True)
