"""Times the kernels against plain torch on the GPU that is there, and enters the results in the table of measurements.

    python -m instructblip_hf.kernels.measure --output measured.json

A shape is timed after both forms have been compared with float64, never before. The two forms take turns; a time is the
median of the turns, and the noise how far the ratio of the two was spread.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import shlex
import statistics
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from . import cross_attention, dropout_add_layer_norm, packed_attention, why_not_triton
from .measured import Measurement, read_table, write_table


logger = logging.getLogger(__name__)

Tensors = list[torch.Tensor]
Operation = Callable[..., torch.Tensor]

_QFORMER = {"heads": 12, "head_size": 64}
SHAPES: dict[str, list[dict[str, int]]] = {
    "cross_attention": [
        {"rows": images * questions, "images": images, "queries": 32, "keys": 257, **_QFORMER}
        for images in (1, 2, 4, 8, 16, 32, 64)
        for questions in (1, 2, 4, 8)
    ],
    "packed_attention": [
        {"rows": rows, "queries": 32, "text_tokens": rows * text, **_QFORMER}
        for rows in (1, 2, 4, 8, 16, 32, 64, 128)
        for text in (8, 16, 32, 64)
    ],
    "dropout_add_layer_norm": [{"rows": rows, "hidden": 768} for rows in (32, 128, 512, 2048, 8192)],
}
"""Shapes of the published Q-Formers that the command line measures."""


def build_call(
    operation: str, shape: dict[str, int], dtype: torch.dtype, device: torch.device | str
) -> tuple[Tensors, Callable[[str], Operation]]:
    """Random tensors of a shape, and for an implementation the operation as a function of them.

    Rows of packed text differ in length: row i of r has twice the mean times (i + 1/2) / r.

    Args:
        operation (`str`): `"cross_attention"`, `"packed_attention"` or `"dropout_add_layer_norm"`.
        shape (`dict[str, int]`): As in [`~measured.Measurement`].
        dtype (`torch.dtype`): Of the tensors.
        device (`torch.device` or `str`): Where they are.

    Returns:
        `tuple`: The tensors, and a function from `"triton"` or `"torch"` to a function of the tensors.

    Raises:
        ValueError: If there is no such operation.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes: int) -> torch.Tensor:
        return torch.randn(sizes, generator=generator).to(device, dtype)

    if operation == "dropout_add_layer_norm":
        tensors = [
            *(draw(shape["rows"], shape["hidden"]) for _ in range(2)),
            *(draw(shape["hidden"]) for _ in range(3)),
        ]

        def norm(implementation: str) -> Operation:
            def call(x: torch.Tensor, residual: torch.Tensor, *vectors: torch.Tensor) -> torch.Tensor:
                weight, bias, dense_bias = vectors
                return dropout_add_layer_norm(
                    x, residual, weight, bias, 1e-12, dense_bias=dense_bias, implementation=implementation
                )

            return call

        return tensors, norm
    options: dict[str, Any]
    if operation == "cross_attention":
        heads = (shape["heads"], shape["head_size"])
        tensors = [draw(shape["rows"], shape["queries"], *heads)]
        tensors += [draw(shape["images"], shape["keys"], *heads) for _ in range(2)]
        options = {}
        if shape["rows"] != shape["images"]:
            options["image_index"] = (torch.arange(shape["rows"]) % shape["images"]).to(device)
    elif operation == "packed_attention":
        rows, queries = shape["rows"], shape["queries"]
        tokens = rows * queries + shape["text_tokens"]
        tensors = [draw(tokens, shape["heads"], shape["head_size"]) for _ in range(3)]
        ends = torch.arange(rows + 1, dtype=torch.float64).square() / rows**2 * shape["text_tokens"]
        offsets = ends.round().to(torch.int32)
        options = {
            "rows": rows,
            "num_queries": queries,
            "text_offsets": offsets.to(device),
            "max_text": int(offsets.diff().max()),
        }
    else:
        raise ValueError(f"operation must be one of {', '.join(SHAPES)}, got {operation!r}")
    function: Any = cross_attention if operation == "cross_attention" else packed_attention

    def attend(implementation: str) -> Operation:
        def call(*states: torch.Tensor) -> torch.Tensor:
            return function(*states, scaling=shape["head_size"] ** -0.5, implementation=implementation, **options)

        return call

    return tensors, attend


def run(function: Operation, tensors: Tensors, weights: torch.Tensor | None) -> Tensors:
    """Output, and with ``weights``, of the shape of the output, the gradients of its sum weighted by them."""
    if weights is None:
        with torch.no_grad():
            return [function(*tensors)]
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, weights.to(output.dtype))]


def draw_weights(tensors: Tensors) -> torch.Tensor:
    """Random weights of the shape of an output, which for every operation is that of the first tensor."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(tensors[0].shape, generator=generator).to(tensors[0].device, tensors[0].dtype)


def check(
    call: Callable[[str], Operation], tensors: Tensors, weights: torch.Tensor | None, factor: float = 3.0
) -> None:
    """Compare both forms with float64.

    Raises:
        RuntimeError: If Triton is further from float64 than ``factor`` times torch in the same type, and than 1e-5 of the
            largest number.
    """
    exact = run(call("torch"), [tensor.double() for tensor in tensors], weights)
    ours, theirs = (run(call(name), tensors, weights) for name in ("triton", "torch"))
    for place, (got, other, wanted) in enumerate(zip(ours, theirs, exact)):
        off, usual = ((states.double() - wanted).abs().max().item() for states in (got, other))
        allowed = max(factor * usual, 1e-5 * wanted.abs().max().item())
        # Not a number is not within anything.
        if not off <= allowed:
            raise RuntimeError(f"tensor {place} is off by {off:.2e} from float64, torch by {usual:.2e}: not timed")


def measure(
    operation: str,
    shape: dict[str, int],
    dtype: torch.dtype = torch.bfloat16,
    gradients: bool = False,
    device: torch.device | str = "cuda",
    turns: int = 15,
    calls: int = 20,
) -> Measurement:
    """Compare, then time one operation at one shape.

    Args:
        operation (`str`): `"cross_attention"`, `"packed_attention"` or `"dropout_add_layer_norm"`.
        shape (`dict[str, int]`): As in [`~measured.Measurement`].
        dtype (`torch.dtype`, *optional*, defaults to `torch.bfloat16`): Of the tensors.
        gradients (`bool`, *optional*, defaults to `False`): Time forward and backward together.
        device (`torch.device` or `str`, *optional*, defaults to `"cuda"`): The GPU.
        turns (`int`, *optional*, defaults to 15): Times that each form is timed.
        calls (`int`, *optional*, defaults to 20): Calls in each of them.

    Returns:
        [`Measurement`]: An entry for the table.

    Raises:
        RuntimeError: If Triton cannot run there, a result is wrong, or the device has no clock of its own to time with.
    """
    tensors, call = build_call(operation, shape, dtype, device)
    reason = why_not_triton(tensors[0], shape.get("head_size"))
    if reason is not None:
        raise RuntimeError(f"{operation} cannot be measured: {reason}")
    weights = draw_weights(tensors) if gradients else None
    check(call, tensors, weights)
    if tensors[0].device.type != "cuda":
        raise RuntimeError(
            f"{operation} is right, but there is no GPU: an interpreted kernel has no time worth knowing"
        )
    times: dict[str, list[float]] = {"triton": [], "torch": []}
    for turn in range(-3, turns):  # The first three warm up.
        for name, results in times.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(calls):
                run(call(name), tensors, weights)
            end.record()
            end.synchronize()
            if turn >= 0:
                results.append(start.elapsed_time(end) / calls)
    ratios = [ours / theirs for ours, theirs in zip(times["triton"], times["torch"])]
    quarters = statistics.quantiles(ratios, n=4)
    return Measurement(
        operation=operation,
        device=torch.cuda.get_device_name(tensors[0].device),
        dtype=str(dtype)[6:],
        gradients=gradients,
        shape=shape,
        triton_ms=statistics.median(times["triton"]),
        torch_ms=statistics.median(times["torch"]),
        noise=(quarters[2] - quarters[0]) / statistics.median(ratios),
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        versions=f"torch {version('torch')}, triton {version('triton')}, CUDA {torch.version.cuda}",
    )


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--output", type=Path, required=True, help="table to write; what is in it of other shapes stays"
    )
    parser.add_argument("--operations", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float16"])
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    reason = why_not_triton(torch.empty(0, device="cuda" if torch.cuda.is_available() else "cpu"))
    if reason is not None or not torch.cuda.is_available():
        parser.exit(1, f"nothing can be measured here: {reason or 'there is no GPU'}\n")
    known = read_table(options.output) if options.output.exists() else ()
    entries = []
    for operation in options.operations:
        for dtype in options.dtypes:
            for gradients in (False, True):
                for shape in SHAPES[operation]:
                    entry = measure(operation, shape, getattr(torch, dtype), gradients)
                    entries.append(entry)
                    logger.info(
                        "%s %s %s %s: Triton %.4f ms, torch %.4f ms, noise %.3f",
                        operation,
                        dtype,
                        "forward and backward" if gradients else "forward",
                        shape,
                        entry.triton_ms,
                        entry.torch_ms,
                        entry.noise,
                    )
                    write_table(options.output, (*known, *entries))


if __name__ == "__main__":
    main()

__all__ = ["SHAPES", "build_call", "check", "measure"]
