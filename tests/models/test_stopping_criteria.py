"""Answers that end with text: every tokenizer, rows by themselves, never by the prompt's own text."""

from __future__ import annotations

import pytest
import torch
from tests.tiny_llava import tiny_llava_processor

from instructblip_hf.models.stopping_criteria import StopAtText


def characters(ids: torch.Tensor) -> list[str]:
    return ["".join(map(chr, row)) for row in ids.tolist()]


def rows(*texts: str) -> torch.Tensor:
    return torch.tensor([[ord(letter) for letter in text] for text in texts])


@pytest.mark.parametrize("endings", [["###"], ["\n"], ["###", "\n"], ["aab"]])
def test_a_row_ends_with_the_token_that_completes_an_ending(endings):
    """Brute force: character by character, the first place where a prefix ends with an ending."""
    generator = torch.Generator().manual_seed(0)
    alphabet = "#\nab"
    stops = StopAtText(characters, endings)
    for _ in range(60):
        text = "".join(alphabet[i] for i in torch.randint(len(alphabet), (14,), generator=generator))
        expected = next((n for n in range(1, 15) if text[:n].endswith(tuple(endings))), None)
        found = next((n for n in range(1, 15) if bool(stops(rows(text[:n]), None)[0])), None)
        assert found == expected, text


def test_rows_end_by_themselves_and_what_the_prompt_says_does_not_count():
    stops = StopAtText(characters, ["###"])
    assert stops(rows("###: yes", "###: y##", "##: y###"), None).tolist() == [False, False, True]


def test_word_level_tokenizers():
    tokenizer = tiny_llava_processor().tokenizer
    stops = StopAtText(lambda ids: tokenizer.batch_decode(ids, skip_special_tokens=True), ["red square"])
    ids = tokenizer("the large red square", add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert [bool(stops(ids[:, :n], None)[0]) for n in range(1, ids.shape[1] + 1)] == [False, False, False, True]


@pytest.mark.parametrize("endings", [[], [""]])
def test_an_ending_is_a_text(endings):
    with pytest.raises(ValueError, match="endings must be texts"):
        StopAtText(characters, endings)
