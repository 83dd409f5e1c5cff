"""Vocabulary ranking: a copy of the prompt for each candidate, as LAVIS does it, against `rank_candidates`.

Both sides score the same candidates after the same prompt of 64 tokens with the same random weights, a LLaMA of 134M or a
T5 of 223M. Image and Q-Former are left out: both sides read them once. The copying side reads prompt and candidate of 50
candidates at a time (LAVIS's n_segments); of T5 it runs the encoder once and copies what comes out, as LAVIS does. With
--lavis the same is done with LAVIS's own language models, which give the losses of rows.

Candidates have 1 to 6 tokens and begin alike, as answers do: n tokens with a probability proportional to 1/n, the first of
40, each next one of 10 (so that there are enough different ones up to 1,000).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from harness import Case
from options import Options
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaConfig, T5Config

from instructblip_hf.models.ranking import rank_continuations


PROMPT, VOCABULARY, LONGEST, ROWS = 64, 32000, 6, 50
TOLERANCE = 1e-3  # of sums of log-probabilities around -60


def build(name: str, options: Options) -> Any:
    """A language model with random weights."""
    torch.manual_seed(0)
    layers = 1 if options.is_quick else 12
    if name == "llama":
        config: Any = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=768,
            intermediate_size=2048,
            num_hidden_layers=layers,
            num_attention_heads=12,
        )
        return AutoModelForCausalLM.from_config(config).to(options.device).eval()
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=768,
        d_kv=64,
        d_ff=3072,
        num_layers=layers,
        num_heads=12,
        decoder_start_token_id=0,
    )
    return AutoModelForSeq2SeqLM.from_config(config).to(options.device).eval()


def make_candidates(number: int) -> list[list[int]]:
    """Different lists of tokens of the lengths 1 to 6."""
    generator = random.Random(0)
    found: dict[tuple[int, ...], None] = {}
    while len(found) < number:
        (length,) = generator.choices(range(1, LONGEST + 1), [1 / n for n in range(1, LONGEST + 1)])
        tokens = [generator.randrange(100, 140), *(generator.randrange(200, 210) for _ in range(length - 1))]
        found[tuple(tokens)] = None
    return [list(tokens) for tokens in found]


@torch.no_grad()
def copied(
    model: Any, embeds: torch.Tensor, candidates: list[list[int]], rows: int, is_lavis: bool = False
) -> torch.Tensor:
    """Scores of a forward pass over a copy of the prompt for each candidate, shape (candidates,)."""
    scores = []
    if model.config.is_encoder_decoder:
        encoded = model.get_encoder()(inputs_embeds=embeds).last_hidden_state
    for start in range(0, len(candidates), rows):
        chunk = candidates[start : start + rows]
        width = max(map(len, chunk))
        ids = torch.tensor([tokens + [0] * (width - len(tokens)) for tokens in chunk], device=embeds.device)
        mask = torch.tensor(
            [[1] * len(tokens) + [0] * (width - len(tokens)) for tokens in chunk], device=embeds.device
        )
        labels = ids.where(mask != 0, -100)
        if model.config.is_encoder_decoder:
            inputs: dict[str, Any] = {"encoder_outputs": (encoded.repeat(len(chunk), 1, 1),)}
        else:
            whole = torch.cat([embeds.repeat(len(chunk), 1, 1), model.get_input_embeddings()(ids)], dim=1)
            inputs = {
                "inputs_embeds": whole,
                "attention_mask": torch.cat([mask.new_ones(len(chunk), PROMPT), mask], 1),
            }
            labels = torch.cat([labels.new_full((len(chunk), PROMPT), -100), labels], dim=1)
        if is_lavis:
            loss = model(**inputs, labels=labels, reduction="none", return_dict=True).loss
            # LAVIS's LLaMA gives the mean over all places that have a next one, its T5 the sum.
            scores.append(-loss if model.config.is_encoder_decoder else -loss * (labels.shape[1] - 1))
            continue
        if model.config.is_encoder_decoder:
            logits = model(**inputs, decoder_input_ids=model._shift_right(ids)).logits
        else:
            logits = model(**inputs).logits[:, PROMPT - 1 : -1]
        steps = logits.log_softmax(-1).gather(2, ids.unsqueeze(-1))[..., 0]
        scores.append((steps * mask).sum(1))
    return torch.cat(scores)


def cases(options: Options, pair: Any = None) -> Iterator[Case]:
    for name in ("llama", "t5"):
        model = build(name, options)
        theirs = options.lavis.language_model(model) if options.lavis is not None else None
        for number in options.candidates if not options.is_quick else [2]:
            yield _case(options, name, model, theirs, number)


def _case(options: Options, name: str, model: Any, theirs: Any, number: int) -> Case:
    embeds = torch.randn(1, PROMPT, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    tensors = {"embeds": embeds.to(options.device)}
    candidates = make_candidates(number)
    best = min(5, number - 1)

    @torch.no_grad()
    def ours(top_k: int | None = None) -> torch.Tensor:
        return rank_continuations(
            model, model.config.is_encoder_decoder, tensors["embeds"], None, candidates, top_k=top_k
        ).scores[0]

    variants: dict[str, Callable[[], Any]] = {"copied": lambda: copied(model, tensors["embeds"], candidates, ROWS)}
    if theirs is not None and number <= 100:  # beyond, minutes for what is ten times the same
        variants["copied, LAVIS"] = lambda: copied(theirs, tensors["embeds"], candidates, ROWS, is_lavis=True)
    variants |= {"ours": ours, f"ours, best {best}": lambda: ours(best).topk(best).values}
    return Case(
        f"ranking, {name}",
        {"candidates": number},
        "candidates",
        variants,
        TOLERANCE,
        difference,
        tensors=tensors,
        modules=(model, *([theirs] if theirs is not None else [])),
        missing={} if theirs is not None else {"copied, LAVIS": "no --lavis"},
        rounds=1 if number > 100 else None,
    )


def difference(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Largest difference of scores, of the best ones where `found` has those alone."""
    if len(found) < len(expected):
        expected = expected.topk(len(found)).values
    return float((found - expected).abs().max())
