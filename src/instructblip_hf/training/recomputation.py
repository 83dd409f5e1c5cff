"""What the backward pass needs and can be had again for little: computed again in place of being kept for it.

A feed-forward layer keeps what goes into its activation function, for that function's own gradient, and what comes out of
it, for the gradient of what follows: of a trained layer the next projection, of a frozen gated one (LLaMA) the product with
the other half. The second is the first put through the function again, element by element, to the same bits. Norms in
float32 over states in 16 bits (RMSNorm of LLaMA, Qwen, Gemma) keep their input in float32, half of whose bits are zeros.
In a frozen step most other tensors are not kept to begin with, so these are a good part of its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers.activations import ACT2CLS


class _Output(NamedTuple):
    """What an activation function was given, and versions of that and of its output at the time."""

    function: nn.Module
    input: torch.Tensor
    input_version: int
    output_version: int
    autocast: torch.dtype | None


class _Narrow(NamedTuple):
    """Stands in the graph for a copy in float32 of a tensor in 16 bits."""

    tensor: torch.Tensor


class _Recomputed(NamedTuple):
    """Stands in the graph for an output, or a view of it."""

    output: _Output
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


def activation_modules(model: nn.Module) -> list[nn.Module]:
    """Modules that apply one of transformers' or torch's activation functions element by element: without weights, without
    random numbers, and not in place."""
    entries: Any = ACT2CLS.values()
    classes = {entry[0] if isinstance(entry, tuple) else entry for entry in entries}
    return [
        module
        for module in model.modules()
        if (type(module) in classes or type(module).__module__ == nn.modules.activation.__name__)
        and not any(True for _ in module.children())
        and not any(True for _ in module.parameters())
        and not getattr(module, "inplace", False)
        and not isinstance(module, nn.RReLU)
    ]


@contextmanager
def activations_recomputed(model: nn.Module) -> Iterator[None]:
    """Within it, a forward pass keeps no outputs of activation functions whose inputs it keeps anyway, and of copies in
    float32 of tensors in 16 bits it keeps these bits.

    Gradients are the same bit by bit. The backward pass may run outside of it. Regions under activation checkpointing are
    left to it.

    Args:
        model (`nn.Module`): Any model; its activation functions are found by their classes.
    """
    outputs: Any = WeakTensorKeyDictionary()
    narrow: Any = WeakTensorKeyDictionary()

    def note(function: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        node = output.grad_fn if isinstance(output, torch.Tensor) and len(inputs) == 1 else None
        # Of the type, as asking the node itself would unpack the tensor. A function whose gradient follows from its output
        # (ReLU, tanh) does not keep its input.
        kind = type(node)
        if node is None or not hasattr(kind, "_saved_self") or hasattr(kind, "_saved_result"):
            return
        kept = inputs[0].detach()
        device = kept.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        outputs[output] = _Output(function, kept, kept._version, output._version, autocast)

    def pack(tensor: torch.Tensor) -> Any:
        base: Any = tensor._base if tensor._is_view() else tensor
        output = outputs.get(base)
        if output is None or output.output_version != base._version:
            return _narrowed(tensor, narrow)
        return _Recomputed(output, tuple(tensor.size()), tensor.stride(), int(tensor.storage_offset()))

    def unpack(packed: Any) -> torch.Tensor:
        if isinstance(packed, _Narrow):
            return packed.tensor.float()
        return _compute(packed) if isinstance(packed, _Recomputed) else packed

    # First of all hooks: what others make of the output is another tensor, or another version of it.
    handles = [module.register_forward_hook(note, prepend=True) for module in activation_modules(model)]
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _narrowed(tensor: torch.Tensor, known: Any) -> Any:
    """A tensor as it is to be kept; several that keep the same one share it."""
    node: Any = tensor.grad_fn
    if tensor.dtype != torch.float32 or node is None or node.name() != "ToCopyBackward0" or tensor._version:
        return tensor
    if tensor not in known:
        source, number = node.next_functions[0]
        dtype = source._input_metadata[number].dtype
        if dtype not in (torch.bfloat16, torch.float16):
            return tensor
        with torch.no_grad():
            known[tensor] = _Narrow(tensor.to(dtype))
    return known[tensor]


def _compute(packed: _Recomputed) -> torch.Tensor:
    output = packed.output
    if output.input._version != output.input_version:
        raise RuntimeError(
            f"the input of {type(output.function).__name__} was changed in place after the forward pass, and its output "
            "is to be computed again from it"
        )
    forward: Callable[..., torch.Tensor] = output.function.forward
    device = output.input.device.type
    with torch.no_grad(), torch.autocast(device, output.autocast, enabled=output.autocast is not None):
        return forward(output.input).as_strided(packed.size, packed.stride, packed.offset)


__all__ = ["activation_modules", "activations_recomputed"]
