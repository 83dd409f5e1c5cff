"""Rows of an image and its caption, as BLIP-2's first stage reads them (arXiv 2301.12597, section 3.2).

A caption is tokenised for the Q-Former, `[CLS]` first, and once more with `[DEC]` in that place, for it to be generated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...constants import IGNORE_INDEX
from ...utils.image_content import ContentReader
from ..training_rows import images_of_row


def read_captions(examples: Sequence[Mapping[str, Any]]) -> tuple[list[list[Any]], list[str]]:
    """Images and captions of rows in TRL's form: one image each, and the completion, whatever the prompt.

    Raises:
        ValueError: If a row has not one image, or no caption; it names the row.
    """
    if isinstance(examples, Mapping) or not len(examples):
        raise ValueError("examples must be a non-empty list of rows")
    images, captions = [], []
    for index, example in enumerate(examples):
        name = f"row {index}"
        sources = images_of_row(example, name)
        if len(sources) != 1:
            raise ValueError(
                f"{name} has {len(sources)} images; the first stage takes one image and its caption a row"
            )
        images.append(sources)
        captions.append(_caption_of(example, name))
    return images, captions


def _caption_of(example: Mapping[str, Any], name: str) -> str:
    completion = example.get("completion")
    if completion is None:
        completion = example.get("messages")
    if isinstance(completion, (list, tuple)) and completion and isinstance(completion[-1], Mapping):
        content = completion[-1].get("content")
        parts = content if isinstance(content, (list, tuple)) else [{"text": content}]
        completion = "".join(str(part.get("text") or "") for part in parts)
    if not isinstance(completion, str) or not completion.strip():
        raise ValueError(
            f'{name} needs a caption, a text that is not empty in "completion" or in the last turn of "messages"; it has '
            f"{sorted(map(str, example))}"
        )
    return completion.strip()


def tokenize_captions(tokenizer: Any, captions: Sequence[str], max_length: int) -> dict[str, list[list[int]]]:
    """Tokens of captions to compare and to generate.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The Q-Former's, with CLS and SEP tokens, and `[DEC]` as its BOS token.
        captions (`Sequence[str]`): Captions.
        max_length (`int`): Most tokens of one, `[CLS]` and `[SEP]` included; longer ones are cut before `[SEP]`.

    Returns:
        `dict`: ``input_ids``, ``attention_mask``, ``decoder_input_ids`` and ``labels``, lists of equal length.

    Raises:
        ValueError: If the tokenizer lacks one of the tokens.
    """
    if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
        raise ValueError("the tokenizer has no CLS and SEP tokens, so it is not the Q-Former's, which is BERT's")
    if tokenizer.bos_token_id is None:
        raise ValueError(
            "the tokenizer has no BOS token, which begins captions that are to be generated: add it with "
            'tokenizer.add_special_tokens({"bos_token": "[DEC]"}) before the model is made, or let the model grow with '
            "model.resize_token_embeddings(len(tokenizer))"
        )
    encoding = tokenizer(
        list(captions),
        padding=True,
        padding_side="right",
        truncation=True,
        max_length=max_length,
        return_attention_mask=True,
        return_token_type_ids=False,
    )
    ids, masks = encoding["input_ids"], encoding["attention_mask"]
    decoder_ids = [[tokenizer.bos_token_id, *row[1:]] for row in ids]
    labels = [
        [token if counts else IGNORE_INDEX for token, counts in zip(row, mask)]
        for row, mask in zip(decoder_ids, masks)
    ]
    return {"input_ids": ids, "attention_mask": masks, "decoder_input_ids": decoder_ids, "labels": labels}


def numbers_of_images(images: Sequence[Sequence[Any]], reader: ContentReader) -> list[int]:
    """A number for each row's image: the same for the same content, also in other batches and processes."""
    # 60 of the digest's 256 bits, so that it is an int64 anywhere.
    return [int(reader(sources[0]).digest[:15], 16) for sources in images]


__all__ = ["numbers_of_images", "read_captions", "tokenize_captions"]
