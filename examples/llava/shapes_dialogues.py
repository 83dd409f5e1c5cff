"""Dialogues about the shapes world, as LLaVA made its data: scenes, then `instructblip generate-data` on a stand-in endpoint.

    python examples/llava/shapes_dialogues.py outputs/shapes-llava --images 3000

The folder gets ``coco/`` with pictures, captions and boxes, and ``data/`` with what the generator made of them:
``conversation.json``, ``detail.json``, ``complex_reasoning.json`` and all in ``llava_instruct.json``, in the form of
LLaVA-Instruct-150K. The same command once more does what is missing; more ``--images`` keep those that are there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from shapes_in_coco_format import CAPTIONS, IMAGES, INSTANCES, write_shapes


HERE = Path(__file__).parent


def make_dialogues(folder: Path, images: int, seed: int = 0, trouble: float = 0.0, concurrency: int = 8) -> Path:
    """Writes scenes and dialogues about them, and returns the folder of the dialogues.

    Args:
        folder (`Path`): Where to.
        images (`int`): How many scenes, each with a conversation, a description and a question that needs reasoning.
        seed (`int`, *optional*, defaults to 0): Of scenes and draws.
        trouble (`float`, *optional*, defaults to 0.0): Share of the requests that the endpoint gets wrong at first.
        concurrency (`int`, *optional*, defaults to 8): Requests under way at once.
    """
    coco, data = folder / "coco", folder / "data"
    write_shapes(coco, images, seed)
    serving = [sys.executable, str(HERE / "stand_in_endpoint.py"), "--port", "0", "--trouble", str(trouble)]
    with subprocess.Popen(serving, stdout=subprocess.PIPE, text=True) as endpoint:
        try:
            url = endpoint.stdout.readline().strip() if endpoint.stdout is not None else ""
            generating = [sys.executable, "-m", "instructblip_hf.cli", "generate-data", "--output", str(data)]
            generating += ["--captions", str(coco / CAPTIONS), "--instances", str(coco / INSTANCES)]
            generating += ["--prompts", str(HERE / "prompts"), "--endpoint", url, "--model", "shapes-stand-in"]
            generating += ["--seed", str(seed), "--concurrency", str(concurrency)]
            subprocess.run(generating, check=True)
        finally:
            endpoint.terminate()
    return data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to")
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trouble", type=float, default=0.0, help="share of the requests that go wrong at first")
    options = parser.parse_args()
    started = time.perf_counter()
    data = make_dialogues(options.folder, options.images, options.seed, options.trouble)
    print(f"pictures    {options.folder / 'coco' / IMAGES}")
    print(f"{time.perf_counter() - started:.0f} s; see {data / 'report.json'}")


if __name__ == "__main__":
    main()
