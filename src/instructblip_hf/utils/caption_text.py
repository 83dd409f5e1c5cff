"""Captions worded as BLIP-2 was trained on them (``blip_caption`` of LAVIS's text processors)."""

from __future__ import annotations

import re


_MAX_WORDS = 50
_LEFT_OUT = re.compile(r"[.!\"()*#:;~]")


def clean_caption(text: str) -> str:
    """Lower case, some punctuation left out, at most 50 words."""
    words = re.sub(r"\s{2,}", " ", _LEFT_OUT.sub(" ", text.lower())).strip(" \n").split(" ")
    return " ".join(words[:_MAX_WORDS])


__all__ = ["clean_caption"]
