"""Runs every command of ``docs/tutorial.md``, then makes a case and uses it. Run by tox.

In a clean environment, where AccelMark is installed from its wheel; ``fork`` is a copy of this checkout.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import use_wheel

ROOT = Path(__file__).parents[2]
FORKED = ("core", "plugins", "cases", "schemas", "setup.cfg")


def bash(script: str, binaries: Path, folder: Path) -> None:
    """Run it in ``folder`` with ``binaries`` first on the PATH; it must succeed."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env = {**kept, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["bash", "-euxo", "pipefail", "-c", script], cwd=folder, env=env, check=True)


def main(scratch: Path) -> None:
    """Make, check, install, use."""
    binaries = use_wheel.clean_environment(scratch)
    tutorial = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", tutorial, re.DOTALL | re.MULTILINE)
    work = scratch / "tutorial"
    shutil.rmtree(work, ignore_errors=True)
    (work / "fork").mkdir(parents=True)
    for name in FORKED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, work / "fork" / name)
    bash("\n".join(blocks), binaries, work)
    (file,) = work.glob("fork/cases/llama2_7b/records/llama2_7b-X1x1x2-*.json")
    record = json.loads(file.read_text(encoding="utf-8"))
    assert (record["status"], record["vendor"], record["chip"], record["emulated"]) == ("ok", "acme", "X1", True)
    assert "acme X1" in (work / "fork" / "cases" / "llama2_7b" / "README.md").read_text(encoding="utf-8")
    vendors = json.loads(use_wheel.run(binaries / "accelmark", "list", "vendors", "--json", cwd=work))
    assert {"vendor": "acme", "distribution": "accelmark-acme", "status": "ok", "reason": None} in vendors
    bash(
        """
        accelmark run llama2_7b --vendor acme --quiet
        accelmark new-case my_case
        (cd accelmark-case-my-case && ruff check . && ruff format --check . && mypy)
        pip wheel -q --no-deps -w dist ./accelmark-case-my-case
        pip install -q --no-deps dist/accelmark_case_my_case-*.whl
        accelmark validate my_case
        (cd accelmark-case-my-case && pytest -q)
        accelmark run my_case --config CPUx1x2 --quiet
        """,
        binaries,
        work,
    )
    print("templates: ok")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
