"""Typed, frozen descriptions of everything AccelMark reads and writes; needs pydantic only."""
