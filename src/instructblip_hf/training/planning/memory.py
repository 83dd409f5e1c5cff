"""Which memory is alive: every storage of tensors, from the operation that made it to the moment it is freed.

Works on true tensors and on those without values alike. What an operation needs inside of itself is not seen.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class LiveMemory(TorchDispatchMode):
    """Counts bytes of tensors that were made within it and are still there.

    Args:
        model (`nn.Module`): What its components make is counted for them.
        known (`Iterable[torch.Tensor]`, *optional*): Tensors that were there before, which are not counted.

    Attributes:
        live (`int`): Bytes at this moment.
        peak (`int`): Most bytes there ever were.
    """

    def __init__(self, model: nn.Module, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._parts: Counter[str] = Counter()
        self._stack: list[str] = []
        self._seen: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._components = dict(model.named_children())
        for tensor in known:
            self._seen[tensor.untyped_storage()] = 0

    @property
    def by_component(self) -> dict[str, int]:
        """Live bytes by the component of the model that made them; what none made is under the empty name."""
        return {name: size for name, size in self._parts.items() if size}

    def reset_peak(self) -> None:
        """Has the peak begin at what is alive now."""
        self.peak = self.live

    def reset_components(self) -> None:
        """Has `by_component` begin anew; what is alive now does not count in it."""
        self._parts = Counter()

    @contextmanager
    def counting(self) -> Any:
        """Within it tensors are counted."""
        with ExitStack() as stack:
            for name, module in self._components.items():
                enter = module.register_forward_pre_hook(self._entering(name), with_kwargs=True, prepend=True)
                leave = module.register_forward_hook(self._leaving, always_call=True)
                stack.callback(enter.remove)
                stack.callback(leave.remove)
            stack.enter_context(self)
            yield

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(outputs):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf.untyped_storage())
        return outputs

    def _note(self, storage: Any) -> None:
        size = storage.nbytes()
        if storage in self._seen or not size:
            return
        part = self._stack[-1] if self._stack else ""
        self._seen[storage] = size
        self.live += size
        self._parts[part] += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, self._parts, part, size)

    def _freed(self, parts: Counter[str], part: str, size: int) -> None:
        self.live -= size
        parts[part] -= size

    def _entering(self, name: str) -> Any:
        def enter(*_: Any) -> None:
            self._stack.append(name)

        return enter

    def _leaving(self, *_: Any) -> None:
        self._stack.pop()


class CudaAutocast(TorchFunctionMode):
    """Autocast as on a GPU, where this is a CPU: there more functions run in float32, norms and softmax among them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _IN_FLOAT32 and kwargs.get("dtype") is None and torch.is_autocast_enabled("cpu"):
            args = tuple(_widened(value) for value in args)
            kwargs = {name: _widened(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _widened(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value


_functional, _tensor = nn.functional, torch.Tensor
# CUDA's lists "autocast to float32" of torch's documentation, as far as models call them.
_IN_FLOAT32 = {
    *(_functional.layer_norm, torch.layer_norm, _functional.group_norm, torch.group_norm),
    *(_functional.softmax, torch.softmax, _tensor.softmax, _functional.softmin, _functional.softplus),
    *(_functional.log_softmax, torch.log_softmax, _tensor.log_softmax),
    *(_functional.cross_entropy, _functional.nll_loss, _functional.mse_loss, _functional.l1_loss),
    *(_functional.normalize, _functional.cosine_similarity, torch.cosine_similarity),
    *(torch.exp, _tensor.exp, torch.log, _tensor.log, torch.pow, _tensor.pow, _tensor.__pow__, _tensor.__rpow__),
    *(torch.rsqrt, _tensor.rsqrt, torch.reciprocal, _tensor.reciprocal, torch.norm, _tensor.norm),
    *(torch.sum, _tensor.sum, torch.prod, _tensor.prod, torch.cumsum, _tensor.cumsum),
    *(torch.logsumexp, _tensor.logsumexp),
}


__all__ = ["CudaAutocast", "LiveMemory"]
