"""What is told of machine and software, and that no secret is."""

from __future__ import annotations

import platform
from pathlib import Path
from types import SimpleNamespace

import pytest

from core import environment, launch
from schemas.event import DeviceEvent

CANARY = "canary-6f1c2d"


def test_no_variable_but_the_listed_ones_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "WANDB_API_KEY",
        "HOME",
        "PATH",
        "NCCL_SECRET",
        "MASTER_ADDR",
    ):
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("NCCL_ALGO", "Ring")
    facts = environment.describe()
    assert facts["env NCCL_ALGO"] == "Ring"
    assert [key for key, value in facts.items() if CANARY in key + value] == []
    named = {key.removeprefix("env ") for key in facts if key.startswith("env ")}
    assert named <= set(environment.VARIABLES)


def test_a_variable_that_is_not_set_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NCCL_ALGO", raising=False)
    assert "env NCCL_ALGO" not in environment.describe()


def test_the_variables_of_the_list_hold_no_secrets_by_name() -> None:
    suspicious = ("TOKEN", "SECRET", "KEY", "PASS", "CRED", "AUTH")
    assert [name for name in environment.VARIABLES if any(word in name for word in suspicious)] == []


def test_every_fact_is_a_text_with_something_in_it() -> None:
    facts = environment.describe()
    assert facts["python"] == platform.python_version()
    assert {"machine", "cpu", "cpu_cores", "memory_gib", "os", "kernel", "host", "network"} <= facts.keys()
    assert all(facts.values())
    assert float(facts["memory_gib"]) > 0
    assert DeviceEvent.model_fields["environment"].annotation == dict[str, str]


def test_plugins_add_variables_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCL_RINGS", "8")
    monkeypatch.delenv("ACCL_TREES", raising=False)
    assert environment.variables(("ACCL_RINGS", "ACCL_TREES")) == {"env ACCL_RINGS": "8"}


def test_what_a_vendor_s_library_does_not_tell_is_left_out() -> None:
    def fails() -> str:
        raise AttributeError("no such symbol in libaccl.so")

    readers = {"accl": lambda: (2, 1), "driver": lambda: None, "firmware": fails, "toolkit": lambda: "4.2"}
    assert environment.told(readers) == {"accl": "(2, 1)", "toolkit": "4.2"}


def test_libraries_that_are_not_installed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "LIBRARIES", ("pydantic", "not-there-at-all"))
    facts = environment.describe()
    assert "pydantic" in facts
    assert "not-there-at-all" not in facts


def test_a_machine_without_proc_still_has_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    read_text = Path.read_text

    def missing(self: Path, **options: str) -> str:
        if self.is_relative_to("/proc") or self.is_relative_to("/sys"):
            raise FileNotFoundError(self)
        return read_text(self, **options)

    monkeypatch.setattr(Path, "read_text", missing)
    assert environment.cpu_model()
    assert environment.describe()["machine"]


def test_workers_get_the_users_variables_over_the_vendors(
    make_plan: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan = make_plan(topology="X1x1x8")  # type: ignore[operator]
    plan = plan.model_copy(update={"launch_env": {"ACCL_RINGS": "8", "OMP_NUM_THREADS": "1"}})
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setenv("PYTHONPATH", "/mine")
    made = launch.environment(plan, tmp_path)
    assert (made["ACCL_RINGS"], made["OMP_NUM_THREADS"]) == ("8", "4")
    assert made["PYTHONPATH"].split(":") == [str(launch.ROOT), "/mine"]
    assert (made["PYTHONSAFEPATH"], made[launch.RUN_DIR_VARIABLE]) == ("1", str(tmp_path))


def test_a_container_is_known_by_its_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KUBERNETES_SERVICE_HOST", "APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"):
        monkeypatch.delenv(name, raising=False)
    marks: set[str] = set()
    monkeypatch.setattr(Path, "exists", lambda self: str(self) in marks)
    assert environment.container() is None
    marks.add("/run/.containerenv")
    assert environment.container() == "podman"
    marks.add("/.dockerenv")
    assert environment.container() == "docker"
    monkeypatch.setenv("APPTAINER_CONTAINER", "/a.sif")
    assert environment.container() == "apptainer"
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert environment.container() == "kubernetes"


def test_the_network_names_what_is_up_with_its_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    def state(isup: bool, speed: int) -> SimpleNamespace:
        return SimpleNamespace(isup=isup, speed=speed)

    states = {"lo": state(True, 0), "eth0": state(True, 25000), "ib0": state(True, 0), "eth1": state(False, 10)}
    monkeypatch.setattr(environment.psutil, "net_if_stats", lambda: states)
    monkeypatch.setattr(Path, "glob", lambda *_: iter([]))
    assert environment.network() == "eth0 25000 Mb/s, ib0"
    monkeypatch.setattr(environment.psutil, "net_if_stats", dict)
    assert environment.network() == "loopback only"
