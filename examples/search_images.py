"""A folder of images searched by text, in a few lines of Python.

    python examples/search_images.py photos "a dog on a beach" --model Salesforce/blip2-itm-vit-g

The index is kept beside the folder, so that the second call computes new and changed images only.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from instructblip_hf.models.blip_2 import Blip2ForImageTextRetrieval, Blip2Processor
from instructblip_hf.retrieval import FeatureIndex, FeatureSearch, RetrievalEncoder, index_images, rerank_images


def main() -> None:
    parser = argparse.ArgumentParser(description="Find images by text.")
    parser.add_argument("images", type=Path)
    parser.add_argument("text")
    parser.add_argument("--model", default="Salesforce/blip2-itm-vit-g")
    parser.add_argument("-k", type=int, default=10)
    arguments = parser.parse_args()

    model = Blip2ForImageTextRetrieval.from_pretrained(arguments.model).eval()
    encoder = RetrievalEncoder(model, Blip2Processor.from_pretrained(arguments.model), arguments.model)

    folder = arguments.images.with_name(f"{arguments.images.name}.index")
    report = index_images(encoder, arguments.images, folder, skip_bad_images=True)
    print(f"{report.encoded} images computed, {report.unchanged} there already, {len(report.bad)} cannot be read")

    index = FeatureIndex(folder)
    hits = FeatureSearch(index).top(encoder.encode_texts([arguments.text])[0], arguments.k)
    files = [index.find_file(hit.names) for hit in hits]
    for hit in rerank_images(encoder, arguments.text, hits, files):
        print(f"{hit.score:7.3f}  {hit.names[0]}")


if __name__ == "__main__":
    main()
