"""Integer codes: the bound holds for what real, flat, sparse and huge numbers do to it."""

import pytest
import torch

from instructblip_hf.retrieval import codes
from instructblip_hf.retrieval.codes import QueryCodes, encode_rows, has_integer_product


def exact(features, query):
    return (features.double().flatten(0, 1) @ query.double().t()).view(len(features), -1).amax(1)


def make(kind, generator):
    rows = torch.randn(40, 6, 64, generator=generator)
    if kind == "flat":
        rows = torch.ones(40, 6, 64) + 1e-3 * rows
    elif kind == "peaked":
        rows = rows * 1e-3
        rows[:, :, 5] = 1.0
    elif kind == "with zeros":
        rows[:10] = 0
        rows[10:20, 1:] = 0
    return torch.nn.functional.normalize(rows, dim=-1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("kind", ["spread", "flat", "peaked", "with zeros"])
@pytest.mark.parametrize("query_rows", [1, 5])
def test_scores_are_within_their_bounds(kind, dtype, query_rows):
    generator = torch.Generator().manual_seed(3)
    features = make(kind, generator).to(dtype)
    query = make(kind, generator)[0, :1].expand(query_rows, -1) + 0.01 * torch.randn(
        query_rows, 64, generator=generator
    )
    parts = encode_rows(features)
    coded = QueryCodes(query)
    error = (coded.scores(parts["codes"], parts["scales"]).double() - exact(features, query)).abs()
    bounds = coded.bounds(parts["lengths"], parts["rests"])
    assert (error <= bounds).all()
    # A bound that says nothing would also hold.
    assert bounds.max() < 0.02 * query.norm(dim=-1).max()


def test_the_bound_is_met_where_the_rest_points_along_the_query():
    # 127 codes exactly; every other number lies halfway between two codes, and the query is the rest.
    values = torch.full((1, 1, 64), 0.5)
    values[0, 0, 0] = 127.0
    query = torch.zeros(1, 64)
    query[0, 1:] = 1.0
    parts = encode_rows(values)
    coded = QueryCodes(query)
    error = (coded.scores(parts["codes"], parts["scales"]).double() - exact(values, query)).abs()
    bound = coded.bounds(parts["lengths"], parts["rests"])
    assert error <= bound
    assert error > 0.99 * bound


def test_codes_that_would_be_rounded_up_beyond_the_largest_are_not():
    features = torch.rand(100, 3, 32, generator=torch.Generator().manual_seed(0)) - 0.5
    parts = encode_rows(features)
    assert parts["codes"].abs().max() == 127
    whole = parts["codes"].double() * parts["scales"].double().unsqueeze(-1)
    assert ((features - whole).norm(dim=-1).amax(1) <= parts["rests"].double()).all()
    assert (features.double().norm(dim=-1).amax(1) <= parts["lengths"].double()).all()


def test_a_product_that_saturates_is_found_out(monkeypatch):
    assert has_integer_product()

    def saturating(rows, columns):
        # As on processors without VNNI: rows as 0 to 255, sums of two products in 16 bits, the shift taken off at the end.
        pairs = (rows.long() + 128).unsqueeze(2) * columns.long().unsqueeze(0)
        pairs = pairs.view(len(rows), -1, 2, columns.shape[1]).sum(2).clamp(-(2**15), 2**15 - 1)
        return (pairs.sum(1) - 128 * columns.long().sum(0)).int()

    monkeypatch.setattr(codes.torch, "_int_mm", saturating)
    assert not has_integer_product()
    monkeypatch.delattr(codes.torch, "_int_mm")
    assert not has_integer_product()
