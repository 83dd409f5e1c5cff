"""BLIP-2's processor: prompts as stock's, captions for the first stage, and what ends an answer."""

from __future__ import annotations

import pytest
import torch
import transformers
from PIL import Image
from transformers import BlipImageProcessorPil

from instructblip_hf import Blip2Processor
from tiny_tokenizers import language_tokenizer, qformer_tokenizer


SIZE = {"height": 28, "width": 28}
IMAGE = Image.new("RGB", (40, 30), (200, 30, 60))
OTHER = Image.new("RGB", (40, 30), (20, 30, 60))


def language_processor(kind="opt", **options):
    return Blip2Processor(BlipImageProcessorPil(size=SIZE), language_tokenizer(kind), num_query_tokens=4, **options)


def caption_processor(bos=True):
    tokenizer = qformer_tokenizer()
    if bos:
        tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return Blip2Processor(BlipImageProcessorPil(size=SIZE), tokenizer, num_query_tokens=4)


@pytest.mark.parametrize("kind", ["opt", "t5", "llama"])
def test_inputs_are_stocks(kind):
    ours = language_processor(kind)
    stock = transformers.Blip2Processor(BlipImageProcessorPil(size=SIZE), language_tokenizer(kind), num_query_tokens=4)
    for text in ("What color is the circle?", ""):
        expected = stock(images=IMAGE, text=text, return_tensors="pt")
        actual = ours(images=IMAGE, text=text, return_tensors="pt")
        assert set(actual) == set(expected)
        for name, value in expected.items():
            assert torch.equal(actual[name], value), name
    assert torch.equal(
        ours(images=IMAGE, return_tensors="pt")["pixel_values"],
        stock(images=IMAGE, return_tensors="pt")["pixel_values"],
    )


def test_folders_are_exchanged(tmp_path):
    ours = language_processor(end_token="\n")
    ours.save_pretrained(tmp_path)
    again = Blip2Processor.from_pretrained(tmp_path)
    assert again.end_token == "\n"
    assert again.num_query_tokens == 4
    stock = transformers.Blip2Processor.from_pretrained(tmp_path)
    expected = stock(images=IMAGE, text="a cat", return_tensors="pt")
    assert torch.equal(again(images=IMAGE, text="a cat", return_tensors="pt")["input_ids"], expected["input_ids"])


def test_a_caption_of_opt_ends_with_a_newline():
    """LAVIS `blip2_opt.py`: the caption and a newline after it are one text, without another end token."""
    processor = language_processor(end_token="\n")
    tokenizer = processor.tokenizer
    row = {"images": [IMAGE], "prompt": "", "completion": "A photo of a cat"}
    batch = processor.encode_examples([row])
    labels = [token for token in batch["labels"][0].tolist() if token != -100]
    assert tokenizer.decode(labels) == "A photo of a cat\n"
    assert batch["input_ids"][0].tolist()[4:] == tokenizer("A photo of a cat\n")["input_ids"]
    assert language_processor().end_token_id == tokenizer.eos_token_id
    with pytest.raises(ValueError, match=r"end_token 'cat mat' is \d+ tokens"):
        language_processor(end_token="cat mat")


def test_captions_of_the_first_stage():
    processor = caption_processor()
    tokenizer = processor.tokenizer
    rows = [
        {"images": [IMAGE], "prompt": "not read", "completion": " A photo of a cat. "},
        {"image": OTHER, "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "a hat"}]},
        {"images": [IMAGE], "completion": "a bat"},
    ]
    batch = processor.encode_captions(rows, image_ids=processor.image_numbers(rows))
    assert batch["pixel_values"].shape == (3, 3, 28, 28)
    assert tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)[1:] == ["a hat", "a bat"]
    assert (batch["input_ids"][:, 0] == tokenizer.cls_token_id).all()
    assert (batch["decoder_input_ids"][:, 0] == tokenizer.bos_token_id).all()
    assert torch.equal(batch["decoder_input_ids"][:, 1:], batch["input_ids"][:, 1:])
    expected = batch["decoder_input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    assert torch.equal(batch["labels"], expected)
    ids = batch["image_ids"].tolist()
    assert ids[0] == ids[2] != ids[1]
    assert caption_processor().image_numbers(rows[2:]) == ids[:1]
    cut = processor.encode_captions(rows, max_length=6)
    assert cut["input_ids"].shape[1] == 6
    assert cut["input_ids"][0, -1] == tokenizer.sep_token_id


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"images": [], "completion": "a cat"}, "row 1 has 0 images"),
        ({"images": [IMAGE, IMAGE], "completion": "a cat"}, "row 1 has 2 images"),
        ({"images": [IMAGE], "completion": " "}, "row 1 needs a caption"),
        ({"images": [IMAGE], "prompt": "a cat"}, r"row 1 needs a caption.*it has \['images', 'prompt'\]"),
    ],
)
def test_rows_without_image_or_caption_are_named(row, message):
    with pytest.raises(ValueError, match=message):
        caption_processor().encode_captions([{"images": [IMAGE], "completion": "a cat"}, row])


def test_a_tokenizer_of_another_kind_is_refused():
    row = {"images": [IMAGE], "completion": "a cat"}
    with pytest.raises(ValueError, match="has no BOS token"):
        caption_processor(bos=False).encode_captions([row])
    with pytest.raises(ValueError, match="has no CLS and SEP tokens"):
        language_processor("llama").encode_captions([row])
