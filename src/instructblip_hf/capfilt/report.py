"""The report: what was kept of web texts and captions, histograms of their scores, and rows to look at."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from .errors import CapFiltError
from .statistics import BINS, GROUPS, RANGES, SOURCES, Statistics, first_samples


_NAMES = {"itm": "probability of a match (matching head)", "itc": "cosine of image and text"}
_COLOURS = {"web": "#4477aa", "synthetic": "#cc6677"}


def check_matplotlib() -> None:
    """Raises an `ImportError` where there is no matplotlib, before hours of work rather than after."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError("the report's histograms need matplotlib; pip install instructblip-hf[train]") from error


def summary(statistics: Statistics, bad_rows: int) -> dict[str, Any]:
    """Shares and means of what was counted.

    Args:
        statistics (`Statistics`): Of all rows.
        bad_rows (`int`): Rows that could not be read.

    Returns:
        `dict`: ``rows``, ``rows_kept``, ``bad_rows``, ``groups``, and by source ``texts``, ``kept``, ``share_kept`` and
        ``mean`` by score; `None` where there are no texts.
    """
    content = statistics.content()
    sources = {}
    for source in SOURCES:
        texts, kept = content["texts"][source]["texts"], content["texts"][source]["kept"]
        sources[source] = {
            "texts": texts,
            "kept": kept,
            "share_kept": round(kept / texts, 4) if texts else None,
            "mean": {
                score: round(sums[source] / texts, 4) if texts else None for score, sums in content["sums"].items()
            },
        }
    return {
        "rows": statistics.rows,
        "rows_kept": statistics.rows - statistics.groups["none"],
        "bad_rows": bad_rows,
        "groups": content["groups"],
        "sources": sources,
    }


def recipe_line(report: Mapping[str, Any], output: Path) -> str:
    """How a recipe's mixture names the result in the folder `output`."""
    top_k = report["filter"]["top_k"]
    more = "" if top_k is not None and top_k <= 2 else ", answer_choice: first_two"
    if report["form"] == "tar":
        return f'web_capfilt: {{shards: "{output.resolve()}/shards/*.tar", rows: {report["rows_kept"]}{more}}}'
    return f'web_capfilt: {{root: "{output.resolve()}", image_root: "{report["image_root"]}"{more}}}'


def histogram(statistics: Statistics, score: str, threshold: float | None) -> bytes:
    """A PNG picture of a score's distribution, of web texts and captions; the part that is kept is filled."""
    from matplotlib.figure import Figure

    low, high = RANGES[score]
    edges = [low + (high - low) * place / BINS for place in range(BINS + 1)]
    shown = [source for source in SOURCES if statistics.texts[source]["texts"]]
    # Without pyplot, which keeps figures and picks a window system.
    figure = Figure(figsize=(7, 1.1 + 1.7 * max(1, len(shown))), layout="constrained")
    axes = figure.subplots(max(1, len(shown)), sharex=True, squeeze=False)[:, 0]
    for axis, source in zip(axes, shown):
        counts = statistics.histograms[score][source]
        axis.stairs(counts["texts"], edges, color=_COLOURS[source], label=f"{source}, all")
        axis.stairs(counts["kept"], edges, fill=True, alpha=0.5, color=_COLOURS[source], label="kept")
        if threshold is not None:
            axis.axvline(threshold, color="#555555", linestyle="--", linewidth=1)
        axis.set_ylabel("texts")
        axis.legend(frameon=False)
    axes[-1].set_xlabel(_NAMES[score])
    filled = [
        place
        for source in SOURCES
        for place, count in enumerate(statistics.histograms[score][source]["texts"])
        if count
    ]
    if filled and score == "itc":
        axes[-1].set_xlim(edges[min(filled)], edges[max(filled) + 1])
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()


def page(
    about: Mapping[str, Any],
    statistics: Statistics,
    samples: Sequence[Mapping[str, Any]],
    minimums: Mapping[str, float],
) -> str:
    """The page, with all pictures inside of it.

    Args:
        about (`Mapping[str, Any]`): Content of the report.
        statistics (`Statistics`): Of all rows.
        samples (`Sequence[Mapping]`): Of `instructblip_hf.capfilt.statistics.sample`.
        minimums (`Mapping[str, float]`): Thresholds by score.
    """
    template = Template((Path(__file__).parent / "report_page.html").read_text(encoding="utf-8"))
    pictures = "\n".join(
        f'<img class="plot" src="data:image/png;base64,{base64.b64encode(picture).decode("ascii")}" alt="{_NAMES[score]}">'
        for score in statistics.histograms
        for picture in [histogram(statistics, score, minimums.get(score))]
    )
    sections = []
    for group, rows in first_samples(samples).items():
        if rows:
            cards = "\n".join(_card(row) for row in rows)
            count = f"{statistics.groups[group]:,} rows"
            sections.append(
                f'<h2>{html.escape(GROUPS[group])} <span class="quiet">{count}</span></h2>\n<div class="cards">\n{cards}\n</div>'
            )
    captioner = about["captioner"]
    made_by = f", captions by {html.escape(captioner['name'])}" if captioner else ""
    return template.substitute(
        rows=f"{about['rows']:,}",
        kept=f"{about['rows_kept']:,}",
        bad=f"; {about['bad_rows']:,} could not be read" if about["bad_rows"] else "",
        models=f"Scores by {html.escape(about['filter']['model'])}{made_by}.",
        table=_table(about["sources"]),
        pictures=pictures,
        sections="\n".join(sections),
    )


def _table(sources: Mapping[str, Any]) -> str:
    scores = list(next(iter(sources.values()))["mean"])
    head = "".join(
        f"<th>{name}</th>" for name in ("", "texts", "kept", "share kept", *(f"mean {one}" for one in scores))
    )
    rows = []
    for source, one in sources.items():
        if one["texts"]:
            numbers = [f"{one['texts']:,}", f"{one['kept']:,}", f"{one['share_kept']:.1%}"]
            numbers += [f"{one['mean'][score]:.3f}" for score in scores]
            rows.append(
                f"<tr><td>{source}</td>" + "".join(f'<td class="number">{cell}</td>' for cell in numbers) + "</tr>"
            )
    return f"<table>\n<tr>{head}</tr>\n" + "\n".join(rows) + "\n</table>"


def _card(row: Mapping[str, Any]) -> str:
    lines = []
    for one in row["candidates"]:
        scores = " ".join(f"{name} {value:.3f}" for name, value in one.items() if name in RANGES)
        kind, mark = ("kept", "&#10003;") if one["kept"] else ("dropped", "&#10007;")
        lines.append(
            f'<li class="{kind}">{mark} {html.escape(one["text"])} <span class="quiet">{one["source"]}, {scores}</span></li>'
        )
    return (
        f'<div class="card"><img src="data:image/jpeg;base64,{row["image"]}" alt="">'
        f'<div><span class="quiet">{html.escape(row["row"])}</span><ul>{"".join(lines)}</ul></div></div>'
    )


def told(bad: Sequence[Mapping[str, str]], shown: int = 10) -> str:
    """Rows that could not be read, as a text for an error."""
    named = "; ".join(f"{row['row']}: {row['problem']}" for row in bad[:shown])
    return named + (f"; and {len(bad) - shown} more" if len(bad) > shown else "")


def check_bad_rows(bad: Sequence[Mapping[str, str]], allowed: int) -> None:
    """Raises if more rows could not be read than may be left out.

    Raises:
        CapFiltError: Naming them.
    """
    if len(bad) > allowed:
        raise CapFiltError(
            f"{told(bad)}. Shards that are finished are kept, and the same command goes on from there; up to N such rows "
            "are left out with --skip-bad-rows N"
        )


__all__ = ["check_bad_rows", "check_matplotlib", "histogram", "page", "recipe_line", "summary"]
