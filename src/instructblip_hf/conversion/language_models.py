"""The language model before and after a conversion: opened from stored weights, and compared."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from ..models.composition import load_language_model
from .checking import PROBE_TOKENS, Weights, difference_of, raise_if_too_large
from .plan import ModelSpec
from .report import Difference
from .stored_tensors import StoredTensor


def compare_language_models(
    weights: Weights, files: Mapping[str, StoredTensor], spec: ModelSpec, llm: Path | None = None
) -> Difference:
    """Logits of the language model that was converted, out of ``llm`` by its own configuration, and of the other one."""
    prefix = "language_model."
    with torch.device("meta"):
        model_class = type(weights.kind.model()(weights.config).language_model)

    def own(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
        return {name.removeprefix(prefix): stored for name, stored in tensors.items() if name.startswith(prefix)}

    def of_files() -> Any:
        if llm is None:
            return _open(weights.config.text_config, model_class, own(files))
        dtype = _most_common_dtype(own(files).values())
        return load_language_model(llm, config=language_config(llm), dtype=dtype)

    return _compare_logits(
        of_files,
        lambda: _open(weights.config.text_config, model_class, own(weights.ours)),
        min(files[name].shape[0] for name in spec.vocabulary if name in files),
        weights.config.is_encoder_decoder,
    )


def _compare_logits(
    source: Callable[[], Any], written: Callable[[], Any], rows: int, is_encoder_decoder: bool
) -> Difference:
    """Compares logits of a language model before and after; each is opened on its own, in its stored precision.

    Args:
        source (`Callable`): Opens the language model that was converted.
        written (`Callable`): Opens the one that was written.
        rows (`int`): Tokens that both have.
        is_encoder_decoder (`bool`): Whether it is sequence-to-sequence.

    Raises:
        ConversionError: If the logits differ by more than rounding.
    """
    ids = torch.randint(0, rows, (1, PROBE_TOKENS), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids.flip(1)} if is_encoder_decoder else {})}

    @torch.no_grad()
    def logits(opened: Callable[[], Any]) -> torch.Tensor:
        return opened().eval()(**inputs).logits[..., :rows]

    before = logits(source)
    difference = difference_of("language model's logits", logits(written), before)
    raise_if_too_large([difference])
    return difference


def _open(config: Any, model_class: Any, tensors: Mapping[str, StoredTensor]) -> Any:
    """A language model of stored weights, by its own names; its vocabulary has as many tokens as they have rows."""
    state = {name: tensor.load() for name, tensor in tensors.items()}
    config = copy.deepcopy(config)
    with torch.device("meta"):
        empty = model_class(config)
    names = {id(module): name for name, module in empty.named_modules()}
    config.vocab_size = state[f"{names[id(empty.get_input_embeddings())]}.weight"].shape[0]
    dtype = _most_common_dtype(tensors.values())
    return model_class.from_pretrained(None, config=config, state_dict=state, dtype=dtype)


def _most_common_dtype(tensors: Iterable[StoredTensor]) -> torch.dtype:
    """Floating type of most of the weights."""
    sizes: dict[torch.dtype, int] = {}
    for tensor in tensors:
        if tensor.dtype.is_floating_point:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + torch.Size(tensor.shape).numel()
    return max(sizes, key=lambda dtype: sizes[dtype])


def language_config(folder: Path) -> Any:
    """Configuration of a language model as LAVIS runs it."""
    config = AutoConfig.from_pretrained(folder)
    if config.model_type == "t5":
        config.dense_act_fn = "gelu"
    return config


__all__ = ["compare_language_models", "language_config"]
