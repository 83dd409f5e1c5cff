"""What the demo shows and writes: a table for the terminal, one HTML page, one PNG contact sheet."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from .loading import KNOWS, PUBLISHED_EXAMPLE


GENERATOR = "instructblip demo"
PAGE_NAME, SHEET_NAME = "index.html", "contact-sheet.png"
CARDS_PER_TASK = 8


@dataclass(frozen=True)
class Outcome:
    """One question of the demo with its answer.

    Attributes:
        task (`str`): Task type.
        group (`str`): The column that it counts in.
        image (`PIL.Image.Image`): The scene.
        instruction (`str`): What was asked; earlier turns of a dialogue on lines of their own.
        answer (`str`): What the model said.
        truth (`str`): What is right, or one of the right answers.
        right (`bool`): Whether the answer counts as right.
    """

    task: str
    group: str
    image: Image.Image
    instruction: str
    answer: str
    truth: str
    right: bool


Accuracies = dict[str, dict[str, float]]


def accuracies(outcomes: Sequence[Outcome]) -> Accuracies:
    """Share of right answers by task and column, with a row ``all`` of the means over tasks."""
    counts: dict[str, dict[str, list[bool]]] = {}
    for outcome in outcomes:
        counts.setdefault(outcome.task, {}).setdefault(outcome.group, []).append(outcome.right)
    shares = {
        task: {group: sum(rights) / len(rights) for group, rights in groups.items()} for task, groups in counts.items()
    }
    groups = list(dict.fromkeys(outcome.group for outcome in outcomes))
    shares["all"] = {}
    for group in groups:
        values = [row[group] for task, row in shares.items() if group in row]
        shares["all"][group] = sum(values) / len(values)
    return shares


def text_table(shares: Accuracies) -> str:
    """The accuracies as aligned text."""
    groups = list(shares["all"])
    width = max(len("task"), *(len(task) for task in shares))
    lines = ["  ".join(["task".ljust(width), *groups])]
    for task, row in shares.items():
        cells = [(f"{row[group]:.2f}" if group in row else "-").rjust(len(group)) for group in groups]
        lines.append("  ".join([task.ljust(width), *cells]))
    return "\n".join(lines)


def check_writable(folder: Path) -> None:
    """Raises a `FileExistsError` if the folder holds a file of a name to be written that is not the demo's.

    Also raises a `NotADirectoryError` if the folder is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--out: {folder} is a file, not a folder")
    page, sheet = folder / PAGE_NAME, folder / SHEET_NAME
    ours = {page: _is_our_page, sheet: _is_our_sheet}
    for file, is_ours in ours.items():
        if file.exists() and not is_ours(file):
            raise FileExistsError(f"--out: {file} exists and was not written by this demo; choose another folder")


def _is_our_page(file: Path) -> bool:
    return f'content="{GENERATOR}"' in file.read_text(encoding="utf-8", errors="replace")[:2000]


def _is_our_sheet(file: Path) -> bool:
    try:
        with Image.open(file) as image:
            return image.info.get("Software") == GENERATOR
    except OSError:
        return False


def write_report(
    folder: Path, title: str, notes: Sequence[str], outcomes: Sequence[Outcome], shares: Accuracies
) -> tuple[Path, Path]:
    """Writes page and contact sheet.

    Args:
        folder (`Path`): Where to; made if need be.
        title (`str`): Heading of the page.
        notes (`Sequence[str]`): Plain paragraphs under it.
        outcomes (`Sequence[Outcome]`): What is shown; of each task the first few.
        shares (`dict`): Of `accuracies`, or several runs side by side.

    Returns:
        The two files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    by_task: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_task.setdefault(outcome.task, []).append(outcome)
    shown = {task: _pick(of_task) for task, of_task in by_task.items()}
    page = folder / PAGE_NAME
    page.write_text(_page(title, notes, shown, shares, len(outcomes)), encoding="utf-8")
    sheet = folder / SHEET_NAME
    metadata = PngImagePlugin.PngInfo()
    metadata.add_text("Software", GENERATOR)
    _contact_sheet([outcome for of_task in shown.values() for outcome in of_task[:2]]).save(sheet, pnginfo=metadata)
    return page, sheet


def _pick(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The first few of each column in turn, in the order they were asked: neither the best nor the worst."""
    columns = [
        [outcome for outcome in outcomes if outcome.group == group]
        for group in dict.fromkeys(outcome.group for outcome in outcomes)
    ]
    return [outcome for row in zip(*columns) for outcome in row][:CARDS_PER_TASK]


def knows_notes(parameters: int) -> list[str]:
    """What the tiny model knows, and how to ask a published one."""
    return [
        f"The bundled model has {parameters / 1e6:.1f} million parameters and knows {KNOWS}.",
        f'For photographs, name a published model: instructblip ask photo.jpg "..." --model {PUBLISHED_EXAMPLE}',
    ]


def _page(
    title: str, notes: Sequence[str], shown: Mapping[str, Sequence[Outcome]], shares: Accuracies, total: int
) -> str:
    template = Template((Path(__file__).parent / "demo_page.html").read_text(encoding="utf-8"))
    introduction = "\n".join(f"<p>{_marked(note)}</p>" for note in notes)
    sections = []
    for task, outcomes in shown.items():
        cards = "\n".join(_card(outcome) for outcome in outcomes)
        sections.append(f'<h2>{html.escape(task)}</h2>\n<div class="cards">\n{cards}\n</div>')
    return template.substitute(
        title=html.escape(title),
        introduction=introduction,
        total=f"{total:,}",
        table=_html_table(shares),
        sections="\n".join(sections),
    )


def _marked(note: str) -> str:
    """Escaped, with a command after a colon set as code."""
    text, colon, command = note.partition(": instructblip ")
    if not colon:
        return html.escape(note)
    return f"{html.escape(text)}: <code>instructblip {html.escape(command)}</code>"


def _html_table(shares: Accuracies) -> str:
    groups = list(shares["all"])
    head = "".join(f"<th>{html.escape(group)}</th>" for group in ["task", *groups])
    rows = []
    for task, row in shares.items():
        cells = "".join(_share_cell(row.get(group)) for group in groups)
        kind = ' class="all"' if task == "all" else ""
        rows.append(f"<tr{kind}><td>{html.escape(task)}</td>{cells}</tr>")
    return f"<table>\n<tr>{head}</tr>\n" + "\n".join(rows) + "\n</table>"


def _share_cell(share: float | None) -> str:
    if share is None:
        return "<td></td>"
    bar = f'<span class="bar"><i style="width:{100 * share:.0f}%"></i></span>'
    return f'<td class="number">{bar}{share:.2f}</td>'


def _card(outcome: Outcome) -> str:
    buffer = io.BytesIO()
    outcome.image.save(buffer, format="PNG", optimize=True)
    source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    kind, mark = ("right", "&#10003;") if outcome.right else ("wrong", "&#10007;")
    truth = "" if outcome.right else f'<span class="quiet">truth: {html.escape(outcome.truth)}</span>'
    instruction = html.escape(outcome.instruction).replace("\n", "<br>")
    answer = html.escape(outcome.answer) or "(nothing)"
    return (
        f'<div class="card {kind}"><img src="{source}" alt="a scene of coloured shapes">'
        f"<div>{instruction}<b>{mark} {answer}</b>{truth}</div></div>"
    )


_COLUMNS, _TILE_WIDTH, _PICTURE, _MARGIN, _LINE = 3, 420, 112, 12, 18
_GROUND, _PAPER, _INK, _QUIET = "#f5f4f1", "#ffffff", "#22211f", "#6d6a64"
_RIGHT, _WRONG = "#1d7a46", "#b3372b"


def _contact_sheet(outcomes: Sequence[Outcome]) -> Image.Image:
    """Scene, instruction, answer and truth of each question, three in a row."""
    font: Any = ImageFont.load_default(size=14)
    tiles = [_tile(outcome, font) for outcome in outcomes]
    rows = [tiles[start : start + _COLUMNS] for start in range(0, len(tiles), _COLUMNS)]
    heights = [max(tile.height for tile in row) for row in rows]
    width = _COLUMNS * (_TILE_WIDTH + _MARGIN) + _MARGIN
    sheet = Image.new("RGB", (width, sum(heights) + _MARGIN * (len(rows) + 1)), _GROUND)
    top = _MARGIN
    for row, height in zip(rows, heights):
        for column, tile in enumerate(row):
            left = _MARGIN + column * (_TILE_WIDTH + _MARGIN)
            sheet.paste(_PAPER, (left, top, left + _TILE_WIDTH, top + height))
            sheet.paste(tile, (left, top))
        top += height + _MARGIN
    return sheet


def _tile(outcome: Outcome, font: Any) -> Image.Image:
    room = _TILE_WIDTH - _PICTURE - 3 * _MARGIN
    lines = [
        (line, _QUIET) for text in [outcome.task, *outcome.instruction.split("\n")] for line in _wrap(text, font, room)
    ]
    lines[0] = (lines[0][0], _INK)
    color = _RIGHT if outcome.right else _WRONG
    lines += [(line, color) for line in _wrap(f"answer: {outcome.answer or '(nothing)'}", font, room)]
    lines += [(line, _QUIET) for line in _wrap(f"truth: {outcome.truth}", font, room)]
    height = max(_PICTURE, _LINE * len(lines)) + 2 * _MARGIN
    tile = Image.new("RGB", (_TILE_WIDTH, height), _PAPER)
    picture = outcome.image.resize((_PICTURE, _PICTURE), Image.Resampling.NEAREST)
    tile.paste(picture, (_MARGIN, _MARGIN))
    draw = ImageDraw.Draw(tile)
    for number, (line, ink) in enumerate(lines):
        draw.text((_PICTURE + 2 * _MARGIN, _MARGIN + number * _LINE), line, fill=ink, font=font)
    return tile


def _wrap(text: str, font: Any, room: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
