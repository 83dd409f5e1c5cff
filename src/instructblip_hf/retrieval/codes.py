"""Features as 8-bit integers with a bound on what that costs, so that a search over the integers can be exact.

A row x of stored features is split into ``s c + e``: a scale s, integers c from -127 to 127, and a rest e whose length is
kept. A query q is split into ``t (128 h + l) + f`` with integers h and l of 8 bits. Products of integers are exact
whatever their order, so that only the rests are unknown:

    |q x - t s (128 h + l) c|  =  |q e + f s c|  <=  |q| |e| + |f| (|x| + |e|)

by Cauchy and Schwarz, to which comes the rounding of the three factors' product in float32.
"""

from __future__ import annotations

import torch


LARGEST_SIZE = 1024
"""Numbers a row can have without an overflow of the 32-bit products."""

_FLOAT32_UNIT = 2.0**-24  # the largest relative error of one rounding
_LARGEST = 127
_BASE = 128
# Lengths are computed in float64 and stored in float32: a little is added before they are rounded.
_UP = 1 + 2.0**-22
_CHUNK_ITEMS = 1024


def encode_rows(features: torch.Tensor) -> dict[str, torch.Tensor]:
    """Codes of features, with what is needed to bound their error.

    Args:
        features (`torch.Tensor`): Shape (items, rows of an item, size), as they are stored.

    Returns:
        `dict`: ``codes`` (int8, the shape of features), ``scales`` (float32, items x rows), and of each item the largest
        length of its rows, ``lengths``, and of their rests, ``rests`` (float32, rounded up).
    """
    parts = [_encode(chunk) for chunk in features.split(_CHUNK_ITEMS)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _encode(features: torch.Tensor) -> dict[str, torch.Tensor]:
    values = features.double()  # [items, rows, size]
    scales = (values.abs().amax(-1) / _LARGEST).float()  # [items, rows]
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    exact = scales.double().unsqueeze(-1)
    # A scale that was rounded down can ask for a little more than the largest.
    codes = (values / exact).round().clamp(-_LARGEST, _LARGEST)
    return {
        "codes": codes.to(torch.int8),
        "scales": scales,
        "lengths": (values.norm(dim=-1).amax(-1) * _UP).float(),
        "rests": ((values - codes * exact).norm(dim=-1).amax(-1) * _UP).float(),
    }


class QueryCodes:
    """The rows of a query as integers.

    Args:
        rows (`torch.Tensor`): Shape (rows, size), of any floating type; they count as the numbers they are.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        exact = rows.double()  # [rows, size]
        units = (exact.abs().amax(-1) / (_BASE * _LARGEST)).float()  # [rows]
        units = torch.where(units > 0, units, torch.ones_like(units))
        unit = units.double().unsqueeze(-1)
        whole = (exact / unit).round().clamp(-_BASE * _LARGEST, _BASE * _LARGEST)
        high = (whole / _BASE).round()
        columns = torch.stack([high, whole - _BASE * high], dim=1)  # [rows, 2, size]
        self.columns = columns.flatten(0, 1).to(torch.int8).t().contiguous()  # [size, 2 rows]
        self.units = units
        self._length = float(exact.norm(dim=-1).max())
        self._rest = float((exact - unit * whole).norm(dim=-1).max())
        self._coded = float((unit * whole).norm(dim=-1).max())

    def scores(self, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """The largest product of a row of an item and a row of the query, of the codes.

        Args:
            codes (`torch.Tensor`): Shape (items, rows of an item, size).
            scales (`torch.Tensor`): Shape (items, rows of an item).

        Returns:
            `torch.Tensor`: Shape (items,), float32.
        """
        products = torch._int_mm(codes.flatten(0, 1), self.columns)  # [items x rows, 2 query rows], int32
        # At most 128 * 127 * 127 * size + 64 * 127 * size: no overflow below 1,036 numbers a row.
        whole = torch.add(products[:, 1::2], products[:, 0::2], alpha=_BASE)
        values = whole.float().mul_(scales.reshape(-1, 1)).mul_(self.units)
        return values.view(len(codes), -1).amax(-1)

    def bounds(self, lengths: torch.Tensor, rests: torch.Tensor) -> torch.Tensor:
        """How far `scores` can be from the largest product of the features themselves.

        Args:
            lengths (`torch.Tensor`): Of `encode_rows`.
            rests (`torch.Tensor`): Of `encode_rows`.

        Returns:
            `torch.Tensor`: Shape (items,), float64.
        """
        coded = lengths.double() + rests.double()
        rounding = 8 * _FLOAT32_UNIT * self._coded * coded
        return (self._length * rests.double() + self._rest * coded) * _UP + rounding


def has_integer_product() -> bool:
    """Whether this machine's product of 8-bit integers is the right one.

    Old processors have kernels that saturate sums of two products at 16 bits. The product is tried on the values that
    would show it; also, no torch promises it for every device.
    """
    rows = torch.full((128, 256), _LARGEST, dtype=torch.int8)
    rows[1::2] = -_LARGEST
    rows[2::3, ::2] = -_LARGEST
    columns = torch.full((256, 4), _LARGEST, dtype=torch.int8)
    columns[:, 1] = -_LARGEST
    columns[::2, 2] = -_LARGEST
    try:
        found = torch._int_mm(rows, columns)
    except (AttributeError, RuntimeError):
        return False
    return torch.equal(found.double(), rows.double() @ columns.double())


__all__ = ["LARGEST_SIZE", "QueryCodes", "encode_rows", "has_integer_product"]
