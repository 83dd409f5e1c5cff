"""Learning rates by regular expression, and layer-wise decay for a vision tower that trains.

Optimiser groups keep what Trainer decided about weight decay; here they are split by learning rate. The decay is that
of BLIP-2's finetuning (LAVIS ``blip2.py``, after BEiT): with n blocks, what stands before them trains at the rate times
decay ** (n + 1), block i of 1..n at decay ** (n + 1 - i), and everything else, a last layer norm too, at the full rate.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .arguments import OptimizationArguments


TOWERS = ("vision_model", "vision_tower", "model.vision_model", "model.vision_tower")
"""Where models keep their vision tower: this package's, and with ``model.`` in front stock transformers'."""

BASE = "base"
"""Name of the parameters that train at the base learning rate."""

# Names that wrappers for compiled and distributed running put between those of the modules.
_WRAPPERS = re.compile(r"(^|\.)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


@dataclass(frozen=True)
class Rate:
    """At which learning rate a parameter trains.

    Attributes:
        name (`str`): Of the parameters that share it: a pattern, or `BASE`, and the layer where rates decay.
        learning_rate (`float`): Its highest value, which the schedule scales.
        logged (`bool`): Whether logs show it; of the layers of a tower the first stands for all.
    """

    name: str
    learning_rate: float
    logged: bool = True


def learning_rates(model: nn.Module, arguments: OptimizationArguments, base: float) -> dict[str, Rate]:
    """The learning rate of each parameter that trains.

    Args:
        model (`nn.Module`): With `requires_grad` set.
        arguments (`OptimizationArguments`): Patterns and decay.
        base (`float`): Learning rate of what no pattern matches.

    Returns:
        `dict[str, Rate]`: By parameter name, in the order of the module tree.

    Raises:
        ValueError: If a pattern or the decay applies to nothing that trains, or the tower's layers are not found.
    """
    trained = [_own_name(name) for name, parameter in model.named_parameters() if parameter.requires_grad]
    scales = layer_scales(model, arguments.layer_decay) if arguments.layer_decay is not None else {}
    if scales and not any(name in scales for name in trained):
        raise ValueError(
            "optimization.layer_decay is set, but no embedding and no block of the vision tower trains; "
            f"what trains is in: {', '.join(_places(trained))}"
        )
    rates = {}
    for name in trained:
        pattern = next((pattern for pattern in arguments.learning_rates if re.search(pattern, name)), None)
        rate = base if pattern is None else arguments.learning_rates[pattern]
        label = BASE if pattern is None else pattern
        if name in scales:
            layer, scale = scales[name]
            rates[name] = Rate(f"{label}, vision layer {layer}", rate * scale, logged=layer == 0)
        else:
            rates[name] = Rate(label, rate)
    _check_patterns(arguments, trained)
    return rates


def split_groups(optimizer: torch.optim.Optimizer, model: nn.Module, rates: dict[str, Rate]) -> list[Rate]:
    """Splits the groups of a new optimiser by learning rate, the base rate first. Its other settings stay.

    Args:
        optimizer (`torch.optim.Optimizer`): Before its first step and before a scheduler is made for it.
        model (`nn.Module`): Whose parameters it holds.
        rates (`dict[str, Rate]`): Of `learning_rates`.

    Returns:
        `list[Rate]`: One for each of the optimiser's groups.

    Raises:
        ValueError: If the optimiser holds tensors that are not parameters of the model.
    """
    by_id = {id(parameter): rates.get(_own_name(name)) for name, parameter in model.named_parameters()}
    parts: list[tuple[Rate, dict[str, Any]]] = []
    for group in optimizer.param_groups:
        members: dict[Rate, list[torch.Tensor]] = {}
        for parameter in group["params"]:
            rate = by_id.get(id(parameter))
            if rate is None:
                raise ValueError(
                    f"optimization needs an optimiser over the model's own parameters; {type(optimizer).__name__} "
                    "holds others"
                )
            members.setdefault(rate, []).append(parameter)
        for rate, parameters in members.items():
            parts.append((rate, {**group, "params": parameters, "lr": rate.learning_rate}))
    # Trainer logs the first group's rate as `learning_rate`.
    parts.sort(key=lambda part: part[0].name != BASE)
    optimizer.param_groups.clear()
    for _, group in parts:
        optimizer.add_param_group(group)
    return [rate for rate, _ in parts]


def rates_to_log(groups: Iterable[dict[str, Any]], rates: Iterable[Rate]) -> dict[str, float]:
    """The present learning rates of the groups that `split_groups` made, as ``learning_rate/NAME``."""
    return {f"learning_rate/{rate.name}": float(group["lr"]) for group, rate in zip(groups, rates) if rate.logged}


def layer_scales(model: nn.Module, decay: float) -> dict[str, tuple[int, float]]:
    """Layer and factor on the learning rate for the vision tower's parameters up to the last block.

    Args:
        model (`nn.Module`): With a vision tower of the names in `TOWERS`.
        decay (`float`): Factor from one layer to the one below.

    Returns:
        `dict[str, tuple[int, float]]`: By parameter name: 0 for what stands before the blocks, 1..n for the blocks.

    Raises:
        ValueError: If there is no vision tower, or its blocks cannot be told.
    """
    modules = {_own_name(name): module for name, module in model.named_modules()}
    place = next((name for name in TOWERS if name in modules), None)
    if place is None:
        raise ValueError(f"optimization.layer_decay needs a vision tower; the model has none of {', '.join(TOWERS)}")
    tower = modules[place]
    blocks, number = _blocks(tower, place)
    scales: dict[str, tuple[int, float]] = {}
    before_blocks = True
    # Towers define their modules in the order in which data flows through them.
    for name in (_own_name(name) for name, _ in tower.named_parameters()):
        index = re.match(rf"{re.escape(blocks)}\.(\d+)\.", name)
        if index is not None:
            before_blocks = False
        elif not before_blocks:
            continue
        layer = int(index[1]) + 1 if index is not None else 0
        scales[f"{place}.{name}"] = (layer, decay ** (number + 1 - layer))
    return scales


def _blocks(tower: Any, place: str) -> tuple[str, int]:
    """Name inside the tower, and length, of its list of blocks: of the outermost lists the one that has the
    configured number of layers."""
    lists: dict[str, int] = {}
    for name, module in tower.named_modules():
        name = _own_name(name)
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in lists):
            lists[name] = len(module)
    number = getattr(getattr(tower, "config", None), "num_hidden_layers", None)
    found = [item for item in lists.items() if number is None or item[1] == number]
    if len(found) != 1:
        listed = ", ".join(f"{name} ({length})" for name, length in lists.items()) or "none"
        raise ValueError(
            f"optimization.layer_decay: cannot tell which modules of {place} ({type(tower).__name__}) are its "
            f"{number if number is not None else ''} layers; its module lists are: {listed}"
        )
    return found[0]


def _check_patterns(arguments: OptimizationArguments, trained: list[str]) -> None:
    free = trained
    for pattern in arguments.learning_rates:
        matched = [name for name in free if re.search(pattern, name)]
        free = [name for name in free if not re.search(pattern, name)]
        if matched:
            continue
        if any(re.search(pattern, name) for name in trained):
            raise ValueError(
                f"optimization.learning_rates: all that {pattern!r} matches is matched by a pattern before it, and "
                "the first one counts"
            )
        raise ValueError(
            f"optimization.learning_rates: {pattern!r} matches no parameter that trains; what trains is in: "
            f"{', '.join(_places(trained))}"
        )


def _places(names: Iterable[str], shown: int = 20) -> list[str]:
    """The first two parts of the names, each once."""
    places = list(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))
    return [*places[:shown], f"and {len(places) - shown} more"] if len(places) > shown else places


def _own_name(name: str) -> str:
    """A parameter's name without what wrappers add to it."""
    while (stripped := _WRAPPERS.sub(r"\1", name)) != name:
        name = stripped
    return name


__all__ = ["Rate", "layer_scales", "learning_rates", "rates_to_log", "split_groups"]
