"""Makes a vendor's plugin and a case from the templates, and uses their wheels. Run by tox after ``use_wheel.py``.

In that one's clean environment: lint, types, the project's own tests (for a vendor, the conformance suite), a run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path) -> str:
    """The command's stdout; it must succeed."""
    print("$", *command, flush=True)
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(command, cwd=cwd, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout


def make_and_install(python: Path, scratch: Path, verb: str, name: str) -> Path:
    """The new project's folder, after lint and types, with its wheel installed."""
    accelmark = python.with_name("accelmark")
    folder = Path(run(accelmark, verb, name, "--out", scratch / "new", cwd=scratch).strip())
    run(python, "-m", "ruff", "check", ".", cwd=folder)
    run(python, "-m", "ruff", "format", "--check", ".", cwd=folder)
    run(python, "-m", "mypy", cwd=folder)
    dist = scratch / "new" / "dist"
    run(python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", dist, folder, cwd=scratch)
    (wheel,) = dist.glob(f"{folder.name.replace('-', '_')}-*.whl")
    run(python, "-m", "pip", "install", "-q", "--no-deps", wheel, cwd=scratch)
    return folder


def main(scratch: Path) -> None:
    """Make, check, install, use."""
    python = scratch / "clean" / "bin" / "python"
    (wheel,) = (scratch / "dist").glob("*.whl")
    constraints = os.environ.get("PIP_CONSTRAINT", str(ROOT / "constraints.txt"))
    tools = (f"{wheel}[deepspeed,templates,test]", "ruff", "mypy")
    run(python, "-m", "pip", "install", "-q", "-c", constraints, *tools, cwd=scratch)
    vendor = make_and_install(python, scratch, "new-vendor", "acme")
    outside = scratch / "outside"
    vendors = json.loads(run(python.with_name("accelmark"), "list", "vendors", "--json", cwd=outside))
    assert {"vendor": "acme", "distribution": "accelmark-acme", "status": "ok", "reason": None} in vendors
    told = run(python, "-m", "core.run", "cases/llama2_7b", "--vendor", "acme", "--json", cwd=outside)
    (record,) = json.loads(told)
    assert (record["status"], record["vendor"], record["chip"], record["emulated"]) == ("ok", "acme", "X1", True)
    print(run(python, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", cwd=vendor))
    case = make_and_install(python, scratch, "new-case", "my_case")
    run(python.with_name("accelmark"), "validate", "my_case", cwd=outside)
    print(run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=case))
    print("templates: ok")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
