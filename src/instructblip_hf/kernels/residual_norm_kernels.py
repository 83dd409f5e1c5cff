"""LayerNorm(dropout(x + bias) + residual) in Triton, forward and backward.

A program takes a row at a time and keeps it in registers, so that the sum before the norm is never in memory; the
backward makes it again from what went in. Gradients of vectors are sums over rows: each program writes the sum of its
rows, and torch adds those up, so the order is always the same.
"""

from __future__ import annotations


try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("the kernels are written in Triton: pip install 'instructblip-hf[gpu]'") from error

from .attention_kernels import _load, _store


@triton.jit
def _keep_elements(seed, threshold, row, column, ROUNDS: tl.constexpr):
    """Which elements of a row dropout keeps (philox.py)."""
    row64 = row.to(tl.int64)
    words, _, _, _ = tl.philox(
        seed,
        column.to(tl.uint32),
        (row64 & 0xFFFFFFFF).to(tl.uint32),
        (row64 >> 32).to(tl.uint32),
        (row64 * 0).to(tl.uint32),
        ROUNDS,
    )
    return (words >> 1).to(tl.int32) >= threshold


@triton.jit
def _sum_of(
    x, residual, dense_bias, row, column, here, keep, x_row, residual_row, keep_scale,
    BIASED: tl.constexpr, DROPOUT: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """A row of dropout(x + dense_bias) + residual in float32."""
    row64 = row.to(tl.int64)
    total = _load(x + row64 * x_row + column, here, WIDEN).to(tl.float32)
    if BIASED:
        total += _load(dense_bias + column, here, WIDEN).to(tl.float32)
    if DROPOUT:
        total = tl.where(keep, total * keep_scale, 0.0)
    return total + _load(residual + row64 * residual_row + column, here, WIDEN).to(tl.float32)


@triton.jit(do_not_specialize=["threshold"])
def residual_norm_forward_kernel(
    x, residual, dense_bias, weight, bias, output, means, deviations, seed_pointer,
    x_row, residual_row, eps, threshold, keep_scale,
    BIASED: tl.constexpr, DROPOUT: tl.constexpr, ROUNDS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    here = column < SIZE
    keep = here
    if DROPOUT:
        keep = _keep_elements(tl.load(seed_pointer), threshold, row, column, ROUNDS)
    total = _sum_of(
        x, residual, dense_bias, row, column, here, keep, x_row, residual_row, keep_scale, BIASED, DROPOUT, WIDEN
    )
    mean = tl.sum(tl.where(here, total, 0.0), 0) / SIZE
    centred = tl.where(here, total - mean, 0.0)
    inverse = 1 / tl.sqrt(tl.sum(centred * centred, 0) / SIZE + eps)
    scale = _load(weight + column, here, WIDEN).to(tl.float32)
    shift = _load(bias + column, here, WIDEN).to(tl.float32)
    _store(output + row.to(tl.int64) * SIZE + column, centred * inverse * scale + shift, here, WIDEN)
    tl.store(means + row, mean)
    tl.store(deviations + row, inverse)


@triton.jit(do_not_specialize=["threshold", "rows"])
def residual_norm_backward_kernel(
    x, residual, dense_bias, weight, d_output, means, deviations, dx, d_residual, partial_weight, partial_bias,
    partial_dense_bias, seed_pointer,
    rows, rows_a_program, x_row, residual_row, threshold, keep_scale,
    BIASED: tl.constexpr, DROPOUT: tl.constexpr, ROUNDS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    here = column < SIZE
    scale = _load(weight + column, here, WIDEN).to(tl.float32)
    d_weight = tl.zeros([BLOCK], tl.float32)
    d_bias = tl.zeros([BLOCK], tl.float32)
    d_dense_bias = tl.zeros([BLOCK], tl.float32)
    if DROPOUT:
        seed = tl.load(seed_pointer)
    for step in range(rows_a_program):
        row = program * rows_a_program + step
        here = column < tl.where(row < rows, SIZE, 0)
        keep = here
        if DROPOUT:
            keep = _keep_elements(seed, threshold, row, column, ROUNDS)
        total = _sum_of(
            x, residual, dense_bias, row, column, here, keep, x_row, residual_row, keep_scale, BIASED, DROPOUT, WIDEN
        )
        known = tl.minimum(row, rows - 1)  # of a row beyond the last nothing is stored or summed
        inverse, mean = tl.load(deviations + known), tl.load(means + known)
        normed = tl.where(here, (total - mean) * inverse, 0.0)
        place = row.to(tl.int64) * SIZE + column
        incoming = _load(d_output + place, here, WIDEN).to(tl.float32)
        d_weight += incoming * normed
        d_bias += incoming
        scaled = incoming * scale
        level = tl.sum(scaled, 0) / SIZE
        along = tl.sum(scaled * normed, 0) / SIZE
        d_total = tl.where(here, inverse * (scaled - level - normed * along), 0.0)
        _store(d_residual + place, d_total, here, WIDEN)
        if DROPOUT:
            d_total = tl.where(keep, d_total * keep_scale, 0.0)
        _store(dx + place, d_total, here, WIDEN)
        d_dense_bias += d_total
    place = program.to(tl.int64) * SIZE + column
    tl.store(partial_weight + place, d_weight, mask=column < SIZE)
    tl.store(partial_bias + place, d_bias, mask=column < SIZE)
    if BIASED:
        tl.store(partial_dense_bias + place, d_dense_bias, mask=column < SIZE)
