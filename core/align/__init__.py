"""Alignment (是否精度对齐): a run's curves held against a reference curve, and how such a curve is made."""
