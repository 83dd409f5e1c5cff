"""The command `instructblip`. Importing this loads neither torch nor transformers' models."""

from __future__ import annotations


def main() -> None:
    """Entry point of the console script."""
    from .app import app

    app()
