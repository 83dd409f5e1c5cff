"""Numbers from several seeds: means, intervals, and when a claim counts as shown.

How a claim is judged was written down before the first result. Seeds are compared pairwise: both sides of a difference
have the same initial weights, rows, test scenes and wordings. With d the differences of the seeds, the interval is
``mean(d) +- t * sd(d) / sqrt(n)`` at 95 %.

- "A is better than B" agrees if the whole interval is above 0, is contradicted if all of it is below 0, and is not
  shown otherwise.
- "A is like B" agrees if the whole interval is within `MARGIN` of 0, is contradicted if it is wholly outside, and is
  not shown otherwise.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claim_design import Design, plan


MARGIN = 0.05
"""By how much "alike" may differ."""

T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t for a two-sided interval of 95 %, at 1 to 10 degrees of freedom."""

MAX_SEEDS = len(T95) + 1


@dataclass(frozen=True)
class Estimate:
    """A number from several seeds.

    Args:
        values (`tuple[float, ...]`): One a seed.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float:
        """Standard deviation between seeds."""
        return statistics.stdev(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """Confidence interval of the mean at 95 %."""
        half = T95[len(self.values) - 2] * self.deviation / math.sqrt(len(self.values))
        return self.mean - half, self.mean + half

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.deviation:.3f}"


def is_better(difference: Estimate) -> str:
    """Verdict on "A is better than B" from A - B."""
    low, high = difference.interval
    return "agrees" if low > 0 else "contradicted" if high < 0 else "not shown"


def is_alike(difference: Estimate) -> str:
    """Verdict on "A is like B" from A - B."""
    low, high = difference.interval
    if low > -MARGIN and high < MARGIN:
        return "agrees"
    return "contradicted" if low > MARGIN or high < -MARGIN else "not shown"


class Results:
    """The files of all runs.

    Args:
        folder (`Path`): The study's output.
        design (`Design`): Of which runs.

    Raises:
        FileNotFoundError: If a run is missing.
    """

    def __init__(self, folder: Path, design: Design) -> None:
        self.design = design
        self.records: dict[str, Any] = {}
        for run in plan(design):
            path = folder / "results" / f"{run.name}.json"
            self.records[run.name] = json.loads(path.read_text(encoding="utf-8"))

    def accuracy(self, model: str, tasks: Sequence[str], column: str = "instruction") -> Estimate:
        """Mean accuracy over tasks of a tuned model, or of ``"blip2"``."""
        return Estimate(
            tuple(self._mean(self.of(model, seed)["accuracy"][column], tasks) for seed in self.design.seeds)
        )

    def ranking(self, tasks: Sequence[str]) -> Estimate:
        """Mean accuracy over tasks by ranking."""
        return Estimate(tuple(self._mean(self.of("instruct", seed)["ranking"], tasks) for seed in self.design.seeds))

    def finetuned(self, start: str, tasks: Sequence[str]) -> Estimate:
        """Mean accuracy over tasks after finetuning on each."""
        values = []
        for seed in self.design.seeds:
            found = [
                self.records[f"seed{seed}-finetuning-{start}-{task}"]["accuracy"]["instruction"] for task in tasks
            ]
            values.append(statistics.fmean(own[task] for own, task in zip(found, tasks)))
        return Estimate(tuple(values))

    def of(self, model: str, seed: int) -> dict[str, Any]:
        """The file of a model's training."""
        return self.records[f"seed{seed}-blip2" if model == "blip2" else f"seed{seed}-tuning-{model}"]

    @staticmethod
    def _mean(accuracy: Mapping[str, float], tasks: Sequence[str]) -> float:
        return statistics.fmean(accuracy[task] for task in tasks)
