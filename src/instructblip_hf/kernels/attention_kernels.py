"""Attention in Triton: one core, forward and backward, for rows that read images and for packed rows.

A *group* is what attends together: the questions on an image and its patches, or a packed row with itself. A *tile* is
a block of a group's queries, which one program holds while it passes over the group's keys. Questions on one image lie
behind one another in a tile, so their matrix products are taller and the image is read once for all of them.

Softmax is taken online (Milakov and Gimelshein, arXiv 1805.02867; Dao, arXiv 2307.08691) with base-2 exponentials. The
backward is one launch: programs of tiles sum over keys for dQ, programs of key blocks sum over the group's queries for
dK and dV, and where all queries of a group fit one tile its program does both in one pass. No sum is shared between
programs, so nothing is atomic and the result is always the same. Scores are recomputed from the saved log-sum-exp.

Loads from the tensors use 64-bit offsets throughout. `WIDEN` computes in float32: the interpreter of Triton gets bfloat16
wrong.
"""

from __future__ import annotations


try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("the kernels are written in Triton: pip install 'instructblip-hf[gpu]'") from error


@triton.jit
def _keep(seed, threshold, row, head, query, key, ROUNDS: tl.constexpr):
    """Which probabilities dropout keeps (philox.py), for places that broadcast against each other."""
    words, _, _, _ = tl.philox(
        seed, key.to(tl.uint32), query.to(tl.uint32), head.to(tl.uint32), row.to(tl.uint32), ROUNDS
    )
    return (words >> 1).to(tl.int32) >= threshold


@triton.jit
def _operand(x, dtype: tl.constexpr, WIDEN: tl.constexpr):
    """A float32 block rounded to the type of the tensors, for a matrix product or a store."""
    if WIDEN:
        if dtype == tl.bfloat16:
            bits = x.to(tl.uint32, bitcast=True)
            bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
            x = bits.to(tl.float32, bitcast=True)
        return x
    return x.to(dtype)


@triton.jit
def _load(pointers, mask, WIDEN: tl.constexpr):
    x = tl.load(pointers, mask=mask, other=0.0)
    if WIDEN:
        x = x.to(tl.float32)
    return x


@triton.jit
def _store(pointers, x, mask, WIDEN: tl.constexpr):
    x = _operand(x, pointers.dtype.element_ty, WIDEN)
    tl.store(pointers, x.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def _query_places(
    m, slot, begin, order, rows, num_queries, valid, PACKED: tl.constexpr, FOLD: tl.constexpr
):  # fmt: skip
    """Row, place within the row and index among all query tokens, for the queries ``m`` of a group or tile.

    ``slot`` is the row, or with FOLD the first place in ``order``; ``begin`` is where a packed row's text begins.
    """
    if PACKED:
        row = tl.zeros_like(m) + slot
        query = m
        dense = slot.to(tl.int64) * num_queries + m
        text = rows.to(tl.int64) * num_queries + begin + (m - num_queries)
        token = tl.where(m < num_queries, dense, text)
    else:
        if FOLD:
            row = tl.load(order + slot + m // num_queries, mask=valid, other=0).to(tl.int32)
            query = m % num_queries
        else:
            row = tl.zeros_like(m) + slot
            query = m
        token = row.to(tl.int64) * num_queries + query
    return row, query, token


@triton.jit
def _tile_of(
    slot, index, order, starts, text_offsets, images, num_queries, num_keys, most_queries,
    ROWS: tl.constexpr, PACKED: tl.constexpr, FOLD: tl.constexpr,
):  # fmt: skip
    """Of the tile that begins at a slot: group, where its text begins, its queries (0 where an earlier slot has
    them), its keys, and whether the arguments hold for it: an image that is there, no text longer than was said. What
    does not becomes NaN."""
    holds = slot >= 0
    begin = slot * 0
    if PACKED:
        group = slot
        begin = tl.load(text_offsets + slot).to(tl.int32)
        queries = num_queries + tl.load(text_offsets + slot + 1).to(tl.int32) - begin
        keys = queries
        holds = queries <= most_queries
    else:
        keys = num_keys
        if FOLD:
            group = tl.load(index + tl.load(order + slot))
            holds = (group >= 0) & (group < images)
            group = tl.where(holds, group, 0).to(tl.int32)
            first = tl.where(holds, tl.load(starts + group), slot).to(tl.int32)
            last = tl.where(holds, tl.load(starts + group + 1), slot + 1).to(tl.int32)
            leads = (slot - first) % ROWS == 0
            queries = tl.where(leads, tl.minimum(last - slot, ROWS) * num_queries, 0)
        else:
            group = slot
            queries = num_queries
    return group, begin, queries, keys, holds


@triton.jit
def _key_offsets(
    n, group, begin, rows, num_queries, stride_image, stride_key, PACKED: tl.constexpr
):  # fmt: skip
    """Offsets of keys ``n`` of a group, without head and size."""
    if PACKED:
        dense = group.to(tl.int64) * num_queries + n
        text = rows.to(tl.int64) * num_queries + begin + (n - num_queries)
        return tl.where(n < num_queries, dense, text) * stride_key
    return group.to(tl.int64) * stride_image + n.to(tl.int64) * stride_key


@triton.jit(do_not_specialize=["threshold", "rows", "images"])
def attention_forward_kernel(
    q, k, v, output, lse, key_mask, index, order, starts, text_offsets, seed_pointer,
    q_row, q_token, q_head, q_size,
    k_image, k_token, k_head, k_size,
    v_image, v_token, v_head, v_size,
    mask_image, mask_key,
    rows, images, num_queries, num_keys, heads, tokens,
    tiles, scaling, threshold, keep_scale,
    ROWS: tl.constexpr, PACKED: tl.constexpr, FOLD: tl.constexpr, MASKED: tl.constexpr, DROPOUT: tl.constexpr,
    ROUNDS: tl.constexpr, SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    slot, tile, head = tl.program_id(0) // tiles, tl.program_id(0) % tiles, tl.program_id(1)
    group, begin, queries, keys, holds = _tile_of(
        slot, index, order, starts, text_offsets, images, num_queries, num_keys, tiles * BLOCK_M, ROWS, PACKED, FOLD
    )
    if tile * BLOCK_M >= queries:
        return
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_SIZE)
    valid = m < queries
    row, query, token = _query_places(m, slot, begin, order, rows, num_queries, valid, PACKED, FOLD)
    here = valid[:, None] & (d < SIZE)[None, :]
    if PACKED:
        q_offsets = token * q_token
    else:
        q_offsets = row.to(tl.int64) * q_row + query.to(tl.int64) * q_token
    head64 = head.to(tl.int64)
    q_block = _load(q + head64 * q_head + q_offsets[:, None] + d[None, :].to(tl.int64) * q_size, here, WIDEN)
    if DROPOUT:
        seed = tl.load(seed_pointer)

    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, BLOCK_SIZE], tl.float32)
    for start in range(0, keys, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        counts = n < keys
        there = counts[:, None] & (d < SIZE)[None, :]
        k_offsets = _key_offsets(n, group, begin, rows, num_queries, k_image, k_token, PACKED)
        v_offsets = _key_offsets(n, group, begin, rows, num_queries, v_image, v_token, PACKED)
        k_block = _load(k + head64 * k_head + k_offsets[:, None] + d[None, :].to(tl.int64) * k_size, there, WIDEN)
        v_block = _load(v + head64 * v_head + v_offsets[:, None] + d[None, :].to(tl.int64) * v_size, there, WIDEN)
        if MASKED:
            place = group.to(tl.int64) * mask_image + n.to(tl.int64) * mask_key
            counts = counts & (tl.load(key_mask + place, mask=counts, other=0) != 0)
        scores = tl.dot(q_block, tl.trans(k_block), input_precision=PRECISION) * (scaling * 1.4426950408889634)
        scores = tl.where(counts[None, :], scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))
        shift = tl.where(larger == float("-inf"), 0.0, larger)
        weights = tl.exp2(scores - shift[:, None])
        rescale = tl.exp2(largest - shift)
        total = total * rescale + tl.sum(weights, 1)
        if DROPOUT:
            keep = _keep(seed, threshold, row[:, None], head, query[:, None], n[None, :], ROUNDS)
            weights = tl.where(keep, weights, 0.0)
        weights = _operand(weights, v.dtype.element_ty, WIDEN)
        mixed = mixed * rescale[:, None] + tl.dot(weights, v_block, input_precision=PRECISION)
        largest = larger

    reads = total > 0
    if DROPOUT:
        mixed = mixed * keep_scale
    mixed = mixed / tl.where(reads, total, 1.0)[:, None]
    if FOLD or PACKED:
        mixed = tl.where(holds, mixed, float("nan"))
    log_sum = tl.where(reads, largest + tl.log2(tl.where(reads, total, 1.0)), float("inf"))
    places = (token * heads + head) * SIZE
    _store(output + places[:, None] + d[None, :], mixed, here, WIDEN)
    tl.store(lse + head64 * tokens + token, log_sum, mask=valid)


@triton.jit(do_not_specialize=["threshold", "rows", "images"])
def attention_backward_kernel(
    q, k, v, output, lse, d_output, dq, dk, dv, key_mask, index, order, starts, text_offsets, seed_pointer,
    q_row, q_token, q_head, q_size,
    k_image, k_token, k_head, k_size,
    v_image, v_token, v_head, v_size,
    mask_image, mask_key,
    rows, images, num_queries, num_keys, heads, tokens,
    tiles, tile_programs, key_tiles, scaling, threshold, keep_scale,
    ROWS: tl.constexpr, PACKED: tl.constexpr, FOLD: tl.constexpr, MASKED: tl.constexpr, DROPOUT: tl.constexpr,
    ONE_PASS: tl.constexpr, ROUNDS: tl.constexpr, SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    program, head = tl.program_id(0), tl.program_id(1)
    head64 = head.to(tl.int64)
    d = tl.arange(0, BLOCK_SIZE)
    d64 = d[None, :].to(tl.int64)
    if DROPOUT:
        seed = tl.load(seed_pointer)
    if program < tile_programs:
        slot, tile = program // tiles, program % tiles
        group, begin, queries, keys, holds = _tile_of(
            slot,
            index,
            order,
            starts,
            text_offsets,
            images,
            num_queries,
            num_keys,
            tiles * BLOCK_M,
            ROWS,
            PACKED,
            FOLD,
        )
        if tile * BLOCK_M < queries:
            m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
            valid = m < queries
            row, query, token = _query_places(m, slot, begin, order, rows, num_queries, valid, PACKED, FOLD)
            here = valid[:, None] & (d < SIZE)[None, :]
            if PACKED:
                q_offsets = token * q_token
            else:
                q_offsets = row.to(tl.int64) * q_row + query.to(tl.int64) * q_token
            q_block = _load(q + head64 * q_head + q_offsets[:, None] + d64 * q_size, here, WIDEN)
            places = ((token * heads + head) * SIZE)[:, None] + d[None, :]
            do_block = _load(d_output + places, here, WIDEN)
            o_block = _load(output + places, here, WIDEN)
            delta = tl.sum(do_block.to(tl.float32) * o_block.to(tl.float32), 1)
            log_sum = tl.load(lse + head64 * tokens + token, mask=valid, other=float("inf"))
            dq_block = tl.zeros([BLOCK_M, BLOCK_SIZE], tl.float32)
            for start in range(0, keys, BLOCK_N):
                n = start + tl.arange(0, BLOCK_N)
                counts = n < keys
                there = counts[:, None] & (d < SIZE)[None, :]
                k_offsets = _key_offsets(n, group, begin, rows, num_queries, k_image, k_token, PACKED)
                v_offsets = _key_offsets(n, group, begin, rows, num_queries, v_image, v_token, PACKED)
                k_block = _load(k + head64 * k_head + k_offsets[:, None] + d64 * k_size, there, WIDEN)
                v_block = _load(v + head64 * v_head + v_offsets[:, None] + d64 * v_size, there, WIDEN)
                if MASKED:
                    place = group.to(tl.int64) * mask_image + n.to(tl.int64) * mask_key
                    counts = counts & (tl.load(key_mask + place, mask=counts, other=0) != 0)
                scores = tl.dot(q_block, tl.trans(k_block), input_precision=PRECISION) * (scaling * 1.4426950408889634)
                weights = tl.where(counts[None, :], tl.exp2(scores - log_sum[:, None]), 0.0)
                d_weights = tl.dot(do_block, tl.trans(v_block), input_precision=PRECISION)
                kept = weights
                if DROPOUT:
                    keep = _keep(seed, threshold, row[:, None], head, query[:, None], n[None, :], ROUNDS)
                    d_weights = tl.where(keep, d_weights * keep_scale, 0.0)
                    kept = tl.where(keep, weights * keep_scale, 0.0)
                d_scores = _operand(weights * (d_weights - delta[:, None]), q.dtype.element_ty, WIDEN)
                dq_block += tl.dot(d_scores, k_block, input_precision=PRECISION)
                if ONE_PASS:
                    kept = _operand(kept, q.dtype.element_ty, WIDEN)
                    dk_block = tl.dot(tl.trans(d_scores), q_block, input_precision=PRECISION) * scaling
                    dv_block = tl.dot(tl.trans(kept), do_block, input_precision=PRECISION)
                    if PACKED:
                        key_places = _key_offsets(n, group, begin, rows, num_queries, 0, 1, True)
                    else:
                        key_places = group.to(tl.int64) * num_keys + n
                    key_places = ((key_places * heads + head) * SIZE)[:, None] + d[None, :]
                    _store(dk + key_places, dk_block, there, WIDEN)
                    _store(dv + key_places, dv_block, there, WIDEN)
            dq_block *= scaling
            if FOLD or PACKED:
                dq_block = tl.where(holds, dq_block, float("nan"))
            _store(dq + places, dq_block, here, WIDEN)
    else:
        group, key_tile = (program - tile_programs) // key_tiles, (program - tile_programs) % key_tiles
        begin = group * 0
        slot = group
        if PACKED:
            begin = tl.load(text_offsets + group).to(tl.int32)
            queries = num_queries + tl.load(text_offsets + group + 1).to(tl.int32) - begin
            keys = queries
        else:
            keys = num_keys
            if FOLD:
                slot = tl.load(starts + group).to(tl.int32)
                queries = (tl.load(starts + group + 1).to(tl.int32) - slot) * num_queries
            else:
                queries = num_queries
        if key_tile * BLOCK_N < keys:
            n = key_tile * BLOCK_N + tl.arange(0, BLOCK_N)
            counts = n < keys
            there = counts[:, None] & (d < SIZE)[None, :]
            k_offsets = _key_offsets(n, group, begin, rows, num_queries, k_image, k_token, PACKED)
            v_offsets = _key_offsets(n, group, begin, rows, num_queries, v_image, v_token, PACKED)
            k_block = _load(k + head64 * k_head + k_offsets[:, None] + d64 * k_size, there, WIDEN)
            v_block = _load(v + head64 * v_head + v_offsets[:, None] + d64 * v_size, there, WIDEN)
            if MASKED:
                place = group.to(tl.int64) * mask_image + n.to(tl.int64) * mask_key
                counts = counts & (tl.load(key_mask + place, mask=counts, other=0) != 0)
            dk_block = tl.zeros([BLOCK_N, BLOCK_SIZE], tl.float32)
            dv_block = tl.zeros([BLOCK_N, BLOCK_SIZE], tl.float32)
            for start in range(0, queries, BLOCK_M):
                m = start + tl.arange(0, BLOCK_M)
                valid = m < queries
                row, query, token = _query_places(m, slot, begin, order, rows, num_queries, valid, PACKED, FOLD)
                here = valid[:, None] & (d < SIZE)[None, :]
                if PACKED:
                    q_offsets = token * q_token
                else:
                    q_offsets = row.to(tl.int64) * q_row + query.to(tl.int64) * q_token
                q_block = _load(q + head64 * q_head + q_offsets[:, None] + d64 * q_size, here, WIDEN)
                places = ((token * heads + head) * SIZE)[:, None] + d[None, :]
                do_block = _load(d_output + places, here, WIDEN)
                o_block = _load(output + places, here, WIDEN)
                delta = tl.sum(do_block.to(tl.float32) * o_block.to(tl.float32), 1)
                log_sum = tl.load(lse + head64 * tokens + token, mask=valid, other=float("inf"))
                scores = tl.dot(k_block, tl.trans(q_block), input_precision=PRECISION) * (scaling * 1.4426950408889634)
                weights = tl.where(counts[:, None], tl.exp2(scores - log_sum[None, :]), 0.0)  # [keys, queries]
                d_weights = tl.dot(v_block, tl.trans(do_block), input_precision=PRECISION)
                kept = weights
                if DROPOUT:
                    keep = _keep(seed, threshold, row[None, :], head, query[None, :], n[:, None], ROUNDS)
                    d_weights = tl.where(keep, d_weights * keep_scale, 0.0)
                    kept = tl.where(keep, weights * keep_scale, 0.0)
                d_scores = _operand(weights * (d_weights - delta[None, :]), q.dtype.element_ty, WIDEN)
                dk_block += tl.dot(d_scores, q_block, input_precision=PRECISION)
                dv_block += tl.dot(_operand(kept, q.dtype.element_ty, WIDEN), do_block, input_precision=PRECISION)
            if PACKED:
                key_places = _key_offsets(n, group, begin, rows, num_queries, 0, 1, True)
            else:
                key_places = group.to(tl.int64) * num_keys + n
            key_places = ((key_places * heads + head) * SIZE)[:, None] + d[None, :]
            _store(dk + key_places, dk_block * scaling, there, WIDEN)
            _store(dv + key_places, dv_block, there, WIDEN)
