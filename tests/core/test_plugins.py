"""Vendor plugins as a user meets them: found, fenced off when broken, chosen, probed, loaded alone by a worker."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from core import plugins
from core.errors import DeviceError

ROOT = Path(__file__).resolve().parents[2]

HEAD = """
from core import hookimpl
from schemas.chip import ChipSpec, ProbeResult
ACCELMARK_HOOK_API = 1
"""
CHIPS = """
@hookimpl
def chips():
    return [ChipSpec(name="X1", vendor="acme", memory_gb=64, memory_source="datasheet", peaks=())]
"""
GOOD = HEAD + CHIPS


class Installer:
    """Lays out distributions as pip would: a module, and a dist-info folder with the entry point."""

    def __init__(self, site: Path) -> None:
        self._site = site
        self.modules: list[str] = []

    def __call__(self, source: str, vendor: str = "acme", distribution: str = "acme-accelmark") -> str:
        """Install ``source`` as the plugin of ``vendor``; the name of its module."""
        module = f"installed_plugin_{len(self.modules)}"
        (self._site / f"{module}.py").write_text(source, encoding="utf-8")
        info = self._site / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
        (info / "METADATA").write_text(metadata, encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[accelmark.vendors]\n{vendor} = {module}\n", encoding="utf-8")
        self.modules.append(module)
        importlib.invalidate_caches()
        plugins.discover.cache_clear()
        return module


@pytest.fixture
def install(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    installer = Installer(tmp_path)
    yield installer
    for module in installer.modules:
        sys.modules.pop(module, None)
    plugins.discover.cache_clear()


def found(vendor):
    return [f for f in plugins.discover() if f.name == vendor]


def test_finds_the_embedded_vendors_through_their_entry_points():
    plugins.discover.cache_clear()
    embedded = {f.name: f for f in plugins.discover() if f.distribution == "accelmark"}
    assert {"cpu", "nvidia"} <= embedded.keys()
    assert {f.status for f in embedded.values()} == {"ok"}


def test_finds_an_installed_vendor_just_the_same(install):
    install(GOOD)
    (acme,) = found("acme")
    assert (acme.status, acme.distribution, acme.reason) == ("ok", "acme-accelmark", None)
    assert plugins.select("acme").chip("X1").memory_gb == 64
    assert plugins.is_installed("acme")


def test_asking_every_vendor_loads_no_torch():
    code = (
        "import sys; from core import plugins; [f.vendor and f.vendor.chips for f in plugins.discover()];"
        "plugins.probe_all(); print([m for m in ('torch', 'deepspeed') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


BROKEN = {
    "raises on import": ("raise ValueError('half installed')", "ValueError: half installed"),
    "exits on import": ("import sys\nsys.exit(3)", "SystemExit: 3"),
    "needs what is missing": ("import torch_of_acme", "No module named 'torch_of_acme'"),
    "syntax error": ("def chips(:", "SyntaxError"),
    "chips of the wrong type": (HEAD + "@hookimpl\ndef chips():\n    return ['X1']\n", "hook chips"),
    "chips raise": (HEAD + "@hookimpl\ndef chips():\n    raise OSError('no table')\n", "OSError: no table"),
    "chips of another vendor": (HEAD + CHIPS.replace('"acme"', '"other"'), "chip 'X1' says vendor 'other'"),
    "no chips": (HEAD, "lists no chips"),
    "misspelt field": (GOOD.replace("memory_gb=64", "memory=64"), "ChipSpec: memory_gb: this field is missing"),
    "misspelt hook": (GOOD + "@hookimpl\ndef init_devise(plan):\n    return None\n", "unknown hook 'init_devise'"),
    "wrong argument": (GOOD + "@hookimpl\ndef launch_env(plan, nodes):\n    return {}\n", "nodes"),
    "outdated API": (GOOD.replace("API = 1", "API = 0"), "written for hook API 0, this core speaks 1"),
    "API not stated": (GOOD.replace("ACCELMARK_HOOK_API = 1", ""), "written for hook API None"),
}


@pytest.mark.parametrize(("source", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_plugin_is_listed_with_the_reason_and_hurts_nobody(install, source, reason):
    install(source)
    (acme,) = found("acme")
    assert (acme.status, acme.distribution) == ("broken", "acme-accelmark")
    assert reason in acme.reason
    assert "\n" not in acme.reason
    assert plugins.select("cpu").chip("CPU").reference
    with pytest.raises(DeviceError, match="plugin 'acme' of acme-accelmark is broken") as error:
        plugins.select("acme")
    assert reason in error.value.what
    assert error.value.exit_code == 3


def test_a_vendor_from_two_distributions_has_to_be_chosen(install):
    install(GOOD)
    install(GOOD.replace("64", "80"), distribution="bolt-accelmark")
    with pytest.raises(DeviceError, match="acme@acme-accelmark and acme@bolt-accelmark") as error:
        plugins.select("acme")
    assert "--vendor acme@acme-accelmark" in error.value.fix
    assert plugins.select("acme@acme-accelmark").chip("X1").memory_gb == 64
    assert plugins.select("acme@bolt-accelmark").chip("X1").memory_gb == 80
    with pytest.raises(DeviceError, match="'acme@nobody' is installed"):
        plugins.select("acme@nobody")


def test_an_embedded_vendor_is_not_silently_replaced(install):
    install(GOOD.replace('"acme"', '"cpu"'), vendor="cpu", distribution="other-cpu")
    with pytest.raises(DeviceError, match="cpu@accelmark and cpu@other-cpu"):
        plugins.select("cpu")


def test_an_unknown_vendor_is_refused_with_the_known_ones():
    with pytest.raises(DeviceError, match="no plugin for vendor 'acme'") as error:
        plugins.select("acme")
    assert "cpu" in error.value.fix
    assert "nvidia" in error.value.fix
    assert not plugins.is_installed("acme")


def probing(body):
    return f"{GOOD}\n@hookimpl\ndef probe():\n    {body}\n"


def test_the_most_specific_vendor_takes_a_device_that_two_see(install):
    device = 'device_name="Y1", count=2'
    install(probing(f"return [ProbeResult(chip='X1', {device})]"))
    bolt = probing(f"return [ProbeResult(chip='X1', {device}, replaces=('acme',))]").replace('"acme"', '"bolt"')
    install(bolt, vendor="bolt", distribution="bolt-accelmark")
    present, failed = plugins.probe_all()
    vendors = [p.vendor.name for p in present]
    assert "bolt" in vendors
    assert "acme" not in vendors
    assert "cpu" in vendors
    assert not failed.keys() & {"acme", "bolt", "cpu"}


def test_a_probe_that_raises_hurts_nobody_and_says_why(install):
    install(probing("raise RuntimeError('driver asleep')"))
    present, failed = plugins.probe_all()
    assert "cpu" in [p.vendor.name for p in present]
    assert failed["acme"] == "vendor 'acme' (acme-accelmark), hook probe: RuntimeError: driver asleep"


def test_a_broken_plugin_is_not_probed(install):
    install("raise ValueError")
    present, failed = plugins.probe_all()
    assert "acme" not in failed
    assert "cpu" in [p.vendor.name for p in present]


def test_a_worker_loads_the_selected_vendor_alone(install):
    mine = install(GOOD)
    other = install("raise RuntimeError('never import me')", vendor="bolt", distribution="bolt-accelmark")
    vendor = plugins.load_alone("acme", "acme-accelmark", ModuleType("defaults"))
    assert vendor.name == "acme"
    assert mine in sys.modules
    assert other not in sys.modules


def test_a_worker_without_the_planned_plugin_says_so():
    with pytest.raises(DeviceError, match="vendor 'acme' of acme-accelmark is planned but not installed here"):
        plugins.load_alone("acme", "acme-accelmark", ModuleType("defaults"))
