"""Numbers of InstructBLIP's tables (arXiv 2305.06500, version 2), by model and task, to stand beside one's own."""

from __future__ import annotations

import re


_HELD_OUT = (
    "nocaps",
    "flickr30k",
    "gqa",
    "vsr",
    "iconqa",
    "textvqa",
    "visdial",
    "hateful_memes",
    "vizwiz",
    "scienceqa",
    "msvd_qa",
    "msrvtt_qa",
    "ivqa",
)

ZERO_SHOT: dict[str, dict[str, float]] = {
    model: dict(zip(_HELD_OUT, row, strict=True))
    for model, row in {
        "BLIP-2 FlanT5-XL": (104.5, 76.1, 44.0, 60.5, 45.5, 43.1, 45.7, 53.0, 29.8, 54.9, 33.7, 16.2, 40.4),
        "BLIP-2 FlanT5-XXL": (98.4, 73.7, 44.6, 68.2, 45.4, 44.1, 46.9, 52.0, 29.4, 64.5, 34.4, 17.4, 45.8),
        "BLIP-2 Vicuna-7B": (107.5, 74.9, 38.6, 50.0, 39.7, 40.1, 44.9, 50.6, 25.3, 53.8, 18.3, 9.2, 27.5),
        "BLIP-2 Vicuna-13B": (103.9, 71.6, 41.0, 50.9, 40.6, 42.5, 45.1, 53.7, 19.6, 61.0, 20.3, 10.3, 23.5),
        "InstructBLIP FlanT5-XL": (119.9, 84.5, 48.4, 64.8, 50.0, 46.6, 46.6, 56.6, 32.7, 70.4, 43.4, 25.0, 53.1),
        "InstructBLIP FlanT5-XXL": (120.0, 83.5, 47.9, 65.6, 51.2, 46.6, 48.5, 54.1, 30.9, 70.6, 44.3, 25.6, 53.8),
        "InstructBLIP Vicuna-7B": (123.1, 82.4, 49.2, 54.3, 43.1, 50.1, 45.2, 59.6, 34.5, 60.5, 41.8, 22.1, 52.2),
        "InstructBLIP Vicuna-13B": (121.9, 82.8, 49.5, 52.1, 44.8, 50.7, 45.4, 57.5, 33.4, 63.1, 41.2, 24.8, 51.0),
    }.items()
}
"""Table 1, in percent; CIDEr of captions times 100."""

FINETUNED: dict[str, dict[str, float]] = {
    model: dict(zip(("scienceqa", "ocr_vqa", "okvqa", "aokvqa", "aokvqa_choice"), row, strict=True))
    for model, row in {
        "BLIP-2 FlanT5-XXL": (89.5, 72.7, 54.7, 57.6, 80.2),
        "InstructBLIP FlanT5-XXL": (90.7, 73.3, 55.5, 57.1, 81.0),
        "BLIP-2 Vicuna-7B": (77.3, 69.1, 59.3, 60.0, 72.1),
        "InstructBLIP Vicuna-7B": (79.5, 72.8, 62.1, 64.0, 75.7),
    }.items()
}
"""Table 3, after finetuning on each; A-OKVQA on its validation split."""


def published_number(model: str, task: str, finetuned: bool = False) -> float | None:
    """The number of a table, in percent; `None` where it has none for the task.

    Args:
        model (`str`): A row of the table.
        task (`str`): Name of the task.
        finetuned (`bool`, *optional*, defaults to `False`): Table 3, `FINETUNED`, in place of table 1, `ZERO_SHOT`.

    Raises:
        KeyError: If the table does not have the model.
    """
    table = FINETUNED if finetuned else ZERO_SHOT
    if model not in table:
        raise KeyError(f"table {3 if finetuned else 1} of the paper has no model {model!r}; it has {', '.join(table)}")
    return table[model].get(task)


def closest_published(name: str, is_encoder_decoder: bool, finetuned: bool = False) -> str:
    """The model of a table that a folder's or repository's name says, or else the smallest InstructBLIP of its kind."""
    table = FINETUNED if finetuned else ZERO_SHOT
    said = re.sub(r"[^a-z0-9]", "", name.lower())
    # The longest first: XL is a part of XXL.
    for model in sorted(table, key=len, reverse=True):
        if re.sub(r"[^a-z0-9]", "", model.lower()) in said:
            return model
    kind = "InstructBLIP FlanT5" if is_encoder_decoder else "InstructBLIP Vicuna"
    return next(model for model in table if model.startswith(kind))


__all__ = ["FINETUNED", "ZERO_SHOT", "closest_published", "published_number"]
