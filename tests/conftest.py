"""Settings that every test shares."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from hypothesis import settings

# Tests run beside each other on few cores: how long an example takes says nothing about the code.
settings.register_profile("accelmark", deadline=None)
settings.load_profile("accelmark")

# Whatever began the tests in the background may have had them ignore these, and so every process that they start.
for ignored, answer in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(ignored) is signal.SIG_IGN:
        signal.signal(ignored, answer)


def python_path(*first: Path) -> str:
    """PYTHONPATH for a subprocess: ``first``, this checkout, and what this process was given."""
    given = os.environ.get("PYTHONPATH")
    return os.pathsep.join([*map(str, first), str(Path(__file__).parents[1]), *([given] if given else [])])
