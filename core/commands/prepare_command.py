"""``prepare``: text to a token file with a hashed manifest."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from core import cases


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``prepare``."""
    parser.add_argument("case", metavar="CASE", help="the case whose data set this is")
    parser.add_argument(
        "inputs", nargs="+", type=Path, metavar="FILE|DIR", help="JSONL, text, or openwebtext's archives"
    )
    parser.add_argument(
        "--tokenizer", type=Path, required=True, metavar="FILE", help="the model's tokenizer.model (SentencePiece)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for tokens and manifest")


def execute(arguments: argparse.Namespace, console: Console) -> int:
    """Prepare, and say how a run reads the result."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from core.data.prepare import prepare

    case = cases.resolve(arguments.case).case
    columns = (
        TextColumn("prepare"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("prepare", total=None, rate="", visible=False)  # an error may come first

        def show(bytes_done: int, bytes_total: int, tokens: int, seconds: float) -> None:
            rate = f"{tokens:,} tokens, {tokens / seconds:,.0f} tokens/s" if seconds else f"{tokens:,} tokens"
            progress.update(task, completed=bytes_done, total=bytes_total, rate=rate, visible=True)

        manifest = prepare(
            arguments.inputs,
            arguments.tokenizer,
            arguments.out,
            name=case.data.name,
            add_bos=case.tokenizer.add_bos,
            add_eos=case.tokenizer.add_eos,
            progress=show,
        )
    print(f"{manifest.tokens:,} tokens of {manifest.documents:,} documents in {arguments.out}")
    print(f"run with: --set data.path={arguments.out}")
    return 0
