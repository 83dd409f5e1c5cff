"""Keyed nucleus sampling: the tokens and the frequencies of nucleus sampling written out."""

import pytest
import torch

from instructblip_hf.capfilt.nucleus import KeyedNucleus, caption_draws
from tiny_capfilt import drawn, nucleus


@pytest.mark.parametrize(("top_p", "temperature"), [(0.9, 1.0), (0.5, 0.7), (1.0, 1.0), (0.01, 2.0)])
def test_tokens_are_those_at_the_draws(top_p, temperature):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(50, 4, 30, generator=generator)  # [tokens, rows, words]
    draws = torch.rand(4, 50, generator=generator)
    sampler = KeyedNucleus(draws, top_p, temperature)
    for token in range(50):
        scores = sampler(torch.zeros(4, 1, dtype=torch.long), logits[token])
        assert torch.equal(scores.isfinite().sum(-1), torch.ones(4, dtype=torch.long))
        expected = [drawn(logits[token, row], draws[row, token].item(), top_p, temperature) for row in range(4)]
        assert scores.argmax(-1).tolist() == expected


def test_frequencies_are_the_probabilities():
    logits = torch.tensor([0.3, 2.0, -1.0, 1.2, 1.9, -5.0])
    numbers = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    scores = KeyedNucleus(numbers[:, None], 0.8)(torch.zeros(4000, 1), logits.expand(4000, -1))
    counts = torch.bincount(scores.argmax(-1), minlength=6) / 4000
    tokens, probabilities = nucleus(logits, 0.8)
    assert set(counts.nonzero().flatten().tolist()) == set(tokens)
    for token, probability in zip(tokens, probabilities):
        assert counts[token].item() == pytest.approx(probability, abs=1 / 2000)


def test_forbidden_words_are_never_drawn():
    logits = torch.tensor([[0.0, -torch.inf, 0.0, -torch.inf]])
    for number in (0.0, 0.49, 0.51, 0.9999999999):
        chosen = KeyedNucleus(torch.tensor([[number]]), 1.0)(torch.zeros(1, 1), logits).argmax().item()
        assert chosen in (0, 2)


def test_draws_belong_to_the_caption_alone():
    draws = caption_draws(3, ["x", "y"], 4, 8)
    assert draws.shape == (8, 8)
    assert ((draws >= 0) & (draws < 1)).all()
    assert len(draws.unique()) == 64
    assert torch.equal(draws[4:], caption_draws(3, ["y"], 4, 8))
    assert torch.equal(draws[:2, :5], caption_draws(3, ["x"], 2, 5))
    assert not torch.equal(draws, caption_draws(4, ["x", "y"], 4, 8))


def test_numbers_are_uniform():
    numbers = caption_draws(0, [f"{number}" for number in range(100)], 5, 20).flatten()
    counts = torch.histc(numbers, 10, 0, 1)
    # Ten times 1,000 with a standard deviation of 30.
    assert (counts - 1000).abs().max() < 150


def test_rows_and_draws_fit():
    with pytest.raises(ValueError, match="2 rows of scores for the draws of 1"):
        KeyedNucleus(torch.zeros(1, 1), 0.9)(torch.zeros(2, 1), torch.zeros(2, 5))
