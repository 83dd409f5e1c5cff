"""Which parts of a model train: a declarative policy, applied to any model of this package.

A policy says one word for each component, by its dotted name in the module tree: ``frozen``, ``train`` or ``lora``.
The most specific name decides, so ``{"vision_model": "frozen", "vision_model.post_layernorm": "train"}`` trains the
last layer norm of a frozen tower. What a policy does not name is frozen.

InstructBLIP trains the Q-Former, its queries and the projection (Dai et al. 2023, section 2.6); the released code
leaves the vision tower's last layer norm outside of the frozen tower, so it trains too, and the published 188M
trainable parameters count it.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .arguments import FREEZING_PRESETS, FreezingPolicy
from .quantization import parameter_count


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ComponentReport:
    """One row of the table: a component, its word, and its numbers of trainable and of all parameters."""

    name: str
    word: str
    trainable: int
    total: int


class FreezingReport:
    """What `apply_freezing` did, as a table; it also puts frozen modules into evaluation mode.

    Attributes:
        rows (`list[ComponentReport]`): Top-level components and those that the policy names, in module order.
        trainable (`int`): Number of parameters that train.
        total (`int`): Number of all parameters.
        frozen_dropout (`tuple[str, ...]`): Frozen components that stay in training mode.
    """

    def __init__(self, model: nn.Module, words: Mapping[str, str], frozen_dropout: Collection[str] = ()) -> None:
        self.words = dict(words)
        self.frozen_dropout = tuple(frozen_dropout)
        self.rows = _component_rows(model, self.words)
        parameters = list(model.parameters())
        self.trainable = sum(p.numel() for p in parameters if p.requires_grad)
        self.total = sum(parameter_count(p) for p in parameters)
        self._frozen_modules = [
            module
            for name, module in model.named_modules()
            if name and word_of(name, self.words) == "frozen" and not _is_inside(name, self.frozen_dropout)
        ]

    def hold_frozen_modules_in_eval(self) -> None:
        """Puts every frozen module into evaluation mode, so that its dropout is off, but for `frozen_dropout`.

        To be called after each `model.train()`, which switches all modules. Layers that checkpoint their activations
        do so only in training mode, so those stay in it and leave it while their own code runs.
        """
        for module in self._frozen_modules:
            # T5's attention and stacks of layers carry the flag too, but checkpoint nothing themselves.
            if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
                _checkpoint_in_eval(module)
            else:
                module.training = False

    def __str__(self) -> str:
        header = ("component", "", "trainable", "parameters")
        words = [f"{row.word}, dropout on" if row.name in self.frozen_dropout else row.word for row in self.rows]
        body = [(row.name, word, f"{row.trainable:,}", f"{row.total:,}") for row, word in zip(self.rows, words)]
        body.append(("total", "", f"{self.trainable:,}", f"{self.total:,}"))
        widths = [max(len(line[i]) for line in [header, *body]) for i in range(4)]
        lines = [
            f"{name:<{widths[0]}}  {word:<{widths[1]}}  {trainable:>{widths[2]}}  {total:>{widths[3]}}"
            for name, word, trainable, total in [header, *body]
        ]
        return "\n".join(line.rstrip() for line in lines)


def apply_freezing(model: nn.Module, policy: str | Mapping[str, str] | FreezingPolicy) -> FreezingReport:
    """Sets `requires_grad` of every parameter after a policy, and adds LoRA layers where it asks for them.

    Args:
        model (`nn.Module`): A model of this package; changed in place.
        policy (`str`, `Mapping[str, str]` or `FreezingPolicy`):
            A preset's name, words by component (what is not named is frozen), or the full policy.

    Returns:
        `FreezingReport`: The table of what trains.

    Raises:
        ValueError: If the policy names a component that the model does not have, an unknown word or preset, a
            component of `frozen_dropout` that is not frozen, or if nothing would train.
        ImportError: If a component is marked ``lora`` and peft is not installed.
    """
    policy = FreezingPolicy.of(policy)
    words = component_words(model, policy)
    _check_frozen_dropout(model, policy.frozen_dropout, words)
    lora_components = [name for name, word in words.items() if word == "lora"]
    for name, parameter in model.named_parameters():
        trains = word_of(name, words) == "train"
        if trains and not parameter.is_floating_point():
            raise ValueError(f"{name} is quantised ({parameter.dtype}) and cannot train: mark it lora or frozen")
        parameter.requires_grad_(trains)
    for component in lora_components:
        _add_lora(model, component, words, policy)
    report = FreezingReport(model, words, policy.frozen_dropout)
    if report.trainable == 0:
        raise ValueError(f"the freezing policy leaves nothing to train: {words}")
    return report


def component_names(model: nn.Module) -> list[str]:
    """The top-level components of a model that hold parameters, in the order of the module tree."""
    names = [name for name, _ in model.named_parameters(recurse=False)]
    names += [name for name, child in model.named_children() if next(child.parameters(), None) is not None]
    return names


def check_component(model: nn.Module, name: str) -> None:
    """Raises a `ValueError` that names what exists, unless `name` is a module or a parameter of `model`."""
    known = {n for n, _ in model.named_modules() if n} | {n for n, _ in model.named_parameters()}
    if name in known:
        return
    close = difflib.get_close_matches(name, sorted(known), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise ValueError(
        f"the model has no component {name!r}{hint} Its components are: {', '.join(component_names(model))}, "
        "and dotted names inside of them"
    )


def component_words(model: nn.Module, policy: FreezingPolicy) -> dict[str, str]:
    """The words of a policy by component of the model: those of its preset, and what it says itself.

    Raises:
        ValueError: If the policy names a component that the model does not have.
    """
    for name in policy.components:
        check_component(model, name)
    words = _preset_words(model, policy.preset) if policy.preset is not None else {}
    # A word for a component replaces what the preset says about the parts inside of it.
    for name, word in policy.components.items():
        words = {n: w for n, w in words.items() if not n.startswith(f"{name}.")}
        words[name] = word
    words.update(policy.components)
    return words


def _preset_words(model: nn.Module, preset: str) -> dict[str, str]:
    known = {n for n, _ in model.named_modules()} | {n for n, _ in model.named_parameters()}
    prefix = _prefix_of(preset, known)
    if prefix is None:
        missing = [name for name in FREEZING_PRESETS[preset] if "." not in name and name not in known]
        others = [name for name in FREEZING_PRESETS if _prefix_of(name, known) is not None]
        raise ValueError(
            f"freezing preset {preset!r} is for another kind of model: this one has no {', '.join(missing)}. Its "
            f"components are: {', '.join(component_names(model))}; presets for it: {', '.join(others)}"
        )
    words = {f"{prefix}{name}": word for name, word in FREEZING_PRESETS[preset].items()}
    if prefix and "lm_head" in known and f"{prefix}language_model" in words:
        words["lm_head"] = words[f"{prefix}language_model"]
    for name in [name for name in words if name not in known]:
        # Other towers end differently (DINOv2 and SigLIP nest or rename the last layer norm).
        logger.warning("freezing preset %r: the model has no %r, left out", preset, name)
        del words[name]
    return words


def _prefix_of(preset: str, known: Collection[str]) -> str | None:
    """What stands before a preset's components in a model with the names `known`, `None` where it lacks some.

    Stock transformers' LLaVA has them inside of ``model``, and the language model's head outside.
    """
    components = [name for name in FREEZING_PRESETS[preset] if "." not in name]
    return next((p for p in ("", "model.") if all(f"{p}{name}" in known for name in components)), None)


def word_of(name: str, words: Mapping[str, str]) -> str:
    """The word for a module or parameter: that of the most specific component it is in."""
    while name:
        if name in words:
            return words[name]
        name = name.rpartition(".")[0]
    return words.get("", "frozen")


def _is_inside(name: str, components: Collection[str]) -> bool:
    return any(name == component or name.startswith(f"{component}.") for component in components)


def _check_frozen_dropout(model: nn.Module, components: Collection[str], words: Mapping[str, str]) -> None:
    for name in components:
        check_component(model, name)
        if word_of(name, words) != "frozen":
            raise ValueError(
                f"frozen_dropout names {name!r}, which is marked {word_of(name, words)!r}: its dropout is on anyway"
            )


def _component_rows(model: nn.Module, words: Mapping[str, str]) -> list[ComponentReport]:
    named = list(model.named_parameters())
    rows = []
    top_level = component_names(model)
    for name in dict.fromkeys(
        n for top in top_level for n in [top, *sorted(w for w in words if w.startswith(f"{top}."))]
    ):
        inside = [p for n, p in named if _is_inside(n, (name,))]
        trainable = sum(p.numel() for p in inside if p.requires_grad)
        rows.append(ComponentReport(name, word_of(name, words), trainable, sum(parameter_count(p) for p in inside)))
    return rows


def _add_lora(model: nn.Module, component: str, words: Mapping[str, str], policy: FreezingPolicy) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError(
            f"component {component!r} is marked 'lora', which needs peft: pip install 'instructblip-hf[train]'"
        ) from error
    module = model.get_submodule(component)
    targets = [
        name
        for name, child in module.named_modules()
        if isinstance(child, nn.Linear)
        and word_of(f"{component}.{name}", words) == "lora"
        and not (policy.lora_target_modules is None and child is _output_embeddings(module))
        and (policy.lora_target_modules is None or name.rpartition(".")[2] in policy.lora_target_modules)
    ]
    if not targets:
        raise ValueError(
            f"component {component!r} is marked 'lora' but holds no linear layer"
            + (f" named {', '.join(policy.lora_target_modules)}" if policy.lora_target_modules else "")
        )
    config = LoraConfig(
        r=policy.lora_rank,
        lora_alpha=policy.lora_alpha,
        lora_dropout=policy.lora_dropout,
        # As a pattern for the whole name: peft takes plain strings for endings of names.
        target_modules="|".join(re.escape(name) for name in targets),
    )
    for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        # peft asks the module that it is given for them, to choose layers that know quantised weights.
        if getattr(model, flag, False):
            setattr(module, flag, True)
    # peft freezes what it does not adapt, so parts inside that the policy trains are switched on again.
    inject_adapter_in_model(config, module)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
            # What trains on top of 16-bit weights is float32, as in PEFT's own models.
            parameter.data = parameter.data.float()
        if word_of(f"{component}.{name}", words) == "train":
            parameter.requires_grad_(True)


def _output_embeddings(module: nn.Module) -> Any:
    get = getattr(module, "get_output_embeddings", None)
    return get() if get is not None else None


def _checkpoint_in_eval(layer: Any) -> None:
    layer.training = True
    checkpoint = layer._gradient_checkpointing_func
    if getattr(checkpoint, "runs_frozen_layer", False):
        return

    def checkpoint_frozen(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def run_in_eval(*run_args: Any, **run_kwargs: Any) -> Any:
            layer.training = False
            try:
                return function(*run_args, **run_kwargs)
            finally:
                layer.training = True

        return checkpoint(run_in_eval, *args, **kwargs)

    checkpoint_frozen.runs_frozen_layer = True  # type: ignore[attr-defined]
    layer._gradient_checkpointing_func = checkpoint_frozen
