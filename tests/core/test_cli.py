"""What holds for every verb: what is answered without torch, how fast, in what form, with which exit code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from core import cli
from core.commands import list_command
from tests.conftest import python_path

pytestmark = pytest.mark.usefixtures("no_run")  # subprocesses get its environment, too

ROOT = Path(__file__).parents[2]
Call = Callable[..., tuple[int, str, str]]
HEAVY = ("torch", "numpy", "deepspeed", "transformers", "sentencepiece", "matplotlib", "safetensors")
WITHOUT_TORCH = (
    ["--help"],
    ["run", "--help"],
    *(["list", kind] for kind in ("vendors", "chips", "cases", "configs", "engines")),
    ["show", "llama2_7b"],
    ["compare", *["cases/baichuan2_13b/records/published_H800x2x8_base.json"] * 2],
    ["show", "llama2_7b", "--config", "H800x2x8", "--json"],
    ["validate"],
    ["report", "llama2_7b", "--lang", "en"],
    ["doctor"],
    ["run", "baichuan2_13b", "--config", "H800x2x8", "--dry-run"],
)
QUICK = 4.0
"""Times what its libraries take to be imported: 1.8 to 3.0 were seen; importing torch takes more than 6."""
LIBRARIES = "import pluggy, psutil, pydantic.main, pydantic.types, rich.table"


def python(*words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": python_path()}
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("blocked", [False, True], ids=["as installed", "torch blocked"])
def test_what_needs_no_torch_does_not_import_it(blocked: bool) -> None:
    script = f"""
        import sys
        if {blocked}:
            sys.modules.update(dict.fromkeys({HEAVY}))  # None: importing it raises ModuleNotFoundError
        from core.cli import main
        for words in {WITHOUT_TORCH}:
            try:
                code = main(words)
            except SystemExit as end:
                code = end.code
            loaded = [name for name in {HEAVY} if sys.modules.get(name)]
            if code or loaded:
                sys.exit(f"{{words}}: exit code {{code}}, loaded {{loaded}}")
    """
    done = python("-c", dedent(script))
    assert (done.returncode, done.stderr) == (0, "")


def test_without_torch_a_run_says_what_to_install() -> None:
    script = """
        import sys
        sys.modules["torch"] = None
        from core.cli import main
        sys.exit(main(["run", "llama2_7b", "--config", "CPUx1x2", "--engine", "torch"]))
    """
    done = python("-c", dedent(script))
    assert done.returncode == 3
    assert done.stderr.startswith("error: engine torch needs torch, not installed for ")
    assert "fix: pip install 'accelmark[train]'" in done.stderr


def processor_time_s(*words: str) -> float:
    """The least of five: other work stretches even processor time, where cores share what they run on."""
    times_s = []
    for _ in range(5):
        before = os.times()
        assert python(*words).returncode == 0
        after = os.times()
        spent = after.children_user - before.children_user + after.children_system - before.children_system
        times_s.append(spent)
    return min(times_s)


@pytest.mark.parametrize("words", [["--help"], ["list"]])
def test_help_and_list_answer_at_once(words: list[str]) -> None:
    assert processor_time_s("-m", "core", *words) < QUICK * processor_time_s("-c", LIBRARIES)


def test_help_names_every_verb(call: Call) -> None:
    code, out, _ = call("--help")
    assert code == 0
    assert [verb for verb in cli.VERBS if not re.search(rf"^    {verb}[ \n]", out, re.MULTILINE)] == []


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help_and_debug(call: Call, verb: str) -> None:
    code, out, err = call(verb, "--help")
    assert (code, err) == (0, "")
    assert "--debug" in out


def test_the_module_core_run_is_the_verb_run() -> None:
    done = python("-m", "core.run", "cases/baichuan2_13b", "--config", "H800x2x8", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert [plan["run"] for plan in json.loads(done.stdout)] == ["base", "gas64"]


@pytest.mark.parametrize(
    "words",
    [
        *(["list", kind, "--json"] for kind in list_command.KINDS),
        ["show", "baichuan2_13b", "--json"],
        ["show", "baichuan2_13b", "--config", "H800x2x8", "--json"],
        ["show", "cases/baichuan2_13b/records/published_H800x2x8_base.json", "--json"],
        ["validate", "--json"],
        ["doctor", "--json"],
        ["run", "llama2_7b", "--config", "H800x2x8", "--dry-run", "--json"],
    ],
    ids=" ".join,
)
def test_json_is_all_there_is_on_stdout(call: Call, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    code, out, err = call(*words)
    assert (code, err) == (0, "")
    assert json.loads(out)


def test_a_table_for_another_program_is_not_broken(call: Call) -> None:
    configs = json.loads(call("list", "configs", "--json")[1])
    _, out, _ = call("list", "configs")
    assert [config for config in configs if f" {', '.join(config['runs'])} " not in out] == []


@pytest.mark.parametrize(
    ("words", "whole"),
    [
        (["list", "configs"], " llama2_7b_finetune │ A100x1x1 "),
        (["show", "llama2_7b"], " model.max_positions "),
        (["run", "llama2_7b", "--config", "H800x2x8", "--dry-run"], " gradient_accumulation_steps "),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_of_a_table_on_a_narrow_terminal_nothing_is_cut_off(
    call: Call, monkeypatch: pytest.MonkeyPatch, words: list[str], whole: str
) -> None:
    monkeypatch.setattr(cli, "WIDE", 80)
    _, out, _ = call(*words)
    assert whole in out
    assert "…" not in out


@pytest.mark.parametrize(
    ("words", "code", "what", "fix"),
    [
        (["run", "llama3_8b"], 2, "no case 'llama3_8b'", "give a case folder, or one of: "),
        (["run", "llama2_7b", "--config", "H800x1x1", "--dry-run"], 2, "case 'llama2_7b' has no config 'H800x1x1'",
         "use one of: "),
        (["run", "llama2_7b", "--config", "H800x2x8", "--set", "lr", "--dry-run"], 2,
         "--set 'lr' is not key=value", "write it like --set local_batch_size=2"),
        (["run", "llama2_7b", "--config", "H800x2x8", "--set", "zero_stag=1", "--dry-run"], 2,
         "--set: unknown setting 'zero_stag' (value '1')", "did you mean 'zero_stage'?"),
        (["run", "llama2_7b", "--config", "H800x2x8", "--run", "fast"], 2, "config H800x2x8 has no run 'fast'",
         "use one of: base, gas64"),
        (["run", "llama2_7b", "--config", "H800x2x8", "--engine", "jax"], 2, "unknown engine 'jax'",
         "use one of: torch, deepspeed"),
        (["run", "llama2_7b", "--vendor", "nobody"], 3, "no plugin for vendor 'nobody' is installed",
         "pip install its plugin; installed: "),
        (["run", "--resume", "runs/a", "llama2_7b", "--set", "seed=1"], 2,
         "--resume takes what is run from the folder, not from CASE, --set", "leave the rest out"),
        (["show", "nothing.json"], 2, "no case and no record 'nothing.json'", "give a case folder, a record"),
        (["report", "nothing"], 2, "no case and no run's folder 'nothing'", "give a case folder, a run's"),
        (["report", "llama2_7b", "--write", "--lang", "en"], 2, "--write keeps README.md in zh",
         "leave out --lang"),
        (["new-case", "my case"], 2, "'my case' cannot be the name of a case", "take lower-case letters, digits"),
    ],
)  # fmt: skip
def test_an_error_is_a_line_what_and_a_line_how(
    call: Call, words: list[str], code: int, what: str, fix: str
) -> None:
    found, out, err = call(*words)
    assert (found, out) == (code, "")
    first, second = err.splitlines()
    assert first == f"error: {what}"
    assert second.startswith(f"  fix: {fix}")


def test_a_traceback_is_shown_when_asked_for(call: Call) -> None:
    _, _, err = call("run", "llama3_8b", "--debug")
    assert "Traceback (most recent call last)" in err
    assert err.rstrip().splitlines()[-2] == "error: no case 'llama3_8b'"


@pytest.mark.parametrize("words", [[], ["fly"], ["list", "planes"], ["run", "llama2_7b", "--sped"]])
def test_a_command_line_that_cannot_be_ends_with_2(call: Call, words: list[str]) -> None:
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert "usage: accelmark" in err


def test_an_option_that_a_verb_lacks_is_told_with_that_verbs_usage(call: Call) -> None:
    _, _, err = call("run", "llama2_7b", "--precision", "bf16")
    assert err.startswith("usage: accelmark run ")
    assert err.endswith("unrecognized arguments: --precision bf16; settings are changed by --set KEY=VALUE\n")
    _, _, err = call("list", "configs", "llama2_7b")
    assert err.endswith("accelmark list: error: unrecognized arguments: llama2_7b\n")


def test_an_interrupted_command_ends_with_130(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(list_command, "execute", interrupt)
    assert call("list") == (130, "", "interrupted\n")


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "core", "list", "configs", "--json"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": ""},  # so that most is written when the command has ended
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
