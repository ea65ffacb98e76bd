"""``evaluate``: asks a checkpoint a benchmark's questions, outside of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from core.cli import print_json
from core.errors import UsageError
from core.report.cells import percent
from schemas.evaluation import EMBEDDED, Accuracy, Benchmark, EvaluationSpec, Score

_DTYPES = ("bf16", "fp16", "fp32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``evaluate``."""
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", type=Path,
        help="the folder of a run that trained adapters, or of a Llama (asked MMLU) or LLaVA (asked MMMU): "
        "config.json, safetensors, tokenizer.model",
    )  # fmt: skip
    parser.add_argument(
        "--mmlu", metavar="DIR",
        help="MMLU's questions, the authors' CSV files or the hub's parquet files (default: a few embedded ones)",
    )  # fmt: skip
    parser.add_argument(
        "--mmmu", metavar="DIR",
        help="MMMU's validation questions, parquet files as on the hub (default: a few embedded ones)",
    )  # fmt: skip
    parser.add_argument(
        "--tokenizer", metavar="FILE", type=Path, help="another SentencePiece model than the folder's"
    )
    parser.add_argument(
        "--shots", type=int, default=5, metavar="N", help="answered examples before each question of MMLU (5)"
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="prompts per forward pass (8)")
    parser.add_argument("--precision", choices=_DTYPES, help="of weights and products (bf16; fp32 on the CPU)")
    parser.add_argument("--json", action="store_true", help="the accuracy as one object on stdout")


def execute(arguments: argparse.Namespace, console: Console) -> int:
    """Load, ask, print."""
    benchmark, accuracy = _ask(arguments, console)
    if arguments.json:
        print_json(accuracy.model_dump(mode="json"))
        return 0
    for name, score in accuracy.subjects.items():
        print(f"{name}: {_said(score)}")
    asked = "the few embedded questions" if accuracy.data == EMBEDDED else accuracy.data
    if benchmark == "MMMU":
        how = f"{percent(accuracy.unparsable)} of the answers unparsable"
    else:
        cut = f", {accuracy.cut_prompts} prompts cut to {accuracy.mean_shots or 0:.2f} shots on average"
        how = f"{accuracy.shots} shots{cut if accuracy.cut_prompts else ''}"
    print(f"{benchmark} ({asked}, {how}): {_said(accuracy)}")
    return 0


def _said(score: Score) -> str:
    error = "" if score.standard_error is None else f" ± {score.standard_error:.4f}"
    return f"{score.value:.4f}{error} of {score.questions}"


def _ask(arguments: argparse.Namespace, console: Console) -> tuple[Benchmark, Accuracy]:
    import torch

    from core.evaluate.catalog import Respondent, evaluator
    from core.evaluate.checkpoint import load_model, read_checkpoint

    checkpoint = read_checkpoint(arguments.checkpoint, arguments.tokenizer)
    spec = _spec(arguments, sees=checkpoint.vision is not None)
    evaluator(spec.benchmark).make(spec)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    precision = arguments.precision or ("fp32" if device.type == "cpu" else "bf16")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    respondent = Respondent(
        model=load_model(checkpoint, device, dtype),
        device=device,
        tokenizer=checkpoint.tokenizer,
        vocab_size=checkpoint.spec.vocab_size,
        max_length=checkpoint.spec.max_positions,
        vision=checkpoint.vision,
    )
    with torch.no_grad():
        accuracy = evaluator(spec.benchmark).evaluate(
            spec, respondent, lambda done, total: console.print(f"{done} of {total} prompts")
        )
    return spec.benchmark, accuracy


def _spec(arguments: argparse.Namespace, *, sees: bool) -> EvaluationSpec:
    """MMMU of a model that sees images, MMLU of others; UsageError for the other one's questions."""
    wrong = arguments.mmlu if sees else arguments.mmmu
    if wrong is not None:
        asked, kind = ("MMLU", "a model with a vision tower") if sees else ("MMMU", "a model of text")
        other = "MMMU" if sees else "MMLU"
        raise UsageError(f"{asked}'s questions {wrong} for {kind}", f"give {other}'s: --{other.lower()} DIR")
    size = arguments.batch_size
    if sees:
        return EvaluationSpec(benchmark="MMMU", batch_size=size, path=arguments.mmmu)
    return EvaluationSpec(benchmark="MMLU", shots=arguments.shots, batch_size=size, path=arguments.mmlu)
