"""The Triton kernels against plain torch: attention with keys and values ready, its backward, packed text, cross blocks.

`python -m instructblip_hf.kernels.measure` times the same kernels for the table that chooses between them and torch; here
they stand beside what else there is: copies, folded questions, compiled blocks, CUDA graphs, and the roofline.

On a CPU there is nothing to time: the kernels run there in Triton's interpreter alone (``TRITON_INTERPRET=1``), in which
this file is tested.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from harness import Case
from options import Options
from torch import nn

from instructblip_hf.kernels import ImageIndex, cross_attention, packed_attention, why_not_triton
from models import QUERIES, Pair, ragged_text


HEADS, HEAD_SIZE, PATCHES = 12, 64, 257
TOLERANCE = 1e-5  # relative, in float32


def cases(options: Options, pair: Pair) -> Iterator[Case]:
    reason = why_not_triton(torch.empty(1, device=options.device), HEAD_SIZE)
    if reason is not None:
        print(f"fused: nothing to time, {reason}", flush=True)
        return
    for batch in [1, 8, 64, 256] if not options.is_quick else [1]:
        yield _core(options, batch)
    for questions in [1, 2, 4, 8, 16] if not options.is_quick else [2]:
        yield _questions(options, 8 if not options.is_quick else 1, questions)
    for batch in [8, 64, 256] if not options.is_quick else [1]:
        yield _backward(options, batch)
    for batch in [8, 32, 128] if not options.is_quick else [2]:
        yield _packed(options, batch)
    for batch in [1, 8, 64, 256] if not options.is_quick else [1]:
        yield _blocks(options, pair, batch)


def _core(options: Options, batch: int) -> Case:
    """Queries of a row on an image of its own."""
    tensors = _states(options, batch, batch)
    query, key, value = tensors.values()

    def torch_form() -> torch.Tensor:
        return _sdpa(query, key, value)

    return Case(
        "kernels: attention core",
        {"batch": batch},
        "batch",
        {"SDPA": torch_form, "Triton": lambda: _cross(query, key, value, None)},
        TOLERANCE,
        tensors=tensors,
        operations=4.0 * query.numel() * PATCHES,
        elements=2.0 * query.numel() + 2.0 * key.numel(),
    )


def _questions(options: Options, images: int, questions: int) -> Case:
    """Rows that share images: copies of keys and values, questions folded together, and the kernel with an index."""
    tensors = _states(options, images * questions, images)
    query, key, value = tensors.values()
    index = torch.arange(images, device=options.device).repeat(questions)
    prepared = ImageIndex.of(index, images)

    def folded() -> torch.Tensor:
        return cross_attention(
            query, key, value, image_index=prepared, scaling=HEAD_SIZE**-0.5, implementation="torch"
        )

    return Case(
        "kernels: questions an image",
        {"questions": questions, "images": images},
        "questions",
        {
            "copies and SDPA": lambda: _sdpa(query, key[index], value[index]),
            "folded and SDPA": folded,
            "Triton": lambda: _cross(query, key, value, prepared),
        },
        TOLERANCE,
        tensors=tensors,
        operations=4.0 * query.numel() * PATCHES,
        elements=2.0 * query.numel() + 2.0 * key.numel(),
    )


def _backward(options: Options, batch: int) -> Case:
    tensors = _states(options, batch, batch)
    tensors["gradient"] = torch.randn_like(tensors["query"])
    query, key, value, gradient = tensors.values()
    forms = {
        "SDPA": lambda *states: _sdpa(*states),
        "Triton": lambda *states: _cross(*states, None),
    }

    def runner(form: Callable[..., torch.Tensor]) -> Callable[[], torch.Tensor]:
        graphs: dict[torch.dtype, Any] = {}

        def run() -> torch.Tensor:
            if query.dtype not in graphs:
                states = [state.detach().clone().requires_grad_() for state in (query, key, value)]
                graphs[query.dtype] = form(*states), states
            output, states = graphs[query.dtype]
            found = torch.autograd.grad(output, states, gradient, retain_graph=True)
            return torch.cat([part.flatten() for part in found])

        return run

    return Case(
        "kernels: backward of the attention core",
        {"batch": batch},
        "batch",
        {name: runner(form) for name, form in forms.items()},
        TOLERANCE,
        tensors=tensors,
        operations=10.0 * query.numel() * PATCHES,
        elements=4.0 * query.numel() + 4.0 * key.numel(),
    )


def _packed(options: Options, batch: int) -> Case:
    """Self-attention of queries and ragged text: padded under a mask, and packed."""
    text = ragged_text(batch, 21, 76 if not options.is_quick else 8, options.device)
    lengths = text["attention_mask"].sum(1)
    offsets = nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    longest, total = int(lengths.max()), batch * QUERIES + int(lengths.sum())
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(total, HEADS, HEAD_SIZE, generator=generator).to(options.device)
        for name in ("query", "key", "value")
    }
    query, key, value = tensors.values()
    counts = torch.cat([text["attention_mask"].new_ones(batch, QUERIES), text["attention_mask"]], dim=1).bool()
    # Where each place of the padded form lies in the packed one.
    queries = torch.arange(batch * QUERIES, device=options.device).view(batch, QUERIES)
    places = batch * QUERIES + offsets[:-1, None] + torch.arange(longest, device=options.device)
    padded = torch.cat([queries, places.clamp(max=total - 1)], dim=1)

    def masked() -> torch.Tensor:
        states = [state[padded] for state in (query, key, value)]
        return _sdpa(*states, mask=counts[:, None, None, :])[counts]

    def in_rows(output: torch.Tensor) -> torch.Tensor:
        return output[padded[counts]]

    shape = {"rows": batch, "num_queries": QUERIES, "text_offsets": offsets, "max_text": longest}

    def packed() -> torch.Tensor:
        return in_rows(packed_attention(query, key, value, **shape, scaling=HEAD_SIZE**-0.5, implementation="triton"))

    width = (QUERIES + lengths).double()
    return Case(
        "kernels: packed self-attention",
        {"batch": batch},
        "batch",
        {"padded and SDPA": masked, "Triton": packed},
        TOLERANCE,
        tensors=tensors,
        operations=4.0 * HEADS * HEAD_SIZE * float((width**2).sum()),
        elements=4.0 * query.numel(),
    )


def _blocks(options: Options, pair: Pair, batch: int) -> Case:
    """The cross-attention sub-layers of all layers one after the other: launched one by one, compiled, and in a CUDA graph."""
    layers = [layer for layer in pair.ours.qformer.encoder.layer if layer.has_cross_attention]
    config = pair.ours.qformer.config
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "queries": torch.randn(batch, QUERIES, config.hidden_size, generator=generator).to(options.device),
        "image": torch.randn(batch, PATCHES, config.encoder_hidden_size, generator=generator).to(options.device),
    }

    def blocks(implementation: str) -> nn.ModuleList:
        own_config = copy.deepcopy(config)
        own_config._attn_implementation = implementation
        own = []
        for layer in layers:
            block = copy.copy(layer.crossattention)
            block._modules = dict(block._modules)
            for part in ("attention", "output"):
                setattr(block, part, copy.copy(getattr(block, part)))
                getattr(block, part).config = own_config
            own.append(block)
        return nn.ModuleList(own)

    def runner(modules: nn.ModuleList) -> Callable[[], torch.Tensor]:
        @torch.no_grad()
        def run() -> torch.Tensor:
            states = tensors["queries"]
            for block in modules:
                states = block(states, tensors["image"])[0]
            return states

        return run

    launched, triton = runner(blocks("sdpa")), runner(blocks("triton"))
    variants: dict[str, Callable[[], Any]] = {"SDPA": launched, "Triton": triton}
    missing = {}
    if options.device == "cuda":
        variants["Triton, CUDA graph"] = _graphed(triton, tensors)
    if options.compile:
        variants["SDPA, compiled"] = torch.compile(
            launched, mode="reduce-overhead" if options.device == "cuda" else None
        )
    else:
        missing["SDPA, compiled"] = "no --compile"
    return Case(
        "kernels: cross-attention blocks",
        {"batch": batch, "blocks": len(layers)},
        "batch",
        variants,
        1e-4,
        tensors=tensors,
        modules=pair.modules,
        missing=missing,
    )


def _graphed(run: Callable[[], torch.Tensor], tensors: dict[str, torch.Tensor]) -> Callable[[], torch.Tensor]:
    """A CUDA graph of the work for each precision, captured when it is first asked for."""
    graphs: dict[torch.dtype, tuple[Any, torch.Tensor]] = {}

    def replay() -> torch.Tensor:
        dtype = next(iter(tensors.values())).dtype
        if dtype not in graphs:
            run()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                output = run()
            graphs[dtype] = graph, output
        graph, output = graphs[dtype]
        graph.replay()
        return output

    return replay


def _states(options: Options, rows: int, images: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"query": (rows, QUERIES), "key": (images, PATCHES), "value": (images, PATCHES)}
    if options.is_quick:
        shapes |= {"key": (images, 17), "value": (images, 17)}
    return {
        name: torch.randn(*shape, HEADS, HEAD_SIZE, generator=generator).to(options.device)
        for name, shape in shapes.items()
    }


def _cross(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, index: ImageIndex | None) -> torch.Tensor:
    return cross_attention(query, key, value, image_index=index, scaling=HEAD_SIZE**-0.5, implementation="triton")


def _sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    heads_first = [state.transpose(1, 2) for state in (query, key, value)]
    return nn.functional.scaled_dot_product_attention(*heads_first, attn_mask=mask).transpose(1, 2)
