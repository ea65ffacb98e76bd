"""A vendor that nobody here knows: its wheel, installed by pip, is found exactly as the embedded vendors are."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

# Not importorskip: looking for the module pip turns off setuptools' distutils, which torch.compile needs.
HAS_PIP = any(distribution.name == "pip" for distribution in metadata.distributions())
pytestmark = pytest.mark.skipif(not HAS_PIP, reason="pip is not installed")

from tests.conftest import python_path

ROOT = Path(__file__).resolve().parents[1]
VERSION = "1.2.3"
PLUGIN = '''
"""ACME's accelerators."""

from core import hookimpl
from schemas.case import HardwareConfig, Run
from schemas.chip import ChipSpec, Peak, ProbeResult

ACCELMARK_HOOK_API = 1


@hookimpl
def chips():
    peaks = (Peak(precision="bf16", tflops=200, source="ACME X1 datasheet"),)
    return [ChipSpec(name="X1", vendor="acme", memory_gb=64, memory_source="ACME X1 datasheet", peaks=peaks)]


@hookimpl
def probe():
    return [ProbeResult(chip="X1", device_name="ACME X1 64G", count=8)]


@hookimpl
def hardware_configs(case):
    if case.name == "llama2_7b":
        return [HardwareConfig(vendor="acme", topology="X1x1x8", engine="torch", runs=[Run(id="base")])]


@hookimpl
def launch_env(plan):
    return {"ACCL_BUFFER_MIB": "64"}
'''


def build_wheel(folder: Path) -> Path:
    """A wheel as setuptools would build it (PyPA binary distribution format 1.0), without needing setuptools."""
    info = f"accelmark_acme-{VERSION}.dist-info"
    files = {
        "accelmark_acme/__init__.py": PLUGIN,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: accelmark-acme\nVersion: {VERSION}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[accelmark.vendors]\nacme = accelmark_acme\n",
    }
    rows = [f"{name},sha256={_digest(text)},{len(text.encode())}" for name, text in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""])
    wheel = folder / f"accelmark_acme-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return wheel


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder of installed packages that holds the wheel."""
    folder = tmp_path_factory.mktemp("third_party")
    target = folder / "site"
    pip = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "--no-input", "install"]
    install = [*pip, "--no-index", "--no-deps", "--target", str(target), str(build_wheel(folder))]
    subprocess.run(install, check=True, capture_output=True)
    return target


def accelmark(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m core ...`` in an environment that has the wheel."""
    environment = {**os.environ, "PYTHONPATH": python_path(site)}
    line = [sys.executable, "-m", "core", *arguments]
    return subprocess.run(line, env=environment, cwd=site, capture_output=True, text=True, check=False)


def rows(site: Path, kind: str) -> list[dict[str, object]]:
    result = accelmark(site, "list", kind, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_the_vendor_is_listed_like_the_embedded_ones(site):
    vendors = {row["vendor"]: row for row in rows(site, "vendors")}
    expected = {"vendor": "acme", "distribution": "accelmark-acme", "status": "ok", "reason": None}
    assert vendors["acme"] == expected
    assert vendors["cpu"].keys() == vendors["acme"].keys()
    assert vendors["cpu"]["status"] == vendors["nvidia"]["status"] == "ok"


def test_its_chips_are_listed_with_their_peaks(site):
    chips = {row["chip"]: row for row in rows(site, "chips")}
    assert (chips["X1"]["vendor"], chips["X1"]["bf16_tflops"], chips["X1"]["fp32_tflops"]) == ("acme", 200, None)


def test_its_config_joins_the_case(site):
    configs = {(row["case"], row["config"]): row for row in rows(site, "configs")}
    assert configs["llama2_7b", "X1x1x8"]["vendor"] == "acme"
    assert configs["llama2_7b", "X1x1x8"]["from"] == "plugin acme"
    assert ("baichuan2_13b", "X1x1x8") not in configs


def test_its_machine_is_chosen_and_its_environment_planned(site):
    result = accelmark(site, "run", "llama2_7b", "--vendor", "acme@accelmark-acme", "--dry-run", "--json")
    assert result.returncode == 0, result.stderr
    (plan,) = json.loads(result.stdout)
    assert (plan["vendor"], plan["vendor_distribution"]) == ("acme", "accelmark-acme")
    assert (plan["topology"], plan["chip"]["name"]) == ("X1x1x8", "X1")
    assert plan["launch_env"] == {"ACCL_BUFFER_MIB": "64"}
