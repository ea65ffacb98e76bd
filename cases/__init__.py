"""The cases AccelMark ships. Each is a package with CASE, its hardware configs, reports and records."""
