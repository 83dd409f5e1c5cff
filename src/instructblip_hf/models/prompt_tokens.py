"""Text to token rows in which image placeholders keep their place, their number and their attention.

Pure functions over a tokenizer that is handed in. A row keeps the placeholders that nobody wrote apart from its other
tokens, because published InstructBLIP and BLIP-2 checkpoints have them before the beginning-of-sequence token, and
before the padding where padding is on the left. Placeholders of a marker that is written in the text, as chat templates
do, stay beside its words: trainers that move a row to the left by its leading padding then leave no hole in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


# Ids of a text, which of them the tokenizer added, and the characters that each comes from.
_Pieces = tuple[list[int], list[bool], list[tuple[int, int]]]


@dataclass
class TokenRow:
    """Tokens of one sample, not yet padded.

    Args:
        opening (`int`): Number of placeholder tokens before everything else, padding too.
        ids (`list[int]`): Token ids after them.
        fixed (`list[bool]`): Which of ``ids`` truncation must leave: placeholders and special tokens.
        offsets (`list[tuple[int, int]]`): Where in the text each of ``ids`` comes from; empty for placeholders.
        ending (`int`): How many end tokens the tokenizer added.
    """

    opening: int
    ids: list[int]
    fixed: list[bool]
    offsets: list[tuple[int, int]] = field(default_factory=list)
    ending: int = 0

    def __len__(self) -> int:
        return self.opening + len(self.ids)

    def drop(self, positions: Sequence[int]) -> None:
        """Remove the given positions of ``ids``."""
        gone = set(positions)
        kept = [position for position in range(len(self.ids)) if position not in gone]
        self.ids = [self.ids[position] for position in kept]
        self.fixed = [self.fixed[position] for position in kept]
        self.offsets = [self.offsets[position] for position in kept] if self.offsets else []


def encode_texts(
    tokenizer: Any,
    texts: Sequence[str],
    image_counts: Sequence[int],
    image_token: str,
    tokens_per_image: int,
    add_special_tokens: bool = True,
    with_offsets: bool = False,
    row_name: str = "text",
    images_before_bos: bool = True,
    split_at_images: bool = False,
) -> list[TokenRow]:
    """Tokenise texts, with ``tokens_per_image`` placeholders for each image.

    A text without markers gets all its placeholders in front, as an opening. Otherwise each marker becomes the
    placeholders of one image, where it stands; those of markers that open the text come before the
    beginning-of-sequence token too, but belong to the text, so that padding on the left is before them. A
    beginning-of-sequence token that is written out at the start of the text, as chat templates do, is not added a
    second time.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Of the language model; ``image_token`` is a special token of it.
        texts (`Sequence[str]`): One a sample.
        image_counts (`Sequence[int]`): Images of each sample.
        image_token (`str`): The marker of one image in text, and the placeholder token.
        tokens_per_image (`int`): Placeholders an image.
        add_special_tokens (`bool`, *optional*, defaults to `True`): Whether the tokenizer adds its special tokens.
        with_offsets (`bool`, *optional*, defaults to `False`): Whether rows get their ``offsets``.
        row_name (`str`, *optional*, defaults to `"text"`): What errors call a text.
        images_before_bos (`bool`, *optional*, defaults to `True`):
            `False` leaves markers that open a text behind the beginning-of-sequence token, as LLaVA has them.
        split_at_images (`bool`, *optional*, defaults to `False`):
            Whether what stands between markers is tokenised apart, as LLaVA does: a SentencePiece tokenizer that marks
            the beginning of a text alone then marks words after an image too.

    Returns:
        `list[TokenRow]`: One a text.

    Raises:
        ValueError: If a text holds markers, but not as many as the sample has images.
    """
    bos = tokenizer.bos_token
    opening_markers = re.compile(rf"(?:\s*{re.escape(image_token)})+")
    openings, bodies, starts, has_written_bos = [], [], [], []
    for index, (text, images) in enumerate(zip(texts, image_counts)):
        markers = text.count(image_token)
        start = 0
        opening = images
        if markers:
            if markers != images:
                raise ValueError(
                    f"{row_name} {index} holds {markers} {image_token} markers for {images} images: write one marker "
                    "for each image, or none to have all images in front"
                )
            match = opening_markers.match(text) if images_before_bos else None
            start = match.end() if match else 0
            opening = text.count(image_token, 0, start)
        written = bool(bos) and text.startswith(bos, start)
        start += len(bos) if written else 0
        placeholders = opening * tokens_per_image
        openings.append((0, placeholders) if markers else (placeholders, 0))
        bodies.append(text[start:])
        starts.append(start)
        has_written_bos.append(written)

    image_token_id = tokenizer.convert_tokens_to_ids(image_token)
    if split_at_images:
        tokenized = _tokenize_between(tokenizer, bodies, image_token, add_special_tokens, with_offsets)
    else:
        tokenized = _tokenize(tokenizer, bodies, add_special_tokens, with_offsets)
    rows = []
    for index, (ids, special, places) in enumerate(tokenized):
        offsets = [(begin + starts[index], end + starts[index]) for begin, end in places]
        opening, in_front = openings[index]
        ending = _added_ending(tokenizer, ids, special)
        row = TokenRow(opening, [image_token_id] * in_front, [True] * in_front, [(0, 0)] * in_front, ending)
        if has_written_bos[index] and not (special and special[0] and ids[0] == tokenizer.bos_token_id):
            row.ids.append(tokenizer.bos_token_id)
            row.fixed.append(True)
            row.offsets.append((starts[index] - len(bos), starts[index]))
        for token_id, is_special, offset in zip(ids, special, offsets):
            is_image = token_id == image_token_id
            repeats = tokens_per_image if is_image else 1
            row.ids.extend([token_id] * repeats)
            row.fixed.extend([is_special or is_image] * repeats)
            row.offsets.extend([(offset[0], offset[0]) if is_image else offset] * repeats)
        if not with_offsets:
            row.offsets = []
        rows.append(row)
    return rows


def _tokenize(tokenizer: Any, texts: Sequence[str], add_special_tokens: bool, with_offsets: bool) -> list[_Pieces]:
    if not texts:
        return []
    encoding = tokenizer(
        texts,
        add_special_tokens=add_special_tokens,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_special_tokens_mask=True,
        return_offsets_mapping=with_offsets,
        verbose=False,
    )
    ids, special = encoding["input_ids"], encoding["special_tokens_mask"]
    offsets = encoding["offset_mapping"] if with_offsets else [[(0, 0)] * len(row) for row in ids]
    return [(own, list(map(bool, flags)), places) for own, flags, places in zip(ids, special, offsets)]


def _tokenize_between(
    tokenizer: Any, texts: Sequence[str], separator: str, add_special_tokens: bool, with_offsets: bool
) -> list[_Pieces]:
    """As `_tokenize`, but each text in pieces that ``separator``, one token, stands between."""
    pieces = [text.split(separator) for text in texts]
    first = _tokenize(tokenizer, [own[0] for own in pieces], add_special_tokens, with_offsets)
    # Metaspace takes a space at the beginning for the mark it would put there; SentencePiece marks the beginning anyway.
    takes_space = tokenizer.tokenize(" a") == tokenizer.tokenize("a")
    added = [[takes_space and piece.startswith(" ") for piece in own[1:]] for own in pieces]
    later = [
        f" {piece}" if extra else piece for own, extras in zip(pieces, added) for piece, extra in zip(own[1:], extras)
    ]
    remaining = iter(_tokenize(tokenizer, later, False, with_offsets))
    separator_id = tokenizer.convert_tokens_to_ids(separator)
    rows = []
    for own, extras, (ids, special, offsets) in zip(pieces, added, first):
        start = len(own[0])
        for piece, extra in zip(own[1:], extras):
            more_ids, more_special, places = next(remaining)
            stop = start + len(separator)
            ids = [*ids, separator_id, *more_ids]
            special = [*special, False, *more_special]
            moved = [(max(0, begin - extra) + stop, max(0, end - extra) + stop) for begin, end in places]
            offsets = [*offsets, (start, stop), *moved]
            start = stop + len(piece)
        rows.append((ids, special, offsets))
    return rows


def _added_ending(tokenizer: Any, ids: Sequence[int], special: Sequence[bool]) -> int:
    """Number of end tokens that the tokenizer added; bos and eos may be the same token, as in Vicuna's."""
    count = 0
    for token_id, is_special in zip(reversed(ids), reversed(special)):
        if not is_special or token_id != tokenizer.eos_token_id:
            return count
        count += 1
    return count - 1 if count and ids[0] == tokenizer.bos_token_id else count


def truncate_row(row: TokenRow, max_length: int, side: str, name: str) -> list[int]:
    """Cut text tokens so that the row has at most ``max_length`` tokens, placeholders included.

    Args:
        row (`TokenRow`): Changed in place.
        max_length (`int`): Largest number of tokens.
        side (`str`): `"left"` or `"right"`, the side on which text is cut.
        name (`str`): What errors call the limit.

    Returns:
        `list[int]`: The positions of ``row.ids`` that were removed.

    Raises:
        ValueError: If placeholders and special tokens alone are more than ``max_length``.
    """
    excess = len(row) - max_length
    if excess <= 0:
        return []
    removable = [position for position, fixed in enumerate(row.fixed) if not fixed]
    if excess > len(removable):
        raise ValueError(
            f"{name}={max_length} cannot hold the {len(row) - len(removable)} image placeholders and special tokens of "
            "a row; it counts them, and only text is cut"
        )
    removed = removable[:excess] if side == "left" else removable[-excess:]
    row.drop(removed)
    return removed


def pad_rows(
    rows: Sequence[TokenRow], image_token_id: int, pad_token_id: int | None, length: int | None, side: str
) -> tuple[list[list[int]], list[list[int]], list[list[tuple[int, int]]]]:
    """Token ids, attention mask and offsets of rows, padded to ``length``.

    Args:
        rows (`Sequence[TokenRow]`): As they are after truncation.
        image_token_id (`int`): Id of the placeholder.
        pad_token_id (`int`, *optional*): Id of the padding; needed where a row is shorter than ``length``.
        length (`int`, *optional*): Tokens a row; longer rows stay as they are. `None` pads nothing.
        side (`str`): `"left"` puts padding between the opening placeholders and the rest, where published
            checkpoints have it, `"right"` at the end.

    Returns:
        `tuple`: Three lists with a list for each row.

    Raises:
        ValueError: If padding is needed and there is no ``pad_token_id``.
    """
    all_ids, masks, all_offsets = [], [], []
    for row in rows:
        missing = max(0, (length or 0) - len(row))
        if missing and pad_token_id is None:
            raise ValueError(
                "rows of different length need padding, and the tokenizer has no padding token: set "
                "tokenizer.pad_token, for instance to tokenizer.eos_token"
            )
        opening = [image_token_id] * row.opening
        padding: list[Any] = [pad_token_id] * missing
        before, after = (padding, []) if side == "left" else ([], padding)
        all_ids.append(opening + before + row.ids + after)
        masks.append([1] * row.opening + [0] * len(before) + [1] * len(row.ids) + [0] * len(after))
        offsets = row.offsets or [(0, 0)] * len(row.ids)
        all_offsets.append([(0, 0)] * (row.opening + len(before)) + offsets + [(0, 0)] * len(after))
    return all_ids, masks, all_offsets


__all__ = ["TokenRow", "encode_texts", "pad_rows", "truncate_row"]
