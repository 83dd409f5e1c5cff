"""CIDEr, BLEU and ROUGE-L of captions, equal to pycocoevalcap's on the same tokens.

Sources: CIDEr-D (Vedantam et al. 2015, https://arxiv.org/abs/1411.5726), BLEU (Papineni et al. 2002), ROUGE-L (Lin
2004), as COCO's evaluation computes them. What is particular to it:

- CIDEr: document frequencies come from the references of the images scored, so a score depends on which images are
  scored together, and is 0 for one image alone. Counts of the caption are clipped to the reference's, the penalty for
  a difference in length has sigma 6, and the result is ten times the mean over 1- to 4-grams: 1.2 is what
  papers print as 120.
- BLEU: over the whole corpus, the reference closest in length for the penalty (the shorter of two), and tiny constants
  in place of zero counts, so that BLEU-4 without a common 4-gram is near 0, not 0.
- ROUGE-L: the best precision and the best recall over the references, which may be two different references, joined
  with beta 1.2. An empty caption counts as one empty word.

How captions become tokens decides the last digits: `instructblip_hf.evaluation.metrics.caption_tokenizers`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np

from .caption_tokenizers import tokenize_captions
from .rows import check_columns, mean, named, row_name


Tokens = Sequence[str]
_ORDERS = 4
_CIDER_SIGMA = 6.0
_ROUGE_BETA = 1.2
# What keeps COCO's BLEU from dividing by zero.
_SMALL, _TINY = 1e-9, 1e-15


def caption_scores(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    tokenizer: str = "auto",
    ids: Sequence[Hashable] | None = None,
) -> dict[str, Any]:
    """CIDEr, BLEU-1 to BLEU-4 and ROUGE-L of raw captions.

    Args:
        predictions (`Sequence[str]`): One caption for each image. An empty one scores 0.
        references (`Sequence[Sequence[str]]`): The captions of each image, at least one.
        tokenizer (`str`, *optional*, defaults to `"auto"`): `"ptb-java"` is COCO's own, `"treebank"` close to it
            without Java, `"auto"` the first where it can run (see `tokenize_captions`).
        ids (`Sequence`, *optional*): Names of the rows in errors.

    Returns:
        `dict`: ``cider``, ``bleu_1`` to ``bleu_4``, ``rouge_l``, ``count``, and ``tokenizer``: the one that ran. Only
        scores of ``"ptb-java"`` are to be compared with published ones.

    Raises:
        ValueError: If there are no rows, or an image has no reference.
    """
    check_columns(predictions=predictions, references=references)
    empty = [row_name(row, ids) for row, texts in enumerate(references) if not len(texts)]
    if empty:
        raise ValueError(f"references are empty for {named(empty)}")
    strings = [row_name(row, ids) for row, texts in enumerate(references) if isinstance(texts, str)]
    if strings:
        raise TypeError(f"references are strings for {named(strings)}; each is a list of captions")
    candidates, name = tokenize_captions(predictions, tokenizer)
    tokens, _ = tokenize_captions([text for texts in references for text in texts], name)
    rest = iter(tokens)
    grouped = [[next(rest) for _ in texts] for texts in references]
    # COCO's n-grams part words at every white space, ROUGE-L only at spaces (CoreNLP writes "1 1/2" as one word).
    parted = [_part(tokens) for tokens in candidates]
    parted_references = [[_part(tokens) for tokens in texts] for texts in grouped]
    bleu, _ = bleu_scores(parted, parted_references)
    return {
        "cider": mean(cider_scores(parted, parted_references)),
        **{f"bleu_{order}": score for order, score in enumerate(bleu, start=1)},
        "rouge_l": mean(rouge_l_scores(candidates, grouped)),
        "count": len(predictions),
        "tokenizer": name,
    }


def cider_scores(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[float]:
    """CIDEr-D of each image; the corpus's is their mean.

    Args:
        candidates (`Sequence[Sequence[str]]`): Tokens of the caption of each image.
        references (`Sequence[Sequence[Sequence[str]]]`): Tokens of each image's captions.
    """
    images = check_columns(candidates=candidates, references=references)
    texts = [*candidates, *(tokens for image_texts in references for tokens in image_texts)]
    # The image of each reference, that is of each text after the captions.
    image_of = np.repeat(np.arange(images), [len(image_texts) for image_texts in references])  # [references]
    cosine = np.zeros(len(image_of))
    for text, ngram in _ngram_places(texts):
        cosine += _clipped_cosine(text, ngram, image_of, images) / _ORDERS
    lengths = np.array([len(tokens) for tokens in texts])
    # COCO compares numbers of bigrams: the same but for an empty text, whose cosine is 0.
    difference = lengths[:images][image_of] - lengths[images:]
    similarity = cosine * np.exp(-(difference**2) / (2 * _CIDER_SIGMA**2))  # [references]
    return (10 * np.bincount(image_of, similarity, images) / np.bincount(image_of, minlength=images)).tolist()


def _ngram_places(texts: Sequence[Tokens]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each order the n-grams of all texts one after the other: index of the text, and a number for the n-gram."""
    vocabulary: dict[str, int] = {}
    words = np.array([vocabulary.setdefault(word, len(vocabulary)) for tokens in texts for word in tokens], dtype=int)
    lengths = [len(tokens) for tokens in texts]
    text = np.repeat(np.arange(len(texts)), lengths)  # [words]
    end = np.cumsum(lengths)[text]  # [words]: where the text of each word ends
    start, ngram = np.arange(len(words)), words
    for order in range(1, _ORDERS + 1):
        yield text[start], ngram
        longer = start + order < end[start]
        start = start[longer]
        _, ngram = np.unique(ngram[longer] * len(vocabulary) + words[start + order], return_inverse=True)


def _clipped_cosine(text: np.ndarray, ngram: np.ndarray, image_of: np.ndarray, images: int) -> np.ndarray:
    """CIDEr-D's similarity of one order of each reference and its image's caption, before the penalty for length.

    Args:
        text (`np.ndarray` of shape `(places,)`): The text of each n-gram: first the captions, then the references.
        ngram (`np.ndarray` of shape `(places,)`): Its number.
        image_of (`np.ndarray` of shape `(references,)`): The image of each reference.
        images (`int`): Number of images, and of captions.
    """
    size = int(ngram.max(initial=0)) + 1
    keys, counts = np.unique(text * size + ngram, return_counts=True)
    captions = int(np.searchsorted(keys, images * size))  # keys are sorted: captions before references
    text, ngram = keys // size, keys % size  # [entries]: one for each distinct n-gram of each text
    reference, reference_ngram = text[captions:] - images, ngram[captions:]
    image_keys = image_of[reference] * size + reference_ngram

    # In how many images' references an n-gram stands; those of captions alone count as if in one.
    distinct = np.sort(image_keys)
    distinct = distinct[np.diff(distinct, prepend=-1) > 0]
    images_with = np.maximum(np.bincount(distinct % size, minlength=size), 1)
    weights = counts * (math.log(images) - np.log(images_with))[ngram]
    norms = np.sqrt(np.bincount(text, weights**2, images + len(image_of)))

    # The caption's weight of each n-gram of a reference, where the caption has it.
    entry = np.minimum(np.searchsorted(keys[:captions], image_keys), max(captions - 1, 0))
    common = keys[entry] == image_keys if captions else np.zeros(len(image_keys), dtype=bool)
    of_reference = weights[captions:][common]
    clipped = np.minimum(weights[entry[common]], of_reference) * of_reference
    product = np.bincount(reference[common], clipped, len(image_of))
    lengths = norms[:images][image_of] * norms[images:]
    return product / np.where(lengths == 0, 1, lengths)


def bleu_scores(
    candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]
) -> tuple[list[float], list[list[float]]]:
    """BLEU-1 to BLEU-4 of the corpus, and of each image.

    Args:
        candidates (`Sequence[Sequence[str]]`): Tokens of the caption of each image.
        references (`Sequence[Sequence[Sequence[str]]]`): Tokens of each image's captions.

    Returns:
        `tuple`: The corpus's four scores, and a list of four for each image.
    """
    check_columns(candidates=candidates, references=references)
    in_all = [0] * (2 * _ORDERS)
    lengths = [0, 0]
    by_image = []
    for candidate, texts in zip(candidates, references):
        allowed: Counter[tuple[str, ...]] = Counter()
        for tokens in texts:
            allowed |= _ngrams(tokens)
        common = _ngrams(candidate) & allowed
        matched = [0] * _ORDERS
        for ngram, count in common.items():
            matched[len(ngram) - 1] += count
        possible = [max(0, len(candidate) - order) for order in range(_ORDERS)]
        closest = min((abs(len(tokens) - len(candidate)), len(tokens)) for tokens in texts)[1]
        by_image.append(_bleu([*matched, *possible], len(candidate), closest))
        in_all = [total + count for total, count in zip(in_all, [*matched, *possible])]
        lengths = [lengths[0] + len(candidate), lengths[1] + closest]
    return _bleu(in_all, *lengths), by_image


def _bleu(counts: Sequence[int], length: int, reference_length: int) -> list[float]:
    """BLEU-1 to BLEU-4 from the matched n-grams by order, then the possible ones."""
    ratio = (length + _TINY) / (reference_length + _SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product = 1.0
    scores = []
    for order in range(_ORDERS):
        product *= (counts[order] + _TINY) / (counts[_ORDERS + order] + _SMALL)
        scores.append(product ** (1 / (order + 1)) * penalty)
    return scores


def rouge_l_scores(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[float]:
    """ROUGE-L of each image; the corpus's is their mean.

    Args:
        candidates (`Sequence[Sequence[str]]`): Tokens of the caption of each image.
        references (`Sequence[Sequence[Sequence[str]]]`): Tokens of each image's captions.
    """
    check_columns(candidates=candidates, references=references)
    scores = []
    for candidate, texts in zip(candidates, references):
        words = candidate or [""]
        common = [(_common_length(words, tokens or [""]), len(tokens or [""])) for tokens in texts]
        precision = max(length for length, _ in common) / len(words)
        recall = max(length / size for length, size in common)
        weighted = recall + _ROUGE_BETA**2 * precision
        scores.append((1 + _ROUGE_BETA**2) * precision * recall / weighted if weighted else 0.0)
    return scores


def _common_length(first: Tokens, second: Tokens) -> int:
    """Length of the longest common subsequence, bit-parallel (Hyyrö 2004): a zero bit for each of its tokens."""
    places: dict[str, int] = {}
    for place, token in enumerate(first):
        places[token] = places.get(token, 0) | 1 << place
    every = (1 << len(first)) - 1
    row = every
    for token in second:
        found = row & places.get(token, 0)
        row = (row + found | row - found) & every
    return len(first) - row.bit_count()


def _ngrams(tokens: Tokens) -> Counter[tuple[str, ...]]:
    return Counter(
        tuple(tokens[start : start + order])
        for order in range(1, _ORDERS + 1)
        for start in range(len(tokens) - order + 1)
    )


def _part(tokens: Tokens) -> list[str]:
    return " ".join(tokens).split()


__all__ = ["bleu_scores", "caption_scores", "cider_scores", "rouge_l_scores"]
