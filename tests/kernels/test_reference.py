"""The operations in plain torch against attention written out for one row and one head at a time, in float64."""

import pytest
import torch
from torch import nn

from instructblip_hf.kernels import ImageIndex, cross_attention, dropout_add_layer_norm, packed_attention, philox


def one_head(query, key, value, scaling, counts=None, keep=None, dropout_p=0.0):
    """Attention of (queries, size) to (keys, size), spelled out; zero where no key counts."""
    output = torch.zeros_like(query)
    for place in range(len(query)):
        allowed = [n for n in range(len(key)) if counts is None or counts[n]]
        if not allowed:
            continue
        weights = torch.stack([torch.exp(scaling * (query[place] * key[n]).sum()) for n in allowed])
        weights = weights / weights.sum()
        for weight, n in zip(weights, allowed):
            kept = 1.0 if keep is None else float(keep[place, n]) / (1 - dropout_p)
            output[place] += kept * weight * value[n]
    return output


def make(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))


@pytest.mark.parametrize("index", [None, [1, 0, 1, 1], [2, 2, 2, 2], [0, 2, 0, 1]], ids=str)
@pytest.mark.parametrize("seed", [None, 5], ids=["no dropout", "dropout"])
def test_cross_attention_is_attention_of_each_row_to_its_image(index, seed):
    images = 4 if index is None else 3
    query, key, value = make(4, 3, 2, 5), make(images, 6, 2, 5, seed=1), make(images, 6, 2, 5, seed=2)
    mask = torch.rand(images, 6, generator=torch.Generator().manual_seed(3)) > 0.4
    mask[2] = False  # one image whose patches do not count at all
    dropout_p = 0.0 if seed is None else 0.4
    image_index = None if index is None else torch.tensor(index)
    output = cross_attention(
        query, key, value, key_mask=mask, image_index=image_index, scaling=0.3, dropout_p=dropout_p, seed=seed
    )
    keep = philox.keep_attention(seed, dropout_p, 4, 2, 3, 6, query.device) if seed is not None else None
    for row in range(4):
        image = row if index is None else index[row]
        for head in range(2):
            expected = one_head(
                query[row, :, head],
                key[image, :, head],
                value[image, :, head],
                0.3,
                mask[image],
                None if keep is None else keep[row, head],
                dropout_p,
            )
            torch.testing.assert_close(output[row, :, head], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("queries", [3, 70])
def test_half_precision_with_gradients_is_near_float64(queries, dtype):
    """Few queries are trained in steps, many by torch's fused attention."""
    states = [make(2, tokens, 2, 8, seed=seed).to(dtype) for seed, tokens in enumerate((queries, 9, 9))]
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, 4:] = False
    mask[1] = False
    results = {}
    for precision in (dtype, torch.float64):
        leaves = [tensor.to(precision).requires_grad_() for tensor in states]
        output = cross_attention(*leaves, key_mask=mask, scaling=0.3)
        weights = make(*output.shape, seed=9).to(dtype).to(precision)
        results[precision] = [output.detach(), *torch.autograd.grad(output, leaves, weights)]
    for got, wanted in zip(results[dtype], results[torch.float64]):
        assert not got[1].any()
        off = (got.double() - wanted).abs().max() / wanted.abs().max()
        assert off < 4 * torch.finfo(dtype).eps


def test_half_precision_in_steps_drops_as_often_as_it_should():
    query = torch.zeros(4, 8, 4, 16, dtype=torch.bfloat16, requires_grad=True)
    key, value = torch.zeros(4, 64, 4, 16, dtype=torch.bfloat16), torch.zeros(4, 64, 4, 16, dtype=torch.bfloat16)
    value[..., 0] = 1.0
    torch.manual_seed(0)
    kept = cross_attention(query, key, value, scaling=1.0, dropout_p=0.25)[..., 0].detach().double().mean()
    # A mean of 4 * 4 * 8 * 64 draws that are 0 or 4/3.
    assert abs(float(kept) - 1) < 4 * (0.25 / 0.75 / (4 * 4 * 8 * 64)) ** 0.5


def test_an_index_made_once_is_the_same_as_the_tensor():
    index = torch.tensor([1, 0, 1])
    query, key, value = make(3, 2, 2, 4), make(2, 5, 2, 4), make(2, 5, 2, 4, seed=1)
    plain = cross_attention(query, key, value, image_index=index, scaling=0.5)
    made = cross_attention(query, key, value, image_index=ImageIndex.of(index, 2), scaling=0.5)
    assert torch.equal(plain, made)


@pytest.mark.parametrize(
    ("lengths", "num_queries"), [([3, 0, 5], 2), ([0, 0], 3), ([4, 1], 0), ([2], 1)], ids=lambda value: str(value)
)
def test_packed_attention_is_attention_within_each_row(lengths, num_queries):
    rows, text = len(lengths), sum(lengths)
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    query, key, value = (make(rows * num_queries + text, 2, 4, seed=seed) for seed in range(3))
    for states in (query, key, value):
        states.requires_grad_()
    output = packed_attention(
        query,
        key,
        value,
        rows=rows,
        num_queries=num_queries,
        text_offsets=offsets,
        max_text=max(lengths) + 1,
        scaling=0.5,
    )
    expected = torch.zeros_like(output)
    for row in range(rows):
        dense = torch.arange(row * num_queries, (row + 1) * num_queries)
        of_row = torch.cat([dense, rows * num_queries + torch.arange(int(offsets[row]), int(offsets[row + 1]))])
        for head in range(2):
            expected[of_row, head] = one_head(query[of_row, head], key[of_row, head], value[of_row, head], 0.5)
    torch.testing.assert_close(output, expected)
    weights = make(*output.shape, seed=9)
    grads = torch.autograd.grad((output * weights).sum(), (query, key, value))
    for grad, wanted in zip(grads, torch.autograd.grad((expected * weights).sum(), (query, key, value))):
        torch.testing.assert_close(grad, wanted)


def test_packed_dropout_keeps_what_padded_rows_keep():
    """A row's dropout is known by its place among its own tokens, so how rows lie in memory does not matter."""
    lengths, num_queries, max_text = [3, 1], 2, 3
    offsets = torch.tensor([0, 3, 4], dtype=torch.int32)
    query, key, value = (make(8, 2, 4, seed=seed) for seed in range(3))
    output = packed_attention(
        query,
        key,
        value,
        rows=2,
        num_queries=num_queries,
        text_offsets=offsets,
        max_text=max_text,
        scaling=0.5,
        dropout_p=0.5,
        seed=11,
    )
    for row, length in enumerate(lengths):
        start = 4 + int(offsets[row])
        of_row = [*range(row * num_queries, (row + 1) * num_queries), *range(start, start + length)]
        size = num_queries + length
        keep = philox.keep_attention(11, 0.5, 2, 2, size, size, query.device)[row]
        for head in range(2):
            states = [tensor[of_row, head] for tensor in (query, key, value)]
            torch.testing.assert_close(output[of_row, head], one_head(*states, 0.5, None, keep[head], 0.5))


@pytest.mark.parametrize("dense_bias", [True, False], ids=["bias", "no bias"])
def test_dropout_add_layer_norm_is_the_modules_one_after_the_other(dense_bias):
    x, residual, bias = make(2, 3, 8), make(2, 3, 8, seed=1), make(8)
    norm = nn.LayerNorm(8, eps=1e-3, dtype=torch.float64)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    sum_ = x + bias if dense_bias else x
    output = dropout_add_layer_norm(
        x, residual, norm.weight, norm.bias, norm.eps, dense_bias=bias if dense_bias else None
    )
    torch.testing.assert_close(output, norm(sum_ + residual))
    keep = philox.keep_elements(4, 0.3, 6, 8, x.device).view(2, 3, 8)
    assert 0 < int(keep.sum()) < keep.numel()
    output = dropout_add_layer_norm(
        x, residual, norm.weight, norm.bias, norm.eps, 0.3, seed=4, dense_bias=bias if dense_bias else None
    )
    torch.testing.assert_close(output, norm(sum_ * keep / 0.7 + residual))


def test_dropout_without_a_seed_is_torchs_own():
    query, key, value = make(2, 3, 2, 4), make(2, 5, 2, 4), make(2, 5, 2, 4, seed=1)
    torch.manual_seed(7)
    output = cross_attention(query, key, value, scaling=0.5, dropout_p=0.5)
    again = cross_attention(query, key, value, scaling=0.5, dropout_p=0.5)
    assert not torch.equal(output, again)
    torch.manual_seed(7)
    assert torch.equal(output, cross_attention(query, key, value, scaling=0.5, dropout_p=0.5))


def test_philox_gives_the_numbers_of_random123():
    """Known answers of Philox 4x32-10 (Random123, kat_vectors), and the rate of dropout at seven rounds."""

    def words(counter, key, rounds):
        counter = tuple(torch.tensor([word]) for word in counter)
        seed = (key[1] << 32 | key[0]) - (2**64 if key[1] >> 31 else 0)
        return [int(word) for word in philox.philox(seed, counter, rounds)]

    assert words((0, 0, 0, 0), (0, 0), 10) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert words((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, 10) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert words(pi, (0xA4093822, 0x299F31D0), 10) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]
    kept = philox.keep_attention(1, 0.1, 8, 4, 32, 257, torch.device("cpu"))
    deviation = (0.1 * 0.9 / kept.numel()) ** 0.5
    assert abs(float(kept.double().mean()) - 0.9) < 4 * deviation


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.zeros(2, 3, 8)}, r"query must have the shape \(rows, queries, heads, head size\)"),
        ({"key": torch.zeros(2, 5, 2, 4, dtype=torch.float16)}, "all must be of one type"),
        ({"value": torch.zeros(2, 6, 2, 4)}, "they must be equal"),
        ({"key": torch.zeros(2, 5, 1, 4), "value": torch.zeros(2, 5, 1, 4)}, "query has 2 heads of size 4, key 1"),
        ({"key": torch.zeros(2, 0, 2, 4), "value": torch.zeros(2, 0, 2, 4)}, "at least one is needed"),
        ({"key_mask": torch.ones(2, 5)}, "key_mask must be boolean"),
        ({"key_mask": torch.ones(3, 5, dtype=torch.bool)}, r"of shape \(2, 5\), got \(3, 5\)"),
        ({"query": torch.zeros(3, 3, 2, 4)}, "query has 3 rows and key 2 images"),
        ({"image_index": torch.tensor([0, 1, 1])}, "image_index has 3 rows, query 2"),
        ({"image_index": torch.tensor([0, 2])}, "names images 0 to 2; there are 2"),
        ({"image_index": torch.tensor([-1, 0])}, "names images -1 to 0"),
        ({"image_index": torch.tensor([0.0, 1.0])}, "must be integers"),
        ({"image_index": ImageIndex.of(torch.tensor([0, 1]), 3)}, "made for 3 images, key has 2"),
        ({"dropout_p": 1.0}, "dropout_p must be at least 0 and less than 1, got 1.0"),
        ({"seed": torch.tensor([1, 2])}, "seed must be one int64"),
        ({"seed": 2**63}, "seed must fit 64 bits"),
        ({"implementation": "cuda"}, "implementation must be one of None, 'torch', 'triton', got 'cuda'"),
    ],
)
def test_cross_attention_says_what_does_not_fit(change, message):
    arguments = {"query": torch.zeros(2, 3, 2, 4), "key": torch.zeros(2, 5, 2, 4), "value": torch.zeros(2, 5, 2, 4)}
    with pytest.raises(ValueError, match=message):
        cross_attention(**{**arguments, "scaling": 1.0, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": torch.zeros(8, 2, 4)}, "value has shape"),
        ({"rows": 4}, "4 rows of 2 queries and at most 3 text tokens have 8 to 20"),
        ({"rows": -1}, "must be at least 0, got -1"),
        ({"max_text": 1}, "have 4 to 6"),
        ({"text_offsets": torch.tensor([0, 3])}, r"of shape \(3,\), got \(2,\)"),
        ({"text_offsets": torch.tensor([0.0, 2.0, 3.0])}, "must be integers"),
        ({"text_offsets": torch.tensor([0, 2, 4])}, "goes from 0 to 4, the text from 0 to 3"),
        ({"text_offsets": torch.tensor([0, 3, 3]), "max_text": 2}, "gives row 0 3 tokens"),
        ({"text_offsets": torch.tensor([0, 4, 3]), "max_text": 4}, "gives row 1 -1 tokens"),
    ],
)
def test_packed_attention_says_what_does_not_fit(change, message):
    arguments = {name: torch.zeros(7, 2, 4) for name in ("query", "key", "value")}
    offsets = torch.tensor([0, 2, 3])
    with pytest.raises(ValueError, match=message):
        packed_attention(
            **{
                **arguments,
                "rows": 2,
                "num_queries": 2,
                "text_offsets": offsets,
                "max_text": 3,
                "scaling": 1.0,
                **change,
            }
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"residual": torch.zeros(3, 4)}, "residual has shape"),
        ({"weight": torch.zeros(3)}, r"weight must have the shape \(4,\), got \(3,\)"),
        ({"dense_bias": torch.zeros(1, 4)}, "dense_bias must have the shape"),
        ({"x": torch.zeros(2, 4, dtype=torch.int64)}, "a floating type"),
    ],
)
def test_dropout_add_layer_norm_says_what_does_not_fit(change, message):
    arguments = {name: torch.zeros(2, 4) for name in ("x", "residual")} | {
        name: torch.zeros(4) for name in ("weight", "bias")
    }
    with pytest.raises(ValueError, match=message):
        dropout_add_layer_norm(**{**arguments, "eps": 1e-5, **change})
