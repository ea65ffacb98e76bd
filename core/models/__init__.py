"""Decoder-only language models built from a ``DecoderSpec``, their losses and their initial weights."""
