"""Values that more than one floor of the package needs."""

from datetime import timedelta


IGNORE_INDEX = -100
"""Label of positions that the loss leaves out (torch's and transformers' own)."""

IMAGE_TOKEN = "<image>"
"""Text form of one image placeholder."""

WAIT = timedelta(days=7)
"""Of processes for each other: one that has much to do must not be given up by those that are done."""
