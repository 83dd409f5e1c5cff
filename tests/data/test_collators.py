"""The collator hands everything on to the processor, and works in a `DataLoader`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import BlipImageProcessorPil

from instructblip_hf.data.collators import VisionLanguageCollator
from instructblip_hf.models.instructblip.processing_instructblip import InstructBlipProcessor
from tiny_tokenizers import language_tokenizer, qformer_tokenizer


ROWS: list[dict[str, Any]] = [
    {"images": [Image.new("RGB", (8, 8), "red")], "prompt": "What color is it?", "completion": "red", "id": 1},
    {"images": [], "prompt": "Is there a cat on the mat?", "completion": "Yes, there is."},
]


def processor(kind: str) -> InstructBlipProcessor:
    image_processor = BlipImageProcessorPil(size={"height": 14, "width": 14})
    return InstructBlipProcessor(image_processor, language_tokenizer(kind), qformer_tokenizer(), num_query_tokens=2)


@pytest.mark.parametrize("is_encoder_decoder", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"max_prompt_length": 8, "max_completion_length": 2}, {"pad_to_multiple_of": 16}]
)
def test_as_the_processor(is_encoder_decoder: bool, options: dict[str, int]) -> None:
    own = processor("t5" if is_encoder_decoder else "llama")
    batch = VisionLanguageCollator(own, is_encoder_decoder=is_encoder_decoder, **options)(ROWS)
    expected = own.encode_examples(ROWS, is_encoder_decoder=is_encoder_decoder, **options)
    assert set(batch) == set(expected)
    for name in expected:
        assert torch.equal(batch[name], expected[name]), name
    assert isinstance(VisionLanguageCollator(own, return_tensors="np")(ROWS)["labels"], np.ndarray)


@pytest.mark.parametrize("workers", [0, 1])
def test_in_a_data_loader(workers: int) -> None:
    loader: Any = DataLoader(
        ROWS,  # type: ignore[arg-type]
        batch_size=2,
        collate_fn=VisionLanguageCollator(processor("llama")),
        num_workers=workers,
    )
    (batch,) = loader
    assert batch["input_ids"].shape == batch["labels"].shape
    assert batch["pixel_values"].shape == (1, 3, 14, 14)


def test_errors_name_the_row() -> None:
    with pytest.raises(ValueError, match='row 1: "completion" is empty'):
        VisionLanguageCollator(processor("llama"))([ROWS[0], {"prompt": "a", "completion": ""}])
