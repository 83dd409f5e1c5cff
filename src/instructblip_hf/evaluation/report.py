"""What an evaluation leaves to read: ``results.json`` of all tasks in a folder, a table in Markdown, and a plot."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..utils.whole_files import write_whole


logger = logging.getLogger(__name__)

RESULTS, TABLE, PLOT = "results.json", "results.md", "results.png"


def write_report(folder: str | Path) -> dict[str, Any]:
    """Gathers the results of all tasks in a folder into its report.

    Args:
        folder (`str` or `Path`): The output folder of `evaluate`.

    Returns:
        `dict`: The content of ``results.json``.

    Raises:
        FileNotFoundError: If there is no result.
    """
    folder = Path(folder)
    found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*/result.json"))]
    if not found:
        raise FileNotFoundError(f"there is no result in {folder}")
    model = found[0]["model"]
    tasks = {one["task"]: {key: value for key, value in one.items() if key != "model"} for one in found}
    results = {"model": model, "tasks": tasks}
    write_whole(folder / RESULTS, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    write_whole(folder / TABLE, f"# {model['name']}\n\n{markdown_table(results_table(results))}\n")
    try:
        plot_results(results, folder / PLOT)
    except ImportError as error:
        logger.warning("no %s: %s", PLOT, error)
    return results


def results_table(results: Mapping[str, Any]) -> list[list[str]]:
    """The table of results, its head first; values in percent, CIDEr times 100.

    Args:
        results (`Mapping[str, Any]`): The content of ``results.json``.
    """
    models = list(dict.fromkeys(one["published"]["model"] for one in results["tasks"].values() if "published" in one))
    head = ["task", "split", "rows", "metric", "value", *(models[:1] or ["published"]), "difference", "notes"]
    table = [head]
    for name, one in results["tasks"].items():
        value = f"{100 * one['value']:.1f}" if "value" in one else ""
        published, difference = "", ""
        if "published" in one:
            published = f"{one['published']['value']:.1f}"
            difference = f"{one['published']['difference']:+.1f}"
        rows = f"{one['rows']:,}"
        table.append([name, one["split"], rows, _metric(one), value, published, difference, "; ".join(_notes(one))])
    return table


def science_table(result: Mapping[str, Any]) -> list[list[str]]:
    """ScienceQA's table: accuracy by subject, context and grade, in the columns of its authors.

    Args:
        result (`Mapping[str, Any]`): What `scienceqa_accuracy` returned.
    """
    columns = {
        "NAT": ("subject", "natural science"),
        "SOC": ("subject", "social science"),
        "LAN": ("subject", "language science"),
        "TXT": ("context", "text"),
        "IMG": ("context", "image"),
        "NO": ("context", "none"),
        "G1-6": ("grade", "1-6"),
        "G7-12": ("grade", "7-12"),
    }
    by = result.get("by", {})
    cells = [by.get(grouping, {}).get(group) for grouping, group in columns.values()]
    values = ["" if cell is None else f"{100 * cell['accuracy']:.2f}" for cell in cells]
    counts = ["" if cell is None else f"{cell['count']:,}" for cell in cells]
    return [
        ["", *columns, "Avg"],
        ["accuracy", *values, f"{100 * result['accuracy']:.2f}"],
        ["questions", *counts, f"{result['count']:,}"],
    ]


def markdown_table(table: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [table[0], ["---"] * len(table[0]), *table[1:]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def plot_results(results: Mapping[str, Any], path: str | Path) -> None:
    """Draws the values as bars, published ones beside them.

    Args:
        results (`Mapping[str, Any]`): The content of ``results.json``.
        path (`str` or `Path`): Where the picture goes.

    Raises:
        ImportError: Without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib; pip install instructblip-hf[eval]") from error
    scored = {name: one for name, one in results["tasks"].items() if "value" in one}
    figure = Figure(figsize=(8, 1.2 + 0.45 * max(1, len(scored))), layout="constrained")
    axes = figure.subplots()
    places = range(len(scored))
    values = [100 * one["value"] for one in scored.values()]
    published = [one.get("published", {}).get("value") for one in scored.values()]
    # Side by side where there are two.
    shifts = [0.0 if number is None else 0.2 for number in published]
    below = [place - shift for place, shift in zip(places, shifts)]
    bars = axes.barh(below, values, 0.4, color="#4477aa", label=results["model"]["name"])
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize="small")
    known = [(place + 0.2, number) for place, number in zip(places, published) if number is not None]
    if known:
        model = next(one["published"]["model"] for one in scored.values() if "published" in one)
        bars = axes.barh([place for place, _ in known], [number for _, number in known], 0.4, color="#ccbb44")
        bars.set_label(f"{model} (published)")
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize="small")
    axes.set_yticks(list(places), [f"{name} ({_metric(one)})" for name, one in scored.items()])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("percent; CIDEr times 100")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path, dpi=110, format="png")


def _metric(one: Mapping[str, Any]) -> str:
    names = {"cider": "CIDEr", "mrr": "MRR", "roc_auc": "ROC-AUC"}
    return names.get(one.get("value_of", ""), one["metric"].replace("_", " ")) if "value" in one else ""


def _notes(one: Mapping[str, Any]) -> list[str]:
    notes = []
    if one["rows"] < one["rows_of_split"]:
        notes.append(f"the first of {one['rows_of_split']:,} rows")
    if one["bad_rows"]:
        notes.append(f"{one['bad_rows']:,} malformed rows left out")
    if "submission" in one:
        notes.append(f"answers are on a server: {one['submission']}")
    if one.get("result", {}).get("tokenizer", "ptb-java") != "ptb-java":
        notes.append(f"tokenizer {one['result']['tokenizer']}, not COCO's")
    if one["changed"]:
        notes.append(f"other {' and '.join(one['changed'])} than the protocol's")
    if one["unverified"]:
        notes.append(f"unverified: {', '.join(one['unverified'])}")
    return notes


__all__ = [
    "PLOT",
    "RESULTS",
    "TABLE",
    "markdown_table",
    "plot_results",
    "results_table",
    "science_table",
    "write_report",
]
