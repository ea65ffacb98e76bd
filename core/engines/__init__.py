"""Training engines. ``catalog`` says what each can do, without importing it; each module implements one."""
