"""Scores are those of the model's own forward, pair by pair; what is kept is what a plain loop keeps."""

import itertools

import pytest
import torch

from instructblip_hf.capfilt.filtering import Candidate, FilterOptions, candidates_of, select
from tiny_capfilt import TEXTS, caption_filter, picture


@torch.no_grad()
def scores_of(encoder, image, text):
    """Of one pair alone, by the forward of the model."""
    pixels = encoder.processor.image_processor([image], return_tensors="pt")["pixel_values"]
    ids = encoder.processor.tokenizer([text], return_tensors="pt")["input_ids"]
    logits = encoder.model(pixels, ids, use_image_text_matching_head=True).logits_per_image
    return {"itm": logits.softmax(-1)[0, 1].item(), "itc": encoder.model(pixels, ids).logits_per_image.item()}


@pytest.mark.parametrize("rank_by", ["itm", "itc"])
def test_scores_are_the_models(rank_by):
    filtering = caption_filter(rank_by=rank_by, min_itm=0.0, min_itc=-1.0, top_k=None)
    images = [picture(number) for number in range(3)]
    texts = [TEXTS[:4], [], TEXTS[2:]]
    ranked = filtering(images, [candidates_of(one, []) for one in texts])
    for image, given, found in zip(images, texts, ranked):
        expected = {text: scores_of(filtering.encoder, image, text) for text in given}
        assert sorted(one.text for one in found) == sorted(given)
        for one in found:
            assert one.scores == pytest.approx(expected[one.text], abs=1e-5)
        assert [one.text for one in found] == sorted(given, key=lambda text: -expected[text][rank_by])


def test_many_pairs_are_those_of_few():
    filtering = caption_filter()
    texts = [" ".join(words) for words in itertools.product(["red", "blue", "green"], repeat=4)]
    (found,) = filtering([picture(0)], [candidates_of(texts[:70], [])])
    assert len(found) == 70
    for one in found[:2] + found[-2:]:
        assert one.scores["itm"] == pytest.approx(scores_of(filtering.encoder, picture(0), one.text)["itm"], abs=1e-5)


def test_only_the_scores_that_are_needed():
    (found,) = caption_filter(rank_by="itc")([picture(0)], [candidates_of(["a red circle"], [])])
    assert list(found[0].scores) == ["itc"]
    assert FilterOptions(rank_by="itc", min_itm=0.5).scores == ("itm", "itc")
    assert FilterOptions().scores == ("itm",)


@pytest.mark.parametrize("rank_by", ["itm", "itc"])
@pytest.mark.parametrize("min_itm", [None, 0.5])
@pytest.mark.parametrize("min_itc", [None, 0.3])
@pytest.mark.parametrize("top_k", [None, 1, 2])
def test_what_is_kept(rank_by, min_itm, min_itc, top_k):
    options = FilterOptions(rank_by, min_itm, min_itc, top_k)
    numbers = [0.1, 0.5, 0.9, 0.5, 0.3]
    given = [
        Candidate(f"{place}", "web", {"itm": numbers[place], "itc": numbers[(2 * place + 1) % 5]})
        for place in range(5)
    ]
    found = select(given, options)
    left = {one.text for one in given}
    kept = 0
    for one in found:
        # The best that is left, and of equal ones the first.
        best = max((other for other in given if other.text in left), key=lambda other: other.scores[rank_by])
        assert one.text == best.text
        left.remove(one.text)
        fits = (min_itm is None or one.scores["itm"] >= min_itm) and (min_itc is None or one.scores["itc"] >= min_itc)
        assert one.kept == (fits and (top_k is None or kept < top_k))
        kept += one.kept
    assert not left


def test_each_text_once():
    found = candidates_of(["A red circle!", "", "a RED circle"], ["a red circle", "a blue one", " . ", "a blue one"])
    assert [(one.text, one.source) for one in found] == [("A red circle!", "web"), ("a blue one", "synthetic")]


def test_a_score_that_is_no_number_is_an_error():
    filtering = caption_filter()
    with torch.no_grad():
        filtering.encoder.model.itm_head.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="the filter's itm of 'a red circle' is nan"):
        filtering([picture(0)], [candidates_of(["a red circle"], [])])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank_by": "clip"}, "rank_by is 'clip'; allowed are itm, itc"),
        ({"min_itm": 1.5}, "min_itm is 1.5; a probability is from 0 to 1"),
        ({"min_itc": -2.0}, "min_itc is -2.0; a cosine is from -1 to 1"),
        ({"top_k": 0}, "top_k is 0; it must be at least 1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        FilterOptions(**options)
