"""Which functions read which dataset of the catalog: files to rows, and a row to examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..catalog import dataset_spec
from ..schema import Example, check_example
from . import captions, hateful_memes, multiple_choice, reading, reasoning, video_questions, visual_dialog
from . import llava_instruct as llava
from . import visual_questions as vqa
from .files import Located


@dataclass(frozen=True)
class Source:
    """How a dataset is read.

    Args:
        rows (`Callable`): From the files of a split, the split's name and its optional files to located rows.
        examples (`Callable`): From a row to its examples, without a look at any file. Raises `ValueError` for a
            malformed row.
    """

    rows: Callable[[Sequence[Path], str, Sequence[Path]], Iterator[Located]]
    examples: Callable[[Mapping[str, Any]], list[Example]]


SOURCES: dict[str, Source] = {
    "coco_caption": Source(captions.karpathy_rows, captions.coco_caption_examples),
    "web_capfilt": Source(captions.capfilt_rows, captions.capfilt_examples),
    "nocaps": Source(captions.nocaps_rows, captions.nocaps_examples),
    "flickr30k": Source(captions.karpathy_rows, captions.flickr30k_examples),
    "textcaps": Source(reading.textcaps_rows, reading.textcaps_examples),
    "gqa": Source(reasoning.gqa_rows, reasoning.gqa_examples),
    "vsr": Source(reasoning.vsr_rows, reasoning.vsr_examples),
    "iconqa": Source(multiple_choice.iconqa_rows, multiple_choice.iconqa_examples),
    "vqav2": Source(vqa.vqa_rows, vqa.vqav2_examples),
    "vizwiz": Source(vqa.vizwiz_rows, vqa.vizwiz_examples),
    "okvqa": Source(vqa.vqa_rows, vqa.okvqa_examples),
    "aokvqa": Source(vqa.aokvqa_rows, vqa.aokvqa_examples),
    "scienceqa": Source(multiple_choice.scienceqa_rows, multiple_choice.scienceqa_examples),
    "ocr_vqa": Source(reading.ocr_vqa_rows, reading.ocr_vqa_examples),
    "textvqa": Source(reading.textvqa_rows, reading.textvqa_examples),
    "vqg_vqav2": Source(vqa.vqa_rows, vqa.vqg_vqav2_examples),
    "vqg_okvqa": Source(vqa.vqa_rows, vqa.vqg_okvqa_examples),
    "vqg_aokvqa": Source(vqa.aokvqa_rows, vqa.vqg_aokvqa_examples),
    "msvd_qa": Source(video_questions.msvd_rows, video_questions.msvd_qa_examples),
    "msrvtt_qa": Source(video_questions.msrvtt_rows, video_questions.msrvtt_qa_examples),
    "ivqa": Source(video_questions.ivqa_rows, video_questions.ivqa_examples),
    "visdial": Source(visual_dialog.visdial_rows, visual_dialog.visdial_examples),
    "hateful_memes": Source(hateful_memes.hateful_memes_rows, hateful_memes.hateful_memes_examples),
    "llava_conversation": Source(llava.llava_rows, llava.llava_examples("llava_conversation")),
    "llava_detail": Source(llava.llava_rows, llava.llava_examples("llava_detail")),
    "llava_reasoning": Source(llava.llava_rows, llava.llava_examples("llava_reasoning")),
}
"""One for each dataset of `instructblip_hf.data.catalog.DATASETS`."""


def examples_of(name: str, row: Mapping[str, Any]) -> list[Example]:
    """The checked examples of a row in a dataset's official format; some rows have several, such as dialogues.

    Args:
        name (`str`): Name in the catalog.
        row (`Mapping`): A row as the dataset's reader of files gives it, or one of a repository of `datasets`.

    Raises:
        KeyError: If the catalog has no such dataset.
        ValueError: For a malformed row, naming the field.
    """
    dataset_spec(name)
    try:
        examples = SOURCES[name].examples(row)
    except (AttributeError, TypeError, KeyError, IndexError) as error:
        raise ValueError(f"is not built as published ({type(error).__name__}: {error})") from error
    for example in examples:
        check_example(example)
    return examples


__all__ = ["SOURCES", "Source", "examples_of"]
