"""The suite in a vendor's own repository: a file of two lines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import python_path


def pytest_on(folder: Path, text: str, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_plugin.py").write_text(text, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *words, "test_plugin.py"],
        cwd=folder, env={**os.environ, "PYTHONPATH": python_path()}, capture_output=True, text=True, check=False,
    )  # fmt: skip


IMPORT = "from core.testing.suite import *\n\n"


def test_every_check_is_a_test_and_what_was_not_run_is_skipped(tmp_path: Path) -> None:
    done = pytest_on(tmp_path, IMPORT + 'VENDOR = "metax"\n')
    assert done.returncode == 0, done.stdout
    assert "5 passed, " in done.stdout
    assert "not run: this machine holds no chip of metax" in done.stdout
    assert "not declared: the plugin leaves hardware_configs out" in done.stdout


def test_a_file_without_a_vendor_is_told_what_to_add(tmp_path: Path) -> None:
    done = pytest_on(tmp_path, IMPORT, "-k", "chips.sourced")
    assert done.returncode == 1
    assert "test_plugin.py names no vendor; add a line like VENDOR = 'acme'" in done.stdout
