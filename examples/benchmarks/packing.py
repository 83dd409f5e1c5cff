"""Padding in the Q-Former: rows padded, rows packed, and which of the two the rule of `packed_text.least_padding` takes.

The rule goes by the share of padding among all tokens, queries counted, and by the width. The Q-Formers here have 32 queries, 6
layers, heads of 64, and images of 16 patches, so that nearly all of the time is in what packing changes. The longest text has
64 tokens; the others' lengths lie evenly around their mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from harness import Case
from options import Options

from instructblip_hf import InstructBlipQFormerConfig, InstructBlipQFormerModel
from instructblip_hf.models.connectors import packed_text
from models import QUERIES


TEXT, PATCHES = 64, 16
WIDTHS, SHARES, ROWS = (64, 128, 256, 512, 768), (0.05, 0.1, 0.2, 0.3, 0.4), (4, 16)


def cases(options: Options, pair: Any = None) -> Iterator[Case]:
    for width in WIDTHS if not options.is_quick else WIDTHS[:1]:
        model = build(width, options)
        for work, rows in [("forward", rows) for rows in ROWS] + [("with backward", ROWS[0])]:
            for share in SHARES if not options.is_quick else (0.1, 0.4):
                yield _case(options, model, width, work, rows, share)


def build(width: int, options: Options) -> Any:
    """A Q-Former without dropout, random weights."""
    torch.manual_seed(0)
    config = InstructBlipQFormerConfig(
        vocab_size=1000,
        hidden_size=width,
        num_hidden_layers=6 if not options.is_quick else 2,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        encoder_hidden_size=width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return InstructBlipQFormerModel(config).to(options.device).eval()


def lengths(rows: int, share: float) -> list[int]:
    """Lengths of texts, the longest `TEXT`, which have that share of padding among their tokens and the queries."""
    places = rows * (QUERIES + TEXT)
    tokens = places - round(share * places) - rows * QUERIES
    mean = (tokens - TEXT) / (rows - 1)  # of all but the longest
    spread = min(mean - 1, TEXT - mean)
    found = [TEXT] + [round(mean + spread * (2 * row / (rows - 2) - 1)) for row in range(rows - 1)]
    found[rows // 2] += tokens - sum(found)  # what rounding left
    return found


def _case(options: Options, model: Any, width: int, work: str, rows: int, share: float) -> Case:
    generator = torch.Generator().manual_seed(0)
    text = lengths(rows, share)
    counts = [[1] * (QUERIES + length) + [0] * (TEXT - length) for length in text]
    mask = torch.tensor(counts)  # in the memory of the CPU, where lengths can be read
    ids = torch.randint(10, 1000, (rows, TEXT), generator=generator).to(options.device)
    tensors = {
        "queries": torch.randn(rows, QUERIES, width, generator=generator).to(options.device),
        "image": torch.randn(rows, PATCHES, width, generator=generator).to(options.device),
    }

    def run() -> torch.Tensor:
        states = model(
            input_ids=ids,
            attention_mask=mask,
            query_embeds=tensors["queries"],
            encoder_hidden_states=tensors["image"],
        ).last_hidden_state
        return states * mask.to(states).unsqueeze(-1)  # [rows, queries + text, width]

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return run()

    def backward() -> torch.Tensor:
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        states = run()
        gradients = torch.autograd.grad(states.square().sum(), weights, allow_unused=True)
        return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])

    def forced(least: float) -> Callable[[], torch.Tensor]:
        def way() -> torch.Tensor:
            with mock.patch.object(packed_text, "least_padding", return_value=least):
                return forward() if work == "forward" else backward()

        return way

    return Case(
        "packing",
        {"width": width, "work": work, "rows": rows, "padding": share},
        "padding",
        {"padded": forced(1.0), "packed": forced(0.0)},
        tensors=tensors,
        modules=(model,),
    )


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """For each width from which share on packing was faster, from which the rule packs, and where it took the slower way.

    A way is slower where the middle half of the rounds lies on one side of 1.
    """
    lines = ["| width | work | rows | the rule packs above | packed is faster above | the rule took the slower way |"]
    lines.append("|---:|---|---:|---:|---:|---|")
    packed = [row for row in rows if row["variant"] == "packed"]
    for key in dict.fromkeys(_curve(row) for row in packed):
        curve = [row for row in packed if _curve(row) == key]
        rule = packed_text.least_padding(key[0])
        wrong = []
        for row in curve:
            share, (low, high) = row["point"]["padding"], row["ratio_quartiles"]
            if (high < 1) if share > rule else (low > 1):
                wrong.append(f"{share:g} ({row['ratio']:.2f})")
        cells = [*map(str, key), f"{rule:.2f}", crossing(curve), ", ".join(wrong) or "nowhere"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def crossing(curve: Sequence[dict[str, Any]]) -> str:
    """The share at which the straight lines between the points first come to a ratio of 1 and stay above it."""
    points = [(row["point"]["padding"], row["ratio"]) for row in curve]
    below = [number for number, (_, ratio) in enumerate(points) if ratio <= 1]
    if not below:
        return f"below {points[0][0]:g}"
    if below[-1] == len(points) - 1:
        return f"over {points[-1][0]:g}"
    (first, low), (second, high) = points[below[-1] : below[-1] + 2]
    return f"{first + (second - first) * (1 - low) / (high - low):.2f}"


def _curve(row: dict[str, Any]) -> tuple[int, str, int]:
    return row["point"]["width"], row["point"]["work"], row["point"]["rows"]
