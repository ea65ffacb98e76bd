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


def test_the_age_of_a_shell_that_became_the_process_does_not_count() -> None:
    script = (
        "import time; time.sleep(0.5); from core import process; process._UNTIL_IMPORTED_S = 0.3; "
        "print(process.started_unix_s() - process._IMPORTED_UNIX_S)"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert float(told) == 0.0
