"""The command line: parses, dispatches to ``core.commands``, and turns errors into lines and exit codes."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from core.errors import AccelMarkError

if TYPE_CHECKING:
    from core.console import PlainConsole

EXIT_INTERRUPTED = 130
WIDE = 200
"""Columns of output that goes to a file or another program."""
VERBS = {
    "run": "run a case and leave a record",
    "list": "list vendors, chips, cases, configs or engines",
    "show": "show a case, a config, or a record",
    "compare": "show records side by side, and what differs",
    "validate": "check cases, their configs, reports and records",
    "prepare": "turn text into a token file that runs can read",
    "report": "render a case's README, or rebuild a run's record and report",
    "evaluate": "ask a checkpoint the questions of MMLU or MMMU",
    "align": "hold a run's curves against a reference curve, or keep them as one",
    "conform": "hold a vendor's plugin to what its hooks promise",
    "new-vendor": "make a vendor's plugin, to be filled in",
    "new-case": "make a case in a distribution of its own, to be filled in",
    "doctor": "look for what would keep a run from working here",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    verb = next((word for word in words if word in VERBS), None)
    parser, own = _parsers(verb)
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        own.error(_unknown(verb, unknown))
    try:
        module = _command(arguments.verb)
        code = int(module.execute(arguments, new_console(stderr=True)))
        sys.stdout.flush()
        return code
    except AccelMarkError as error:
        if arguments.debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of stdout has seen enough; Python would complain about it once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parsers(verb: str | None) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """The whole parser and the chosen verb's, whose own options alone are loaded."""
    parser = argparse.ArgumentParser(
        prog="accelmark", description="Measures how well AI accelerators train large language models."
    )
    own = parser
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, summary in VERBS.items():
        sub = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name == verb:
            own = sub
            _command(name).add_arguments(sub)
    return parser, own


def _unknown(verb: str | None, words: Sequence[str]) -> str:
    """What is said of words that no option takes."""
    options = [word for word in words if word.startswith("-")]
    hint = "; settings are changed by --set KEY=VALUE" if verb == "run" and options else ""
    return f"unrecognized arguments: {' '.join(words)}{hint}"


def _command(verb: str) -> ModuleType:
    return importlib.import_module(f"core.commands.{verb.replace('-', '_')}_command")


def new_console(*, stderr: bool = False) -> PlainConsole:
    """A console for stdout or stderr."""
    from core.console import PlainConsole

    # Of a table that is not shown on a terminal nothing is cut off.
    width = None if (sys.stderr if stderr else sys.stdout).isatty() else WIDE
    return PlainConsole(stderr=stderr, width=width)


def print_json(value: object) -> None:
    """The one thing that a command with ``--json`` writes to stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
