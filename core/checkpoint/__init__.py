"""Checkpoints: one layout, by the weights' released names, that every engine writes and reads.

``folder`` knows the folder and what it says about itself, ``shards`` writes tensors, ``training`` moves the state
of a run between the two. See docs/checkpoints.md.
"""
