"""What a process knows of itself."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_process_knows_when_it_was_started() -> None:
    script = "import time; time.sleep(0.5); from core import process; print(process.started_unix_s())"
    before = time.time()
    told = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    after = time.time()
    assert before - 0.05 <= float(told) <= after - 0.5
