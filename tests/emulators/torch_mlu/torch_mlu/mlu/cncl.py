"""The collective library."""


def version() -> tuple[int, int, int]:
    """Of nothing."""
    return (0, 0, 0)
