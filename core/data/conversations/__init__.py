"""Format ``conversations``: dialogues about images, in the layout of LLaVA's own data."""
