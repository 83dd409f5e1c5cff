"""ROC-AUC against scikit-learn and against counting pairs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructblip_hf.evaluation.metrics import roc_auc


rows = st.lists(
    st.tuples(st.sampled_from([-3.0, -0.5, 0.0, 1e-9, 2.0, float("inf")]), st.integers(0, 1)), min_size=2, max_size=40
).filter(lambda pairs: len({label for _, label in pairs}) == 2)


@settings(deadline=None, max_examples=150)
@given(pairs=rows)
def test_auc_is_the_share_of_pairs_in_order(pairs):
    scores, labels = zip(*pairs)
    positive = [score for score, label in pairs if label]
    negative = [score for score, label in pairs if not label]
    won = sum((high > low) + 0.5 * (high == low) for high in positive for low in negative)
    result = roc_auc(scores, labels)
    assert result["roc_auc"] == pytest.approx(won / (len(positive) * len(negative)), abs=1e-12)
    assert result["count"] == len(pairs)
    assert result["positives"] == len(positive)


def test_auc_equals_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    scores = [0.1 * (place * 7919 % 31) for place in range(500)]
    labels = [place * 104729 % 3 == 0 for place in range(500)]
    assert roc_auc(scores, labels)["roc_auc"] == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)


def test_equal_scores_give_one_half():
    assert roc_auc([0.3] * 5, [0, 1, 0, 0, 1])["roc_auc"] == 0.5


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match="no rows"):
        roc_auc([], [])
    with pytest.raises(ValueError, match="0 of 2 rows are positive"):
        roc_auc([0.1, 0.2], [0, 0])
    with pytest.raises(ValueError, match="NaN for id 'm2'"):
        roc_auc([0.1, float("nan")], [0, 1], ids=["m1", "m2"])
    with pytest.raises(ValueError, match="neither 0 nor 1 for row 1"):
        roc_auc([0.1, 0.2], [0, 2])
