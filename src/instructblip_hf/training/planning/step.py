"""One training step on tensors without values, and how much memory is alive when."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, UnsupportedOperatorException
from transformers import Trainer, TrainingArguments

from ...models.modeling_base import VisionLanguageModel
from ..freezing import FreezingReport
from ..image_features.tower import autocast_dtype
from ..recomputation import activations_recomputed
from .memory import CudaAutocast, LiveMemory


@dataclass
class StepMemory:
    """Bytes of one step.

    Attributes:
        gradients, optimizer, activations (`dict[str, int]`):
            By component; activations are what the forward pass leaves for the backward pass.
        batch (`int`): Inputs.
        peak (`int`): Most that is alive at a time beside the weights, from the second step on.
    """

    gradients: dict[str, int] = field(default_factory=dict)
    optimizer: dict[str, int] = field(default_factory=dict)
    activations: dict[str, int] = field(default_factory=dict)
    batch: int = 0
    peak: int = 0


def run_step(
    model: Any,
    report: FreezingReport,
    args: TrainingArguments,
    batch: Any,
    device: str = "cuda",
    recompute_activations: bool = True,
) -> StepMemory:
    """Forward and backward pass and the optimiser's step, as `VisionLanguageTrainer` runs them.

    Args:
        model (`PreTrainedModel`): Within `tensors_without_values`, or with values on a CPU. Its gradients are dropped.
        report (`FreezingReport`): Of the model.
        args (`TrainingArguments`): Mixed precision, accumulation, optimiser.
        batch (`Callable[[], dict[str, torch.Tensor]]`): Makes the inputs.
        device (`str`, *optional*, defaults to `"cuda"`): Whose rules of mixed precision count: ``"cuda"`` or ``"cpu"``.
        recompute_activations (`bool`, *optional*, defaults to `True`): As for the trainer.

    Raises:
        ValueError: If the optimiser cannot be run here.
    """
    memory = StepMemory()
    options = {}
    if isinstance(model, VisionLanguageModel) and not args.torch_compile:
        options["logits_at_labels"] = True
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    live = LiveMemory(model, [*model.parameters(), *model.buffers()])
    model.train()
    report.hold_frozen_modules_in_eval()
    with live.counting(), CudaAutocast() if device == "cuda" else contextlib.nullcontext():
        inputs = batch()
        memory.batch = live.live
        if args.gradient_accumulation_steps > 1:
            # From the second batch of a step on they are there while the next one runs forward.
            for parameter in trained.values():
                parameter.grad = torch.empty_like(parameter)
        live.reset_components()
        with contextlib.ExitStack() as stack:
            dtype = autocast_dtype(args)
            if dtype is not None:
                stack.enter_context(torch.autocast("cpu", dtype))
            if recompute_activations and not args.torch_compile:
                stack.enter_context(activations_recomputed(model))
            loss = model(**inputs, **options).loss
        memory.activations = dict(live.by_component)
        # Not the tensor's method, which the mode that stands for a GPU would leave, and layers run again in it.
        torch.autograd.backward(loss)
        del loss, inputs
        memory.peak = live.peak
        memory.gradients = _by_component((name, [parameter.grad]) for name, parameter in trained.items())
        live.reset_peak()
        states = _optimizer_step(trained, args)
        memory.optimizer = _by_component(states.items())
        memory.peak = max(memory.peak + sum(memory.optimizer.values()), live.peak)
    model.zero_grad(set_to_none=True)
    return memory


def _optimizer_step(trained: dict[str, torch.nn.Parameter], args: TrainingArguments) -> dict[str, list[Any]]:
    """The optimiser's states by parameter, after a step."""
    made_of, options = Trainer.get_optimizer_cls_and_kwargs(args)
    name = str(getattr(args.optim, "value", args.optim))
    if not made_of.__module__.startswith(("torch.", "transformers.")):
        raise ValueError(
            f"training.optim: the states of {name} are made by {made_of.__module__.partition('.')[0]} and cannot be "
            "counted without a device; count with adamw_torch in its place (--set training.optim=adamw_torch)"
        )
    # The fused form has the same states, and no form without values.
    options = {key: value for key, value in options.items() if key != "fused"}
    optimizer = made_of(list(trained.values()), **options)
    try:
        optimizer.step()
    except (DataDependentOutputException, UnsupportedOperatorException) as error:
        raise ValueError(
            f"training.optim: a step of {name} depends on values and cannot be counted; count with adamw_torch in its place "
            "(--set training.optim=adamw_torch)"
        ) from error
    return {key: list(optimizer.state.get(parameter, {}).values()) for key, parameter in trained.items()}


def _by_component(tensors: Any) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for name, values in tensors:
        for value in values:
            if isinstance(value, torch.Tensor):
                sizes[name.partition(".")[0]] += value.numel() * value.element_size()
    return dict(sizes)


__all__ = ["StepMemory", "run_step"]
