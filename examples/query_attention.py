"""Where the Q-Former's queries look in an image, by instruction, as a PNG.

python examples/query_attention.py examples/scene.png "What color is the circle?" "Where is the square?" --output looks.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from instructblip_hf import AutoModelForVision2Seq, bundled_checkpoint, query_attention
from instructblip_hf.app.heat_maps import heat_map, strip
from instructblip_hf.models.families import family_of


def main() -> None:
    """Writes a picture: the mean over the queries for each instruction, side by side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", help="path or address")
    parser.add_argument("instructions", nargs="+", help="what the Q-Former reads beside its queries")
    parser.add_argument("--model", default=str(bundled_checkpoint()), help="folder or Hub id")
    parser.add_argument("--layer", type=int, help="one layer with cross-attention; by default the mean over them")
    parser.add_argument("--output", type=Path, default=Path("query-attention.png"))
    arguments = parser.parse_args()

    model = AutoModelForVision2Seq.from_pretrained(arguments.model).eval()
    processor = family_of(arguments.model)[0].processor_class.from_pretrained(arguments.model)
    pictures, captions = [], []
    for instruction in arguments.instructions:
        looks = query_attention(model, processor, arguments.image, instruction, arguments.layer)
        pictures.append(heat_map(looks.maps.mean(0), looks.image))  # mean over the queries
        captions.append(f"{instruction} ({looks.maps.sum((1, 2)).mean():.0%} on patches)")
    strip(pictures, captions).save(arguments.output)
    print(arguments.output)


if __name__ == "__main__":
    main()
