"""What single verbs tell and refuse: list, show, run, validate, report and doctor, called as command lines."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from core import launcher, plugins, runner, selection
from core.cases import installed
from core.commands import list_command
from core.errors import UsageError
from core.worker import PLAN_FILE
from schemas.plan import Plan

ROOT = Path(__file__).parents[2]
Call = Callable[..., tuple[int, str, str]]


def test_lists_are_of_one_shape(call: Call) -> None:
    for kind in list_command.KINDS:
        rows = json.loads(call("list", kind, "--json")[1])
        assert len({tuple(row) for row in rows}) == 1, kind
    engines = {row["engine"]: row for row in json.loads(call("list", "engines", "--json")[1])}
    assert engines["deepspeed"]["zero_stages"] == [0, 1, 2, 3]
    configs = json.loads(call("list", "configs", "--json")[1])
    assert {"case": "llama2_7b", "config": "H800x2x8", "vendor": "nvidia", "engine": "deepspeed",
            "runs": ["base", "gas64"], "from": "case"} in configs  # fmt: skip


def test_show_prints_every_field(call: Call) -> None:
    _, out, _ = call("show", "baichuan2_13b")
    assert re.search(r"model\.num_layers +│ 40 ", out)
    assert re.search(r"task\.zh +│ 自然语言理解", out)
    _, out, _ = call("show", "baichuan2_13b", "--config", "H800x2x8")
    assert re.search(r"runs\.1\.fix_hp\.gradient_accumulation_steps +│ 64 ", out)


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


def test_a_checkpoint_that_is_there_is_refused_before_anything_starts(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(selection, "require_packages", lambda _: None)
    words = ["run", "llama2_7b", "--config", "CPUx1x2", "--set", f"checkpoint.save={tmp_path}"]
    code, out, err = call(*words, "--out", str(tmp_path / "runs"))
    assert (code, out) == (2, "")
    assert err.startswith(f"error: checkpoint.save: {tmp_path} is there already\n  fix: name another folder")
    assert not (tmp_path / "runs").exists()


def test_a_series_leaves_out_what_lacks_a_package(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(selection.EXTRA_PACKAGES, "fp8", ("fp8", ("no_such_package",)))
    monkeypatch.setattr(selection, "require_chips", lambda _: None)
    monkeypatch.setattr(selection, "require_packages", lambda _: None)
    started: list[str] = []

    def start(plan: Plan, *_: object) -> None:
        started.append(plan.run)
        raise UsageError("that is enough", "for a test")

    monkeypatch.setattr(runner, "_run_one", start)
    words = ["run", "llama2_7b", "--config", "H200x1x1"]
    _, _, err = call(*words)
    assert "warning: left out: run tuned_fp8 of llama2_7b needs no_such_package, not installed for " in err
    assert err.count("pip install 'accelmark[fp8]'") == 2  # align_fp8's, too
    assert started == ["published"]
    code, _, err = call(*words, "--run", "tuned_fp8")
    assert code == 3
    assert err.startswith("error: run tuned_fp8 of llama2_7b needs no_such_package")


def test_several_nodes_need_a_launcher(call: Call) -> None:
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
