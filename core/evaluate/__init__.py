"""Asking a trained model the questions of a benchmark."""
