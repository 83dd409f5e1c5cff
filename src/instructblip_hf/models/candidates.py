"""Candidates for ranking as a prefix tree, so that a beginning that several of them share is computed once."""

from __future__ import annotations

from collections.abc import Sequence


class CandidateTrie:
    """The distinct beginnings of candidates, in depth-first order: a beginning stands before all that go on from it.

    Entry ``e`` is a beginning, given by its last token ``tokens[e]`` and the beginning before it, ``parents[e]`` (-1
    for none). Candidate ``c`` ends at entry ``ends[c]``. A language model has to read the entries of ``inner`` alone:
    those that some candidate goes on from.

    Args:
        candidates (`Sequence[Sequence[int]]`): Token ids of each.

    Raises:
        ValueError: If there is no candidate, or one is empty.
    """

    def __init__(self, candidates: Sequence[Sequence[int]]) -> None:
        if not len(candidates):
            raise ValueError("candidates is empty; there must be at least one")
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self.ends = [-1] * len(candidates)
        entries: dict[tuple[int, int], int] = {}
        sequences = [tuple(int(token) for token in candidate) for candidate in candidates]
        # Sorted, entries come about in depth-first order.
        for index in sorted(range(len(sequences)), key=sequences.__getitem__):
            if not sequences[index]:
                raise ValueError(f"candidate {index} is empty; it must have at least one token")
            entry = -1
            for depth, token in enumerate(sequences[index]):
                known = entries.get((entry, token))
                if known is None:
                    known = entries[entry, token] = len(self.tokens)
                    self.tokens.append(token)
                    self.parents.append(entry)
                    self.depths.append(depth)
                entry = known
            self.ends[index] = entry
        goes_on = {parent for parent in self.parents if parent >= 0}
        self.inner = [entry for entry in range(len(self.tokens)) if entry in goes_on]
        self.children: dict[int, list[int]] = {}
        for entry, parent in enumerate(self.parents):
            self.children.setdefault(parent, []).append(entry)

    def ancestors(self, entry: int) -> list[int]:
        """The beginnings of a beginning, shortest first, without itself."""
        path = []
        while (entry := self.parents[entry]) >= 0:
            path.append(entry)
        return path[::-1]

    def lengths_through(self) -> tuple[list[int], list[int]]:
        """Tokens of the shortest and of the longest candidate that begins like each entry."""
        shortest, longest = [0] * len(self.tokens), [0] * len(self.tokens)
        for end in self.ends:
            shortest[end] = longest[end] = self.depths[end] + 1
        for entry in reversed(range(len(self.tokens))):
            parent = self.parents[entry]
            if parent >= 0:
                longest[parent] = max(longest[parent], longest[entry])
                shortest[parent] = min(shortest[parent] or shortest[entry], shortest[entry])
        return shortest, longest


__all__ = ["CandidateTrie"]
