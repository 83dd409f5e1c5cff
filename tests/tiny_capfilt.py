"""A tiny random captioner and filter, and pictures with texts in every form that CapFilt reads."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
from PIL import Image
from transformers import BlipImageProcessorPil

from instructblip_hf.capfilt import CapFiltOptions, Captioner, CaptionFilter, CaptionOptions, FilterOptions
from instructblip_hf.models.blip_2 import Blip2Processor
from tiny_models import IMAGE_SIZE, NUM_QUERY_TOKENS, our_blip_2, our_model
from tiny_processors import language_tokenizer, our_processor
from tiny_retrieval import retrieval_encoder


TEXTS = ["a red circle", "a blue square", "two green rings", "one digit", "a purple cross", "nothing at all"]


def captioner(kind="opt", family="blip-2", **options):
    options = CaptionOptions(**{"sampled": 3, "max_new_tokens": 6, "prompt": "what color", **options})
    if family == "instructblip":
        return Captioner(our_model(kind), our_processor(kind), options, "tiny")
    images = BlipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    processor = Blip2Processor(images, language_tokenizer(kind), num_query_tokens=NUM_QUERY_TOKENS)
    return Captioner(our_blip_2(kind), processor, options, "tiny")


def caption_filter(**options):
    return CaptionFilter(retrieval_encoder(), FilterOptions(**options))


def work(**options):
    return CapFiltOptions(**{"rows_per_shard": 3, "batch_size": 2, "progress": False, **options})


def picture(number):
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (20, 24, 3), dtype=np.uint8))


def png(number):
    buffer = io.BytesIO()
    picture(number).save(buffer, format="PNG")
    return buffer.getvalue()


def write_rows(folder, count, **more):
    """``annotation.jsonl`` beside its images; every third row has two captions."""
    (folder / "images").mkdir(parents=True)
    with (folder / "annotation.jsonl").open("w") as file:
        for number in range(count):
            (folder / "images" / f"{number}.png").write_bytes(png(number))
            text = TEXTS[number % len(TEXTS)]
            caption = [text, TEXTS[(number + 1) % len(TEXTS)]] if number % 3 == 0 else text
            row = {"image": f"images/{number}.png", "caption": caption, "url": f"http://a/{number}", **more}
            file.write(json.dumps(row) + "\n")
    return folder


def write_tar(path, numbers, texts=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number in numbers:
            files = {".png": png(number)}
            if texts:
                files[".txt"] = TEXTS[number % len(TEXTS)].encode()
            for suffix, data in files.items():
                member = tarfile.TarInfo(f"{number:05d}{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


def tree(folder):
    """Every file of a folder with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def nucleus(logits, top_p, temperature=1.0):
    """Tokens of the nucleus, most likely first, and their probabilities renormalised; one after the other."""
    values = [float(value) / temperature for value in logits]
    exponents = np.exp(np.array(values, dtype=np.float64) - max(values))
    probabilities = exponents / exponents.sum()
    tokens, reached = [], 0.0
    for token in sorted(range(len(values)), key=lambda token: -probabilities[token]):
        tokens.append(token)
        reached += probabilities[token]
        if reached >= top_p:
            break
    return tokens, [probabilities[token] / reached for token in tokens]


def drawn(logits, number, top_p, temperature=1.0):
    """The token at a number from 0 to 1 of the nucleus."""
    tokens, probabilities = nucleus(logits, top_p, temperature)
    reached = 0.0
    for token, probability in zip(tokens, probabilities):
        reached += probability
        if number < reached:
            return token
    return tokens[-1]
