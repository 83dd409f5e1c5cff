"""`instructblip evaluate-retrieval`."""

from __future__ import annotations

import json
from pathlib import Path

from .errors import fail, user_errors
from .index import RETRIEVAL_EXAMPLE
from .loading import load
from .tables import print_columns


def run_evaluate_retrieval(
    dataset: str,
    data_root: Path,
    model: str | None,
    split: str,
    image_root: Path | None,
    k: int,
    batch_size: int,
    output: Path | None,
    device: str | None,
    dtype: str | None,
) -> None:
    """Evaluates retrieval on a dataset of captions, and shows R@1, 5 and 10 in both directions."""
    with user_errors():
        from ..evaluation.retrieval import RETRIEVAL_DATASETS, evaluate_retrieval

        if dataset not in RETRIEVAL_DATASETS:
            raise ValueError(f"--dataset is {dataset!r}; allowed are {', '.join(RETRIEVAL_DATASETS)}")
        if model is None:
            fail(
                f"evaluate-retrieval needs --model: a folder or Hub id of a BLIP-2 for retrieval, like {RETRIEVAL_EXAMPLE}"
            )

        from ..data.sources.datasets import CatalogDataset
        from ..retrieval.encoding import RetrievalEncoder
        from ..utils.fingerprints import describe_model
        from ..utils.whole_files import write_whole

        folder = data_root / dataset
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder} with the files of {dataset}")
        examples = CatalogDataset(dataset, folder, split, image_root)
        loaded = load(model, device, dtype)
        encoder = RetrievalEncoder(loaded.model, loaded.processor, loaded.name)
        result = evaluate_retrieval(encoder, examples, k, batch_size)
    rows: list[tuple[str, ...]] = [("", "R@1", "R@5", "R@10", "rows")]
    for name, title, count in (("txt", "image to text", "images"), ("img", "text to image", "texts")):
        recalls = [f"{100 * result[f'{name}_r{place}']:.1f}" for place in (1, 5, 10)]
        rows.append((title, *recalls, f"{result[count]:,}"))
    print_columns(rows)
    if output is not None:
        about = {"model": describe_model(loaded.model, loaded.name), "dataset": dataset, "split": split, **result}
        write_whole(output, json.dumps(about, indent=2) + "\n")
        print(f"\nin {output}")
