"""AccelMark's core engine: hooks, plans, engines, measuring, records. Importing it loads no torch."""

from __future__ import annotations

import pluggy

HOOK_PROJECT = "accelmark"
HOOK_API_VERSION = 1
"""A plugin states the version it was written for as ``ACCELMARK_HOOK_API = 1``; another one is not loaded."""

hookimpl = pluggy.HookimplMarker(HOOK_PROJECT)
"""Marks a function of a vendor plugin as the implementation of the hook of the same name."""
