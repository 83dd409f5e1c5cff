"""The mixture of datasets: which row of which dataset stands at which draw.

The paper (section 2.3) draws dataset d with a probability proportional to the square root of its size, lowers A-OKVQA
and raises OKVQA by factors that it does not give. Here they are `factors`, 1.0 by default.

A `Mixture` is a function and has no state: draw n is computed from the seed and n alone, in constant time and memory.
What follows from it:

- Every process and worker computes the same sequence, and takes its own places in it: two ranks never have a draw in
  common.
- A run that stopped after n draws goes on with draw n. There is nothing else to restore.
- A dataset's rows come in epochs of their own. Its k-th draw is row ``permutation(k mod size)`` of epoch
  ``k // size``, with a new permutation for every epoch, so that none of its rows comes twice before all came once.
  As draws are numbered over all ranks, this holds for all ranks together.
- Nothing grows with the number of rows: 10^9 rows cost as much as 10, and a dataset of 1 row repeats that row.

How draws are shared out
    Every dataset has one of 2^32 shares, the others go by largest remainder, in exact arithmetic. Draws
    come in blocks of 4096. A block gives every dataset the whole number below or above 4096 times its probability, by
    systematic sampling: points 1/4096 apart are laid over the cumulated probabilities. From block to block the points
    are moved by the van der Corput sequence, which spreads evenly at any number of blocks. Inside of a block the order
    is shuffled. So the draws of a dataset among the first n stray from n times its probability by a handful at the
    ends of blocks, where independent draws stray by the root of n; batches look as if drawn independently. This was
    chosen over independent draws for two reasons: how many draws of a dataset came before draw n has a closed form,
    without which there is no seeking; and small datasets see the number of epochs that their probability says.

Worked example
    Two datasets, ``big`` of 900 rows and ``small`` of 100, have roots 30 and 10 and probabilities 3/4 and 1/4: in each
    block of 4096 draws 3072 are of ``big`` and 1024 of ``small``. Draw 10,000 is in block 2, which starts at draw
    8,192; before it came 6,144 draws of ``big``. With seed 0 the shuffled block has ``big`` at its place 1,808 and
    1,348 times before that, so draw 10,000 is the draw k = 7,492 of ``big``: row ``permutation(292)``, which is 626, of
    its epoch 8. With 8 ranks and batches of 16, draw 10,000 is in micro-batch 625, which rank 625 mod 8 = 1 reads.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from .image_groups import GroupedEpoch
from .image_order import IMAGE_ORDERS, order_images
from .permutations import KeyedPermutation, keyed_order


BALANCES = ("sqrt", "uniform", "size")
"""How probabilities follow from sizes: with their square roots (the paper), not at all, or in proportion."""

BLOCK = 4096
"""Draws of a block."""

SHARES = 2**32
"""Probabilities are multiples of its inverse."""

_SHIFTS = SHARES // BLOCK
_SHIFT_BITS = _SHIFTS.bit_length() - 1


class Draw(NamedTuple):
    """What stands at a draw.

    Attributes:
        dataset (`str`): Name of the dataset.
        row (`int`): Index in the dataset.
        epoch (`int`): How often the whole dataset came before.
    """

    dataset: str
    row: int
    epoch: int


class Mixture:
    """Datasets with their probabilities, and the endless sequence of draws from them.

    Args:
        sizes (`Mapping[str, int]`): Rows of each dataset, by name. The order is part of the sequence.
        balance (`str`, *optional*, defaults to `"sqrt"`): One of `BALANCES`.
        factors (`Mapping[str, float]`, *optional*): By what a dataset's probability is multiplied, before all are
            scaled to sum to 1. The paper lowers A-OKVQA and raises OKVQA by unpublished factors.
        seed (`int`, *optional*, defaults to 0): Another seed is another sequence.
        draws_per_choice (`int`, *optional*, defaults to 1): Draws in a row from the same dataset. Set to the size of a
            micro-batch, each holds rows of one dataset, as with LAVIS's loader.
        group_by_image (`int`, *optional*, defaults to 1): Draws in a row that are neighbours in the order of images. They
            are of one dataset, so `draws_per_choice` is at least this and a multiple.
        image_orders (`Mapping[str, np.ndarray]`, *optional*): For each dataset its rows in the order of their images, of
            `instructblip_hf.data.image_groups.image_order`; by default as they stand.
        group_by_length (`int`, *optional*, defaults to 0): Optimiser steps whose draws are dealt out anew so that
            micro-batches hold rows of similar length, see `instructblip_hf.data.length_groups`; 0 for none. Draws
            themselves stay as they are.
        group_by_modality (`bool`, *optional*, defaults to `False`): Whether micro-batches that are grouped by length
            also hold rows with images or rows of text alone where that can be.
        image_order (`str`, *optional*, defaults to `"published"`): Where images stand in the first turn of a row, one of
            `instructblip_hf.data.image_order.IMAGE_ORDERS`; at random by seed and number of the draw.

    Raises:
        ValueError: For no datasets, a size below 1, another balance or order, factors that are not positive numbers or
            of datasets that are not there, numbers below their least, `draws_per_choice` that is no multiple of
            `group_by_image`, or `group_by_modality` without `group_by_length`.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        balance: str = "sqrt",
        factors: Mapping[str, float] | None = None,
        seed: int = 0,
        draws_per_choice: int = 1,
        group_by_image: int = 1,
        image_orders: Mapping[str, np.ndarray] | None = None,
        group_by_length: int = 0,
        group_by_modality: bool = False,
        image_order: str = "published",
    ) -> None:
        if not sizes:
            raise ValueError("sizes is empty; a mixture needs at least one dataset")
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"the dataset {name} has {size} rows; it must have at least 1")
        if balance not in BALANCES:
            raise ValueError(f"balance is {balance!r}; allowed are {', '.join(BALANCES)}")
        check_groups(draws_per_choice, group_by_image, group_by_length, group_by_modality)
        if image_order not in IMAGE_ORDERS:
            raise ValueError(f"image_order is {image_order!r}; allowed are {', '.join(IMAGE_ORDERS)}")
        factors = dict(factors or {})
        for name, factor in factors.items():
            if name not in sizes:
                raise ValueError(f"factors: there is no dataset {name!r}; the mixture has {', '.join(sizes)}")
            if not (math.isfinite(factor) and factor > 0):
                raise ValueError(
                    f"factors: {name} has {factor}; it must be positive (leave a dataset out by not naming its size)"
                )
        self.names = tuple(sizes)
        self.sizes = {name: int(size) for name, size in sizes.items()}
        self.balance = balance
        self.factors = factors
        self.seed = seed
        self.draws_per_choice = max(draws_per_choice, group_by_image)
        self.group_by_image = group_by_image
        self.image_orders = dict(image_orders or {})
        for name, order in self.image_orders.items():
            if self.sizes.get(name) != len(order):
                raise ValueError(f"image_orders: {name} has {len(order)} rows, its size is {self.sizes.get(name)}")
        self.group_by_length = group_by_length
        self.group_by_modality = group_by_modality
        self.image_order = image_order
        self._shares = _apportion([_weight(size, balance, factors.get(name, 1.0)) for name, size in sizes.items()])
        self._bounds = [0]
        for share in self._shares:
            self._bounds.append(self._bounds[-1] + share)
        # Consecutive draws, as the places of a batch, share blocks and epochs.
        self._block = lru_cache(maxsize=4)(self._make_block)
        self._permutation = lru_cache(maxsize=4 * len(self.names))(self._make_permutation)

    @property
    def probabilities(self) -> dict[str, float]:
        """Of each dataset, as they are drawn: multiples of 2^-32."""
        return {name: share / SHARES for name, share in zip(self.names, self._shares)}

    def draw(self, number: int) -> Draw:
        """What stands at draw `number`, for any number from 0.

        Raises:
            IndexError: If `number` is negative.
        """
        if number < 0:
            raise IndexError(f"number is {number}; draws are numbered from 0")
        choice, place = divmod(int(number), self.draws_per_choice)
        index, choices_before = self._choose(choice)
        name = self.names[index]
        epoch, position = divmod(choices_before * self.draws_per_choice + place, self.sizes[name])
        return Draw(name, self._permutation(index, epoch)(position), epoch)

    def dataset_at(self, number: int) -> str:
        """Name of the dataset at draw `number`."""
        return self.names[self._choose(number // self.draws_per_choice)[0]]

    def counts(self, draws: int) -> dict[str, int]:
        """How many of the first `draws` draws are of each dataset, exactly and without going through them."""
        choices, rest = divmod(draws, self.draws_per_choice)
        block, place = divmod(choices, BLOCK)
        counts = self._counts_before(block) + np.bincount(self._block(block)[0][:place], minlength=len(self.names))
        counts = counts * self.draws_per_choice
        if rest:
            counts[self._choose(choices)[0]] += rest
        return {name: int(count) for name, count in zip(self.names, counts)}

    def fingerprint(self) -> str:
        """Sixteen characters that differ between mixtures with different sequences, to be stored in checkpoints."""
        content: tuple[Any, ...] = (list(self.sizes.items()), self._shares, self.seed, self.draws_per_choice)
        if self.group_by_image > 1:
            orders = [(name, hashlib.blake2b(order.tobytes()).digest()) for name, order in self.image_orders.items()]
            content += ("group_by_image", self.group_by_image, orders)
        if self.group_by_length:
            content += ("group_by_length", self.group_by_length)
        if self.group_by_modality:
            content += ("group_by_modality",)
        if self.image_order != "published":
            content += ("image_order", self.image_order)
        return hashlib.blake2b(repr(content).encode(), digest_size=8).hexdigest()

    # --- draws to datasets ----------------------------------------------------------------------------------------

    def _choose(self, choice: int) -> tuple[int, int]:
        """Index of the dataset at a choice, and how many choices before were of it."""
        block, place = divmod(choice, BLOCK)
        datasets, occurrences, before = self._block(block)
        index = int(datasets[place])
        return index, int(before[index]) + int(occurrences[place])

    def _make_block(self, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Dataset of each choice in a block, how many of the block's were of it before, and how many in all blocks."""
        before = self._counts_before(block)
        counts = self._counts_before(block + 1) - before
        datasets = np.repeat(np.arange(len(self.names)), counts)[keyed_order(BLOCK, "block", self.seed, block)]
        by_dataset = np.argsort(datasets, kind="stable")
        starts = np.cumsum(counts) - counts
        occurrences = np.empty(BLOCK, dtype=np.int64)
        occurrences[by_dataset] = np.arange(BLOCK) - np.repeat(starts, counts)
        return datasets, occurrences, before

    def _counts_before(self, block: int) -> np.ndarray:
        """Choices of each dataset in the blocks before one, of shape (datasets,).

        Block b has its points at ``i * _SHIFTS + reversed_bits(b)`` for i from 0 to 4095; those below a bound t are
        ``t // _SHIFTS``, and one more if the bits are below ``t % _SHIFTS``.
        """
        below = [block * (bound // _SHIFTS) + _count_shifts_below(bound % _SHIFTS, block) for bound in self._bounds]
        return np.diff(np.array(below, dtype=object)).astype(np.int64)

    def _make_permutation(self, index: int, epoch: int) -> KeyedPermutation | GroupedEpoch:
        name = self.names[index]
        if self.group_by_image > 1:
            order = self.image_orders.get(name)
            return GroupedEpoch(self.sizes[name], self.group_by_image, epoch, order, self.seed, name, epoch)
        return KeyedPermutation(self.sizes[name], "rows", self.seed, name, epoch)

    def __reduce__(self) -> tuple[Any, ...]:
        # Caches stay behind, so that worker processes can be started in any way.
        groups = (self.draws_per_choice, self.group_by_image, self.image_orders, self.group_by_length)
        rows = (self.group_by_modality, self.image_order)
        return type(self), (self.sizes, self.balance, self.factors, self.seed, *groups, *rows)


class MixtureDataset:
    """Rows of a mixture by number of the draw, as a map-style dataset.

    Args:
        datasets (`Mapping[str, Sequence]`): By the names of the mixture. One that has a method ``at(row, epoch)`` is
            asked by it, so that wording and choice of answer can differ between epochs; others are indexed.
        mixture (`Mixture`): Its sizes must be those of `datasets`.
        length (`int`): Draws of an epoch as Trainer counts them: best those of the whole training,
            ``max_steps * gradient_accumulation_steps * batch size * processes``. Draws beyond it exist all the same.

    Raises:
        ValueError: If names or sizes differ from the mixture's, or `length` is below 1.
    """

    def __init__(self, datasets: Mapping[str, Any], mixture: Mixture, length: int) -> None:
        if length < 1:
            raise ValueError(f"length is {length}; it must be at least 1")
        sizes = {name: len(dataset) for name, dataset in datasets.items()}
        if sizes != mixture.sizes:
            raise ValueError(f"datasets have the sizes {sizes}, the mixture was made for {mixture.sizes}")
        self.datasets = dict(datasets)
        self.mixture = mixture
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> dict[str, Any]:
        """The row at a draw, with its ``dataset`` and its ``draw``.

        Raises:
            IndexError: If `number` is negative.
            ValueError: If the row cannot be read, naming dataset and row.
        """
        name, row, epoch = self.mixture.draw(number)
        dataset = self.datasets[name]
        try:
            content = dataset.at(row, epoch) if hasattr(dataset, "at") else dataset[row]
        except (ValueError, OSError) as error:
            raise ValueError(f"{name}, row {row} (draw {number}): {error}") from error
        content = order_images(content, self.mixture.image_order, self.mixture.seed, number)
        return {**content, "dataset": name, "draw": number}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[number] for number in range(self.length))


class MixtureSampler:
    """Numbers of draws for the sampler of a `torch.utils.data.DataLoader`, in order.

    Where accelerate prepares the loader, as under Trainer, leave `rank` and `world_size` at their defaults: it deals
    out whole batches itself, and reaches `set_epoch`, by which a second epoch goes on where the first one ended.
    Without accelerate every rank gets the same places by its own sampler: micro-batches ``rank``,
    ``rank + world_size`` and so on.

    Args:
        length (`int`): Draws of an epoch, over all ranks.
        start (`int`, *optional*, defaults to 0): Draws that a stopped run has consumed of the first epoch: steps times
            the batch size of all ranks.
        batch_size (`int`, *optional*, defaults to 1): Rows of a micro-batch.
        rank (`int`, *optional*, defaults to 0): This process.
        world_size (`int`, *optional*, defaults to 1): Number of processes.

    Raises:
        ValueError: If `rank` is none of `world_size`, or the draws of an epoch, or those at `start`, are not the same
            number of micro-batches on every rank.
    """

    def __init__(self, length: int, start: int = 0, batch_size: int = 1, rank: int = 0, world_size: int = 1) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(
                f"rank is {rank}; with a world_size of {world_size} it must be from 0 to {world_size - 1}"
            )
        together = batch_size * world_size
        for name, value in (("length", length), ("start", start)):
            if value < 0 or value % together:
                raise ValueError(f"{name} is {value}; it must be a multiple of batch_size * world_size = {together}")
        if not 0 <= start <= length or not length:
            raise ValueError(f"start is {start} and length {length}; start must be at most length, and length above 0")
        self.length = length
        self.start = start
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lets the next iteration begin at draw ``epoch * length``; `start` counts in epoch 0 alone."""
        self.epoch = epoch

    def __len__(self) -> int:
        return (self.length - self._begin()) // self.world_size

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * self.length
        stride = self.batch_size * self.world_size
        for batch in range(first + self._begin() + self.rank * self.batch_size, first + self.length, stride):
            yield from range(batch, batch + self.batch_size)

    def _begin(self) -> int:
        return self.start if self.epoch == 0 else 0


def check_groups(
    draws_per_choice: int, group_by_image: int, group_by_length: int, group_by_modality: bool = False
) -> None:
    """Raises where the numbers do not fit together.

    Raises:
        ValueError: If a number is below its least, `draws_per_choice` is above 1 and no multiple of `group_by_image`, or
            `group_by_modality` is set without `group_by_length`.
    """
    for name, value, least in (
        ("draws_per_choice", draws_per_choice, 1),
        ("group_by_image", group_by_image, 1),
        ("group_by_length", group_by_length, 0),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    if group_by_modality and not group_by_length:
        raise ValueError("group_by_modality goes with group_by_length, which says over how many steps; it is 0")
    if draws_per_choice > 1 and draws_per_choice % group_by_image:
        raise ValueError(
            f"draws_per_choice is {draws_per_choice}; it must be a multiple of group_by_image, which is {group_by_image}"
        )


def _weight(size: int, balance: str, factor: float) -> Fraction:
    if balance == "uniform":
        return Fraction(factor)
    # IEEE 754 rounds roots correctly, so that this is the same number everywhere.
    return Fraction(factor) * (Fraction(math.sqrt(size)) if balance == "sqrt" else size)


def _apportion(weights: Sequence[Fraction]) -> list[int]:
    """Whole shares of `SHARES` in proportion to weights, by largest remainder, at least one each."""
    total = sum(weights)
    free = SHARES - len(weights)
    exact = [weight * free / total for weight in weights]
    shares = [1 + math.floor(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda index: (math.floor(exact[index]) - exact[index], index))
    for index in by_remainder[: SHARES - sum(shares)]:
        shares[index] += 1
    return shares


def _count_shifts_below(bound: int, blocks: int) -> int:
    """How many of the first `blocks` numbers have bits that, reversed, make a number below `bound`.

    Goes over the bits of `bound` from the highest: numbers that agree with it so far and have a 0 where it has a 1
    are below it, and reversed agreement fixes the lowest bits of the number, an arithmetic progression.
    """
    cycles, rest = divmod(blocks, _SHIFTS)
    count = cycles * bound
    low_bits = 0
    for position in range(_SHIFT_BITS):
        if bound >> (_SHIFT_BITS - 1 - position) & 1:
            step = 1 << (position + 1)
            # Numbers below `rest` that are low_bits modulo step: bit `position` is 0 in low_bits.
            count += max(0, -(-(rest - low_bits) // step))
            low_bits |= 1 << position
    return count


__all__ = ["BALANCES", "Draw", "Mixture", "MixtureDataset", "MixtureSampler", "check_groups"]
