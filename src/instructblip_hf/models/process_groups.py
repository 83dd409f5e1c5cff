"""Batches that are spread over processes, seen whole by each of them: what a contrastive loss needs.

Every process computes its own rows against the rows of all. With the gradient through the gathered rows, and
gradients averaged over processes as data parallelism does it, training is that of one process with the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class GlobalBatch:
    """Where the rows of this process stand among those of all.

    Args:
        sizes (`tuple[int, ...]`): Rows of each process.
        rank (`int`): This process.
    """

    sizes: tuple[int, ...]
    rank: int

    @classmethod
    def of(cls, rows: int, device: torch.device) -> GlobalBatch:
        """The batch of this process and, in a process group, of the others, which all have to call this.

        Args:
            rows (`int`): Rows of this process.
            device (`torch.device`): Of its tensors.
        """
        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return cls((rows,), 0)
        sizes = [torch.zeros((), dtype=torch.long, device=device) for _ in range(dist.get_world_size())]
        dist.all_gather(sizes, torch.tensor(rows, device=device))
        return cls(tuple(int(size) for size in sizes), dist.get_rank())

    @property
    def start(self) -> int:
        """Number of this process's first row among all."""
        return sum(self.sizes[: self.rank])

    @property
    def total(self) -> int:
        """Rows of all processes."""
        return sum(self.sizes)

    def own_rows(self, device: torch.device) -> torch.Tensor:
        """Numbers of this process's rows among all, shape (rows,)."""
        return torch.arange(self.start, self.start + self.sizes[self.rank], device=device)

    def gather(self, rows: torch.Tensor, with_gradient: bool = False) -> torch.Tensor:
        """Rows of all processes, in their order; all have to call this.

        Args:
            rows (`torch.Tensor`): Shape (rows, ...), the same but for the first dimension on every process.
            with_gradient (`bool`, *optional*, defaults to `False`):
                Whether gradients of the gathered rows go back to the process they came from, summed over processes.

        Returns:
            `torch.Tensor`: Shape (rows of all, ...).
        """
        if len(self.sizes) == 1:
            return rows if with_gradient else rows.detach()
        longest = max(self.sizes)
        if longest > len(rows):
            rows = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
        gathered = _GatherRows.apply(rows) if with_gradient else _gather_rows(rows.detach())
        return torch.cat([part[:size] for part, size in zip(gathered, self.sizes)])

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Sum over the processes, without a gradient; all have to call this."""
        if len(self.sizes) == 1:
            return value.detach()
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    def mean(self, total: torch.Tensor, count: torch.Tensor | int) -> torch.Tensor:
        """Share of this process in a mean over all rows, times the number of processes.

        Averaged over processes, as data parallelism averages gradients, it is the mean. All have to call this.

        Args:
            total (`torch.Tensor`): Sum over this process's items.
            count (`torch.Tensor` or `int`): Number of them.
        """
        items = self.sum(torch.as_tensor(count, device=total.device, dtype=total.dtype))
        return total * len(self.sizes) / items.clamp(min=1)

    def pad_to_longest(self, values: torch.Tensor, fill: int) -> torch.Tensor:
        """Shape (rows, length) to (rows, longest length of all processes); all have to call this."""
        if len(self.sizes) == 1:
            return values
        longest = torch.tensor(values.shape[1], device=values.device)
        dist.all_reduce(longest, op=dist.ReduceOp.MAX)
        return torch.nn.functional.pad(values, (0, int(longest) - values.shape[1]), value=fill)


def _gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """Shape (processes, rows, ...)."""
    processes = dist.get_world_size()
    gathered = rows.new_empty(processes * rows.shape[0], *rows.shape[1:])
    dist.all_gather_into_tensor(gathered, rows.contiguous())
    return gathered.unflatten(0, (processes, -1))


class _GatherRows(torch.autograd.Function):
    """Rows of all processes; a row's gradient is the sum of what every process has for it."""

    @staticmethod
    def forward(ctx: object, rows: torch.Tensor) -> torch.Tensor:
        return _gather_rows(rows)

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.contiguous()
        dist.all_reduce(total)
        return total[dist.get_rank()]


__all__ = ["GlobalBatch"]
