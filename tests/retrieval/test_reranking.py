"""Scores against LAVIS's formulas, by a loop over pairs in float64, one pair at a time and without padding."""

import numpy as np
import pytest
import torch

from instructblip_hf.evaluation.retrieval import evaluate_retrieval
from instructblip_hf.retrieval import Hit, rerank_images, rerank_texts, retrieval_scores
from instructblip_hf.utils.caption_text import clean_caption
from tiny_retrieval import draw_image, retrieval_encoder


TEXTS = [
    "A red circle.",
    "two blue squares and a green star",
    "what color is the circle?",
    "a star",
    "the digit is red",
    "there is no star left of the square",
    "yellow",
]


@pytest.fixture
def images(tmp_path):
    for number in range(6):
        draw_image(tmp_path / f"{number}.png", number)
    return [tmp_path / f"{number}.png" for number in range(6)]


def by_pairs(encoder, images):
    """Cosines and matching logits of all pairs: the model in float64, through its own forward."""
    model = retrieval_encoder().model.double()
    cosines, logits = np.zeros((len(images), len(TEXTS))), np.zeros((len(images), len(TEXTS)))
    for i, image in enumerate(images):
        for j, text in enumerate(TEXTS):
            ids = encoder.processor.tokenizer([text.lower().replace(".", "")], return_tensors="pt")["input_ids"]
            inputs = {"pixel_values": encoder.pixels([image]).double(), "input_ids": ids}
            with torch.no_grad():
                cosines[i, j] = model(**inputs).logits_per_image.item()
                logits[i, j] = model(**inputs, use_image_text_matching_head=True).logits_per_image[0, 1].item()
    return cosines, logits


def lavis_scores(cosines, logits, k):
    """Of each row the best k: logit + cosine; of the others -100."""
    scores = np.full(cosines.shape, -100.0)
    for row in range(len(cosines)):
        best = sorted(range(cosines.shape[1]), key=lambda place: -cosines[row, place])[:k]
        for place in best:
            scores[row, place] = logits[row, place] + cosines[row, place]
    return scores


@pytest.mark.parametrize("k", [1, 3, 128])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_matrices_are_lavis(encoder, images, k, batch_size):
    cosines, logits = by_pairs(encoder, images)
    of_images, of_texts = retrieval_scores(encoder, images, TEXTS, k, batch_size, progress=False)
    np.testing.assert_allclose(of_images, lavis_scores(cosines, logits, k), atol=1e-4)
    np.testing.assert_allclose(of_texts, lavis_scores(cosines.T, logits.T, k), atol=1e-4)
    assert logits.std() > 0.01


def test_a_pair_is_matched_once_for_both_directions(encoder, images, monkeypatch):
    pairs = []
    match = encoder.match

    def counted(states, texts, image_index=None):
        pairs.extend(zip(image_index.tolist(), texts))
        return match(states, texts, image_index)

    monkeypatch.setattr(encoder, "match", counted)
    retrieval_scores(encoder, images, TEXTS, 128, batch_size=16, progress=False)
    assert len(pairs) == len(set(pairs)) == len(images) * len(TEXTS)


def test_reranking_of_images_and_of_texts(encoder, images):
    cosines, logits = by_pairs(encoder, images)
    for text, cosine, logit in zip(TEXTS, cosines.T, logits.T):
        hits = [Hit((str(image),), float(value)) for image, value in zip(images, cosine)]
        ranked = rerank_images(encoder, text, hits, images, batch_size=4)
        order = np.argsort(-(cosine + logit))
        assert [hit.names[0] for hit in ranked] == [str(images[place]) for place in order]
        assert [hit.score for hit in ranked] == pytest.approx((cosine + logit)[order].tolist(), abs=1e-4)
    for image, cosine, logit in zip(images, cosines, logits):
        _, states = encoder.encode_images(encoder.pixels([image]))
        hits = [Hit((text,), float(value)) for text, value in zip(TEXTS, cosine)]
        ranked = rerank_texts(encoder, states, hits, batch_size=3)
        order = np.argsort(-(cosine + logit))
        assert [hit.names[0] for hit in ranked] == [TEXTS[place] for place in order]
        assert [hit.score for hit in ranked] == pytest.approx((cosine + logit)[order].tolist(), abs=1e-4)


def test_evaluation_counts_captions_of_an_image_as_its_own(encoder, images):
    captions = [TEXTS[:2], TEXTS[2:3], TEXTS[3:4], TEXTS[4:5], TEXTS[5:6], TEXTS[6:]]
    rows = [
        {"id": str(n), "dataset": "own", "category": "image_captioning", "images": [image], "answers": own}
        for n, (image, own) in enumerate(zip(images, captions))
    ]
    cosines, logits = by_pairs(encoder, images)
    image_of = [n for n, own in enumerate(captions) for _ in own]
    for k, scores in ((3, None), (0, cosines)):
        of_images = lavis_scores(cosines, logits, k) if scores is None else cosines
        of_texts = lavis_scores(cosines.T, logits.T, k) if scores is None else cosines.T
        result = evaluate_retrieval(encoder, rows, k, batch_size=4, progress=False)
        right = [image_of[int(np.argmax(row))] == number for number, row in enumerate(of_images)]
        assert result["txt_r1"] == pytest.approx(np.mean(right))
        right = [int(np.argmax(row)) == image for row, image in zip(of_texts, image_of)]
        assert result["img_r1"] == pytest.approx(np.mean(right))
        assert (result["images"], result["texts"], result["k"]) == (6, 7, k)
    with pytest.raises(ValueError, match="own 0 has 2 images and 2 captions"):
        evaluate_retrieval(encoder, [{**rows[0], "images": images[:2]}], progress=False)


def test_captions_are_worded_as_in_lavis():
    assert clean_caption('A "Dog" (black)  runs; far~away.\n') == "a dog black runs far away"
    assert clean_caption("it's 5-a-side, yes?") == "it's 5-a-side, yes?"
    assert clean_caption(" ".join(map(str, range(60)))) == " ".join(map(str, range(50)))


def test_long_texts_are_cut_to_35_tokens(encoder):
    seen = {}
    real = encoder.model.get_text_features

    def kept(**tokens):
        seen.update(tokens)
        return real(**tokens)

    encoder.model.get_text_features = kept
    encoder.encode_texts(["star " * 49, "star"])
    assert seen["input_ids"].shape == (2, 35)


def test_other_models_are_refused(encoder):
    from instructblip_hf.retrieval import RetrievalEncoder
    from tiny_models import our_model

    with pytest.raises(ValueError, match="has no get_text_features: retrieval needs a Blip2ForImageTextRetrieval"):
        RetrievalEncoder(our_model(), encoder.processor)
