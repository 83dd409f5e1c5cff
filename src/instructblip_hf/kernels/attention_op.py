"""The attention core as operators of torch, so that autograd, `torch.compile` and CUDA graphs know it.

Both forms are one operator: tensors of four dimensions are rows and images, of three packed tokens. Triton is imported
when a kernel is first launched.
"""

from __future__ import annotations

from typing import Any

import torch

from .block_sizes import backward_blocks, forward_blocks, padded_size
from .philox import ROUNDS, threshold


def _cut(count: int, block: int) -> int:
    return -(-count // block)


def _empty(states: torch.Tensor) -> torch.Tensor:
    """Contiguous memory for something like ``states``, whatever their strides."""
    return torch.empty(states.shape, dtype=states.dtype, device=states.device)


def _is_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


class _Launch:
    """What forward and backward launches share: where the queries and keys are, and how they are cut up."""

    def __init__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        key_mask: torch.Tensor | None,
        index: torch.Tensor | None,
        text_offsets: torch.Tensor | None,
        rows: int,
        num_queries: int,
        max_text: int,
        scaling: float,
        dropout_p: float,
        backward: bool,
    ) -> None:
        self.packed, self.fold = text_offsets is not None, index is not None
        self.heads, self.size = query.shape[-2:]
        self.images = rows if self.packed else key.shape[0]
        self.num_keys = num_queries + max_text if self.packed else key.shape[1]
        self.tokens = query.shape[0] if self.packed else rows * num_queries
        self.num_queries = num_queries
        most_queries = num_queries + max_text if self.packed else num_queries
        tall = self.fold or most_queries > 32
        if backward:
            self.blocks = backward_blocks(self.size, query.dtype, tall, _is_hopper(query.device))
        else:
            self.blocks = forward_blocks(self.size, query.dtype, tall)
        self.rows_a_tile = max(1, self.blocks.queries // num_queries) if self.fold else 1
        self.tiles = 1 if self.rows_a_tile > 1 else _cut(most_queries, self.blocks.queries)
        self.tile_programs = rows * self.tiles
        self.one_pass = not self.fold and self.tiles == 1
        self.key_tiles = _cut(self.num_keys, self.blocks.keys)
        self.counts = (rows, self.images, num_queries, self.num_keys, self.heads, self.tokens)
        self.dropout = (scaling, threshold(dropout_p), 1 / (1 - dropout_p))
        self.mask_strides = (0, 0) if key_mask is None else key_mask.stride()
        self.options: dict[str, Any] = {
            "ROWS": self.rows_a_tile,
            "PACKED": self.packed,
            "FOLD": self.fold,
            "MASKED": key_mask is not None,
            "DROPOUT": dropout_p > 0,
            "ROUNDS": ROUNDS,
            "SIZE": self.size,
            "BLOCK_SIZE": padded_size(self.size),
            "BLOCK_M": self.blocks.queries,
            "BLOCK_N": self.blocks.keys,
            # Single precision stays single: TF32 would be off by 1e-3.
            "PRECISION": "ieee" if query.dtype == torch.float32 else "tf32",
            "WIDEN": query.device.type == "cpu" and query.dtype == torch.bfloat16,
            "num_warps": self.blocks.warps,
            "num_stages": self.blocks.stages,
            "enable_fp_fusion": True,
        }

    def strides(self, states: torch.Tensor) -> tuple[int, ...]:
        """Of image or row, token, head and size."""
        return (0, *states.stride()) if self.packed else states.stride()


@torch.library.custom_op("instructblip_hf::attention_forward", mutates_args=())
def attention_forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_mask: torch.Tensor | None,
    index: torch.Tensor | None,
    order: torch.Tensor | None,
    starts: torch.Tensor | None,
    text_offsets: torch.Tensor | None,
    seed: torch.Tensor | None,
    rows: int,
    num_queries: int,
    max_text: int,
    scaling: float,
    dropout_p: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output, of the shape of ``query``, and log-sum-exp to the base 2, of shape (heads, query tokens)."""
    from .attention_kernels import attention_forward_kernel

    launch = _Launch(
        query, key, key_mask, index, text_offsets, rows, num_queries, max_text, scaling, dropout_p, backward=False
    )
    output = _empty(query)
    log_sum = torch.empty(launch.heads, launch.tokens, dtype=torch.float32, device=query.device)
    if output.numel():
        attention_forward_kernel[(launch.tile_programs, launch.heads)](
            query,
            key,
            value,
            output,
            log_sum,
            key_mask,
            index,
            order,
            starts,
            text_offsets,
            seed,
            *launch.strides(query),
            *launch.strides(key),
            *launch.strides(value),
            *launch.mask_strides,
            *launch.counts,
            launch.tiles,
            *launch.dropout,
            **launch.options,
        )
    return output, log_sum


@attention_forward.register_fake
def _(query: torch.Tensor, *others: Any) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = query.shape[:-2].numel()
    return _empty(query), torch.empty(query.shape[-2], tokens, dtype=torch.float32, device=query.device)


@torch.library.custom_op("instructblip_hf::attention_backward", mutates_args=())
def attention_backward(
    d_output: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    log_sum: torch.Tensor,
    key_mask: torch.Tensor | None,
    index: torch.Tensor | None,
    order: torch.Tensor | None,
    starts: torch.Tensor | None,
    text_offsets: torch.Tensor | None,
    seed: torch.Tensor | None,
    rows: int,
    num_queries: int,
    max_text: int,
    scaling: float,
    dropout_p: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key and value, from what [`attention_forward`] took and gave."""
    from .attention_kernels import attention_backward_kernel

    launch = _Launch(
        query, key, key_mask, index, text_offsets, rows, num_queries, max_text, scaling, dropout_p, backward=True
    )
    d_output = d_output.contiguous()
    gradients = _empty(query), _empty(key), _empty(value)
    if not key.numel():
        return gradients
    key_programs = 0 if launch.one_pass else launch.images * launch.key_tiles
    attention_backward_kernel[(launch.tile_programs + key_programs, launch.heads)](
        query,
        key,
        value,
        output,
        log_sum,
        d_output,
        *gradients,
        key_mask,
        index,
        order,
        starts,
        text_offsets,
        seed,
        *launch.strides(query),
        *launch.strides(key),
        *launch.strides(value),
        *launch.mask_strides,
        *launch.counts,
        launch.tiles,
        launch.tile_programs,
        launch.key_tiles,
        *launch.dropout,
        ONE_PASS=launch.one_pass,
        **launch.options,
    )
    return gradients


@attention_backward.register_fake
def _(
    d_output: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *others: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _empty(query), _empty(key), _empty(value)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], *output, *inputs[3:9])
    ctx.options = inputs[9:]
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, d_output: torch.Tensor, d_log_sum: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    gradients = attention_backward(d_output, *ctx.saved_tensors, *ctx.options)
    return (*gradients, *[None] * 11)


attention_forward.register_autograd(_backward, setup_context=_save)


def seed_tensor(seed: int | torch.Tensor | None, dropout_p: float, device: torch.device) -> torch.Tensor | None:
    """The seed where a kernel can read it; drawn from torch's generator of the device where none is given."""
    if not dropout_p:
        return None
    if isinstance(seed, torch.Tensor):
        return seed.to(device)
    if seed is not None:
        return torch.full((1,), seed, dtype=torch.int64, device=device)
    return torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=device)


__all__ = ["attention_backward", "attention_forward", "seed_tensor"]
