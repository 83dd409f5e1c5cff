"""What a mixture amounts to: rows, probabilities and epochs of each dataset, as numbers, a table and a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .mixture import Mixture


@dataclass(frozen=True)
class DatasetShare:
    """A dataset's part in a mixture.

    Attributes:
        dataset (`str`): Name.
        rows (`int`): Its size.
        factor (`float`): By what its probability was multiplied before all were scaled to sum to 1.
        probability (`float`): Of a draw.
        share_by_size (`float`): What the probability would be without balancing.
        share_by_sqrt (`float`): What it would be in proportion to the square root of the size, without factors.
        draws (`int`): How many of the draws in question are of it, exactly.
        share_drawn (`float`): `draws` by all draws, as counted; 0 where there are none.
        epochs (`float`): `draws` by `rows`.
    """

    dataset: str
    rows: int
    factor: float
    probability: float
    share_by_size: float
    share_by_sqrt: float
    draws: int
    share_drawn: float
    epochs: float


def mixture_shares(mixture: Mixture, draws: int) -> list[DatasetShare]:
    """The datasets of a mixture in its order, at the first `draws` draws.

    Raises:
        ValueError: If `draws` is negative.
    """
    if draws < 0:
        raise ValueError(f"draws is {draws}; it must be at least 0")
    counts, probabilities = mixture.counts(draws), mixture.probabilities
    total = sum(mixture.sizes.values())
    roots = sum(math.sqrt(rows) for rows in mixture.sizes.values())
    return [
        DatasetShare(
            dataset=name,
            rows=rows,
            factor=mixture.factors.get(name, 1.0),
            probability=probabilities[name],
            share_by_size=rows / total,
            share_by_sqrt=math.sqrt(rows) / roots,
            draws=counts[name],
            share_drawn=counts[name] / draws if draws else 0.0,
            epochs=counts[name] / rows,
        )
        for name, rows in mixture.sizes.items()
    ]


def mixture_table(mixture: Mixture, draws: int) -> list[list[str]]:
    """`mixture_shares` as cells of a table: a row of headings, one for each dataset and one of sums."""
    shares = mixture_shares(mixture, draws)
    table = [["dataset", "rows", "by size", "by sqrt", "factor", "drawn", "draws", "epochs"]]
    for share in shares:
        table.append(
            [
                share.dataset,
                f"{share.rows:,}",
                _percent(share.share_by_size),
                _percent(share.share_by_sqrt),
                f"{share.factor:g}",
                _percent(share.share_drawn),
                f"{share.draws:,}",
                f"{share.epochs:.3g}" if share.epochs < 1000 else f"{share.epochs:,.0f}",
            ]
        )
    table.append(["sum", f"{sum(mixture.sizes.values()):,}", "100%", "100%", "", "100%", f"{draws:,}", ""])
    return table


def markdown_table(table: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, numbers to the right."""
    lines = [list(table[0]), ["---", *["---:"] * (len(table[0]) - 1)], *table[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plot_mixture(mixture: Mixture, draws: int, path: str | Path) -> None:
    """Draws a mixture into a picture: shares of `draws` draws beside those by size and by its square root, and epochs.

    Args:
        mixture (`Mixture`): What to draw.
        draws (`int`): How many draws, at least 1.
        path (`str` or `Path`): Where the picture goes; its suffix says in which format, such as ``.png``.

    Raises:
        ImportError: Without matplotlib.
        ValueError: If `draws` is below 1, or matplotlib does not know the suffix.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib; pip install instructblip-hf[train]") from error
    if draws < 1:
        raise ValueError(f"draws is {draws}; it must be at least 1")
    shares = mixture_shares(mixture, draws)
    places = range(len(shares))
    # Without pyplot, which keeps figures and picks a window system.
    figure = Figure(figsize=(9, 1.4 + 0.32 * len(shares)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    left.barh(places, [100 * share.share_drawn for share in shares], color="#4477aa", label="drawn")
    left.plot(
        [100 * share.share_by_sqrt for share in shares],
        places,
        "D",
        color="#ee6677",
        ms=5,
        label="by square root of size",
    )
    left.plot(
        [100 * share.share_by_size for share in shares], places, "|", color="black", ms=12, mew=2, label="by size"
    )
    left.set_xlabel("share of draws in %")
    left.set_yticks(places, [share.dataset for share in shares])
    left.invert_yaxis()
    left.legend(loc="lower right")
    epochs = [max(share.epochs, 1e-3) for share in shares]
    right.plot(epochs, places, "o", color="#aa3377")
    right.grid(axis="y", alpha=0.3)
    right.set_xscale("log")
    right.axvline(1, color="black", linewidth=0.8)
    right.set_xlabel(f"epochs after {draws:,} draws")
    for place, share in zip(places, shares):
        right.annotate(
            f"{share.epochs:.2g}" if share.epochs < 100 else f"{share.epochs:,.0f}",
            (epochs[place], place),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
        )
    right.margins(x=0.15)
    figure.suptitle(f"{len(shares)} datasets, balance {mixture.balance!r}")
    figure.savefig(path, dpi=110)


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


__all__ = ["DatasetShare", "markdown_table", "mixture_shares", "mixture_table", "plot_mixture"]
