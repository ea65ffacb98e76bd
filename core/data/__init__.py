"""Data: generated corpus, tokenizer, token files and their manifest, the reader and the device loader."""
