"""`instructblip features`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .errors import fail, user_errors
from .loading import reach_hub


def run_features(
    recipe: str,
    changes: Sequence[str],
    output: Path | None,
    batch_size: int,
    processes: int | None,
    check: bool,
    force: bool,
    dry_run: bool,
) -> None:
    """Says how much there is to compute and how much room it takes, and computes it."""
    from ..training.recipe import load_recipe

    with user_errors():
        checked = load_recipe(recipe, changes)
        for source in checked.model.sources:
            if not Path(source).is_dir():
                reach_hub(source)

        from ..training.image_features.precompute import FeatureRun

        run = FeatureRun(checked, output, processes)
        plan = run.plan(check)
    store = run.features.store
    speaks = run.args.process_index == 0
    if speaks:
        shape = " x ".join(map(str, plan.shape))
        print(f"folder      {store.folder}")
        print(f"tower       {store.facts['tower']}, {store.facts['kept']}")
        print(
            f"images      {plan.images:,} in {plan.rows:,} rows, {plan.images - len(plan.missing):,} of them are there"
        )
        if plan.bad_rows:
            print(f"bad rows    {plan.bad_rows:,} are left out")
        print(f"an image    {shape} {store.facts['dtype']}, {plan.entry_bytes:,} bytes")
        print(
            f"to compute  {len(plan.missing):,}, which need {_size(plan.missing_bytes)}; free are {_size(plan.free_bytes)}"
        )
    if not plan.fits and not force:
        fail(
            f"{_size(plan.missing_bytes)} of features do not fit on the disk of {store.root}, which has "
            f"{_size(plan.free_bytes)} left: name another folder with --output and data.image_features, store them with "
            "data.image_features_dtype=bfloat16, or go on with --force until it is full"
        )
    if dry_run:
        return
    with user_errors():
        computed = run.compute(plan, batch_size)
    if speaks:
        print(f"computed    {computed:,}")
        if output is not None:
            print(f"use them:   instructblip train {recipe} --set data.image_features={output}")


def _size(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"
