"""Placeholder; replaced below."""


def install() -> None:
    """Nothing yet."""
