"""Vendor plugins that come with AccelMark, registered in setup.cfg exactly as a third party registers its own.

A plugin implements the hooks of ``core.hookspecs`` (docs/hooks.md) and imports from ``core`` and ``schemas``
only. Its modules load without torch: the launcher asks every vendor before a plan names one.
"""
