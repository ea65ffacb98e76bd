"""What becomes of a check that cannot run, of a process that ends or hangs, and of runs that differ."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from pydantic import ValidationError

from core import plugins
from core.cli import main
from core.errors import DeviceError
from core.events import EventLog
from core.testing import conformance as conducting
from core.testing import processes, run_checks, small
from core.testing.check import Check, FailedError, NotRunError
from core.testing.conformance import Conformance
from core.testing.run_checks import Runs, largest_error
from core.testing.session import FACTS_FILE, Outcome, Session, blocker, results_file
from schemas import event as ev
from schemas.conformance import CheckResult, ConformanceReport

BASE = {"id": "a.b", "hook": "chips", "proves": "something"}


def test_only_what_passed_has_no_reason() -> None:
    CheckResult(**BASE, verdict="passed", detail="2 chips")
    CheckResult(**BASE, verdict="not run", reason="no chip")
    with pytest.raises(ValidationError, match="'passed' with the reason 'no chip'"):
        CheckResult(**BASE, verdict="passed", reason="no chip")
    with pytest.raises(ValidationError, match="'failed' with the reason None"):
        CheckResult(**BASE, verdict="failed")


# --- no device ------------------------------------------------------------------------------------------------


def test_without_the_vendor_s_chip_the_launcher_s_side_alone_is_checked(tmp_path: Path, capsys) -> None:
    """MetaX has no emulated device; of this machine it may be said once nothing more."""
    assert main(["conform", "metax", "--json", "--out", str(tmp_path)]) == 0
    report = ConformanceReport.model_validate_json(capsys.readouterr().out)
    verdicts = {result.id: result.verdict for result in report.results}
    launcher = {check.id for check in conducting.CHECKS if check.place == "launcher"}
    assert {name for name, verdict in verdicts.items() if verdict == "passed"} == launcher - {
        "hardware_configs.plannable",
        "tune.plannable",
    }
    assert {r.reason for r in report.results if r.verdict == "not run"} == {"this machine holds no chip of metax"}
    assert (report.chip, report.device, report.ranks, report.emulated) == (None, None, None, False)


def test_the_command_shows_a_table_and_refuses_what_is_not_there(tmp_path: Path, capsys) -> None:
    assert main(["conform", "metax", "--only", "chips.sourced", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert "metax (without a chip): 1 passed, 0 failed, " in told.out
    assert "chips.sourced" in told.out
    assert "2 chips" in told.out
    assert "chips.dense_peaks" not in told.out + told.err
    assert "1/1 chips.sourced: passed" in told.err
    assert main(["conform", "metax", "--only", "tf32", "--out", str(tmp_path)]) == 2
    assert main(["conform", "nobody", "--out", str(tmp_path)]) == 3
    (tmp_path / "file").touch()
    assert main(["conform", "metax", "--out", str(tmp_path / "file" / "runs")]) == 2
    assert "name a writable one with --out" in capsys.readouterr().err


def test_two_ranks_need_two_chips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = plugins.select("cpu")
    (one,) = cpu.probe()
    monkeypatch.setattr(cpu, "probe", lambda: (one.model_copy(update={"count": 1}),))
    suite = Conformance(cpu, tmp_path)
    assert suite._why_no_device("ranks") == "needs 2 chips, this machine holds 1"
    assert suite._why_no_device("fp32") is None
    assert suite._runs is not None
    assert suite._runs.ranks == 1


TUNED = [check for check in conducting.CHECKS if check.place == "tuned"]


def test_where_tuned_runs_do_not_compile_nothing_is_promised_of_that(tmp_path: Path) -> None:
    suite = Conformance(plugins.select("cpu"), tmp_path)
    assert suite._why_no_device("tuned") is None
    outcomes = suite._outcomes("tuned", TUNED)
    assert outcomes.keys() == {check.id for check in TUNED}
    assert {outcome.verdict for outcome in outcomes.values()} == {"not declared"}
    assert {outcome.reason for outcome in outcomes.values()} == {"tuned runs on CPU do not compile"}
    assert not list(tmp_path.iterdir()), "no process was started for it"


def test_an_emulated_device_says_nothing_of_compiled_runs(tmp_path: Path) -> None:
    suite = Conformance(plugins.select("cpu"), tmp_path)
    (tmp_path / FACTS_FILE).write_text('{"emulated": true}', encoding="utf-8")
    assert suite._why_no_device("tuned") == "an emulated device says nothing of compiled runs"
    assert suite._why_no_device("fp32") is None


def test_a_plan_of_the_small_case_keeps_the_global_batch() -> None:
    cpu = plugins.select("cpu")
    plans = [
        small.small_plan(cpu, "CPU"),
        small.small_plan(cpu, "CPU", 2, settings={"zero_stage": 3}),
        small.small_plan(cpu, "CPU", 2, "megatron", {"tensor_parallel": 2}),
    ]
    assert {plan.global_batch_size for plan in plans} == {small.GLOBAL_BATCH}
    assert [plan.parallel.render() for plan in plans] == ["TP1PP1DP1", "TP1PP1DP2", "TP2PP1DP1"]


# --- what follows from what -----------------------------------------------------------------------------------


def test_only_what_failed_or_did_not_run_blocks() -> None:
    check = Check("c", "chips", "launcher", "something", "m:f", needs=("a", "b"))
    assert blocker(check, {"a": "passed", "b": "not declared"}) is None
    assert blocker(check, {"a": "passed", "b": "failed"}) == "b"
    assert blocker(check, {"a": "not run", "b": "failed"}) == "a"


# --- processes ------------------------------------------------------------------------------------------------

SESSION = Session(vendor="cpu", distribution="accelmark", checks=("chips.sourced", "probe.known_chips"), plan=None)


def test_a_process_that_does_not_even_start_its_checks_is_told_of(tmp_path: Path) -> None:
    nobody = SESSION.model_copy(update={"vendor": "nobody"})
    outcomes = processes.run_checks(nobody, tmp_path)
    first = outcomes["chips.sourced"]
    assert first.verdict == "failed"
    assert first.reason is not None
    assert first.reason.startswith("the process ended with exit code 1 (log: ")
    log = next(tmp_path.glob("launcher-1-1/log0.txt")).read_text(encoding="utf-8")
    assert "vendor 'nobody' of accelmark is planned but not installed here" in log
    assert "probe.known_chips" not in outcomes, "it needs the first"


def test_a_process_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "TIMEOUT_S", 0.0)
    outcomes = processes.run_checks(SESSION, tmp_path)
    assert outcomes["chips.sourced"].verdict == "failed"
    assert "had not ended after 0 s" in str(outcomes["chips.sourced"].reason)


def test_what_needs_a_failed_check_by_way_of_others_is_left_out() -> None:
    failed = Outcome(check="init_device.takes_device", verdict="failed", reason="no")
    later = ("collect_memory.counts", "collect_memory.resets", "chips.dense_peaks")
    assert processes._without_blocked(later, {failed.check: failed}) == ("chips.dense_peaks",)


def write(folder: Path, rank: int, *outcomes: Outcome) -> None:
    lines = "".join(outcome.model_dump_json() + "\n" for outcome in outcomes)
    results_file(folder, rank).write_text(lines, encoding="utf-8")


def test_the_worst_of_the_ranks_counts(tmp_path: Path) -> None:
    write(tmp_path, 0, Outcome(check="a"), Outcome(check="a", verdict="passed"))
    write(tmp_path, 1, Outcome(check="a"), Outcome(check="a", verdict="failed", reason="off by one"))
    found, begun = processes._read(tmp_path, 2)
    assert found["a"].reason == "off by one"
    assert begun is None


def test_a_rank_that_waits_for_a_failed_one_is_not_the_cause(tmp_path: Path) -> None:
    write(tmp_path, 0, Outcome(check="a"))
    write(tmp_path, 1, Outcome(check="a"), Outcome(check="a", verdict="failed", reason="off by one"))
    found, begun = processes._read(tmp_path, 2)
    assert (found["a"].verdict, begun) == ("failed", None)
    write(tmp_path, 1, Outcome(check="a"), Outcome(check="a", verdict="passed"))
    assert processes._read(tmp_path, 2) == ({}, "a")


# --- runs -----------------------------------------------------------------------------------------------------


def test_curves_are_compared_step_by_step() -> None:
    assert largest_error("loss", (4.0, 2.002), (4.0, 2.0), 1e-2) == pytest.approx(1e-3)
    with pytest.raises(FailedError, match=r"loss of step 2 is 2\.040000, on the CPU 2\.000000: off by 2\.0e-02"):
        largest_error("loss", (4.0, 2.04), (4.0, 2.0), 1e-2)
    with pytest.raises(FailedError, match="told for 1 steps, of 2"):
        largest_error("loss", (4.0,), (4.0, 2.0), 1e-2)


def test_an_engine_that_is_not_installed_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_checks, "missing_packages", lambda engine: ["megatron.core"])
    with pytest.raises(NotRunError, match=r"megatron\.core not installed: pip install 'accelmark\[megatron\]'"):
        run_checks.megatron_follows_the_reference(Runs(plugins.select("cpu"), "CPU", 2, tmp_path))


@pytest.mark.parametrize(
    ("trace", "exit_code", "refusal"),
    [
        ('File "acme.py", line 7, in prepare_engine', DeviceError.exit_code, "no ZeRO on an X1"),
        ('File "acme.py", line 7, in prepare_engine', 1, None),
        ('File "acme.py", line 7, in init_device', DeviceError.exit_code, None),
    ],
)
def test_an_engine_that_the_plugin_refuses_is_not_declared(
    tmp_path: Path, trace: str, exit_code: int, refusal: str | None
) -> None:
    EventLog(tmp_path, 0).emit(
        ev.ErrorEvent, status="crashed", step=None, reason="no ZeRO on an X1", traceback=trace, exit_code=exit_code
    )
    assert run_checks._refusal(tmp_path) == refusal


def test_without_a_reference_chip_there_is_nothing_to_compare_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_checks, "reference_chip", lambda: None)
    with pytest.raises(NotRunError, match="no installed vendor has a reference chip"):
        _ = Runs(plugins.select("cpu"), "CPU", 1, tmp_path).reference
    found = small.reference_chip()
    assert found is not None
    assert (found[0].name, found[1]) == ("cpu", "CPU")


def test_a_check_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        conducting.CHECKS[0].id = "x"  # type: ignore[misc]


def test_a_device_without_convolutions_is_judged_by_its_other_products(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from core.testing import precision_checks

    def missing(*_: object) -> None:
        raise NotImplementedError("convolution_overrideable not implemented")

    products = precision_checks.PRODUCTS
    monkeypatch.setitem(products, "conv2d", (missing, *products["conv2d"][1:]))
    assert precision_checks.product_errors(torch.device("cpu")).keys() == {"mm", "bmm", "linear"}
    monkeypatch.setitem(products, "mm", (missing, *products["mm"][1:]))
    with pytest.raises(NotImplementedError):
        precision_checks.product_errors(torch.device("cpu"))


def test_a_process_that_dies_after_its_last_check_fails_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"launch_env.plans": Outcome(check="launch_env.plans", verdict="passed")}
    monkeypatch.setattr(processes, "_run", lambda *_: "was ended by signal 6 (SIGABRT)")
    monkeypatch.setattr(processes, "_read", lambda *_: (told, None))
    session = Session(vendor="cpu", distribution="accelmark", checks=tuple(told), plan=None)
    assert processes.run_checks(session, tmp_path) == told
