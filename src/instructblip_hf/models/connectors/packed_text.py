"""Texts of different lengths without their padding: queries of all rows, and behind them the tokens that count.

Layers of the Q-Former treat every token by itself but in self-attention, so that projections and feed-forward layers need
no rows; `kernels.packed_attention` attends within them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


def least_padding(hidden_size: int) -> float:
    """Share of padding among all tokens, queries included, from which packing is faster than padding.

    Fitted to measurements on a CPU (examples/benchmarks/packing.py): what is saved grows with the square of the width, the
    copies that packing takes with the width.
    """
    return 0.03 + 15 / hidden_size


@dataclass(frozen=True)
class PackedText:
    """Where the tokens of padded rows stand in a packed buffer.

    Args:
        rows (`int`): Number of rows.
        num_queries (`int`): Queries of each row.
        text (`int`): Length of the padded texts.
        places (`torch.LongTensor`): Shape (text tokens,), each token's place among the ``rows * text`` padded ones.
        offsets (`torch.IntTensor`): Shape (rows + 1,), where each row's text begins among the text tokens.
        max_text (`int`): Tokens of the longest text.
    """

    rows: int
    num_queries: int
    text: int
    places: torch.Tensor
    offsets: torch.Tensor
    max_text: int

    @classmethod
    def of(cls, attention_mask: torch.Tensor, num_queries: int, states: torch.Tensor) -> PackedText | None:
        """The packing of rows with a mask, or `None` where it does not pay or cannot be known.

        The mask is looked at where it is in the memory of the CPU alone: elsewhere that would wait for the device.

        Args:
            attention_mask (`torch.Tensor`): Shape (rows, queries + text), not 0 where a token counts.
            num_queries (`int`): Queries of each row, which all have to count.
            states (`torch.Tensor`): Shape (rows, queries + text, hidden), what is to be packed.
        """
        if torch.compiler.is_compiling() or attention_mask.dim() != 2 or attention_mask.device.type != "cpu":
            return None
        counts = attention_mask != 0
        text = counts[:, num_queries:]
        tokens = int(text.sum())
        padding = text.numel() - tokens
        if padding <= least_padding(states.shape[-1]) * counts.numel() or not bool(counts[:, :num_queries].all()):
            return None
        lengths = text.sum(1)
        device = states.device
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()
        places = text.flatten().nonzero()[:, 0]
        return cls(len(counts), num_queries, text.shape[1], places.to(device), offsets.to(device), int(lengths.max()))

    def pack(self, states: torch.Tensor) -> torch.Tensor:
        """From (rows, queries + text, hidden) to (rows * queries + text tokens, hidden)."""
        queries, text = states[:, : self.num_queries], states[:, self.num_queries :]
        return torch.cat([queries.flatten(0, 1), text.flatten(0, 1).index_select(0, self.places)])

    def split(self, packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries (rows, queries, ...) and text (text tokens, ...) of a packed buffer."""
        dense = self.rows * self.num_queries
        queries, text = packed.split([dense, len(packed) - dense])
        return queries.unflatten(0, (self.rows, self.num_queries)), text

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """The way back of `pack`, with zeros where there is padding."""
        queries, text = self.split(packed)
        padded = text.new_zeros(self.rows * self.text, *text.shape[1:]).index_copy(0, self.places, text)
        return torch.cat([queries, padded.unflatten(0, (self.rows, self.text))], dim=1)


__all__ = ["PackedText", "least_padding"]
