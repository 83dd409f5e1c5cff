"""What a conversion did, tensor by tensor, and in a few lines."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .plan import AS_IT_IS, Plan


@dataclass(frozen=True)
class Difference:
    """Outputs of the written model against those of the weights it was made of.

    Args:
        what (`str`): Which outputs.
        largest (`float`): Largest difference of an element.
        scale (`float`): Largest element.
        allowed (`float`): Largest difference allowed; infinite where the difference is told, not judged.
    """

    what: str
    largest: float
    scale: float
    allowed: float = float("inf")


@dataclass
class ConversionReport:
    """Report of a conversion.

    Args:
        sources (`list[str]`): What was read.
        target (`str`): What was written.
        kind (`str`): The model.
        rows (`list[dict]`): For every stored tensor what became of it: ``from``, ``file``, ``to``, ``shape``, ``dtype``,
            ``how``; ``to`` is `None` for one that was left out, and ``how`` then says why.
        notes (`list[str]`): What else a user should know.
        differences (`list[Difference]`): Outputs compared.
    """

    sources: list[str]
    target: str
    kind: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    bytes: int = 0

    def add_plan(self, plan: Plan) -> None:
        """Adds a row for each tensor of a plan."""
        for tensor in plan.tensors:
            self.rows.append(
                {
                    "from": [source.name for source in tensor.sources],
                    "file": sorted({source.file for source in tensor.sources}),
                    "to": tensor.name,
                    "shape": list(tensor.shape),
                    "dtype": str(tensor.dtype).removeprefix("torch."),
                    "how": tensor.how,
                }
            )
            self.bytes += tensor.bytes
        for stored, reason in plan.left_out:
            self.rows.append(
                {
                    "from": [stored.name],
                    "file": [stored.file],
                    "to": None,
                    "shape": list(stored.shape),
                    "dtype": str(stored.dtype).removeprefix("torch."),
                    "how": f"left out: {reason}",
                }
            )

    def lines(self) -> list[str]:
        """The report in a few lines."""
        written = [row for row in self.rows if row["to"] is not None]
        lines = [f"{self.kind}: {len(written)} tensors, {self.bytes:,} bytes, to {self.target}"]
        by_file = Counter(file for row in written for file in row["file"])
        lines += [f"  {count} from {file}" for file, count in by_file.items()]
        changed = Counter(row["how"] for row in written if row["how"] != AS_IT_IS)
        lines += [f"  {count} made otherwise: {how}" for how, count in changed.items()]
        left_out: dict[str, list[str]] = {}
        for row in self.rows:
            if row["to"] is None:
                left_out.setdefault(row["how"], []).append(row["from"][0])
        for how, names in left_out.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"  {len(names)} {how}: {', '.join(names[:3])}{more}")
        lines += [f"  note: {note}" for note in self.notes]
        for difference in self.differences:
            judged = f", allowed {difference.allowed:.1e}" if difference.allowed != float("inf") else ""
            lines.append(
                f"  {difference.what}: largest difference {difference.largest:.1e} of {difference.scale:.3g}{judged}"
            )
        return lines

    def save(self, path: Path) -> None:
        """Writes all of it as JSON, each tensor on a line of its own.

        Args:
            path (`Path`): The file.
        """
        head = {"sources": self.sources, "target": self.target, "kind": self.kind, "notes": self.notes}
        differences = [
            {name: value for name, value in asdict(difference).items() if value != float("inf")}
            for difference in self.differences
        ]
        rows = ",\n".join(f"    {json.dumps(row)}" for row in self.rows)
        text = json.dumps({**head, "differences": differences}, indent=2)[:-2]
        path.write_text(f'{text},\n  "tensors": [\n{rows}\n  ]\n}}\n')


__all__ = ["ConversionReport", "Difference"]
