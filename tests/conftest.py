"""Settings that every test shares."""

from __future__ import annotations

from hypothesis import settings

# Tests run beside each other on few cores: how long an example takes says nothing about the code.
settings.register_profile("accelmark", deadline=None)
settings.load_profile("accelmark")
