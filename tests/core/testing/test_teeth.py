"""The suite has teeth: a plugin with one fault fails the check meant for it, and no other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from core.plugins import Vendor
from core.testing.catalog import CHECKS
from core.testing.check import Check, DeviceScene
from core.testing.session import Outcome, blocker, run_in_order
from core.testing.small import small_plan, tuned_plan
from schemas.conformance import ConformanceReport
from tests.conftest import python_path
from tests.core.testing.planted import COMPILED_FAULTS, COMPILES, FAULTS, SOUND, Fault, install

ROOT = Path(__file__).resolve().parents[3]
NEEDS_TORCH = pytest.mark.skipif(find_spec("torch") is None, reason="a worker needs torch")
BY_ID = {check.id: check for check in CHECKS}


@pytest.fixture
def planted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vendor]:
    """The plugin with the fault that is the test's parameter."""
    fault: Fault = request.getfixturevalue("fault")
    module = ModuleType(fault.name)
    monkeypatch.setitem(sys.modules, fault.name, module)
    exec(f"{SOUND}\n{fault.source}", module.__dict__)
    yield load(module)
    if hasattr(module, "switched"):
        module.switched._destroy()


def caught_on(place: str) -> Any:
    """Parametrises with the faults that a check of ``place`` is meant for."""
    found = [fault for fault in (*FAULTS, *COMPILED_FAULTS) if BY_ID[fault.caught_by].place == place]
    return pytest.mark.parametrize("fault", [f for f in found if not f.own_process], ids=lambda fault: fault.name)


def load(module: ModuleType) -> Vendor:
    defaults = None
    if find_spec("torch") is not None:
        from core import defaults
    return Vendor(module.__name__, "planted", module, defaults=defaults)


def outcomes(place: str, vendor: Vendor, hook: str | None = None) -> dict[str, Outcome]:
    """Of all checks of a place (and a hook) that the plugin declares, in this process."""
    checks = [c for c in CHECKS if c.place == place and (vendor.implements(c.hook) or not c.if_declared)]
    checks = [check for check in checks if hook in (None, check.hook)]
    argument: Any = vendor
    if place != "launcher":
        plan = tuned_plan(vendor, "CPU") if place == "tuned" else small_plan(vendor, "CPU")
        argument = DeviceScene(vendor, plan, 0)
    told: dict[str, Outcome] = {}
    run_in_order(checks, argument, lambda outcome: told.__setitem__(outcome.check, outcome))
    return told


def failed(told: dict[str, Outcome]) -> list[str]:
    return [name for name, outcome in told.items() if outcome.verdict == "failed"]


@caught_on("launcher")
def test_a_fault_on_the_launcher_fails_its_check_and_no_other(fault: Fault, planted: Vendor) -> None:
    told = outcomes("launcher", planted)
    torch_is_here = ["launcher.no_torch"] if "torch" in sys.modules else []  # of this process, not of the plugin
    assert [name for name in failed(told) if name not in torch_is_here] == [fault.caught_by]
    assert fault.says in str(told[fault.caught_by].reason)


@NEEDS_TORCH
@caught_on("fp32")
def test_a_fault_on_the_device_fails_its_check_and_no_other(
    fault: Fault, planted: Vendor, restored_math_mode: None
) -> None:
    assert [name for name in failed(outcomes("launcher", planted)) if name != "launcher.no_torch"] == []
    told = outcomes("fp32", planted)
    assert failed(told) == [fault.caught_by]
    assert fault.says in str(told[fault.caught_by].reason)
    blocked = {check.id for check in CHECKS if check.place == "fp32" and fault.caught_by in check.needs}
    assert {name for name, outcome in told.items() if outcome.verdict == "passed"} == always_passed(planted) - {
        fault.caught_by, *blocked,
    }  # fmt: skip
    assert_engines_are_not_blamed(BY_ID[fault.caught_by], told)


def always_passed(vendor: Vendor) -> set[str]:
    """Of the worker's checks that the plugin declares, what holds on a CPU."""
    cannot_be_shown = {"init_device.refuses_missing", "chips.peaks_reached"}
    declared = {check.id for check in CHECKS if vendor.implements(check.hook) or not check.if_declared}
    return {check.id for check in CHECKS if check.place == "fp32"} & declared - cannot_be_shown


def assert_engines_are_not_blamed(meant: Check, told: dict[str, Outcome]) -> None:
    verdicts = {name: outcome.verdict for name, outcome in told.items() if outcome.verdict}
    expected = meant.id if meant.id in BY_ID["engine.torch"].needs else None
    assert blocker(BY_ID["engine.torch"], verdicts) == expected


@pytest.fixture
def restored_math_mode() -> Iterator[None]:
    import torch

    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


# --- in compiled runs --------------------------------------------------------------------------------------------


@pytest.fixture
def _traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compiled blocks are traced, and run op by op as traced: kernels would take a C++ compiler a minute."""
    import torch

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    yield
    torch.compiler.reset()


@NEEDS_TORCH
@caught_on("tuned")
@pytest.mark.usefixtures("_traced", "restored_math_mode")
def test_a_fault_of_compiled_runs_alone_fails_its_check_and_no_other(fault: Fault, planted: Vendor) -> None:
    meant = BY_ID[fault.caught_by]
    assert failed(outcomes("fp32", planted, meant.hook)) == []
    told = outcomes("tuned", planted, meant.hook)
    assert failed(told) == [fault.caught_by]
    assert fault.says in str(told[fault.caught_by].reason)


@NEEDS_TORCH
@pytest.mark.parametrize("fault", [Fault("compiles", "", "", COMPILES)], ids=lambda fault: fault.name)
@pytest.mark.usefixtures("_traced", "restored_math_mode")
def test_compiled_runs_without_a_fault_pass(fault: Fault, planted: Vendor) -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    told = outcomes("tuned", planted)
    assert counters["stats"]["unique_graphs"] >= 6, "a block of each kind of positions and of checkpointing"
    assert {name: outcome.verdict for name, outcome in told.items()} == {
        check.id: "passed" for check in CHECKS if check.place == "tuned"
    }
    assert str(told["build_model.tuned"].detail).startswith("rope by vendor within ")
    assert str(told["optimizer_wrap.tuned"].detail).startswith("CompiledAdamW, within ")


NOT_INSTALLED = """
@hookimpl
def prepare_engine(plan):
    if plan.hyper_parameters.attention == "vendor":
        from core.errors import DeviceError

        raise DeviceError("the kernels are not installed", "pip install kernels")
"""


@NEEDS_TORCH
@pytest.mark.parametrize("fault", [Fault("lacks_kernels", "", "", COMPILES + NOT_INSTALLED)], ids=lambda f: f.name)
@pytest.mark.usefixtures("_traced", "restored_math_mode")
def test_kernels_that_are_not_installed_are_not_run(fault: Fault, planted: Vendor) -> None:
    told = outcomes("tuned", planted, "build_model")["build_model.tuned"]
    assert (told.verdict, told.reason) == ("not run", "prepare_engine refuses this: the kernels are not installed")


# --- through the command, each in processes of its own ----------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a distribution with all of them is installed."""
    folder = tmp_path_factory.mktemp("planted") / "site"
    install(folder)
    return folder


def conform(site: Path, vendor: str, out: Path, *only: str) -> tuple[int, ConformanceReport]:
    words = [word for check in only for word in ("--only", check)]
    done = subprocess.run(
        [sys.executable, "-m", "core", "conform", vendor, "--json", "--out", str(out), *words],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": python_path(site)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 4), done.stderr
    return done.returncode, ConformanceReport.model_validate_json(done.stdout)


LAUNCHER = [check.id for check in CHECKS if check.place == "launcher"]


def test_torch_on_the_launcher_is_found_out(site: Path, tmp_path: Path) -> None:
    (fault,) = (fault for fault in FAULTS if fault.name == "torch_on_the_launcher")
    code, report = conform(site, fault.name, tmp_path, *LAUNCHER)
    results = {result.id: result for result in report.results}
    assert [name for name, result in results.items() if result.verdict == "failed"] == [fault.caught_by]
    assert fault.says in str(results[fault.caught_by].reason)
    assert code == 4


def test_a_plugin_without_a_fault_fails_nothing_beside_those_that_do(site: Path, tmp_path: Path) -> None:
    code, report = conform(site, "sound", tmp_path, *LAUNCHER)
    assert code == 0
    assert report.counts == {"passed": 5, "failed": 0, "not declared": 2, "not run": len(CHECKS) - 7}
    assert {r.reason for r in report.results if r.verdict == "not run"} == {"left out by --only"}
    (file,) = tmp_path.glob("conform-sound-*/conformance.json")
    assert ConformanceReport.model_validate_json(file.read_text(encoding="utf-8")) == report


@NEEDS_TORCH
def test_a_plugin_that_kills_its_process_fails_that_check_alone(site: Path, tmp_path: Path) -> None:
    (fault,) = (fault for fault in FAULTS if fault.name == "dies")
    code, report = conform(site, "dies", tmp_path, fault.caught_by, "build_model.builds", "engine.torch")
    results = {result.id: result for result in report.results}
    assert code == 4
    assert [name for name, result in results.items() if result.verdict == "failed"] == [fault.caught_by]
    assert fault.says in str(results[fault.caught_by].reason)
    assert results["init_device.takes_device"].verdict == "passed", "what came before it"
    assert results["build_model.builds"].verdict == "passed", "what came behind it"
    assert results["engine.torch"].reason == f"needs {fault.caught_by}, which failed"
