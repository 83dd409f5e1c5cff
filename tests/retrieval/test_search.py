"""The best k against scoring everything in float64 with loops."""

import sys

import pytest
import torch

from instructblip_hf.retrieval import FeatureIndex, FeatureSearch, Hit, open_search
from instructblip_hf.retrieval.codes import QueryCodes
from instructblip_hf.retrieval.table import Facts


SIZE = 24


def unit(values):
    return torch.nn.functional.normalize(values, dim=-1)


def make_index(folder, features, shard=50, rows=None, stored_in="float16"):
    facts = Facts("images", "none", "0", "0", "float32", stored_in, rows or features.shape[1], SIZE, "root")
    index = FeatureIndex.create(folder, facts)
    for start in range(0, len(features), shard):
        chunk = features[start : start + shard]
        index.add([(f"{start + row:04d}", 0, 0, str(start + row)) for row in range(len(chunk))], chunk)
    return index


def brute_force(features, query, k, gone=()):
    """Names and scores, by loops over items and rows of float64 numbers."""
    stored = features.to(torch.float16).double()
    scores = []
    for number, rows in enumerate(stored):
        if f"{number:04d}" not in gone:
            best = max(float(row @ other) for row in rows for other in query.double())
            scores.append((f"{number:04d}", best))
    return sorted(scores, key=lambda pair: (-pair[1], pair[0]))[:k]


def found(search, query, k):
    return [(hit.names[0], hit.cosine) for hit in search.top(query, k)]


def same(left, right):
    assert [name for name, _ in left] == [name for name, _ in right]
    assert [score for _, score in left] == pytest.approx([score for _, score in right], rel=1e-12)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("query_rows", [1, 3])
@pytest.mark.parametrize("integers", [True, False])
def test_equals_scoring_everything(tmp_path, rows, query_rows, integers):
    generator = torch.Generator().manual_seed(rows)
    # Close together, so that codes alone give another order.
    features = unit(torch.ones(SIZE) + 0.02 * torch.randn(170, rows, SIZE, generator=generator))
    query = unit(torch.randn(query_rows, SIZE, generator=generator))
    search = FeatureSearch(make_index(tmp_path / "index", features), preload=rows == 5)
    assert search.uses_codes
    search.uses_codes = integers
    for k in (1, 7, 170):
        same(found(search, query, k), brute_force(features, query, k))
    assert found(search, query, 1000) == found(search, query, 170)


def test_codes_alone_would_be_wrong_and_leave_few_to_score_again(tmp_path):
    generator = torch.Generator().manual_seed(0)
    features = unit(torch.randn(600, 4, SIZE, generator=generator))
    query = unit(torch.randn(1, SIZE, generator=generator))
    # Twenty items nearly alike at the top.
    features[100:120, 0] = unit(query + 1e-4 * torch.randn(20, SIZE, generator=generator))
    search = FeatureSearch(make_index(tmp_path / "index", features))
    expected = brute_force(features, query, 10)
    same(found(search, query, 10), expected)
    candidates = search._candidates(query, 10).tolist()
    assert set(range(100, 120)) >= {int(name) for name, _ in expected}
    assert 10 <= len(candidates) < 60
    codes = torch.cat([QueryCodes(query).scores(*part) for part in search._codes])
    assert [f"{place:04d}" for place in codes.topk(10).indices.tolist()] != [name for name, _ in expected]


def test_equal_scores_come_in_the_order_of_the_index(tmp_path):
    features = unit(torch.randn(1, 2, SIZE, generator=torch.Generator().manual_seed(0))).repeat(60, 1, 1)
    search = FeatureSearch(make_index(tmp_path / "index", features, shard=20))
    assert [hit.names for hit in search.top(features[0, 0], 25)] == [(f"{place:04d}",) for place in range(25)]


def test_removed_items_are_not_found_and_copies_are_one_hit(tmp_path):
    features = unit(torch.randn(120, 2, SIZE, generator=torch.Generator().manual_seed(0)))
    index = make_index(tmp_path / "index", features)
    gone = [f"{place:04d}" for place in range(0, 120, 3)]
    index.remove(gone)
    index.link("a copy", 0, 0, index.items["0001"])
    search = FeatureSearch(FeatureIndex(index.folder))
    assert len(search) == 80
    query = features[1, 0:1]
    same(found(search, query, 80), brute_force(features, query, 80, gone))
    assert search.top(query, 1)[0].names == ("0001", "a copy")


def test_float32_is_searched_as_it_is_stored(tmp_path):
    features = unit(torch.randn(60, 2, SIZE, generator=torch.Generator().manual_seed(0)))
    search = FeatureSearch(make_index(tmp_path / "index", features, stored_in="float32"))
    query = features[3, 1:]
    hits = search.top(query, 60)
    expected = (features.double() @ query.double().t()).flatten(1).amax(1)
    assert [hit.cosine for hit in hits] == pytest.approx(sorted(expected.tolist(), reverse=True), rel=1e-12)
    assert hits[0].names == ("0003",)


def test_what_cannot_be_searched_is_refused(tmp_path):
    search = FeatureSearch(make_index(tmp_path / "index", unit(torch.randn(3, 2, SIZE))))
    with pytest.raises(ValueError, match="rows of 24 numbers"):
        search.top(torch.zeros(1, 23), 1)
    with pytest.raises(ValueError, match="not finite"):
        search.top(torch.full((SIZE,), torch.nan), 1)
    with pytest.raises(ValueError, match="k is 0"):
        search.top(torch.zeros(SIZE), 0)


def test_an_empty_index_finds_nothing(tmp_path):
    index = FeatureIndex.create(tmp_path / "i", Facts("texts", "m", "0", "0", "float32", "float16", 1, SIZE, "r"))
    assert FeatureSearch(index).top(torch.ones(SIZE), 3) == []


@pytest.mark.parametrize("stored_in", ["float16", "float32"])
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("query_rows", [1, 3])
def test_faiss_finds_the_same(tmp_path, stored_in, rows, query_rows):
    pytest.importorskip("faiss")
    generator = torch.Generator().manual_seed(rows)
    features = unit(torch.randn(300, rows, SIZE, generator=generator))
    # An item whose rows fill the first places alone, and items nearly alike.
    query = unit(torch.randn(query_rows, SIZE, generator=generator))
    features[7] = unit(query[:1] + 1e-3 * torch.randn(rows, SIZE, generator=generator))
    features[100:200, 0] = unit(query[-1] + 0.3 * unit(torch.ones(SIZE)) + 1e-6 * torch.randn(100, SIZE))
    index = make_index(tmp_path / "index", features, stored_in=stored_in)
    index.remove([f"{place:04d}" for place in range(0, 300, 7)])
    for k in (1, 3, 50, 300):
        same(found(open_search(index, "faiss"), query, k), found(open_search(index, "torch"), query, k))


def test_other_backends_are_refused(tmp_path, monkeypatch):
    index = make_index(tmp_path / "index", unit(torch.randn(3, 2, SIZE)))
    with pytest.raises(ValueError, match="backend is 'annoy'; allowed are torch, faiss"):
        open_search(index, "annoy")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"pip install 'instructblip-hf\[faiss\]'"):
        open_search(index, "faiss")


def test_codes_that_are_off_by_all_they_can_be(tmp_path):
    """One item's codes are too high and the other's too low by nearly the bound, and the other is the better one."""
    high, low, query = torch.zeros(SIZE), torch.zeros(SIZE), torch.ones(SIZE)
    high[0] = low[0] = 127  # a scale of 1: other numbers are rounded to whole ones
    high[1:-1], low[1:-1] = 0.51, 0.49
    low[-1] = 3
    query[0] = 0
    index = make_index(tmp_path / "index", torch.stack([high, low]).unsqueeze(1), stored_in="float32")
    search = FeatureSearch(index)
    scores = torch.cat([QueryCodes(query.unsqueeze(0)).scores(*part) for part in search._codes])
    assert scores.tolist() == pytest.approx([22, 3], abs=0.01)
    assert search.top(query, 1) == [Hit(("0001",), pytest.approx(22 * 0.49 + 3, rel=1e-6))]


def test_faiss_goes_on_where_one_item_has_all_the_first_rows(tmp_path):
    pytest.importorskip("faiss")
    generator = torch.Generator().manual_seed(0)
    features = unit(torch.randn(60, 40, SIZE, generator=generator))
    query = unit(torch.randn(1, SIZE, generator=generator))
    features[7:9] = unit(query + 0.01 * torch.randn(2, 40, SIZE, generator=generator))
    search = open_search(make_index(tmp_path / "index", features), "faiss")
    for k in (1, 2, 3, 9):
        same(found(search, query, k), brute_force(features, query, k))
