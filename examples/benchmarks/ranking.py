"""Vocabulary ranking: a copy of the prompt for each candidate, as LAVIS does it, against `rank_candidates`.

    python examples/benchmarks/ranking.py
    python examples/benchmarks/ranking.py --model t5 --candidates 100 1000

Both sides score the same candidates after the same prompt of 64 tokens with the same random weights, a LLaMA of 134M or a
T5 of 223M, in one process and one thread, in turn; times are CPU time, medians. Image and Q-Former are left out: both
sides read them once. The copying side reads prompt and candidate of as many candidates at a time as `--rows` says
(LAVIS's n_segments); of T5 it runs the encoder once and copies what comes out, as LAVIS does. Their scores are compared
before anything is timed.

Candidates have 1 to 6 tokens. "answers" are short and begin alike, as answers do: n tokens with a probability
proportional to 1/n, the first of 40, each next one of 10. "unlike" ones have all lengths alike and nothing in common.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaConfig, T5Config

from instructblip_hf.models.ranking import rank_continuations


PROMPT, VOCABULARY, LONGEST = 64, 32000, 6
TOLERANCE = 1e-3  # of sums of log-probabilities around -60


def build(name: str) -> Any:
    """A language model with random weights."""
    torch.manual_seed(0)
    if name == "llama":
        config: Any = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=768,
            intermediate_size=2048,
            num_hidden_layers=12,
            num_attention_heads=12,
        )
        return AutoModelForCausalLM.from_config(config).eval()
    config = T5Config(
        vocab_size=VOCABULARY, d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12, decoder_start_token_id=0
    )
    return AutoModelForSeq2SeqLM.from_config(config).eval()


def make_candidates(kind: str, number: int) -> list[list[int]]:
    """Different lists of tokens of the lengths 1 to 6."""
    generator = random.Random(0)
    found: dict[tuple[int, ...], None] = {}
    while len(found) < number:
        if kind == "unlike":
            length = generator.randint(1, LONGEST)
            tokens = [generator.randrange(100, VOCABULARY) for _ in range(length)]
        else:
            (length,) = generator.choices(range(1, LONGEST + 1), [1 / n for n in range(1, LONGEST + 1)])
            tokens = [generator.randrange(100, 140), *(generator.randrange(200, 210) for _ in range(length - 1))]
        found[tuple(tokens)] = None
    return [list(tokens) for tokens in found]


@torch.no_grad()
def copied(model: Any, embeds: torch.Tensor, candidates: list[list[int]], rows: int) -> torch.Tensor:
    """Scores of a forward pass over a copy of the prompt for each candidate, shape (candidates,)."""
    scores = []
    if model.config.is_encoder_decoder:
        encoded = model.get_encoder()(inputs_embeds=embeds).last_hidden_state
    for start in range(0, len(candidates), rows):
        chunk = candidates[start : start + rows]
        width = max(map(len, chunk))
        ids = torch.tensor([tokens + [0] * (width - len(tokens)) for tokens in chunk])
        mask = torch.tensor([[1] * len(tokens) + [0] * (width - len(tokens)) for tokens in chunk])
        if model.config.is_encoder_decoder:
            copies = (encoded.repeat(len(chunk), 1, 1),)
            logits = model(encoder_outputs=copies, decoder_input_ids=model._shift_right(ids)).logits
        else:
            whole = torch.cat([embeds.repeat(len(chunk), 1, 1), model.get_input_embeddings()(ids)], dim=1)
            whole_mask = torch.cat([torch.ones(len(chunk), PROMPT, dtype=mask.dtype), mask], dim=1)
            logits = model(inputs_embeds=whole, attention_mask=whole_mask).logits[:, PROMPT - 1 : -1]
        steps = logits.log_softmax(-1).gather(2, ids.unsqueeze(-1))[..., 0]
        scores.append((steps * mask).sum(1))
    return torch.cat(scores)


def cpu_seconds(work: Callable[[], Any]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def row(model: Any, kind: str, number: int, rows: int, repeats: int) -> str:
    """A line of the table."""
    embeds = torch.randn(1, PROMPT, model.config.hidden_size)
    candidates = make_candidates(kind, number)

    def ours(some: list[list[int]] = candidates, top_k: int | None = None) -> torch.Tensor:
        return rank_continuations(model, model.config.is_encoder_decoder, embeds, None, some, top_k=top_k).scores[0]

    difference = (copied(model, embeds, candidates[:20], rows) - ours(candidates[:20])).abs().max()
    if not difference < TOLERANCE:
        raise SystemExit(f"scores differ by {difference:.1e}: nothing is timed")
    sides = {
        "copied": lambda: copied(model, embeds, candidates, rows),
        "ours": ours,
        "best": lambda: ours(top_k=min(5, number)),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            times[name].append(cpu_seconds(side))
    copy, all_of_them, best = (statistics.median(values) for values in times.values())
    beginnings = len({tuple(tokens[:end]) for tokens in candidates for end in range(1, len(tokens) + 1)})
    return (
        f"| {number:,} {kind} | {beginnings:,} | {copy:.2f} | {all_of_them:.3f} | {copy / all_of_them:.1f} | "
        f"{best:.3f} | {copy / best:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["llama", "t5"], default="llama")
    parser.add_argument("--candidates", type=int, nargs="+", default=[4, 20, 100, 1000], help="how many")
    parser.add_argument("--rows", type=int, default=50, help="candidates that the copying side reads at once")
    parser.add_argument("--repeats", type=int, default=5, help="times that up to 100 candidates are timed; more once")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = build(options.model)
    print("| candidates | distinct beginnings | copied (s) | rank_candidates (s) | ratio | top 5 alone (s) | ratio |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for kind in ("answers", "unlike"):
        for number in options.candidates:
            repeats = options.repeats if number <= 100 else 1
            print(row(model, kind, number, options.rows, repeats), flush=True)


if __name__ == "__main__":
    main()
