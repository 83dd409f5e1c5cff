"""Pictures of the study: the claims one by one, and accuracies by the size of the task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from claim_design import NAMES, STARTS
from claim_rows import CANDIDATES, HELD_IN, HELD_OUT
from claim_statistics import Estimate, Results


def bars(axis: Any, groups: Sequence[str], series: Mapping[str, Sequence[Estimate]], title: str) -> None:
    """Grouped bars with intervals, and a dot for each seed."""
    width = 0.8 / len(series)
    for index, (name, estimates) in enumerate(series.items()):
        places = [place - 0.4 + (index + 0.5) * width for place in range(len(groups))]
        halves = [estimate.interval[1] - estimate.mean for estimate in estimates]
        axis.bar(places, [estimate.mean for estimate in estimates], width * 0.92, color=f"C{index}", label=name)
        axis.errorbar(
            places,
            [estimate.mean for estimate in estimates],
            halves,
            fmt="none",
            ecolor="black",
            elinewidth=1,
            capsize=2,
        )
        for place, estimate in zip(places, estimates):
            axis.plot([place] * len(estimate.values), estimate.values, ".", color="black", ms=3)
    axis.set_xticks(range(len(groups)), groups)
    axis.set_ylim(0, 1.02)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    axis.set_title(title, fontsize="medium")
    axis.legend(fontsize="x-small")


def plot(results: Results, folder: Path) -> list[Path]:
    """Two pictures: the claims one by one, and accuracies by the size of the task under the three balances."""
    from matplotlib.figure import Figure

    held_in = tuple(HELD_IN)
    groups = ["held-in tasks", "held-out templates", "held-out tasks"]

    def standard(model: str) -> list[Estimate]:
        return [
            results.accuracy(model, held_in),
            results.accuracy(model, held_in, "templates"),
            results.accuracy(model, HELD_OUT),
        ]

    # Without pyplot, which keeps figures and picks a window system.
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    axes = figure.subplots(2, 2)
    ablations = {NAMES[model]: standard(model) for model in ("instruct", "no_instruction", "uniform", "size")}
    bars(axes[0, 0], groups, ablations, "Ablations (Table 2)")
    training = {NAMES[model]: standard(model) for model in ("instruct", "plain", "identifier", "blip2")}
    bars(axes[0, 1], groups, training, "Instruction tuning and multitask training (Figure 4)")
    tasks = results.design.finetuning_tasks
    starts = {f"from {NAMES[start]}": [results.finetuned(start, (task,)) for task in tasks] for start in STARTS[::-1]}
    bars(axes[1, 0], tasks, starts, f"Finetuning on {results.design.finetuning_rows} rows of one task (Table 3)")
    ranked = {
        "ranking": [results.ranking((task,)) for task in CANDIDATES],
        "generation": [results.accuracy("instruct", (task,)) for task in CANDIDATES],
    }
    bars(axes[1, 1], list(CANDIDATES), ranked, "Ranking and generation")
    axes[1, 1].tick_params(axis="x", labelrotation=20, labelsize="small")
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("accuracy")

    by_size = Figure(figsize=(8, 4), layout="constrained")
    axis = by_size.subplots()
    order = sorted(HELD_IN, key=lambda task: HELD_IN[task])
    for index, (model, label) in enumerate((("instruct", "square root"), ("uniform", "uniform"), ("size", "size"))):
        estimates = [results.accuracy(model, (task,)) for task in order]
        halves = [estimate.interval[1] - estimate.mean for estimate in estimates]
        places = [place + 0.12 * (index - 1) for place in range(len(order))]
        axis.errorbar(places, [e.mean for e in estimates], halves, fmt="o", color=f"C{index}", capsize=2, label=label)
    axis.set_xticks(range(len(order)), [f"{task}\n{HELD_IN[task]:,}" for task in order], fontsize="small")
    axis.set_ylim(0, 1.02)
    axis.grid(axis="y", alpha=0.3)
    axis.set_xlabel("task and its rows")
    axis.set_ylabel("accuracy")
    axis.legend(title="balance", fontsize="small")
    paths = [folder / "papers_claims.png", folder / "papers_claims_balance.png"]
    for drawn, path in zip((figure, by_size), paths):
        drawn.savefig(path, dpi=90)
    return paths
