"""What a recipe needs before it is run: parameters and bytes by part, and the largest batch that a memory holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from ..freezing import component_names
from ..quantization import parameter_count
from ..recipe import Recipe
from .batch import RowLengths, largest_batch, row_lengths
from .skeleton import skeleton_of
from .step import StepMemory, run_step
from .weights import weight_bytes
from .without_values import tensors_without_values


MOST_ROWS = 65_536
"""The search for the largest batch ends there."""

OTHER = "(between the parts)"
"""What no component made: image features put into the prompt, the loss."""

NOT_COUNTED = (
    "the CUDA context and libraries' workspaces (cuBLAS, cuDNN)",
    "fragmentation of the allocator",
    "what a kernel needs inside of itself",
    "copies of gradients by DDP, and what FSDP and ZeRO shard or gather: one process with the whole model is counted",
)


@dataclass(frozen=True)
class PartPlan:
    """One part of a model.

    Attributes:
        name (`str`): The component, or `OTHER`.
        parameters, trainable (`int`): Numbers of weights.
        weight_bytes, gradient_bytes, optimizer_bytes (`int`): Of them.
        activation_bytes (`int`): What it leaves for the backward pass.
    """

    name: str
    parameters: int = 0
    trainable: int = 0
    weight_bytes: int = 0
    gradient_bytes: int = 0
    optimizer_bytes: int = 0
    activation_bytes: int = 0


@dataclass(frozen=True)
class Plan:
    """What a recipe needs on one device.

    Attributes:
        recipe, model (`str`): Names of the recipe and of the model's class.
        rows (`int`): Of a batch, ``per_device_train_batch_size``.
        lengths ([`RowLengths`]): Of a row.
        parts (`list[PartPlan]`): In the order of the module tree.
        batch_bytes (`int`): Inputs of a batch.
        peak_bytes (`int`): Most that is alive at a time, weights and optimiser states with it.
        optimizer (`str`): The optimiser whose states are counted.
        memory (`int`, *optional*): Bytes that there are.
        largest_batch (`int`, *optional*): Rows whose peak fits into them; 0 if none does.
        notes (`list[str]`): What was assumed.
        not_counted (`tuple[str, ...]`): What comes on top.
    """

    recipe: str
    model: str
    rows: int
    lengths: RowLengths
    parts: list[PartPlan]
    batch_bytes: int
    peak_bytes: int
    optimizer: str
    memory: int | None = None
    largest_batch: int | None = None
    notes: list[str] = field(default_factory=list)
    not_counted: tuple[str, ...] = NOT_COUNTED

    @property
    def total(self) -> PartPlan:
        """The sums over all parts."""
        names = [name for name in PartPlan.__dataclass_fields__ if name != "name"]
        return PartPlan("total", **{name: sum(getattr(part, name) for part in self.parts) for name in names})

    @property
    def working_bytes(self) -> int:
        """What is alive at the peak beside weights, gradients, optimiser states, activations and inputs, which need not all
        be there at that moment: below zero then."""
        total = self.total
        return self.peak_bytes - (
            total.weight_bytes
            + total.gradient_bytes
            + total.optimizer_bytes
            + total.activation_bytes
            + self.batch_bytes
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON: all attributes, and the sums."""
        return {**asdict(self), "total": asdict(self.total), "working_bytes": self.working_bytes}


def plan_recipe(
    recipe: Recipe,
    memory: int | None = None,
    prompt_tokens: int | None = None,
    answer_tokens: int | None = None,
    device: str = "cuda",
) -> Plan:
    """Counts what a recipe needs, without its weights and data.

    Args:
        recipe ([`Recipe`]): Of `load_recipe`, with ``data_files=False`` where its data are elsewhere.
        memory (`int`, *optional*): Bytes of a device; the largest batch for it is looked for.
        prompt_tokens, answer_tokens (`int`, *optional*): Tokens of text of a row, in place of the recipe's most.
        device (`str`, *optional*, defaults to `"cuda"`): Whose rules of mixed precision count: ``"cuda"`` or ``"cpu"``.

    Returns:
        [`Plan`]

    Raises:
        OSError: If a configuration is not there.
        ValueError: If the recipe does not fit the model, or its optimiser cannot be counted.
    """
    args = recipe.training_arguments()
    with tensors_without_values():
        model, report, notes = skeleton_of(recipe, args)
        lengths = row_lengths(model, recipe, prompt_tokens, answer_tokens)
        sizes = weight_bytes(model, recipe.model.quantization)
        weights = sum(sizes.values())

        def step_of(rows: int) -> StepMemory:
            return run_step(
                model, report, args, lambda: largest_batch(model, recipe, args, lengths, rows), device=device
            )

        rows = args.per_device_train_batch_size
        step = step_of(rows)
        largest = None
        if memory is not None:
            known = {rows: weights + step.peak}
            largest = largest_that_fits(lambda count: weights + step_of(count).peak, memory, known)
        parts = _parts(model, sizes, step)
    if recipe.model.quantization is not None:
        notes.append(
            "activations are those of layers with whole weights; what unpacks quantised weights is not counted"
        )
    if recipe.model.dtype == "auto":
        notes.append("dtype: auto is taken from config.json, float32 where that does not say")
    notes += [f"{name}_tokens are assumed, the recipe sets no limit: --{name}-tokens" for name in lengths.assumed]
    return Plan(
        recipe=recipe.path.stem,
        model=type(model).__name__,
        rows=rows,
        lengths=lengths,
        parts=parts,
        batch_bytes=step.batch,
        peak_bytes=weights + step.peak,
        optimizer=str(getattr(args.optim, "value", args.optim)),
        memory=memory,
        largest_batch=largest,
        notes=notes,
    )


def _parts(model: Any, sizes: dict[str, int], step: StepMemory) -> list[PartPlan]:
    numbers: Counter[str] = Counter()
    trainable: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        component = name.partition(".")[0]
        numbers[component] += parameter_count(parameter)
        trainable[component] += parameter.numel() if parameter.requires_grad else 0
        weights[component] += sizes[name]
    names = component_names(model)
    parts = [
        PartPlan(
            name,
            numbers[name],
            trainable[name],
            weights[name],
            step.gradients.get(name, 0),
            step.optimizer.get(name, 0),
            step.activations.get(name, 0),
        )
        for name in names
    ]
    rest = sum(size for name, size in step.activations.items() if name not in names)
    return [*parts, PartPlan(OTHER, activation_bytes=rest)] if rest else parts


def largest_that_fits(peak_of: Callable[[int], int], memory: int, known: dict[int, int]) -> int:
    """The largest number of rows whose peak is within a memory, 0 if one row is beyond it.

    Peaks grow with rows, nearly in proportion, so each number that is tried follows from the line through two known ones.

    Args:
        peak_of (`Callable[[int], int]`): Peak of a number of rows.
        memory (`int`): The bound.
        known (`dict[int, int]`): Peaks that are known, one at least.
    """
    peaks = dict(known)

    def fits(rows: int) -> bool:
        if rows not in peaks:
            peaks[rows] = peak_of(rows)
        return peaks[rows] <= memory

    if not fits(1):
        return 0
    low = max(rows for rows in peaks if peaks[rows] <= memory)
    high = min((rows for rows in peaks if peaks[rows] > memory), default=MOST_ROWS + 1)
    while high - low > 1:
        others = [rows for rows in peaks if rows != low]
        guess = 2 * low
        if others:
            nearest = min(others, key=lambda rows: abs(rows - low))
            slope = (peaks[nearest] - peaks[low]) / (nearest - low)
            guess = low + int((memory - peaks[low]) / slope) if slope > 0 else 2 * low
        guess = min(max(guess, low + 1), high - 1)
        if fits(guess):
            low = guess
        else:
            high = guess
    return low


__all__ = ["NOT_COUNTED", "OTHER", "PartPlan", "Plan", "largest_that_fits", "plan_recipe"]
