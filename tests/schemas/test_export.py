"""The JSON Schemas for other tools: as the code says, and true of real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from core import plan, plugins
from core.cases import resolve
from core.events import EventLog, read_events
from schemas import event as ev
from schemas import export
from schemas.chip import Device, MemoryReading

ROOT = Path(__file__).parents[2]
CASES = ("baichuan2_13b", "llama2_7b")


def problems(name: str, value: Any) -> list[str]:
    text = (export.FOLDER / f"{name}.schema.json").read_text(encoding="utf-8")
    return [
        f"{error.json_path}: {error.message}"
        for error in Draft202012Validator(json.loads(text)).iter_errors(value)
    ]


@pytest.mark.parametrize("name", export.EXPORTED)
def test_the_files_are_what_the_code_says(name: str) -> None:
    committed = (export.FOLDER / f"{name}.schema.json").read_text(encoding="utf-8")
    assert committed == export.render(name), "run `python -m schemas.export`"
    Draft202012Validator.check_schema(json.loads(committed))


def test_there_are_no_other_files(tmp_path: Path) -> None:
    written = export.write(tmp_path / "json")
    assert {path.name for path in written} == {path.name for path in export.FOLDER.iterdir()}
    assert written[0].read_bytes() == (export.FOLDER / written[0].name).read_bytes()


@pytest.mark.parametrize("path", sorted(ROOT.glob("cases/*/records/*.json")), ids=lambda path: path.stem)
def test_the_records_in_the_repository_are_valid(path: Path) -> None:
    assert problems("record", json.loads(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("path", sorted(ROOT.glob("cases/*/reports/*.json")), ids=lambda path: path.stem)
def test_the_reports_in_the_repository_are_valid(path: Path) -> None:
    assert problems("report", json.loads(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("name", CASES)
def test_cases_configs_chips_and_plans_are_valid(name: str) -> None:
    loaded = resolve(name)
    assert problems("case", loaded.case.model_dump(mode="json")) == []
    for config in loaded.configs:
        assert problems("hardware_config", config.value.model_dump(mode="json")) == []
    vendor, config = plugins.select("cpu"), loaded.config("CPUx1x2")
    planned = plan.build(plan.Request(loaded, config, config.run("base"), vendor))
    assert problems("plan", planned.model_dump(mode="json")) == []
    assert problems("chip_spec", planned.chip.model_dump(mode="json")) == []


def test_the_events_of_a_run_are_valid(tmp_path: Path) -> None:
    log = EventLog(tmp_path, 0)
    device = Device(torch_device="cpu", index=0, name="c", collective_backend="gloo", math_mode={"tf32": "off"})
    memory = MemoryReading(peak_allocated_gib=1.5, peak_reserved_gib=None, peak_device_gib=None, capacity_gib=8.0)
    log.emit(ev.PhaseEvent, phase="start")
    log.emit(ev.DeviceEvent, device=device, environment={"os": "Linux"}, host="h", pid=1)
    log.emit(ev.MemoryEvent, memory=memory)
    log.emit(ev.ErrorEvent, status="oom", step=None, reason="r", traceback="t")
    log.close()
    written = read_events(tmp_path)
    assert len(written) == 4
    assert [problems("event", event.model_dump(mode="json")) for event in written] == [[]] * 4


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"topology": "H800"}, "$.topology"),
        ({"parallel": "DP16"}, "$.parallel"),
        ({"status": "fine"}, "$.status"),
        ({"loss": {"lats": 2.06}}, "$.loss"),
        ({"throughput": {"tokens_per_second_per_chip": -1}}, "$.throughput"),
    ],
)
def test_what_the_code_refuses_is_refused_there(change: dict[str, Any], where: str) -> None:
    path = ROOT / "cases/baichuan2_13b/records/published_H800x2x8_base.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    assert [line.split(":")[0] for line in problems("record", record | change)] == [where]
