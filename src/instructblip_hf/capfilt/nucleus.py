"""Nucleus sampling whose draws belong to a caption, not to a generator that all rows share.

`torch.multinomial` takes numbers from one global generator, so that what a row draws depends on the rows beside it and
on all that was drawn before. Here the number that decides about token t of caption k of an image is a hash of seed, image,
k and t: captions stay the same whatever else is in the batch, and in whichever process and after whatever restart they
are made. The distribution is that of nucleus sampling (Holtzman et al. 2020), as BLIP uses it with p = 0.9.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from transformers import LogitsProcessor


class KeyedNucleus(LogitsProcessor):
    """Leaves of the scores of each row the one token that was drawn.

    For one call of ``generate`` with ``do_sample=True``, which then has nothing left to choose.

    Args:
        draws (`torch.Tensor`): Numbers from 0 to 1, shape (rows, tokens), of `caption_draws`.
        top_p (`float`): The fewest most likely tokens with at least this probability in all are drawn from.
        temperature (`float`, *optional*, defaults to 1.0): Scores are divided by it.
    """

    def __init__(self, draws: torch.Tensor, top_p: float, temperature: float = 1.0) -> None:
        self._draws, self._top_p, self._temperature = draws, top_p, temperature
        self._step = 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if len(scores) != len(self._draws):
            raise ValueError(f"{len(scores)} rows of scores for the draws of {len(self._draws)}")
        ordered, tokens = torch.sort(scores.float() / self._temperature, dim=-1, descending=True, stable=True)
        # [rows, words]
        probabilities = ordered.softmax(-1)
        reached = probabilities.cumsum(-1)
        in_nucleus = reached - probabilities < self._top_p
        in_nucleus[:, 0] = True
        mass = probabilities.where(in_nucleus, 0.0).sum(-1)  # [rows]
        wanted = self._draws[:, self._step].to(mass) * mass
        place = (reached <= wanted[:, None]).sum(-1).minimum(in_nucleus.sum(-1) - 1)  # [rows]
        self._step += 1
        chosen = tokens.gather(-1, place[:, None])
        only: torch.FloatTensor = torch.full_like(scores, -torch.inf).scatter_(-1, chosen, 0.0)  # type: ignore[assignment]
        return only


def caption_draws(seed: int, images: Sequence[str], captions: int, tokens: int) -> torch.Tensor:
    """The numbers that decide about the captions of images.

    Args:
        seed (`int`): Seed of the run.
        images (`Sequence[str]`): What each image is known by.
        captions (`int`): Captions an image. Those of fewer captions are the first of more.
        tokens (`int`): Longest caption. The numbers of a shorter one are the first of a longer.

    Returns:
        `torch.Tensor`: Shape (images * captions, tokens), float64, each from 0 to below 1.
    """
    rows = [
        [_uniform(f"{seed}/{image}/{caption}/{token}") for token in range(tokens)]
        for image in images
        for caption in range(captions)
    ]
    return torch.tensor(rows, dtype=torch.float64)


def _uniform(key: str) -> float:
    # 53 bits, as many as a float64 has.
    return (int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 11) / 2**53


__all__ = ["KeyedNucleus", "caption_draws"]
