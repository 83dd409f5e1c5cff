"""Values that more than one floor of the package needs."""

IGNORE_INDEX = -100
"""Label of positions that the loss leaves out (torch's and transformers' own)."""

IMAGE_TOKEN = "<image>"
"""Text form of one image placeholder."""
