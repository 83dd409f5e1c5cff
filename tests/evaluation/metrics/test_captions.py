"""Caption scores against pycocoevalcap's outputs, pycocoevalcap itself where it is installed, and written-out formulas."""

import logging
import math
import random
import shutil
from collections import Counter

import numpy as np
import pytest

from instructblip_hf.evaluation.metrics import (
    bleu_scores,
    caption_scores,
    caption_tokenizers,
    cider_scores,
    rouge_l_scores,
    tokenize_captions,
)
from instructblip_hf.evaluation.metrics.captions import _common_length


# Outputs of pycocoevalcap 1.2 on the words of these.
PREDICTIONS = ["a dog runs on the grass", "two men sit at a table", "", "the the the cat", "a red bus"]
TEXTS = [
    ["a brown dog runs across the grass", "a dog on grass"],
    ["two men are at a table", "men sitting at a wooden table", "two people sit"],
    ["a cat"],
    ["the cat on the mat", "a cat sits"],
    ["a red bus", "a big red bus on a street", "a bus"],
]
CIDER = [2.641166341157, 2.421432867421, 0.0, 1.14121230891, 3.739762996365]
ROUGE = [0.924242424242, 0.833333333333, 0.0, 0.435714285714, 1.0]
BLEU = [0.852714593202, 0.678609396033, 0.422396793777, 5.5793955e-05]
BLEU_1_BY_IMAGE = [0.846481724608, 0.999999999667, 0.0, 0.749999999813, 0.999999999333]
WORDS = ["a", "the", "dog", "cat", "red", "blue", "runs", "sits", "on", "in", "grass", "table", "man", "with"]


def corpus(images, seed=0):
    draw = random.Random(seed)

    def caption():
        return [draw.choice(WORDS) for _ in range(draw.randint(0, 12))]

    return [caption() for _ in range(images)], [[caption() for _ in range(draw.randint(1, 5))] for _ in range(images)]


def cider_written_out(candidates, references):
    """CIDEr-D as in the paper and COCO's clipping, one n-gram order and one pair of captions at a time."""
    images = len(references)
    total = [0.0] * images
    for n in (1, 2, 3, 4):

        def grams(tokens, n=n):
            return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]

        seen = Counter(gram for texts in references for gram in {gram for tokens in texts for gram in grams(tokens)})

        def vector(tokens, grams=grams, seen=seen):
            return {
                gram: count * math.log(images / max(1, seen[gram])) for gram, count in Counter(grams(tokens)).items()
            }

        for image, (candidate, texts) in enumerate(zip(candidates, references)):
            for tokens in texts:
                left, right = vector(candidate), vector(tokens)
                dot = sum(min(left.get(gram, 0), weight) * weight for gram, weight in right.items())
                lengths = math.hypot(*left.values()) * math.hypot(*right.values())
                gap = max(len(candidate) - 1, 0) - max(len(tokens) - 1, 0)
                similarity = dot / lengths if lengths else 0.0
                total[image] += 10 / 4 * similarity * math.exp(-(gap**2) / 72) / len(texts)
    return total


def test_cider_equals_the_formula_written_out():
    candidates, references = corpus(40)
    assert cider_scores(candidates, references) == pytest.approx(cider_written_out(candidates, references), abs=1e-10)


def test_cider_depends_on_the_images_scored_together():
    caption = ["a", "dog", "runs"]
    assert cider_scores([caption], [[caption]]) == [0.0]  # one image: every n-gram is in all of them
    assert cider_scores([caption, ["cat"]], [[caption], [["cat"]]]) == pytest.approx(
        [7.5, 2.5]
    )  # up to its own length


def test_the_longest_common_subsequence_by_trying_all():
    def by_recursion(first, second):
        if not first or not second:
            return 0
        if first[-1] == second[-1]:
            return by_recursion(first[:-1], second[:-1]) + 1
        return max(by_recursion(first[:-1], second), by_recursion(first, second[:-1]))

    draw = random.Random(1)
    for _ in range(200):
        first, second = (draw.choices("abc", k=draw.randint(0, 6)) for _ in range(2))
        assert _common_length(first, second) == by_recursion(first, second)
    long = draw.choices("abcdef", k=300)
    assert _common_length(long, long) == 300


def test_vectors_of_pycocoevalcap():
    candidates, references = (
        [text.split() for text in PREDICTIONS],
        [[text.split() for text in texts] for texts in TEXTS],
    )
    assert cider_scores(candidates, references) == pytest.approx(CIDER, abs=1e-6)
    assert rouge_l_scores(candidates, references) == pytest.approx(ROUGE, abs=1e-6)
    bleu, by_image = bleu_scores(candidates, references)
    assert bleu == pytest.approx(BLEU, abs=1e-6)
    assert [scores[0] for scores in by_image] == pytest.approx(BLEU_1_BY_IMAGE, abs=1e-6)


def test_equal_to_pycocoevalcap_on_the_same_tokens():
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu").Bleu(4)
    cider = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge()
    candidates, references = corpus(150, seed=2)
    written = {image: [" ".join(tokens)] for image, tokens in enumerate(candidates)}
    texts = {image: [" ".join(tokens) for tokens in captions] for image, captions in enumerate(references)}
    expected, by_image = bleu.compute_score(texts, written, verbose=0)
    ours, ours_by_image = bleu_scores(candidates, references)
    assert ours == pytest.approx(expected, abs=1e-9)
    assert np.abs(np.transpose(by_image) - ours_by_image).max() < 1e-9
    assert cider_scores(candidates, references) == pytest.approx(
        list(cider.compute_score(texts, written)[1]), abs=1e-9
    )
    assert rouge_l_scores(candidates, references) == pytest.approx(
        list(rouge.compute_score(texts, written)[1]), abs=1e-9
    )


RAW = [
    "A dog's ball, isn't it?",
    "Two men (one red/blue) at St. Mary's.",
    "",
    "Dogs run on grass. Another one sits!",
    'A sign says "stop" - or not...',
    "line\u2028break\x0bhere",
]
COCO_WORDS = [
    ["a", "dog", "'s", "ball", "is", "n't", "it"],
    ["two", "men", "-lrb-", "one", "red/blue", "-rrb-", "at", "st.", "mary", "'s"],
    [],
    ["dogs", "run", "on", "grass", "another", "one", "sits"],
    ["a", "sign", "says", "stop", "or", "not"],
    ["line", "break", "here"],
]


def test_words_without_java_are_coco_s():
    """`COCO_WORDS` are the output of pycocoevalcap's PTBTokenizer, but for the last, which it would tear into three."""
    assert tokenize_captions(RAW, "treebank") == (COCO_WORDS, "treebank")


def test_words_with_java_are_coco_s():
    pytest.importorskip("pycocoevalcap")
    if shutil.which("java") is None:
        pytest.skip("there is no java")
    assert tokenize_captions([*RAW, "1 1/2 cups", " ", ""], "ptb-java") == (
        [*COCO_WORDS, ["1\u00a01/2", "cups"], [], []],
        "ptb-java",
    )
    assert tokenize_captions([], "ptb-java") == ([], "ptb-java")
    assert caption_scores(RAW, [[text] for text in RAW])["tokenizer"] == "ptb-java"


def test_results_say_which_tokenizer_ran(monkeypatch, caplog):
    monkeypatch.setenv("PATH", "")
    with caplog.at_level(logging.WARNING):
        result = caption_scores(["A dog.", "a cat"], [["a dog", "Dogs"], ["the cat"]])
    assert result["tokenizer"] == "treebank"
    assert "Java or pycocoevalcap is missing" in caplog.text
    assert set(result) == {"cider", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "count", "tokenizer"}


def test_java_is_asked_for_and_missing(monkeypatch):
    monkeypatch.setattr(caption_tokenizers, "_jar", lambda: "somewhere.jar")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="no java on the PATH"):
        tokenize_captions(["a"], "ptb-java")
    monkeypatch.setattr(caption_tokenizers, "_jar", lambda: None)
    with pytest.raises(ImportError, match=r"instructblip-hf\[captions\]"):
        tokenize_captions(["a"], "ptb-java")


def test_java_that_fails_or_loses_lines(monkeypatch, tmp_path):
    java = tmp_path / "java"
    monkeypatch.setattr(caption_tokenizers, "_jar", lambda: "somewhere.jar")
    monkeypatch.setattr(caption_tokenizers.shutil, "which", lambda name: str(java))
    java.write_text("#!/bin/sh\ncat > /dev/null\necho out of heap >&2\nexit 3\n")
    java.chmod(0o755)
    with pytest.raises(RuntimeError, match=r"failed with 3: out of heap"):
        tokenize_captions(["a", "b"], "ptb-java")
    java.write_text("#!/bin/sh\ncat > /dev/null\necho a\n")
    with pytest.raises(RuntimeError, match="2 lines for 3 captions"):
        tokenize_captions(["a", "b", "c"], "ptb-java")


def test_edges():
    blank = caption_scores(["", "dog"], [["a dog"], ["dog"]], tokenizer="treebank")
    assert blank["count"] == 2
    assert blank["rouge_l"] == pytest.approx(0.5)
    assert cider_scores([[], []], [[[]], [["a"]]]) == [0.0, 0.0]
    assert bleu_scores([[]], [[["a"]]])[0] == pytest.approx([0, 0, 0, 0], abs=1e-6)
    with pytest.raises(ValueError, match="no rows"):
        caption_scores([], [])
    with pytest.raises(ValueError, match="empty for id 'i2'"):
        caption_scores(["a", "b"], [["a"], []], ids=["i1", "i2"])
    with pytest.raises(TypeError, match="strings for row 0"):
        caption_scores(["a"], ["a"])
    with pytest.raises(ValueError, match="'java'; allowed are auto, ptb-java, treebank"):
        caption_scores(["a"], [["a"]], tokenizer="java")
