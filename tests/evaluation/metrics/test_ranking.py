"""Ranking metrics against VisDial's own numbers, brute force over all orders of equal scores, and scikit-learn."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructblip_hf.evaluation.metrics import ndcg, ranking_scores


SCORES = [[0.1, 0.9, 0.3, 0.5], [2.0, 1.0, 0.0, -1.0], [-5.0, -3.0, -4.0, -1.0]]


def test_visdial_without_ties_as_published():
    """Outputs of visdialch/metrics.py (batra-mlp-lab/visdial-challenge-starter-pytorch, 5844f3d), in float32."""
    for ties in ("expected", "order", "worst"):
        result = ranking_scores(SCORES, [[3], [0], [1]], ties=ties)
        assert result["mrr"] == pytest.approx(0.6666666865348816, abs=1e-6)
        assert result["mean_rank"] == pytest.approx(1.6666666269302368, abs=1e-6)
        assert result["recall_at_1"] == pytest.approx(0.3333333432674408, abs=1e-6)
        assert result["recall_at_5"] == result["recall_at_10"] == 1.0
        relevance = [[0, 0.5, 1, 0], [0.2, 0, 0, 0.8], [1.0, 0.4, 0.2, 0]]
        assert ndcg(SCORES, relevance, ties=ties)["ndcg"] == pytest.approx(0.28553053736686707, abs=1e-6)


def orders(scores):
    """All orders of the candidates that the scores allow."""
    for order in itertools.permutations(range(len(scores))):
        if all(scores[first] >= scores[second] for first, second in zip(order, order[1:])):
            yield order


rows = st.integers(2, 5).flatmap(
    lambda size: st.tuples(
        st.lists(st.integers(0, 2), min_size=size, max_size=size),
        st.lists(st.integers(0, size - 1), min_size=1, max_size=3),
        st.lists(st.sampled_from([0.0, 0.2, 1.0]), min_size=size, max_size=size).filter(any),
    )
)


@settings(deadline=None, max_examples=120)
@given(row=rows)
def test_equal_scores_count_as_the_mean_over_all_orders(row):
    scores, targets, relevance = row
    ranks = [min(order.index(target) + 1 for target in targets) for order in orders(scores)]
    expected = ranking_scores([scores], [targets], ks=(1, 2))
    assert expected["mrr"] == pytest.approx(np.mean([1 / rank for rank in ranks]))
    assert expected["mean_rank"] == pytest.approx(np.mean(ranks))
    assert expected["recall_at_2"] == pytest.approx(np.mean([rank <= 2 for rank in ranks]))
    assert ranking_scores([scores], [targets], ties="worst")["mean_rank"] == max(ranks)
    stable = sorted(range(len(scores)), key=lambda candidate: -scores[candidate])
    in_order = ranking_scores([scores], [targets], ties="order")["mean_rank"]
    assert in_order == min(stable.index(target) + 1 for target in targets)

    places = sum(gain != 0 for gain in relevance)
    best = sum(gain / np.log2(place + 2) for place, gain in enumerate(sorted(relevance, reverse=True)[:places]))
    gains = [
        sum(relevance[candidate] / np.log2(place + 2) for place, candidate in enumerate(order[:places])) / best
        for order in orders(scores)
    ]
    assert ndcg([scores], [relevance])["ndcg"] == pytest.approx(np.mean(gains))
    assert ndcg([scores], [relevance], ties="worst")["ndcg"] == pytest.approx(min(gains))


def test_ndcg_equals_scikit_learn_on_a_hundred_candidates():
    metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(0)
    for _ in range(20):
        scores = draw.integers(0, 12, 100) / 4  # many equal scores
        relevance = np.where(draw.random(100) < 0.1, draw.integers(1, 6, 100) / 5, 0)
        relevance[0] = 1
        oracle = metrics.ndcg_score([relevance], [scores], k=np.count_nonzero(relevance))
        assert ndcg([scores], [relevance])["ndcg"] == pytest.approx(oracle, abs=1e-12)


def test_all_scores_equal():
    result = ranking_scores([[0.0] * 100], [[7]])
    assert result["mrr"] == pytest.approx(sum(1 / place for place in range(1, 101)) / 100)
    assert result["mean_rank"] == pytest.approx(50.5)
    assert result["recall_at_10"] == pytest.approx(0.1)
    assert ranking_scores([[0.0] * 100], [[7]], ties="order")["mean_rank"] == 8


def test_retrieval_takes_the_best_of_several_right_candidates():
    draw = random.Random(0)
    scores = np.array([[draw.random() for _ in range(50)] for _ in range(10)])
    targets = [list(range(5 * row, 5 * row + 5)) for row in range(10)]
    result = ranking_scores(scores, targets, ks=(1, 5))
    hits = [bool(set(np.argsort(-row)[:5]) & set(right)) for row, right in zip(scores, targets)]
    assert result["recall_at_5"] == pytest.approx(np.mean(hits))


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match="no rows"):
        ranking_scores([], [])
    with pytest.raises(ValueError, match="scores of id 'd2' are empty, nested or NaN"):
        ranking_scores([[1.0, 2.0], [float("nan"), 1.0]], [[0], [1]], ids=["d1", "d2"])
    with pytest.raises(ValueError, match=r"targets of row 0 are \[2\] for 2 candidates"):
        ranking_scores([[1.0, 2.0]], [[2]])
    with pytest.raises(ValueError, match=r"targets of row 0 are \[\]"):
        ranking_scores([[1.0, 2.0]], [[]])
    with pytest.raises(ValueError, match="a k is at least 1"):
        ranking_scores([[1.0, 2.0]], [[0]], ks=(0,))
    with pytest.raises(ValueError, match="'best'; allowed are expected, order, worst"):
        ndcg([[1.0, 2.0]], [[0, 1]], ties="best")
    with pytest.raises(ValueError, match="relevance of row 0 is negative, NaN, or 0"):
        ndcg([[1.0, 2.0]], [[0, 0]])
    with pytest.raises(ValueError, match="row 0 has 1 relevances for 2 candidates"):
        ndcg([[1.0, 2.0]], [[1]])
    # A pruned candidate scored minus infinity stands last; it is not an error.
    assert ranking_scores([[float("-inf"), 2.0]], [[0]])["mean_rank"] == 2
