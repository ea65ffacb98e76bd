"""The command line: what it answers without torch, how fast, in what form, and with which exit code."""

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

from core import cli, launcher, plugins, runner, selection
from core.cases import installed
from core.commands import list_command
from core.worker import PLAN_FILE
from schemas.plan import Plan
from tests.conftest import python_path

ROOT = Path(__file__).parents[2]
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


@pytest.fixture(autouse=True)
def no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever machine the tests run on: nothing is launched here."""

    def refuse(*_: object) -> None:
        raise AssertionError("a run was launched")

    monkeypatch.setattr(runner, "launch_run", refuse)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line here; exit code, stdout, stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        try:
            code = cli.main(words)
        except SystemExit as end:  # argparse's way
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


Call = Callable[..., tuple[int, str, str]]


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


@pytest.mark.parametrize("more", [(), ("--quiet",)])
def test_quiet_leaves_the_result_and_errors(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, more: tuple[str, ...]
) -> None:
    monkeypatch.setattr(runner, "launch_run", lambda *_, **__: None)  # leaves a folder without an event
    monkeypatch.setattr(selection, "require_packages", lambda _: None)
    code, out, err = call("run", "llama2_7b", "--config", "CPUx1x2", "--out", str(tmp_path), *more)
    assert code == 1
    assert "crashed: rank 0, 1 before any worker" in out
    told = [line.partition(" ")[0] for line in err.splitlines()]
    assert told == ["crashed:"] if more else ["run", "crashed:"]


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


def test_lists_are_of_one_shape(call: Call) -> None:
    for kind in list_command.KINDS:
        rows = json.loads(call("list", kind, "--json")[1])
        assert len({tuple(row) for row in rows}) == 1, kind
    engines = {row["engine"]: row for row in json.loads(call("list", "engines", "--json")[1])}
    assert engines["deepspeed"]["zero_stages"] == [0, 1, 2, 3]
    configs = json.loads(call("list", "configs", "--json")[1])
    assert {"case": "llama2_7b", "config": "H800x2x8", "vendor": "nvidia", "engine": "deepspeed",
            "runs": ["base", "gas64"], "from": "case"} in configs  # fmt: skip


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


def test_show_prints_every_field(call: Call) -> None:
    _, out, _ = call("show", "baichuan2_13b")
    assert re.search(r"model\.num_layers +│ 40 ", out)
    assert re.search(r"task\.zh +│ 自然语言理解", out)
    _, out, _ = call("show", "baichuan2_13b", "--config", "H800x2x8")
    assert re.search(r"runs\.1\.fix_hp\.gradient_accumulation_steps +│ 64 ", out)


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


def test_the_plans_of_two_nodes_of_h800(call: Call) -> None:
    code, out, err = call("run", "baichuan2_13b", "--config", "H800x2x8", "--dry-run", "--json")
    assert (code, err) == (0, "")
    base, gas64 = map(Plan.model_validate, json.loads(out))
    assert (base.parallel.render(), base.global_batch_size, gas64.global_batch_size) == ("TP1PP1DP16", 128, 1024)
    assert base.engine_config["zero_optimization"] == {  # type: ignore[comparison-overlap]
        "stage": 1, "contiguous_gradients": True, "overlap_comm": False,
    }  # fmt: skip
    assert base.engine_config["bf16"] == {"enabled": True}  # type: ignore[comparison-overlap]
    assert (base.chip.name, base.official, base.scaled_down) == ("H800", True, False)
    assert base.origins["zero_stage"] == "config_H800x2x8.py"
    assert base.launch[:5] == ("torchrun", "--nnodes", "2", "--nproc-per-node", "8")


def test_a_dry_run_prints_settings_with_origins_and_the_launch_line(call: Call) -> None:
    words = ["run", "baichuan2_13b", "--config", "H800x2x8", "--run", "gas64", "--set", "seed=7", "--dry-run"]
    code, out, _ = call(*words)
    assert code == 0
    assert re.search(r"gradient_accumulation_steps +│ 64 +│ config_H800x2x8\.py, run gas64", out)
    assert re.search(r"seed +│ 7 +│ --set", out)
    assert re.search(r"official +│ False: --set changed seed", out)
    (launch,) = (line for line in out.splitlines() if line.startswith("launch: "))
    assert launch.endswith(
        "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint $MASTER_ADDR:29400 "
        "--rdzv-id accelmark -m -- core.run baichuan2_13b --config H800x2x8 --run gas64 --set seed=7"
    )


def test_a_checkpoint_that_is_there_is_refused_before_anything_starts(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(selection, "require_packages", lambda _: None)
    words = ["run", "llama2_7b", "--config", "CPUx1x2", "--set", f"checkpoint.save={tmp_path}"]
    code, out, err = call(*words, "--out", str(tmp_path / "runs"))
    assert (code, out) == (2, "")
    assert err.startswith(f"error: checkpoint.save: {tmp_path} is there already\n  fix: name another folder")
    assert not (tmp_path / "runs").exists()


def test_several_nodes_need_a_launcher(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = call("run", "baichuan2_13b", "--config", "H800x2x8", "--run", "base")
    assert (code, out) == (2, "")
    assert err.startswith("error: config H800x2x8 spans 2 nodes\n  fix: start on every node: ")
    assert "torchrun --nnodes 2 --nproc-per-node 8 " in err


def test_without_the_hardware_a_run_ends_with_3(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins.Vendor, "probe", lambda self: ())
    code, out, err = call("run", "llama2_7b", "--vendor", "nvidia", "--config", "H200x1x1")
    assert (code, out) == (3, "")
    assert err.splitlines() == [
        "error: config H200x1x1 needs 1 × H200, this machine holds none of this vendor's",
        "  fix: run it on such a machine, or see the plan with --dry-run",
    ]
    code, _, err = call("run", "llama2_7b", "--vendor", "nvidia")
    assert code == 3
    assert "this machine holds no nvidia chip that case 'llama2_7b' has a config for" in err


def test_a_chip_of_a_vendor_without_a_plugin_ends_with_3(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    known = [found for found in plugins.discover() if found.name != "torch_musa"]
    monkeypatch.setattr(plugins, "discover", lambda: known)
    code, out, err = call("run", "llama2_7b", "--config", "S4000x1x8", "--dry-run")
    assert (code, out) == (3, "")
    assert err.startswith("error: no plugin for vendor 'torch_musa' is installed\n  fix: pip install its plugin")
    code, out, _ = call("validate", "llama2_7b", "--json")
    assert code == 0
    notes = [row["text"] for row in json.loads(out) if row["what"] == "llama2_7b S4000x1x8"]
    assert notes == ["vendor 'torch_musa' is not installed: schema checked, plans not"]


def test_all_cases_in_the_repository_are_valid(call: Call) -> None:
    code, out, _ = call("validate", "--json")
    rows = json.loads(out)
    assert [row for row in rows if row["verdict"] == "error"] == []
    assert code == 0
    good = {row["what"] for row in rows if row["verdict"] == "ok"}
    ours = [loaded for _, distribution, loaded, _ in installed() if distribution == "accelmark"]
    for loaded in ours:
        assert loaded is not None
        assert f"{loaded.case.name} records" in good
        for config in loaded.configs:
            runs = {f"{loaded.case.name} {config.value.name} {run.id}" for run in config.value.runs}
            assert runs <= good or not plugins.is_installed(config.value.vendor)
    assert {"baichuan2_13b H800x2x8 gas64", "llama2_7b CPUx1x2 base", "llama2_7b S4000x1x8 base"} <= good


def test_validate_takes_whatever_a_shell_expands(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    code, out, _ = call("validate", *(str(path) for path in Path("cases").iterdir()))
    assert code == 0
    assert "llama2_7b H800x2x8 base: deepspeed TP1PP1DP16 GBS 48" in out


def test_validate_tells_what_is_wrong_and_ends_with_2(call: Call, tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text("CASE = None\n", encoding="utf-8")
    code, out, _ = call("validate", str(tmp_path), "llama2_7b", "nowhere")
    assert code == 2
    assert f"error {tmp_path}: {tmp_path}/__init__.py: CASE is missing" in out
    assert "error nowhere: no case 'nowhere'" in out
    assert "ok    llama2_7b: " in out


def test_a_run_folder_without_an_outcome_still_gives_a_report(
    call: Call, tmp_path: Path, make_plan: Callable[..., Plan]
) -> None:
    (tmp_path / PLAN_FILE).write_text(make_plan().model_dump_json(), encoding="utf-8")
    code, out, err = call("report", str(tmp_path), "--lang", "en")
    assert code == 1
    assert out == (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "crashed" in out
    assert "before any worker started" in err
    code, out, _ = call("show", str(tmp_path), "--json")
    assert (code, json.loads(out)["status"]) == (0, "crashed")


def test_a_reason_is_printed_as_it_is(call: Call, tmp_path: Path, make_plan: Callable[..., Plan]) -> None:
    """``[/path]`` would be markup, ``:100:`` an emoji."""
    text = "ImportError in [/usr/lib/accl] at :100:"
    (tmp_path / PLAN_FILE).write_text(make_plan().model_dump_json(), encoding="utf-8")
    outcome = {"command": "c", "exit_code": 1, "lost": {"0": text}}
    (tmp_path / launcher.OUTCOME_FILE).write_text(json.dumps(outcome), encoding="utf-8")
    _, _, err = call("report", str(tmp_path))
    assert f"crashed: rank 0 before any worker started (see agent.log) {text}" in err
    _, out, _ = call("show", str(tmp_path))
    assert text in out


def test_doctor_tells_when_another_core_is_in_the_way(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "core").mkdir()
    monkeypatch.chdir(tmp_path)
    code, out, _ = call("doctor")
    assert code == 0
    assert f"note    package core: {tmp_path / 'core'} shadows AccelMark's here" in out


def test_doctor_ends_with_3_when_a_plugin_is_broken(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = plugins.Found("acme", "acme-plugin", None, "ImportError: libaccl.so")
    monkeypatch.setattr(plugins, "discover", lambda: (broken,))
    code, out, _ = call("doctor")
    assert code == 3
    assert "problem vendor acme (acme-plugin): broken: ImportError: libaccl.so" in out
