"""The attention kernels against float64, interpreted or on a GPU: outputs, gradients, dropout, addresses."""

import pytest
import torch

from instructblip_hf.kernels import cross_attention, packed_attention, reference
from kernel_inputs import DEVICE, assert_near_float64, gradients, scattered


pytest.importorskip("triton", minversion="3.9" if DEVICE == "cpu" else "3.6", reason="interpreting needs Triton 3.9")

HALF = (torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def nan_in_new_memory():
    """Fresh memory is NaN, so that an element that no program writes is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3, device=DEVICE).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def cross_inputs(rows, images, queries, keys, heads, size, dtype=torch.float32):
    query = scattered(rows, queries, heads, size, seed=1, dtype=dtype)
    key, value = (scattered(images, keys, heads, size, seed=seed, dtype=dtype) for seed in (2, 3))
    mask = torch.rand(images, keys, generator=torch.Generator().manual_seed(4)) > 0.3
    return (query, key, value), mask.to(DEVICE)


CROSS = {
    # rows, images, queries, keys, heads, head size, image index, masked, dropout
    "one each": ((2, 2, 32, 70, 2, 64), None, False, 0.0),
    "one query and key": ((1, 1, 1, 1, 1, 32), None, False, 0.0),
    "more queries than a tile": ((1, 1, 45, 33, 1, 40), None, True, 0.2),
    "folded": ((5, 3, 8, 37, 2, 88), [2, 0, 2, 2, 0], True, 0.2),
    "folded, more questions than a tile": ((6, 2, 20, 33, 1, 80), [1, 1, 1, 0, 1, 1], True, 0.0),
    "folded, more queries than a tile": ((3, 2, 70, 20, 1, 32), [1, 0, 1], False, 0.2),
    "folded, images that nobody asks": ((2, 4, 3, 9, 1, 128), [3, 1], True, 0.0),
}


@pytest.mark.parametrize("name", CROSS)
def test_cross_attention_in_single_precision(name):
    sizes, index, masked, dropout_p = CROSS[name]
    tensors, mask = cross_inputs(*sizes)
    mask = mask if masked else None
    if masked and len(mask) > 1:
        mask[0] = False  # an image none of whose patches count
    index = None if index is None else torch.tensor(index, device=DEVICE)
    options = {"scaling": sizes[-1] ** -0.5, "dropout_p": dropout_p, "seed": 2**40 + 17}
    assert_near_float64(
        lambda *states: cross_attention(*states, key_mask=mask, image_index=index, implementation="triton", **options),
        lambda *states: reference.cross_attention_in_torch(*states, mask, index, **options),
        tensors,
    )


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", ["one each", "folded", "folded, more questions than a tile"])
def test_cross_attention_in_half_precision(name, dtype):
    sizes, index, masked, dropout_p = CROSS[name]
    tensors, mask = cross_inputs(*sizes, dtype=dtype)
    mask = mask if masked else None
    index = None if index is None else torch.tensor(index, device=DEVICE)
    options = {"scaling": sizes[-1] ** -0.5, "dropout_p": dropout_p, "seed": 3}
    assert_near_float64(
        lambda *states: cross_attention(*states, key_mask=mask, image_index=index, implementation="triton", **options),
        lambda *states: reference.cross_attention_in_torch(*states, mask, index, **options),
        tensors,
    )


PACKED = {
    # text of each row, queries, heads, head size, dropout
    "text and none": ([5, 0, 9], 4, 2, 64, 0.0),
    "one pass, dropout": ([5, 0, 9], 4, 1, 40, 0.3),
    "longer than a tile": ([50, 3], 32, 1, 32, 0.3),
    "queries alone": ([0, 0], 6, 1, 16, 0.0),
    "text alone": ([7, 1], 0, 1, 96, 0.0),
}


def packed_inputs(lengths, queries, heads, size, dtype=torch.float32):
    tokens = len(lengths) * queries + sum(lengths)
    tensors = [scattered(tokens, heads, size, seed=seed, dtype=dtype) for seed in (1, 2, 3)]
    offsets = torch.tensor([0, *lengths]).cumsum(0).to(DEVICE, torch.int32)
    shape = {"rows": len(lengths), "num_queries": queries, "text_offsets": offsets, "max_text": max(lengths)}
    return tensors, shape


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*[(name, torch.float32) for name in PACKED], *[("one pass, dropout", dtype) for dtype in HALF], ("longer than a tile", torch.bfloat16)],
    ids=str,
)  # fmt: skip
def test_packed_attention(name, dtype):
    *sizes, dropout_p = PACKED[name]
    tensors, shape = packed_inputs(*sizes, dtype=dtype)
    options = {**shape, "scaling": sizes[-1] ** -0.5, "dropout_p": dropout_p, "seed": -5}
    assert_near_float64(
        lambda *states: packed_attention(*states, implementation="triton", **options),
        lambda *states: reference.packed_attention_in_torch(*states, **options),
        tensors,
    )


def test_rows_that_read_nothing_are_zero_and_give_no_gradient():
    (query, key, value), mask = cross_inputs(2, 2, 3, 5, 1, 16)
    mask[1] = False
    output, dq, dk, dv = gradients(
        lambda *states: cross_attention(*states, key_mask=mask, scaling=0.25, implementation="triton"),
        (query, key, value),
    )
    for tensor in (output, dq, dk, dv):
        assert not tensor[1].any()
        assert tensor[0].any()


def test_backward_is_the_same_every_time():
    sizes, index, _, _ = CROSS["folded, more questions than a tile"]
    tensors, _ = cross_inputs(*sizes)
    index = torch.tensor(index, device=DEVICE)

    def run():
        return gradients(
            lambda *states: cross_attention(
                *states, image_index=index, scaling=0.1, dropout_p=0.5, seed=8, implementation="triton"
            ),
            tensors,
        )

    for first, second in zip(run(), run()):
        assert torch.equal(first, second)


def test_a_seed_in_a_tensor_is_the_seed_and_another_is_another():
    tensors, _ = cross_inputs(2, 2, 3, 20, 1, 16)
    options = {"scaling": 0.25, "dropout_p": 0.5, "implementation": "triton"}
    output = cross_attention(*tensors, seed=8, **options)
    assert torch.equal(output, cross_attention(*tensors, seed=torch.tensor([8], device=DEVICE), **options))
    assert not torch.equal(output, cross_attention(*tensors, seed=8 + 2**32, **options))
    assert not torch.equal(output, cross_attention(*tensors, seed=9, **options))


def test_without_a_seed_torchs_generator_gives_one():
    tensors, _ = cross_inputs(1, 1, 3, 20, 1, 16)
    options = {"scaling": 0.25, "dropout_p": 0.5, "implementation": "triton"}
    torch.manual_seed(0)
    first, second = (cross_attention(*tensors, **options) for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(first, cross_attention(*tensors, **options))


def test_dropout_does_not_depend_on_how_rows_lie_or_are_folded():
    """The same questions on one image, folded, and with a copy of the image each."""
    query = scattered(3, 4, 1, 16, seed=1)
    key, value = (scattered(1, 30, 1, 16, seed=seed) for seed in (2, 3))
    options = {"scaling": 0.25, "dropout_p": 0.4, "seed": 12, "implementation": "triton"}
    folded = cross_attention(
        query, key, value, image_index=torch.zeros(3, dtype=torch.int64, device=DEVICE), **options
    )
    copied = cross_attention(query, key.expand(3, -1, -1, -1), value.expand(3, -1, -1, -1), **options)
    torch.testing.assert_close(folded, copied, rtol=0, atol=1e-6)


def test_an_image_that_is_not_there_and_a_text_that_is_too_long_are_nan():
    """What a GPU is not asked about beforehand must not pass for an answer."""
    from instructblip_hf.kernels.attention_op import attention_forward

    (query, key, value), _ = cross_inputs(3, 2, 4, 5, 1, 16)
    index = torch.tensor([1, 2, -1], device=DEVICE)
    order, starts = torch.argsort(index), torch.tensor([1, 1, 2], device=DEVICE)
    output, _ = attention_forward(query, key, value, None, index, order, starts, None, None, 3, 4, 0, 0.25, 0.0)
    assert output[0].isfinite().all()
    assert output[1:].isnan().all()
    tensors, shape = packed_inputs([40, 1], 8, 1, 16)
    offsets = shape["text_offsets"]
    output, _ = attention_forward(*tensors, None, None, None, None, offsets, None, 2, 8, 10, 0.25, 0.0)
    assert output[:8].isnan().all()
    assert output[8:16].isfinite().all()


@pytest.mark.parametrize("stride", ["images", "keys"])
def test_memory_beyond_two_to_the_31_elements(stride):
    """Images, and keys of an image, that lie more than 2**31 elements apart; of the memory between nothing is touched."""
    small = [scattered(2, 3, 1, 16, seed=seed, dtype=torch.float16) for seed in (1, 2)]
    far = 2**31 + 64
    strides = (far, 16, 16, 1) if stride == "images" else (3 * 16, far // 2 + 48, 16, 1)
    spread = []
    for states in small:
        # torch.empty would be filled with NaN here, and every page of it taken.
        torch.use_deterministic_algorithms(False)
        memory = torch.empty(far + 4096, dtype=torch.float16, device=DEVICE)
        torch.use_deterministic_algorithms(True, warn_only=True)
        spread.append(memory.as_strided((2, 3, 1, 16), strides).copy_(states))
    query = scattered(2, 4, 1, 16, seed=3, dtype=torch.float16)
    near = gradients(lambda *states: cross_attention(*states, scaling=0.25, implementation="triton"), (query, *small))
    distant = gradients(
        lambda *states: cross_attention(*states, scaling=0.25, implementation="triton"), (query, *spread)
    )
    for first, second in zip(near, distant):
        assert torch.equal(first, second)
