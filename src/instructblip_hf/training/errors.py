"""What can go wrong while a training runs, each with a message that is complete without a traceback."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """Training stopped for a reason that the message says. Checkpoints written before are whole."""


class SavingError(TrainingError):
    """A checkpoint, the trained model or features of images could not be written."""


class BadRowsError(TrainingError, ValueError):
    """Rows cannot be read, more of them than were allowed to be left out, or no batch can be made of them."""


class NonFiniteError(TrainingError):
    """Loss or gradient is infinite or not a number; no step was taken with it, and nothing saved."""


class PushError(TrainingError):
    """The trained model could not be pushed to the Hub; it is whole on the disk."""


__all__ = ["BadRowsError", "NonFiniteError", "PushError", "SavingError", "TrainingError"]
