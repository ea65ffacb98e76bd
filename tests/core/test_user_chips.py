"""A user's own chip file: what it changes, what the plan says of it, and what is said of a wrong one."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from core import plugins, user_chips
from core.commands import doctor_command
from core.errors import UsageError
from core.plugins import Vendor
from schemas.plan import Plan

PEAK = {"precision": "fp32", "tflops": 60.0, "source": "our order, page 2"}


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Files and plugins are read once a process."""
    yield
    user_chips._read.cache_clear()
    plugins.discover.cache_clear()


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write the user's file and name it."""

    def write(*chips: Any, text: str | None = None) -> Path:
        file = tmp_path / "my chips.json"
        file.write_text(json.dumps(chips) if text is None else text, encoding="utf-8")
        monkeypatch.setenv(user_chips.VARIABLE, str(file))
        user_chips._read.cache_clear()
        plugins.discover.cache_clear()
        return file

    return write


def chip(**changes: Any) -> dict[str, Any]:
    return {"vendor": "acme", "name": "X1", "peaks": [PEAK], **changes}


def refusal() -> UsageError:
    with pytest.raises(UsageError) as error:
        user_chips.user_chips()
    return error.value


def test_without_a_file_chips_are_the_plugin_s(
    make_vendor: Callable[..., Vendor], monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in (None, ""):
        if value is None:
            monkeypatch.delenv(user_chips.VARIABLE, raising=False)
        else:
            monkeypatch.setenv(user_chips.VARIABLE, value)
        assert user_chips.user_chips() == ()
        assert make_vendor().chip("X1").memory_source == "datasheet 1.2"


def test_a_stated_peak_goes_over_the_plugin_s_and_names_the_file(
    make_vendor: Callable[..., Vendor], state: Callable[..., Path]
) -> None:
    state(chip())
    x1 = make_vendor().chip("X1")
    assert x1.peak("fp32").tflops == 60
    assert x1.peak("fp32").source == "user: my chips.json: our order, page 2"
    assert x1.peak("bf16").source == "datasheet 1.2"
    assert (x1.memory_gb, x1.memory_source) == (80, "datasheet 1.2")
    assert make_vendor().chip("H800").peak("fp32").tflops is None


def test_a_peak_can_be_taken_back_and_memory_stated(
    make_vendor: Callable[..., Vendor], state: Callable[..., Path]
) -> None:
    unknown = {"precision": "bf16", "tflops": None, "source": "the 989 are not for this board"}
    state(chip(peaks=[unknown], memory_gb=96))
    x1 = make_vendor().chip("X1")
    assert x1.peak("bf16").tflops is None
    assert (x1.memory_gb, x1.memory_source) == (96, "user: my chips.json")


def test_a_chip_that_the_plugin_does_not_know_is_added(
    make_vendor: Callable[..., Vendor], state: Callable[..., Path]
) -> None:
    state(chip(name="X9"), chip(name="Y1", vendor="other"))
    vendor = make_vendor()
    assert [c.name for c in vendor.chips] == ["X1", "H800", "EMU", "REF", "X9"]
    x9 = vendor.chip("X9")
    assert (x9.vendor, x9.memory_gb, x9.memory_source) == ("acme", None, "its plugin does not know this chip")
    assert x9.peak("fp32").tflops == 60
    assert x9.peak("bf16").tflops is None


def test_the_plan_carries_the_user_s_value_and_its_source(
    make_plan: Callable[..., Plan], state: Callable[..., Path]
) -> None:
    state(chip(peaks=[PEAK | {"precision": "bf16"}]))
    plan = make_plan(topology="X1x1x8")
    assert plan.chip.peak("bf16").tflops == 60
    assert "user: my chips.json: our order, page 2" in plan.model_dump_json()


WRONG = {
    "no peak is negative": (chip(peaks=[PEAK | {"tflops": -1}]), "0.peaks.0.tflops", "-1"),
    "a precision of its own": (chip(peaks=[PEAK | {"precision": "int4"}]), "0.peaks.0.precision", "int4"),
    "a source is needed": (chip(peaks=[{"precision": "fp32", "tflops": 1}]), "0.peaks.0.source", "missing"),
    "a misspelt field": (chip(memory=64), "0.memory", "unknown"),
    "no vendor": ({"name": "X1"}, "0.vendor", "missing"),
    "not a chip": ("X1", "0", "X1"),
}


@pytest.mark.parametrize(("value", "field", "word"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_named_by_file_field_and_value(
    value: Any, field: str, word: str, state: Callable[..., Path]
) -> None:
    file = state(value)
    error = refusal()
    assert str(file) in error.what
    assert field in error.what
    assert word in error.what
    assert error.fix == f"correct my chips.json, or unset {user_chips.VARIABLE}"
    assert error.exit_code == 2


@pytest.mark.parametrize("text", ["", "{", '{"vendor": "acme"}'])
def test_a_file_that_is_no_array_is_refused(text: str, state: Callable[..., Path]) -> None:
    assert str(state(text=text)) in refusal().what


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(user_chips.VARIABLE, str(tmp_path / "absent.json"))
    error = refusal()
    assert error.what == f"ACCELMARK_CHIPS={tmp_path}/absent.json: No such file or directory"
    assert error.fix == "name a file that can be read, or unset ACCELMARK_CHIPS"


@pytest.mark.parametrize(
    ("chips", "words"),
    [
        ([chip(), chip(name="Y1"), chip()], "2.name: a second acme/X1"),
        ([chip(peaks=[PEAK, PEAK])], "0.peaks: two peaks for fp32"),
    ],
)
def test_each_value_is_stated_once(chips: list[Any], words: str, state: Callable[..., Path]) -> None:
    file = state(*chips)
    error = refusal()
    assert error.what == f"{file}: {words}"
    assert error.fix == "state each value once in my chips.json"


def test_a_wrong_file_is_the_user_s_fault_and_no_plugin_s(state: Callable[..., Path]) -> None:
    state(chip(vendor="cpu", memory=64))
    with pytest.raises(UsageError, match=r"my chips\.json"):
        plugins.discover()


def test_doctor_tells_what_is_overridden_and_finds_a_misspelt_vendor(
    state: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    state(chip(vendor="cpu", name="CPU"), chip(vendor="nvidea", name="H800"))
    assert doctor_command.execute(argparse.Namespace(json=True), Console()) == 3
    told = {check["what"]: (check["verdict"], check["text"]) for check in json.loads(capsys.readouterr().out)}
    assert told["ACCELMARK_CHIPS cpu/CPU"] == ("ok", "overrides the plugin's")
    assert told["ACCELMARK_CHIPS nvidea/H800"] == ("problem", "is of no installed vendor, so nothing uses it")
