"""All benchmarks but those of programs of their own: results compared, then timed in turn, tables, curves and JSON.

    python examples/benchmarks/run.py --output outputs/benchmarks
    python examples/benchmarks/run.py --output outputs/benchmarks --size deep --subjects questions
    python examples/benchmarks/run.py --output outputs/benchmarks --device cuda --dtype bfloat16 --size 7b --compile

Stock transformers and this package hold the same tensors of random weights. Every way of doing a piece of work is compared
with the first one in float32 before any is timed; where one differs, the program ends with an error. The rest is in
harness.py. frozen_training.py is a program too, for other settings; retrieval.py (searching) is one alone.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from harness import (
    Settings,
    as_json,
    by_subject,
    cuda_ceilings,
    measure,
    memory_table,
    plot,
    surroundings,
    table,
    write_json,
)
from lavis_models import Lavis
from options import Options

from models import SIZES, build


SUBJECTS = (
    "start_up",
    "loading",
    "fused",
    "qformer",
    "packing",
    "images",
    "questions",
    "generation",
    "many_requests",
    "ranking",
    "frozen_training",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for results.json, tables.md and pictures")
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=SUBJECTS)
    parser.add_argument("--size", choices=SIZES, default="mid")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="of what is timed"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=60, help="after so many a case ends, once it has 3 rounds")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--compile", action="store_true", help="also time torch.compile of stock")
    parser.add_argument("--lavis", type=Path, help="a clone of LAVIS's repository, to time it too")
    parser.add_argument("--questions", type=int, nargs="+", default=Options.questions, help="an image, how many")
    parser.add_argument("--candidates", type=int, nargs="+", default=Options.candidates, help="to rank, how many")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU")
    lavis = Lavis(args.lavis) if args.lavis is not None else None
    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    options = Options(
        args.device, args.size, args.dtype, args.compile, lavis, tuple(args.questions), tuple(args.candidates)
    )
    settings = Settings(args.device, args.dtype, args.rounds, args.seconds)
    if args.device == "cuda":
        settings.ceilings = cuda_ceilings(args.dtype)
    content: dict[str, Any] = {
        "command": shlex.join(["python", *sys.argv]),
        "size": args.size,
        "dtype": args.dtype,
        "ceilings": settings.ceilings,
        **surroundings(args.device),
        "rows": [],
        "missing": {},
        "summaries": {},
    }
    pair = None
    for subject in args.subjects:
        if pair is None and subject in ("fused", "qformer", "images", "questions", "generation", "many_requests"):
            pair = build(SIZES[args.size], args.device)
        module = importlib.import_module(subject)
        of_subject = []
        for case in module.cases(options, pair):
            rows = as_json(measure(case, settings))
            content["rows"] += rows
            of_subject += rows
            for variant, reason in case.missing.items():
                content["missing"].setdefault(case.subject, {})[variant] = reason
            write_json(args.output / "results.json", content)
            print(f"\n{case.name}\n{table(rows)}", flush=True)
        if of_subject and hasattr(module, "summary"):
            content["summaries"][case.subject] = module.summary(of_subject)
            write_json(args.output / "results.json", content)
            print(f"\n{content['summaries'][case.subject]}", flush=True)
    (args.output / "tables.md").write_text(tables(content, args.output), encoding="utf-8")
    print(f"\n{args.output / 'tables.md'}")


def tables(content: dict[str, Any], folder: Path) -> str:
    """All tables as Markdown; writes the pictures on the way."""
    parts = [f"`{content['command']}`, {content['date']}, {content['hardware']}, {content['versions']}"]
    for subject, rows in by_subject(content["rows"]):
        parts += [f"## {subject}", table(rows)]
        if subject in content["summaries"]:
            parts.append(content["summaries"][subject])
        if (peaks := memory_table(rows)) is not None:
            parts += ["Memory at the peak, beyond weights and inputs:", peaks]
        for variant, reason in content["missing"].get(subject, {}).items():
            parts.append(f"{variant}: not measured ({reason}).")
        if plot(rows, folder / f"{subject.replace(',', '').replace(' ', '_')}.png"):
            parts.append(f"![{subject}]({subject.replace(',', '').replace(' ', '_')}.png)")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
