"""Tensors without values: a training step of any size runs on a laptop, and every shape and dtype in it is the true one.

Weights and everything computed from them are torch's fake tensors. What is made of integers alone (token ids, masks,
labels, positions) is small and keeps its values, because shapes follow from it: how many placeholders there are, at which
positions there are labels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights


_INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)
_SMALL = ("aten::arange", "aten::linspace", "aten::randint", "aten::scalar_tensor")


class _KnownIntegers(TorchDispatchMode):
    """Computes for real where all that goes in has values; to be entered inside of a fake mode."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if not any(isinstance(tensor, FakeTensor) for tensor in tensors) and (
            tensors or _keeps_values(func, args, kwargs)
        ):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func in _INDEXING:
            # How many elements a mask chooses is known where the mask is; otherwise it may be all of them.
            args = (args[0], [place for index in args[1] for place in _places(index)], *args[2:])
        return func(*args, **kwargs)


def _keeps_values(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a tensor that is made of nothing has values: integers, single numbers and ranges have."""
    dtype = kwargs.get("dtype")
    if dtype is None and func is torch.ops.aten.full.default:
        return not isinstance(args[1], float)
    is_number = bool(args) and isinstance(args[0], (list, tuple)) and not args[0]
    is_floating = (dtype or torch.get_default_dtype()).is_floating_point
    return not is_floating or is_number or func.name().startswith(_SMALL)


def _places(index: Any) -> list[Any]:
    if not isinstance(index, torch.Tensor) or index.dtype != torch.bool:
        return [index]
    with unset_fake_temporarily():
        mask = torch.ones(tuple(index.shape), dtype=torch.bool) if isinstance(index, FakeTensor) else index
        return list(mask.nonzero(as_tuple=True))


@contextlib.contextmanager
def tensors_without_values() -> Iterator[None]:
    """Within it new tensors have no values and take no memory, but for those of integers."""
    with FakeTensorMode(allow_non_fake_inputs=True), _KnownIntegers():
        yield


@contextlib.contextmanager
def weights_left_out() -> Iterator[None]:
    """Within it ``from_pretrained`` of any model reads the configuration, and builds the model without weights.

    So what a recipe says about loading and composing is carried out by the code that carries it out in training. For the
    length of one command: it changes transformers' classes.
    """
    load, resize = PreTrainedModel.__dict__["from_pretrained"], PreTrainedModel.resize_token_embeddings
    apply = nn.Module._apply

    def resize_without_values(self: Any, *args: Any, **kwargs: Any) -> Any:
        # New rows are not drawn after the old ones.
        return resize(self, *args, **{**kwargs, "mean_resizing": False})

    model_class: Any = PreTrainedModel
    module_class: Any = nn.Module
    module_class._apply = _apply_to_data
    model_class.from_pretrained = classmethod(_from_configuration)
    model_class.resize_token_embeddings = resize_without_values
    try:
        with no_init_weights():
            yield
    finally:
        model_class.from_pretrained = load
        model_class.resize_token_embeddings = resize
        module_class._apply = apply


def _apply_to_data(self: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
    """``Module._apply``, which wants to swap tensors without values for others, and cannot where the fake mode knows them."""
    for module in self.modules() if recurse else [self]:
        for parameter in module.parameters(recurse=False):
            parameter.data = fn(parameter.data)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, fn(buffer))
    return self


def _from_configuration(cls: Any, source: Any, *_: Any, config: Any = None, **kwargs: Any) -> Any:
    if config is None or not isinstance(config, cls.config_class):
        hub = {name: kwargs[name] for name in ("revision", "token", "cache_dir", "local_files_only") if name in kwargs}
        config = cls.config_class.from_pretrained(config if isinstance(config, str) else source, **hub)
    options = {name: kwargs[name] for name in ("attn_implementation",) if kwargs.get(name) is not None}
    model = cls._from_config(config, dtype=torch.float32, **options)
    dtype = kwargs.get("dtype")
    _cast(model, saved_dtype(config) if dtype == "auto" else dtype or torch.float32)
    model.eval()
    info: dict[str, Any] = {
        "missing_keys": set(),
        "unexpected_keys": set(),
        "mismatched_keys": set(),
        "error_msgs": [],
    }
    return (model, info) if kwargs.get("output_loading_info") else model


def saved_dtype(config: Any) -> torch.dtype:
    """What a checkpoint was saved in, by its configuration; float32 where that does not say."""
    dtype = getattr(config, "dtype", None)
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype or torch.float32


def _cast(model: Any, dtype: torch.dtype) -> None:
    # transformers looks for these anywhere in a name: T5's "wo" keeps other models' word_embeddings too.
    kept = [str(part) for part in model._get_dtype_plan(dtype)]
    for name, parameter in model.named_parameters():
        if not any(part in name for part in kept):
            parameter.data = parameter.data.to(dtype)


__all__ = ["saved_dtype", "tensors_without_values", "weights_left_out"]
