"""The runs of the study: its sizes, its arms, and which training needs which.

Sizes were fixed before results were looked at, see ``study.py``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Design:
    """Sizes of the study. They are fixed before its results are looked at, see ``study.py``.

    Args:
        seeds (`tuple[int, ...]`): One study of all arms each.
        scenes (`int`): In the pool that all training rows are about.
        test_scenes (`int`): In the pool that evaluation is about.
        examples (`int`): Evaluation questions a task.
        batch_size (`int`): Rows a step of pre-training and tuning.
        learning_rate (`float`): Of both.
        blip2_steps (`int`): Steps of the captions-only pre-training.
        tuning_steps (`int`): Steps of every arm of the tuning.
        finetuning_rows, finetuning_steps, finetuning_batch_size (`int`), finetuning_learning_rate (`float`): Of a
            finetuning on one task.
        finetuning_tasks (`tuple[str, ...]`): On which tasks.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    scenes: int = 8000
    test_scenes: int = 1000
    examples: int = 200
    batch_size: int = 32
    learning_rate: float = 1e-3
    blip2_steps: int = 200
    tuning_steps: int = 400
    finetuning_rows: int = 128
    finetuning_steps: int = 60
    finetuning_batch_size: int = 32
    finetuning_learning_rate: float = 5e-4
    finetuning_tasks: tuple[str, ...] = ("color_at", "at", "choice")


QUICK = Design(
    seeds=(0, 1),
    scenes=150,
    test_scenes=100,
    examples=4,
    batch_size=8,
    blip2_steps=2,
    tuning_steps=3,
    finetuning_rows=8,
    finetuning_steps=2,
    finetuning_batch_size=4,
)


@dataclass(frozen=True)
class Arm:
    """How one tuning differs from the default.

    Args:
        form (`str`, *optional*, defaults to `"instruction"`): What the model reads in training, one of `FORMS`.
        balance (`str`, *optional*, defaults to `"sqrt"`): Of the mixture.
        qformer_instruction (`bool`, *optional*, defaults to `True`): Whether the Q-Former reads the instruction.
    """

    form: str = "instruction"
    balance: str = "sqrt"
    qformer_instruction: bool = True


ARMS = {
    "instruct": Arm(),
    "no_instruction": Arm(qformer_instruction=False),
    "uniform": Arm(balance="uniform"),
    "size": Arm(balance="size"),
    "plain": Arm(form="plain"),
    "identifier": Arm(form="identifier"),
}
"""The instruction tuning of the paper, its ablations (table 2) and multitask training (figure 4)."""

STARTS = ("blip2", "instruct")
"""Models that finetuning starts from (table 3)."""

NAMES = {
    "blip2": "captions only (BLIP-2)",
    "instruct": "instruction tuning",
    "no_instruction": "Q-Former without instruction",
    "uniform": "balance: uniform",
    "size": "balance: size",
    "plain": "multitask, plain inputs",
    "identifier": "multitask, identifiers",
}
"""What models are called in tables and pictures."""


@dataclass(frozen=True)
class Run:
    """A training of the study.

    Args:
        seed (`int`): Of weights, rows and order.
        kind (`str`): ``"blip2"``, ``"tuning"`` or ``"finetuning"``.
        arm (`str`): Of `ARMS` for a tuning, of `STARTS` for a finetuning.
        task (`str`): Of a finetuning.
    """

    seed: int
    kind: str
    arm: str = ""
    task: str = ""

    @property
    def name(self) -> str:
        """Name of its file."""
        return "-".join(part for part in (f"seed{self.seed}", self.kind, self.arm, self.task) if part)

    @property
    def start(self) -> Run | None:
        """The run whose model it goes on from."""
        if self.kind == "blip2":
            return None
        if self.kind == "finetuning" and self.arm != "blip2":
            return Run(self.seed, "tuning", self.arm)
        return Run(self.seed, "blip2")


def plan(design: Design) -> list[Run]:
    """All runs, seed by seed, each after the ones that it needs."""
    runs = []
    for seed in design.seeds:
        runs.append(Run(seed, "blip2"))
        runs += [Run(seed, "tuning", arm) for arm in ARMS]
        runs += [Run(seed, "finetuning", start, task) for start in STARTS for task in design.finetuning_tasks]
    return runs
