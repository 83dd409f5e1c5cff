"""What all benchmarks share: results are compared before anything is timed, variants take turns, medians have a spread.

A `Case` is one point of a table or curve: the same work done in several ways, the first of them the one that the ratios
are over. On a CPU a time is CPU time of this process, on a GPU the time between two events; a ratio is the median over
rounds of the ratio within a round, since what else a machine does changes from round to round.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


class WrongResult(Exception):
    """A way of doing the work that does not do it."""


@dataclass
class Case:
    """The same work in several ways.

    Args:
        subject (`str`): The table it belongs to.
        point (`dict[str, Any]`): Where in it.
        axis (`str`): Which of the point's numbers the curve runs along that it is on.
        variants (`dict[str, Callable]`): The ways; the first is what ratios are over.
        tolerance (`float`, *optional*, defaults to 1e-4): Largest difference of results, by `compare`.
        compare (`Callable`, *optional*): Difference of two results; by default the relative error of tensors.
        clock (`Callable`, *optional*): Runs a variant and gives its seconds, in place of the device's own clock.
        memory (`Callable`, *optional*):
            Runs a variant and gives MiB at its peak. With a clock of its own and without this memory is not measured.
        tensors (`dict[str, torch.Tensor]`, *optional*): Inputs that take on the precision of the timed run.
        modules (`Sequence[torch.nn.Module]`, *optional*): Models likewise.
        missing (`dict[str, str]`, *optional*): Ways that are not timed here, and why.
        rounds (`int`, *optional*): In place of the settings', for work that takes minutes; 1 also leaves out warming up.
        operations (`float`, *optional*): Floating-point operations that the work cannot do without.
        elements (`float`, *optional*): Numbers that it has to read and write at least, inputs and outputs once each.
        items (`int`, *optional*): Rows that a run handles; tables and curves say rows a second then.
    """

    subject: str
    point: dict[str, Any]
    axis: str
    variants: dict[str, Callable[[], Any]]
    tolerance: float = 1e-4
    compare: Callable[[Any, Any], float] | None = None
    clock: Callable[[Callable[[], Any]], float] | None = None
    memory: Callable[[Callable[[], Any]], float] | None = None
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    modules: Sequence[torch.nn.Module] = ()
    missing: dict[str, str] = field(default_factory=dict)
    rounds: int | None = None
    operations: float | None = None
    elements: float | None = None
    items: int | None = None

    @property
    def name(self) -> str:
        return ", ".join([self.subject, *(f"{key} {value}" for key, value in self.point.items())])


@dataclass
class Row:
    """What was measured of one way: medians, and the middle half of the rounds.

    ``roofline`` is the least time that the measured ceilings of the device allow, over the time that it took.
    """

    subject: str
    point: dict[str, Any]
    axis: str
    variant: str
    seconds: float
    seconds_quartiles: tuple[float, float]
    ratio: float
    ratio_quartiles: tuple[float, float]
    rounds: int
    memory_mib: float | None
    difference: float
    roofline: float | None = None
    items: int | None = None


@dataclass
class Settings:
    """How to measure; ``ceilings`` are operations and bytes a second, where they were measured."""

    device: str = "cpu"
    dtype: str = "float32"
    rounds: int = 5
    seconds: float = 60.0
    memory: bool = True
    ceilings: tuple[float, float] | None = None


def relative_error(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is expected; infinite for another shape, NaN for NaN."""
    if expected.shape != found.shape:
        return float("inf")
    difference, size = (found.double() - expected.double()).norm(), expected.double().norm()
    return float(difference / size if size else difference)


def unlike(expected: Any, found: Any) -> float:
    """0 for equal results, else 1."""
    if isinstance(expected, torch.Tensor):
        return float(not torch.equal(expected, found))
    return float(expected != found)


def measure(case: Case, settings: Settings) -> list[Row]:
    """Compares, then times.

    Raises:
        WrongResult: If a variant's result differs from the first one's; nothing is timed then.
    """
    _cast(case, "float32")
    differences = _compare(case)
    _cast(case, settings.dtype)
    clock = case.clock or (cuda_seconds if settings.device == "cuda" else cpu_seconds)
    rounds = case.rounds or settings.rounds
    if rounds > 1:
        for work in case.variants.values():  # caches, compilers
            work()
    times: dict[str, list[float]] = {name: [] for name in case.variants}
    begin, names = time.perf_counter(), list(case.variants)
    while len(times[names[0]]) < rounds:
        number = len(times[names[0]])
        if number >= 3 and time.perf_counter() - begin > settings.seconds:
            break
        for name in names[number % len(names) :] + names[: number % len(names)]:
            times[name].append(clock(case.variants[name]))
    floor = least_seconds(case, settings)
    rows = []
    for name in names:
        ratios = [first / own for first, own in zip(times[names[0]], times[name], strict=True)]
        rows.append(
            Row(
                case.subject,
                case.point,
                case.axis,
                name,
                statistics.median(times[name]),
                quartiles(times[name]),
                statistics.median(ratios),
                quartiles(ratios),
                len(ratios),
                None,
                differences[name],
                floor / statistics.median(times[name]) if floor is not None else None,
                case.items,
            )
        )
    if settings.memory and rounds > 1 and case.memory is not None:
        for row in rows:
            row.memory_mib = case.memory(case.variants[row.variant])
    elif settings.memory and rounds > 1 and case.clock is None:
        for row in rows:
            row.memory_mib = peak_growth(case.variants[row.variant], settings.device)
        normal_malloc()
    return rows


def least_seconds(case: Case, settings: Settings) -> float | None:
    """What the ceilings allow: the longer of arithmetic and moving data."""
    if settings.ceilings is None or case.operations is None or case.elements is None:
        return None
    operations, size = settings.ceilings
    return max(case.operations / operations, case.elements * getattr(torch, settings.dtype).itemsize / size)


def cuda_ceilings(dtype: str) -> tuple[float, float]:
    """Operations a second of a large matrix product, and bytes a second (read and written) of a large copy."""
    matrix = torch.randn(8192, 8192, device="cuda", dtype=getattr(torch, dtype))
    long = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(long)
    for work in (lambda: matrix @ matrix, lambda: target.copy_(long)):
        work()
    product = statistics.median(cuda_seconds(lambda: matrix @ matrix) for _ in range(5))
    copy = statistics.median(cuda_seconds(lambda: target.copy_(long)) for _ in range(5))
    return 2 * 8192**3 / product, 2 * long.nbytes / copy


def _compare(case: Case) -> dict[str, float]:
    results = {name: work() for name, work in case.variants.items()}
    expected, *_ = results.values()
    compare = case.compare or relative_error
    differences = {name: compare(expected, found) for name, found in results.items()}
    for name, difference in differences.items():
        if not difference <= case.tolerance:
            raise WrongResult(
                f"{case.name}: {name} differs from {next(iter(results))} by {difference:.1e}, allowed are {case.tolerance:g}"
            )
    return differences


def _cast(case: Case, dtype: str) -> None:
    """In place, so that what the variants hold is cast."""
    for module in case.modules:
        module.to(getattr(torch, dtype))
    for tensor in case.tensors.values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(getattr(torch, dtype))


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, upper


# --- clocks and memory ------------------------------------------------------------------------------------------------


def cpu_seconds(work: Callable[[], Any]) -> float:
    """CPU time of this process."""
    gc.collect()
    begin = time.process_time()
    work()
    return time.process_time() - begin


def wall_seconds(work: Callable[[], Any]) -> float:
    """Time on the clock, for work of several processes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def cuda_seconds(work: Callable[[], Any], least: float = 0.02) -> float:
    """Time on the GPU between two events around as many runs as take ``least`` seconds, over their number."""
    runs = 1
    while True:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        for _ in range(runs):
            work()
        end.record()
        torch.cuda.synchronize()
        seconds = begin.elapsed_time(end) / 1000
        if seconds >= least:
            return seconds / runs
        runs = max(runs * 2, int(runs * least / max(seconds, 1e-6)) + 1)


def peak_growth(work: Callable[[], Any], device: str) -> float | None:
    """MiB that the work needs at its peak, beyond what is there before; `None` where it cannot be read."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated() - before) / 2**20
    if not Path("/proc/self/clear_refs").exists():
        return None
    before = forget_peak()
    work()
    return memory("VmHWM") - before


def memory(name: str) -> float:
    """MiB of ``VmRSS`` or ``VmHWM`` of this process; Linux alone."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def forget_peak() -> float:
    """MiB in use. From here on the peak is of tensors that live at a time: freed ones go back to the system at once."""
    gc.collect()
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return memory("VmRSS")


def normal_malloc() -> None:
    """Ends what `forget_peak` asked of malloc, which costs time."""
    ctypes.CDLL("libc.so.6").mallopt(-3, 32 << 20)


# --- results ----------------------------------------------------------------------------------------------------------


def surroundings(device: str) -> dict[str, Any]:
    """Hardware and versions."""
    packages = {}
    for name in ("torch", "transformers", "instructblip_hf", "triton", "numpy"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    hardware: dict[str, Any] = {
        "machine": platform.machine(),
        "cores": len(_cores()),
        "threads": torch.get_num_threads(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        hardware |= {
            "gpu": properties.name,
            "memory_gib": round(properties.total_memory / 2**30),
            "cuda": torch.version.cuda,
        }
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "hardware": hardware,
        "python": platform.python_version(),
        "versions": packages,
    }


def _cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """A whole file in the place of the old one."""
    incoming = path.with_suffix(".incoming")
    incoming.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    incoming.replace(path)


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]


def by_subject(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for subject in dict.fromkeys(row["subject"] for row in rows):
        yield subject, [row for row in rows if row["subject"] == subject]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table of a subject: a line for each point, for each way its time (share of the roofline) and ratio."""
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    keys = list(dict.fromkeys(key for row in rows for key in row["point"]))
    first = variants[0]
    unit = "rows/s" if rows[0]["items"] else "ms"
    head = [*keys, f"{first} ({unit})", *(f"{name} ({unit}) | ratio" for name in variants[1:])]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(keys) + "---:|" * (2 * len(variants) - 1)]
    for point in _points(rows):
        of_point = {row["variant"]: row for row in rows if row["point"] == point}
        cells = [str(point.get(key, "")) for key in keys]
        for name in variants:
            row = of_point.get(name)
            cells.append(cost(row) if row else "")
            if name != first:
                cells.append(ratio(row) if row else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def memory_table(rows: Sequence[dict[str, Any]]) -> str | None:
    """MiB at the peak, beyond weights and inputs."""
    if not any(row["memory_mib"] is not None for row in rows):
        return None
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    keys = list(dict.fromkeys(key for row in rows for key in row["point"]))
    lines = [f"| {' | '.join([*keys, *(f'{name} (MiB)' for name in variants)])} |"]
    lines.append("|" + "---|" * len(keys) + "---:|" * len(variants))
    for point in _points(rows):
        of_point = {row["variant"]: row["memory_mib"] for row in rows if row["point"] == point}
        cells = [str(point.get(key, "")) for key in keys]
        cells += [f"{of_point[name]:.0f}" if of_point.get(name) is not None else "" for name in variants]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _points(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = []
    for row in rows:
        if row["point"] not in points:
            points.append(row["point"])
    return points


def cost(row: dict[str, Any]) -> str:
    """Milliseconds, or rows a second."""
    value = _shown(row, row["seconds"])
    text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return text if row["roofline"] is None else f"{text} ({100 * row['roofline']:.0f} %)"


def _shown(row: dict[str, Any], seconds: float) -> float:
    return row["items"] / seconds if row["items"] else 1000 * seconds  # type: ignore[no-any-return]


def ratio(row: dict[str, Any]) -> str:
    low, high = row["ratio_quartiles"]
    return f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})"


def plot(rows: Sequence[dict[str, Any]], path: Path) -> bool:
    """Cost along each axis, a panel for each setting of the rest, a curve for each way; `False` where nothing varies."""
    from matplotlib.figure import Figure

    panels = [panel for panel in _panels(rows) if len({row["point"].get(panel[0]) for row in panel[2]}) > 1]
    if not panels:
        return False
    figure = Figure(figsize=(4.6 * len(panels), 3.4), layout="constrained")
    for axes, (axis, rest, own) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name in dict.fromkeys(row["variant"] for row in own):
            curve = [row for row in own if row["variant"] == name]
            places = [row["point"][axis] for row in curve]
            axes.plot(places, [_shown(row, row["seconds"]) for row in curve], marker="o", label=name)
            low, high = ([_shown(row, row["seconds_quartiles"][end]) for row in curve] for end in (0, 1))
            axes.fill_between(places, low, high, alpha=0.15)
        if all(row["point"][axis] > 0 for row in own):
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
        axes.set_xticks(sorted({row["point"][axis] for row in own}))
        axes.get_xaxis().set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel(axis)
        axes.set_ylabel("rows/s" if own[0]["items"] else "ms")
        axes.set_title(", ".join(f"{key} {value}" for key, value in rest.items()), fontsize="medium")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize="x-small")
    figure.savefig(path, dpi=110)
    return True


def _panels(rows: Sequence[dict[str, Any]]) -> list[tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    """Axis, what is the same along it, and the rows on it."""
    panels: list[tuple[str, dict[str, Any], list[dict[str, Any]]]] = []
    for row in rows:
        rest = {key: value for key, value in row["point"].items() if key != row["axis"]}
        for axis, same, own in panels:
            if (axis, same) == (row["axis"], rest):
                own.append(row)
                break
        else:
            panels.append((row["axis"], rest, [row]))
    return panels
