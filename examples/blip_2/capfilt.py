"""CapFilt on the shapes world: a third of the captions are those of other pictures, and are to be found and left out.

    python examples/blip_2/capfilt.py --output outputs/capfilt

Filter and captioner are the bundled models, which know the shapes world; others are named by --filter (a BLIP-2 for
retrieval, or of the first stage) and --captioner ("" for none). The script writes pictures with captions as a file of
rows, runs CapFilt over it, and prints which share of the right captions was kept and which share of the wrong ones was
dropped. A wrong caption is one of another picture that differs from the right one, so that it names an object too many or
too few. OUTPUT/result/report.html shows what was done.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from instructblip_hf.capfilt import (
    CapFiltOptions,
    Captioner,
    CaptionFilter,
    CaptionOptions,
    FilterOptions,
    capfilt,
    open_source,
)
from instructblip_hf.cli.loading import load
from instructblip_hf.data.sources.shapes_world import ShapesWorld
from instructblip_hf.retrieval import RetrievalEncoder


def swapped(captions: list[str], share: float, seed: int) -> dict[int, str]:
    """Wrong captions for a share of the pictures, each of another picture and other than the right one."""
    draws = random.Random(seed)
    wrong = {}
    for number in draws.sample(range(len(captions)), round(share * len(captions))):
        others = [caption for caption in captions if caption != captions[number]]
        wrong[number] = draws.choice(others)
    return wrong


def write_pictures(folder: Path, count: int, share: float, seed: int) -> None:
    """Writes pictures, and ``annotation.jsonl`` with their captions, some of them wrong."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    world = ShapesWorld(seed=seed, split="test", tasks=["caption"])
    examples = [world.example(number) for number in range(count)]
    wrong = swapped([example["completion"] for example in examples], share, seed)
    with (folder / "annotation.jsonl").open("w") as file:
        for number, example in enumerate(examples):
            name = f"images/{number:05d}.png"
            example["images"][0].save(folder / name)
            caption = wrong.get(number, example["completion"])
            # What a row says beside image and caption is kept in the result.
            row = {"image": name, "caption": caption, "right": example["completion"], "wrong": number in wrong}
            file.write(json.dumps(row) + "\n")


def shares(result: Path) -> dict[str, float]:
    """Share of the right captions that was kept, of the wrong ones that was dropped, and of right ones in all."""
    kept: dict[bool, list[bool]] = {False: [], True: []}
    texts: list[bool] = []
    for name in ("annotation.jsonl", "dropped.jsonl"):
        for line in (result / name).read_text().splitlines():
            row: dict[str, Any] = json.loads(line)
            kept[row["wrong"]] += [one["kept"] for one in row["candidates"] if one["source"] == "web"]
            texts += [objects(text) == objects(row["right"]) for text in row.get("caption", [])]
    return {
        "right captions kept": sum(kept[False]) / len(kept[False]),
        "wrong captions dropped": 1 - sum(kept[True]) / len(kept[True]),
        "right before": len(kept[False]) / (len(kept[False]) + len(kept[True])),
        "right after": sum(texts) / len(texts) if texts else 0.0,
    }


def objects(caption: str) -> list[str]:
    """What a caption names, in no order."""
    return sorted(part.strip() for part in caption.split(","))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--filter", default="blip2-shapes-tiny", help="Compares captions with pictures.")
    parser.add_argument("--captioner", default="instructblip-shapes-tiny", help='Makes captions; "" for none.')
    parser.add_argument("--prompt", default="describe the image .", help="For the captioner.")
    parser.add_argument("--sampled", type=int, default=10, help="Captions an image.")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--swapped", type=float, default=1 / 3, help="Share of captions that are another picture's.")
    parser.add_argument("--rank-by", default="itm", help="itm or itc.")
    parser.add_argument("--min-itm", type=float, default=0.5, help="Least probability of a match.")
    parser.add_argument("--top-k", type=int, default=2, help="Most captions of an image that are kept.")
    parser.add_argument("--seed", type=int, default=77, help="Of the pictures.")
    parser.add_argument("--device")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()

    pictures, result = arguments.output / "pictures", arguments.output / "result"
    if not (pictures / "annotation.jsonl").exists():
        write_pictures(pictures, arguments.images, arguments.swapped, arguments.seed)
    loaded = load(arguments.filter, arguments.device)
    options = FilterOptions(arguments.rank_by, min_itm=arguments.min_itm, top_k=arguments.top_k)
    caption_filter = CaptionFilter(RetrievalEncoder(loaded.model, loaded.processor, loaded.name), options)
    captioner = None
    if arguments.captioner:
        loaded = load(arguments.captioner, arguments.device)
        made = CaptionOptions(prompt=arguments.prompt, sampled=arguments.sampled)
        captioner = Captioner(loaded.model, loaded.processor, made, loaded.name)
    report = capfilt(open_source([pictures]), result, caption_filter, captioner, CapFiltOptions(batch_size=32))

    for name, share in shares(result).items():
        print(f"{name:<24}{share:.3f}")
    print(f"{'captions made':<24}{report['sources']['synthetic']['texts']:,}")
    print(f"{'of them kept':<24}{report['sources']['synthetic']['kept']:,}")
    print(f"{'pictures with a caption':<24}{report['rows_kept']:,} of {report['rows']:,}")
    print(f"look at it: {result / 'report.html'}")


if __name__ == "__main__":
    main()
