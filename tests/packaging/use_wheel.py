"""Builds the wheel, installs it into a clean environment, and uses it from an empty folder. Run by tox."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    """The command's stdout; it must succeed."""
    print("$", *command, flush=True)
    done = subprocess.run(command, cwd=cwd, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def clean_environment(scratch: Path, extras: str = "") -> Path:
    """Build the wheel, install it with ``[extras]`` into a new environment, and return that one's ``bin``."""
    shutil.rmtree(scratch / "dist", ignore_errors=True)
    run(sys.executable, "-m", "build", "--wheel", "--outdir", scratch / "dist", ROOT, cwd=scratch)
    (wheel,) = (scratch / "dist").glob("*.whl")
    clean = scratch / "clean"
    venv.create(clean, with_pip=True, clear=True)
    constraints = os.environ.get("PIP_CONSTRAINT", str(ROOT / "constraints.txt"))
    command = [clean / "bin" / "python", "-m", "pip", "install", "-q", "-c", constraints, f"{wheel}{extras}"]
    run(*command, cwd=scratch)
    return clean / "bin"


def main(scratch: Path) -> None:
    """Build, install, use."""
    binaries = clean_environment(scratch, "[deepspeed]")
    python, accelmark = binaries / "python", binaries / "accelmark"
    outside = scratch / "outside"
    outside.mkdir(exist_ok=True)
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PIP_CONSTRAINT")}
    vendors = json.loads(run(accelmark, "list", "vendors", "--json", cwd=outside, env=env))
    assert {row["status"] for row in vendors} == {"ok"}, vendors
    run(accelmark, "validate", cwd=outside, env=env)
    sheet = run(accelmark, "report", "baichuan2_13b", "--lang", "en", cwd=outside, env=env)
    assert "21.4%" in sheet
    plans = json.loads(
        run(accelmark, "run", "baichuan2_13b", "--config", "H800x2x8", "--dry-run", "--json", cwd=outside, env=env)
    )
    assert [plan["global_batch_size"] for plan in plans] == [128, 1024]
    records = json.loads(run(python, "-m", "core.run", "cases/baichuan2_13b", "--json", cwd=outside, env=env))
    assert [record["status"] for record in records] == ["ok"], records
    assert records[0]["engine"] == "deepspeed"
    print("package: ok")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
