"""Vocabulary ranking (InstructBLIP, arXiv 2305.06500, section 2.4): candidates in the order of their likelihood.

The score of a candidate is the sum of the log-probabilities of its tokens after the prompt, as LAVIS orders them
(`blip2_vicuna_instruct.py`, `blip2_t5_instruct.py`, `_predict_class`). Image and prompt are read once, beginnings that
candidates share once, so the work grows with the number of distinct beginnings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput

from .candidates import CandidateTrie
from .prompt_state import CausalPromptState, Seq2SeqPromptState, TokenTree


MOST_LOGITS = 2**28
"""Logits that are formed at a time, 1 GiB in float32; of large batches and vocabularies fewer nodes are read at once."""
MOST_COPIED_TOKENS = 4096
"""Tokens of prompts whose keys and values are copied at a time, for models that read candidates as rows."""
FEW = 64
"""Nodes of a tree that are read together with the prompt even where some could be left out."""


@dataclass
class RankingOutput(ModelOutput):
    """Output of ``rank_candidates``.

    Args:
        scores (`torch.FloatTensor`):
            Shape (batch, candidates), in nats. ``-inf`` where a sample has fewer candidates than others, and for
            those that were ruled out on the way to the `top_k` best.
        order (`torch.LongTensor`):
            Shape (batch, candidates), or (batch, top_k): indices of candidates, best first; of equal ones the first.
        is_greedy (`torch.BoolTensor`, *optional*):
            Shape (batch, candidates): whether each token of a candidate is the likeliest after those before it. With
            ``return_greedy``; `False` for candidates that were ruled out.
    """

    scores: torch.Tensor | None = None
    order: torch.Tensor | None = None
    is_greedy: torch.Tensor | None = None


def rank_continuations(
    language_model: Any,
    is_encoder_decoder: bool,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    candidates: Sequence[Sequence[int]] | Sequence[Sequence[Sequence[int]]],
    length_penalty: float = 0.0,
    top_k: int | None = None,
    chunk_size: int = 256,
    return_greedy: bool = False,
) -> RankingOutput:
    """Scores candidates after prompts.

    Args:
        language_model (`PreTrainedModel`): A causal or sequence-to-sequence model with its head.
        is_encoder_decoder (`bool`): Which of the two it is.
        inputs_embeds (`torch.Tensor`): Shape (batch, tokens, hidden): prompts with the image features in place.
        attention_mask (`torch.Tensor`, *optional*): Shape (batch, tokens); by default all ones.
        candidates (`list[list[int]]` or `list[list[list[int]]]`):
            Token ids of each candidate, the same for all samples; or such a list for each sample.
        length_penalty (`float`, *optional*, defaults to 0.0):
            The sum of log-probabilities is divided by the number of tokens to this power: 0 for the sum, 1 for the
            mean. As in beam search.
        top_k (`int`, *optional*): Only the best ones are wanted, which leaves out what can not be among them. Exact.
        chunk_size (`int`, *optional*, defaults to 256):
            Most tokens a sample, or rows, that the language model reads at once; fewer where that makes more logits than
            `MOST_LOGITS`.
        return_greedy (`bool`, *optional*, defaults to `False`): Whether the output has ``is_greedy``.

    Returns:
        [`RankingOutput`]

    Raises:
        ValueError: For no candidates or an empty one, token ids out of range, lists of the wrong number, a `top_k` or
            `chunk_size` below 1, or a model that predicts NaN.
    """
    for name, value in (("top_k", top_k), ("chunk_size", chunk_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    batch = len(inputs_embeds)
    if attention_mask is None:
        attention_mask = torch.ones(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
    lists, is_shared = _lists_of(candidates, batch)
    tries = [CandidateTrie(group) for group in lists]
    vocabulary = language_model.config.get_text_config().vocab_size
    for trie in tries:
        if max(trie.tokens) >= vocabulary or min(trie.tokens) < 0:
            wrong = next(token for token in trie.tokens if not 0 <= token < vocabulary)
            raise ValueError(f"a candidate has the token id {wrong}; the vocabulary has {vocabulary} tokens")
    chunk_size = min(chunk_size, max(1, MOST_LOGITS // (batch * vocabulary)))
    state_class: Any = Seq2SeqPromptState if is_encoder_decoder else CausalPromptState
    # Where only the best are wanted, which nodes to read follows from the prompt; of few it is not worth a pass of its own.
    reads_all = top_k is None or max(len(trie.inner) for trie in tries) <= min(FEW, chunk_size)
    with_prompt = reads_all and state_class.takes_trees(language_model)
    first = [trie.inner[:chunk_size] if with_prompt else [] for trie in tries]
    is_all = with_prompt and all(len(trie.inner) <= chunk_size for trie in tries)
    tree = _tree_of(tries, first, inputs_embeds.device) if any(first) else None
    with torch.no_grad():
        state = state_class(language_model, inputs_embeds, attention_mask, tree, is_all)
    groups = [state] if is_shared else [state.select(row) for row in range(batch)]
    readers = [_TrieScores(group, trie, length_penalty, top_k, return_greedy) for group, trie in zip(groups, tries)]
    for reader, read in zip(readers, first):
        reader.note_read(read)
    scores = _in_one([reader.score(chunk_size) for reader in readers], -torch.inf)  # [batch, candidates]
    if bool(torch.stack([reader.is_broken for reader in readers]).any()):
        raise ValueError(
            f"the language model predicts NaN in {inputs_embeds.dtype}; float16 is too narrow for many models, bfloat16 "
            "and float32 are not"
        )
    is_greedy = _in_one([reader.is_greedy() for reader in readers], False) if return_greedy else None
    order = scores.argsort(dim=1, descending=True, stable=True)
    return RankingOutput(scores=scores, order=order[:, :top_k], is_greedy=is_greedy)


def _tree_of(tries: Sequence[CandidateTrie], nodes: Sequence[Sequence[int]], device: torch.device) -> TokenTree:
    """Some entries of each trie as a tree for each; every entry's parents stand before it, or are left out."""
    width = max(map(len, nodes))
    tokens = torch.zeros(len(tries), width, dtype=torch.long)
    depths = torch.zeros_like(tokens)
    # Rows that have less are filled up with nodes that nobody looks at.
    visible = torch.eye(width, dtype=torch.bool).repeat(len(tries), 1, 1)
    for row, (trie, entries) in enumerate(zip(tries, nodes)):
        places = {entry: place for place, entry in enumerate(entries)}
        for place, entry in enumerate(entries):
            tokens[row, place], depths[row, place] = trie.tokens[entry], trie.depths[entry]
            if trie.parents[entry] in places:
                visible[row, place] |= visible[row, places[trie.parents[entry]]]
    return TokenTree(tokens.to(device), depths.to(device), visible.to(device))


def _in_one(parts: Sequence[torch.Tensor], filler: float | bool) -> torch.Tensor:
    """Parts of shape (samples, candidates) of the same samples' order as one, rows filled up to the longest."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([nn.functional.pad(part, (0, width - part.shape[1]), value=filler) for part in parts])


def label_scores(scores: torch.Tensor, labels: Sequence[int], reduction: str = "sum") -> torch.Tensor:
    """Scores of labels that several candidates stand for, such as yes and true.

    Args:
        scores (`torch.Tensor`): Shape (batch, candidates), log-probabilities.
        labels (`Sequence[int]`): The label of each candidate, from 0.
        reduction (`str`, *optional*, defaults to `"sum"`):
            `"sum"` of the candidates' probabilities, or `"max"`, their best, which decides in LAVIS.

    Returns:
        `torch.Tensor`: Shape (batch, labels), log-probabilities; their softmax are probabilities among the labels.

    Raises:
        ValueError: If labels and candidates differ in number, or `reduction` is neither of the two.
    """
    if len(labels) != scores.shape[1]:
        raise ValueError(f"there are {len(labels)} labels for {scores.shape[1]} candidates; each has one")
    if reduction not in ("sum", "max"):
        raise ValueError(f"reduction is {reduction!r}; allowed are sum, max")
    index = torch.tensor(labels, device=scores.device)
    columns = [scores[:, index == label] for label in range(max(labels) + 1)]
    reduced = [part.logsumexp(1) if reduction == "sum" else part.max(1).values for part in columns]
    return torch.stack(reduced, dim=1)


def lavis_segment_scores(
    scores: torch.Tensor, prompt_lengths: torch.Tensor, candidate_lengths: Sequence[int], segments: int = 1
) -> torch.Tensor:
    """Scores in the order of LAVIS's Vicuna model with ``n_segments``, whose fault they carry; for comparisons alone.

    It takes the mean over the whole padded row, the longest of a segment, so that candidates of different segments are
    divided by different numbers (`blip2_vicuna_instruct.py`, `_predict_class`; `modeling_llama.py`).

    Args:
        scores (`torch.Tensor`): Shape (batch, candidates), sums of log-probabilities.
        prompt_lengths (`torch.LongTensor`): Shape (batch,), image tokens and the opening token among them.
        candidate_lengths (`Sequence[int]`): Tokens of each candidate.
        segments (`int`, *optional*, defaults to 1): Parts that the candidates are split into.

    Returns:
        `torch.Tensor`: Shape (batch, candidates).
    """
    number = scores.shape[1]
    size = number // segments
    starts = [segment * size for segment in range(segments)]
    divided = []
    for start, stop in zip(starts, [*starts[1:], number]):
        row = int(prompt_lengths.max()) + max(candidate_lengths[start:stop])
        divided.append(scores[:, start:stop] / (row - 1))
    return torch.cat(divided, dim=1)


def _lists_of(candidates: Any, batch: int) -> tuple[list[Any], bool]:
    """One list of candidates a group of samples, and whether all samples share one."""
    if not len(candidates):
        raise ValueError("candidates is empty; there must be at least one")
    is_nested = [len(candidate) > 0 and not isinstance(candidate[0], int) for candidate in candidates]
    if not any(is_nested):
        return [candidates], True
    if not all(is_nested):
        raise ValueError(
            "candidates must be token ids of candidates, or a list of candidates for each sample, not both"
        )
    if len(candidates) != batch:
        raise ValueError(f"candidates has lists for {len(candidates)} samples, the batch has {batch}")
    return list(candidates), False


class _TrieScores:
    """Scores of all candidates of a trie after the prompts of a state, which all share it."""

    def __init__(
        self, state: Any, trie: CandidateTrie, length_penalty: float, top_k: int | None, note_greedy: bool = False
    ) -> None:
        self.state, self.trie, self.length_penalty = state, trie, length_penalty
        self.top_k = top_k if top_k is not None and top_k < len(set(trie.ends)) else None
        device = state.next_logits.device
        entries = len(trie.tokens)
        self.tokens = torch.tensor(trie.tokens, device=device)
        self.depths = torch.tensor(trie.depths, device=device)
        self.parents = torch.tensor(trie.parents, device=device)
        self.ends = torch.tensor(trie.ends, device=device)
        if self.top_k is not None:
            self.distinct_ends = self.ends.unique()
            shortest, longest = (torch.tensor(lengths, device=device) for lengths in trie.lengths_through())
            self.penalties = self._penalty(shortest), self._penalty(longest)
        self.by_depth = [(self.depths == depth).nonzero()[:, 0] for depth in range(max(trie.depths) + 1)]
        # Of each entry's last token, given what stands before it; NaN where not known yet.
        self.steps = torch.full((len(state.next_logits), entries), torch.nan, device=device)
        # Of each entry's last token, whether no other is likelier there.
        self.note_greedy, self.greedy = note_greedy, torch.zeros_like(self.steps, dtype=torch.bool)
        self.is_broken = torch.zeros((), dtype=torch.bool, device=device)
        self.read: list[int] = []
        self._note(state.next_logits[:, None], [-1])

    @torch.no_grad()
    def score(self, chunk_size: int) -> torch.Tensor:
        """The scores, of shape (prompts, candidates)."""
        by_tree = bool(self.read) or self.state.reads_trees
        waiting = self._order(self.trie.inner[len(self.read) :] if by_tree else self._leaves())
        # Chunks of one size, as a pass over a few nodes costs nearly as much as one over many.
        if not by_tree:  # each has a copy of the prompt's keys and values
            chunk_size = min(chunk_size, max(1, MOST_COPIED_TOKENS // self.state.mask.shape[1]))
        size = chunk_size if self.top_k is None else min(16, chunk_size)
        if waiting and self.top_k is None:
            size = -(-len(waiting) // -(-len(waiting) // chunk_size))
        while waiting := self._still_possible(waiting):
            chunk, waiting = waiting[:size], waiting[size:]
            (self._read_tree if by_tree else self._read_rows)(chunk)
            size = min(2 * size, chunk_size) if self.top_k is not None else size
        totals = self._totals(unknown=-torch.inf)[:, self.ends]
        return totals / self._penalty(self.depths[self.ends] + 1)

    def note_read(self, entries: list[int]) -> None:
        """Takes down what was read together with the prompt: the first of the inner entries."""
        self.read = entries
        if entries:
            self._note(self.state.tree_logits[:, : len(entries)], entries)

    def is_greedy(self) -> torch.Tensor:
        """Whether greedy decoding begins with each candidate, of shape (prompts, candidates); after `score`."""
        whole = self.greedy.clone()
        for entries in self.by_depth[1:]:
            whole[:, entries] &= whole[:, self.parents[entries]]
        return whole[:, self.ends]

    def _penalty(self, lengths: torch.Tensor) -> torch.Tensor:
        return lengths.float() ** self.length_penalty

    def _note(self, logits: torch.Tensor, entries: list[int]) -> None:
        """Takes down the log-probabilities of what follows on entries, from logits (prompts, entries, vocabulary)."""
        following = [self.trie.children.get(entry, ()) for entry in entries]
        places = [place for place, children in enumerate(following) for _ in children]
        children = [child for group in following for child in group]
        logits = logits.float()
        chosen = logits[:, places, self.tokens[children]] - logits.logsumexp(-1)[:, places]
        # Rounding may put a certainty above 0, and leaving candidates out counts on none being there.
        self.is_broken |= chosen.isnan().any()
        self.steps[:, children] = chosen.clamp(max=0)
        if self.note_greedy:
            self.greedy[:, children] = logits.argmax(-1)[:, places] == self.tokens[children]

    def _totals(self, unknown: float) -> torch.Tensor:
        """Sums of steps up to each entry, with a value for steps that are not known."""
        totals = self.steps.nan_to_num(nan=unknown, neginf=-torch.inf)
        for entries in self.by_depth[1:]:
            totals[:, entries] += totals[:, self.parents[entries]]
        return totals

    # --- leaving out what cannot be among the best -----------------------------------------------------------------

    def _order(self, entries: list[int]) -> list[int]:
        """Entries with the likeliest first tokens first, where only the best are wanted; still depth first."""
        if self.top_k is None:
            return entries
        first = self.steps.max(0).values.tolist()
        beginnings = [(self.trie.ancestors(entry) or [entry])[0] for entry in entries]
        return [entry for _, entry in sorted(zip(beginnings, entries), key=lambda pair: (-first[pair[0]], *pair))]

    def _still_possible(self, entries: list[int]) -> list[int]:
        if self.top_k is None or not entries:
            return entries
        ends = self.distinct_ends
        complete = self._totals(unknown=-torch.inf)[:, ends] / self._penalty(self.depths[ends] + 1)
        threshold = complete.topk(self.top_k, dim=1).values[:, -1:]  # [prompts, 1]
        # A total falls with every token; a penalty is highest at one end of the lengths that are possible.
        totals = self._totals(unknown=0.0)
        of_shortest, of_longest = self.penalties
        bound = torch.maximum(totals / of_shortest, totals / of_longest)
        possible = (bound >= threshold).any(0).tolist()
        return [entry for entry in entries if possible[entry]]

    # --- reading ----------------------------------------------------------------------------------------------------

    def _read_tree(self, chunk: list[int]) -> None:
        # Depth first, everything a chunk needs is in it or before its first entry.
        before = self.trie.ancestors(chunk[0])
        logits = self.state.tree(_tree_of([self.trie], [before + chunk], self.tokens.device))
        self._note(logits[:, len(before) :], chunk)

    def _leaves(self) -> list[int]:
        """Ends of candidates of several tokens that no other candidate goes on from."""
        return [end for end in sorted({*self.trie.ends} - {*self.trie.inner}) if self.trie.parents[end] >= 0]

    def _read_rows(self, chunk: list[int]) -> None:
        paths = [self.trie.ancestors(end) for end in chunk]
        longest = max(map(len, paths))
        index = torch.tensor([path + path[-1:] * (longest - len(path)) for path in paths], device=self.tokens.device)
        mask = torch.tensor([[1] * len(path) + [0] * (longest - len(path)) for path in paths], device=index.device)
        for prompt in range(len(self.steps)):
            prompts = torch.full((len(chunk),), prompt, device=index.device)
            logits = self.state.rows(prompts, self.tokens[index], mask.bool())
            for row, (path, end) in enumerate(zip(paths, chunk)):
                following = torch.tensor([*path[1:], end], device=index.device)
                log_probabilities = logits[row, : len(path)].float().log_softmax(-1)
                chosen = log_probabilities.gather(1, self.tokens[following, None])[:, 0]
                self.is_broken |= chosen.isnan().any()
                self.steps[prompt, following] = chosen.clamp(max=0)
                if self.note_greedy:
                    self.greedy[prompt, following] = log_probabilities.argmax(-1) == self.tokens[following]


__all__ = ["RankingOutput", "label_scores", "lavis_segment_scores", "rank_continuations"]
