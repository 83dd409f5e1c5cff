"""Tasks of ``transformers.pipeline``: image-to-text, which transformers 5 lost, and vocabulary ranking."""
