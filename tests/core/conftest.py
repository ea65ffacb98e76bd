"""A small case, a vendor without hardware, plans made of them, and command lines that launch nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from core import HOOK_API_VERSION, cli, hookimpl, plan, plugins, runner
from core.cases import Config, LoadedCase
from core.errors import UsageError
from core.plugins import Vendor
from schemas.base import Text
from schemas.case import Case, DataSpec, HardwareConfig, Run, TokenizerSpec
from schemas.chip import ChipSpec, Peak
from schemas.hyperparameters import HyperParameters
from schemas.model import DecoderSpec
from schemas.plan import Plan

PEAKS = (
    Peak(precision="bf16", tflops=989.0, source="datasheet 1.2"),
    Peak(precision="fp16", tflops=989.0, source="datasheet 1.2"),
    Peak(precision="tf32", tflops=494.0, source="datasheet 1.2"),
    Peak(precision="fp32", tflops=None, source="nobody has published it"),
)


def chip(name: str, **changes: Any) -> ChipSpec:
    values = {"name": name, "vendor": "acme", "memory_gb": 80, "memory_source": "datasheet 1.2", "peaks": PEAKS}
    return ChipSpec.model_validate(values | changes)


CHIPS = (
    chip("X1"),
    chip("H800"),
    chip("EMU", emulated=True),
    chip("REF", reference=True, memory_gb=None, peaks=()),
)


@pytest.fixture
def make_vendor() -> Callable[..., Vendor]:
    """A loaded plugin; keyword arguments are its hooks."""

    def make(name: str = "acme", distribution: str = "acme-plugin", **hooks: Callable[..., Any]) -> Vendor:
        module = ModuleType(f"fake_{name}")
        own = [c.model_copy(update={"vendor": name}) for c in CHIPS]
        for hook, function in {"chips": lambda: own, **hooks}.items():
            setattr(module, hook, hookimpl(function))
        module.__dict__["ACCELMARK_HOOK_API"] = HOOK_API_VERSION
        return Vendor(name, distribution, module)

    return make


@pytest.fixture
def toy() -> Case:
    return Case(
        name="toy",
        task=Text(zh="玩具", en="A toy"),
        model=DecoderSpec(
            factory="m:f", nominal_parameters=7_000_000_000, hidden_size=64, intermediate_size=96, num_layers=4,
            num_heads=4, num_kv_heads=4, vocab_size=100, max_positions=4096, norm_eps=1e-5,
        ),
        tokenizer=TokenizerSpec(vocab_size=100, add_bos=True, add_eos=False, source="the released model"),
        data=DataSpec(name="openwebtext", description=Text(zh="网页", en="web texts"), source="its authors"),
        hyper_parameters=HyperParameters(
            precision="bf16", local_batch_size=1, sequence_length=2048, gradient_accumulation_steps=8,
            learning_rate=1e-5,
        ),
        reference="the paper",
    )  # fmt: skip


@pytest.fixture
def make_request(toy: Case, make_vendor: Callable[..., Vendor]) -> Callable[..., plan.Request]:
    """A request for one run of one config; ``defaults``, ``fix_hp`` and ``sets`` are its layers."""

    def make(
        topology: str = "X1x2x8",
        engine: str = "deepspeed",
        defaults: Mapping[str, Any] | None = None,
        run: Mapping[str, Any] | None = None,
        **request: Any,
    ) -> plan.Request:
        row = Run.model_validate({"id": "base", **(run or {})})
        given = {"zero_stage": 1} | dict(defaults or {})
        value = HardwareConfig(vendor="acme", topology=topology, engine=engine, defaults=given, runs=(row,))
        config = Config(value, f"config_{topology}.py")
        loaded = LoadedCase(request.pop("case", toy), "toy", Path(), (config,), {})
        return plan.Request(loaded, config, row, request.pop("vendor", None) or make_vendor(), **request)

    return make


@pytest.fixture
def make_plan(make_request: Callable[..., plan.Request]) -> Callable[..., Plan]:
    """What is built of such a request."""
    return lambda **values: plan.build(make_request(**values))


def refusal(make_plan: Callable[..., Plan], **values: Any) -> UsageError:
    """Why there is no plan of such a request."""
    with pytest.raises(UsageError) as error:
        make_plan(**values)
    return error.value


@pytest.fixture
def compiler() -> None:
    """Inductor needs a C++ compiler on a CPU."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile on a CPU needs g++ or clang++")


@pytest.fixture
def installed_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on ``sys.path``: modules and dist-info folders written there are installed for this test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.discover.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    plugins.discover.cache_clear()


@pytest.fixture
def no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever machine the tests run on: nothing is launched here."""

    def refuse(*_: object) -> None:
        raise AssertionError("a run was launched")

    monkeypatch.setattr(runner, "launch_run", refuse)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def call(no_run: None, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line here, but launches nothing; exit code, stdout, stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        try:
            code = cli.main(words)
        except SystemExit as end:  # argparse's way
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
