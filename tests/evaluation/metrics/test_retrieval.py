"""Recall in both directions against places counted one by one."""

import numpy as np
import pytest

from instructblip_hf.evaluation.metrics import retrieval_recall


def recalls_by_counting(scores, right, unmatched=-100.0):
    """Shares of rows whose best right candidate has fewer than k candidates above it, as LAVIS's ranks are meant."""
    places = []
    for row, targets in zip(scores, right):
        above = [sum(1 for other in row if other > row[target]) for target in targets if row[target] != unmatched]
        places.append(min(above, default=10**9))
    return {k: sum(place < k for place in places) / len(places) for k in (1, 5, 10)}


@pytest.mark.parametrize("seed", range(3))
def test_equals_places_that_are_counted(seed):
    generator = np.random.default_rng(seed)
    captions_of = [[0, 1], [2], [3, 4, 5], [6], *([number] for number in range(7, 40))]
    image_of = [image for image, captions in enumerate(captions_of) for _ in captions]
    of_images = generator.normal(size=(len(captions_of), len(image_of)))
    of_texts = generator.normal(size=(len(image_of), len(captions_of)))
    for caption, image in enumerate(image_of):
        of_images[image, caption] += 2
        of_texts[caption, image] += 2
    for scores in (of_images, of_texts):
        # Twelve of each row were matched.
        worse = np.argsort(scores, axis=1)[:, :-12]
        np.put_along_axis(scores, worse, -100.0, axis=1)
    result = retrieval_recall(
        [*of_images, *of_texts],
        ["image_to_text"] * len(captions_of) + ["text_to_image"] * len(image_of),
        [*captions_of, *([image] for image in image_of)],
    )
    of_image = recalls_by_counting(of_images.tolist(), captions_of)
    of_text = recalls_by_counting(of_texts.tolist(), [[image] for image in image_of])
    for k in (1, 5, 10):
        assert result[f"txt_r{k}"] == pytest.approx(of_image[k], abs=1e-12)
        assert result[f"img_r{k}"] == pytest.approx(of_text[k], abs=1e-12)
    assert 0 < result["txt_r1"] < result["txt_r10"] < 1
    means = [sum(values.values()) / 3 for values in (of_image, of_text)]
    assert result["txt_r_mean"] == pytest.approx(means[0])
    assert result["img_r_mean"] == pytest.approx(means[1])
    assert result["r_mean"] == pytest.approx(sum(means) / 2)
    assert (result["images"], result["texts"]) == (37, 40)


def test_by_hand():
    result = retrieval_recall(
        [[0.1, 0.9, 0.3], [0.9, 0.2, 0.1], [0.9, 0.1], [0.2, 0.1], [0.8, 0.1]],
        ["image_to_text", "image_to_text", "text_to_image", "text_to_image", "text_to_image"],
        [[0, 2], [1], [0], [1], [0]],
    )
    assert (result["txt_r1"], result["txt_r5"], result["txt_r10"]) == (0, 1, 1)
    assert result["img_r1"] == pytest.approx(2 / 3)


def test_what_was_not_matched_is_no_hit():
    rows = [[5.0] + [-100.0] * 7, [5.0] + [-100.0] * 7]
    result = retrieval_recall(rows, ["image_to_text", "text_to_image"], [[3], [0]])
    assert (result["txt_r1"], result["txt_r5"], result["txt_r10"]) == (0, 0, 1)
    assert result["img_r1"] == 1


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="direction of id 'b' is 'to_text'; allowed are image_to_text, text_to_image"):
        retrieval_recall([[1.0], [1.0]], ["image_to_text", "to_text"], [[0], [0]], ids=["a", "b"])
    with pytest.raises(ValueError, match="no rows of the direction text_to_image"):
        retrieval_recall([[1.0]], ["image_to_text"], [[0]])
    with pytest.raises(ValueError, match="scores of id 'c' are"):
        retrieval_recall(
            [[1.0], [1.0], [float("nan")]],
            ["image_to_text", "text_to_image", "image_to_text"],
            [[0], [0], [0]],
            ids=["a", "b", "c"],
        )
