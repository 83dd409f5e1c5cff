"""InstructBLIP's evaluation, a task a dataset: what is asked, how the answer is taken, and what it is measured by.

Prompts are those of the paper's appendix E, as far as they are known: the protocol was published without code, and parts
of it stand in answers of the authors and in code derived from theirs. ``source`` says where a prompt was found, and
``unverified`` what was not found anywhere and chosen here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal


Inference = Literal["generate", "rank"]
Candidates = Literal["options", "labels", "train_answers"]

METRICS = MappingProxyType(
    {
        "aokvqa_direct_answer": "accuracy",
        "aokvqa_multiple_choice": "accuracy",
        "caption_scores": "cider",
        "exact_match": "accuracy",
        "gqa_accuracy": "accuracy",
        "ivqa_accuracy": "accuracy",
        "ocr_vqa_accuracy": "accuracy",
        "ranking_scores": "mrr",
        "roc_auc": "roc_auc",
        "scienceqa_accuracy": "accuracy",
        "scienceqa_letters": "accuracy",
        "vqa_accuracy": "accuracy",
    }
)
"""Functions of `instructblip_hf.evaluation.metrics`, and which of their results the paper's tables show."""

_YES_NO = MappingProxyType({"yes": ("yes", "true"), "no": ("no", "false")})


@dataclass(frozen=True)
class Decoding:
    """Settings of `generate`, as they reach the model in LAVIS.

    Args:
        max_new_tokens (`int`): Longest answer.
        min_new_tokens (`int`, *optional*, defaults to 1): Shortest answer.
        num_beams (`int`, *optional*, defaults to 5): Beams.
        repetition_penalty (`float`, *optional*, defaults to 1.5): Of tokens that were written before.
        length_penalty (`tuple[float, float]`, *optional*, defaults to `(0.0, -1.0)`):
            Of beam search, for causal and for sequence-to-sequence language models.

    Raises:
        ValueError: If the lengths contradict each other, or there is no beam.
    """

    max_new_tokens: int
    min_new_tokens: int = 1
    num_beams: int = 5
    repetition_penalty: float = 1.5
    length_penalty: tuple[float, float] = (0.0, -1.0)

    def __post_init__(self) -> None:
        if not 0 <= self.min_new_tokens <= self.max_new_tokens or self.max_new_tokens < 1:
            raise ValueError(
                f"an answer of at least {self.min_new_tokens} and at most {self.max_new_tokens} tokens is none; change "
                "both min_new_tokens and max_new_tokens"
            )
        if self.num_beams < 1:
            raise ValueError(f"num_beams is {self.num_beams}; it must be at least 1")

    def options(self, is_encoder_decoder: bool) -> dict[str, Any]:
        """Arguments for `generate`."""
        return {
            "max_new_tokens": self.max_new_tokens,
            "min_new_tokens": self.min_new_tokens,
            "num_beams": self.num_beams,
            "repetition_penalty": self.repetition_penalty,
            "length_penalty": self.length_penalty[is_encoder_decoder],
            "do_sample": False,
        }


SHORT_ANSWER = Decoding(max_new_tokens=10)
"""What `predict_answers` of LAVIS passes on."""
CAPTION = Decoding(max_new_tokens=30, min_new_tokens=8, repetition_penalty=1.15, length_penalty=(0.0, 0.0))
"""What LAVIS's captioning task passes on."""


@dataclass(frozen=True)
class EvalTask:
    """One row of the protocol.

    Args:
        dataset (`str`): Name in the catalog.
        split (`str`): Name of its split.
        prompt (`str`): With slots of an example in braces, see `instructblip_hf.evaluation.prompts`.
        metric (`str`): One of `METRICS`; that of the paper's tables.
        source (`str`): Where the prompt was found.
        inference (`str`, *optional*, defaults to `"generate"`): `"generate"` or `"rank"`.
        decoding (`Decoding`, *optional*): Of ``generate``.
        candidates (`str`, *optional*):
            What ``rank`` chooses from: the example's `"options"`, the `"labels"` below, or `"train_answers"`, all
            answers of the training split.
        labels (`Mapping[str, tuple[str, ...]]`, *optional*): The strings that stand for each label.
        without (`Mapping[str, str]`, *optional*):
            The prompt for examples that lack a slot, by the slot's name.
        unverified (`tuple[str, ...]`, *optional*): What of this was not found in a published source.
        server (`str`, *optional*): The server that has the answers, where they are not public.
        metric_options (`Mapping[str, str]`, *optional*): Of the metric's function.
    """

    dataset: str
    split: str
    prompt: str
    metric: str
    source: str
    inference: Inference = "generate"
    decoding: Decoding = SHORT_ANSWER
    candidates: Candidates | None = None
    labels: Mapping[str, tuple[str, ...]] | None = None
    without: Mapping[str, str] = field(default_factory=dict)
    unverified: tuple[str, ...] = ()
    server: str | None = None
    metric_options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"metric is {self.metric!r}; allowed are {', '.join(METRICS)}")
        if (self.inference == "rank") != (self.candidates is not None):
            raise ValueError("candidates are given exactly where inference is 'rank'")
        if (self.candidates == "labels") != (self.labels is not None):
            raise ValueError("labels are given exactly where candidates is 'labels'")


_APPENDIX = "appendix E"
_VQA = "Question: {question} Short answer:"
_MULTIPLE_CHOICE = "Question: {question} Options: {options}. Short answer:"
_DECODING = "decoding settings"

_NOCAPS = EvalTask(
    "nocaps",
    "val",
    "A short image description: ",
    "caption_scores",
    f"{_APPENDIX}; BLIVA issue 6",
    decoding=CAPTION,
    unverified=(_DECODING,),
)
_MSVD_QA = EvalTask(
    "msvd_qa",
    "test",
    _VQA,
    "exact_match",
    f"{_APPENDIX}; LAVIS issue 333",
    inference="rank",
    candidates="train_answers",
    unverified=("which answers are ranked",),
)

TASKS: dict[str, EvalTask] = {
    # --- held out: table 1
    "nocaps": _NOCAPS,
    "flickr30k": replace(_NOCAPS, dataset="flickr30k", split="test"),
    "gqa": EvalTask(
        "gqa",
        "testdev",
        _VQA,
        "gqa_accuracy",
        f"{_APPENDIX}; LAVIS issue 333; answers made alike as in LAVIS's GQA task",
        unverified=(_DECODING,),
        metric_options={"normalizer": "vqa"},
    ),
    "vsr": EvalTask(
        "vsr",
        "test",
        'Based on the image, is this statement true or false? "{statement}" Answer:',
        "exact_match",
        f"{_APPENDIX}, in code derived from LAVIS",
        inference="rank",
        candidates="labels",
        labels=_YES_NO,
        unverified=("that it is ranked", "the strings of both labels"),
    ),
    "iconqa": EvalTask(
        "iconqa",
        "test",
        _MULTIPLE_CHOICE,
        "exact_match",
        f"{_APPENDIX}, from memory",
        inference="rank",
        candidates="options",
        unverified=("prompt", "how options are written"),
    ),
    "textvqa": EvalTask(
        "textvqa",
        "val",
        "OCR tokens: {ocr_tokens}. Question: {question} Short answer:",
        "vqa_accuracy",
        f"{_APPENDIX}; order of the two and 30 tokens at most as in LAVIS's predict_answers",
        without={"ocr_tokens": _VQA},
        unverified=("wording", "which OCR", _DECODING),
    ),
    "visdial": EvalTask(
        "visdial",
        "val",
        'This image has the caption "{caption}". Dialog history: {history}\n Question: {question} Short answer:',
        "ranking_scores",
        f"{_APPENDIX}; BLIVA issue 18; caption as in LAVIS's predict_class",
        inference="rank",
        candidates="options",
        without={
            "history": 'This image has the caption "{caption}". Question: {question} Short answer:',
        },
        unverified=("how turns of the history are written",),
    ),
    "hateful_memes": EvalTask(
        "hateful_memes",
        "dev",
        'This is an image with: "{text}" written on it. Is it hateful? Answer:',
        "roc_auc",
        f"{_APPENDIX}, in code derived from LAVIS; labels in section 2.4",
        inference="rank",
        candidates="labels",
        labels=_YES_NO,
    ),
    "vizwiz": EvalTask(
        "vizwiz",
        "test",
        _VQA,
        "vqa_accuracy",
        f"{_APPENDIX}; LAVIS issue 352",
        unverified=("prompt", _DECODING),
        server="VizWiz",
    ),
    "scienceqa": EvalTask(
        "scienceqa",
        "test_image",
        "Context: {context} Question: {question} Options: {options}. Answer:",
        "scienceqa_accuracy",
        "the authors in LAVIS issue 326",
        inference="rank",
        candidates="options",
        without={"context": "Question: {question} Options: {options}. Answer:"},
        unverified=("the prompt of questions without a hint", "that options are ranked by their text"),
    ),
    "msvd_qa": _MSVD_QA,
    "msrvtt_qa": replace(_MSVD_QA, dataset="msrvtt_qa"),
    "ivqa": EvalTask(
        "ivqa",
        "test",
        _VQA,
        "ivqa_accuracy",
        f"{_APPENDIX}, from memory",
        unverified=("prompt", _DECODING, "how answers are made alike"),
        metric_options={"normalizer": "vqa"},
    ),
    # --- held in, and finetuned: table 3
    "coco_caption": EvalTask(
        "coco_caption",
        "test",
        "A short image caption.",
        "caption_scores",
        "LAVIS's caption_coco_vicuna7b_eval.yaml",
        decoding=CAPTION,
        unverified=(_DECODING,),
    ),
    "textcaps": EvalTask(
        "textcaps",
        "val",
        "OCR tokens: {ocr_tokens}. A short image description: ",
        "caption_scores",
        "that OCR tokens stand in front: LAVIS's generate",
        decoding=CAPTION,
        without={"ocr_tokens": "A short image description: "},
        unverified=("prompt", _DECODING),
    ),
    "vqav2": EvalTask("vqav2", "val", _VQA, "vqa_accuracy", "as VizWiz", unverified=("prompt", _DECODING)),
    "okvqa": EvalTask("okvqa", "val", _VQA, "vqa_accuracy", "as VizWiz", unverified=("prompt", _DECODING)),
    "aokvqa": EvalTask("aokvqa", "val", _VQA, "aokvqa_direct_answer", "as VizWiz", unverified=("prompt", _DECODING)),
    "aokvqa_choice": EvalTask(
        "aokvqa",
        "val",
        _MULTIPLE_CHOICE,
        "aokvqa_multiple_choice",
        "as IconQA; ranking in section 2.4",
        inference="rank",
        candidates="options",
        unverified=("prompt", "how options are written"),
    ),
    "ocr_vqa": EvalTask(
        "ocr_vqa", "test", _VQA, "ocr_vqa_accuracy", "as VizWiz, without OCR tokens", unverified=("prompt", _DECODING)
    ),
}
TASKS |= {
    name: replace(TASKS[public], split=split, source=f"as {public}", server=server)
    for name, public, split, server in (
        ("vqav2_test_dev", "vqav2", "test-dev", "VQA"),
        ("vqav2_test", "vqav2", "test", "VQA"),
        ("textvqa_test", "textvqa", "test", "TextVQA"),
        ("nocaps_test", "nocaps", "test", "NoCaps"),
    )
}
"""The protocol, by name of the task."""


_LLAVA_SCIENCEQA = EvalTask(
    "scienceqa",
    "test",
    "{qcm}",
    "scienceqa_letters",
    "LLaVA's docs/ScienceQA.md and llava/eval/model_vqa_science.py, which sample with temperature 0.2",
    decoding=Decoding(1024, min_new_tokens=0, num_beams=1, repetition_penalty=1.0, length_penalty=(1.0, 1.0)),
    unverified=("greedy decoding",),
)
LLAVA_TASKS: dict[str, EvalTask] = {
    "scienceqa_llava": _LLAVA_SCIENCEQA,
    "scienceqa_llava_1_5": replace(
        _LLAVA_SCIENCEQA,
        prompt="{cqm}\nAnswer with the option's letter from the given choices directly.",
        source="LLaVA's scripts/v1_5/eval/sqa.sh",
        unverified=(),
    ),
}
"""What LLaVA's authors ask, by name of the task; no part of InstructBLIP's protocol, nor of its groups."""


def eval_task(name: str) -> EvalTask:
    """The task of a name.

    Raises:
        KeyError: If there is none, naming those that exist.
    """
    known = {**TASKS, **LLAVA_TASKS}
    if name not in known:
        raise KeyError(f"there is no task {name!r}; there are {', '.join(known)}")
    return known[name]


__all__ = ["CAPTION", "LLAVA_TASKS", "METRICS", "SHORT_ANSWER", "TASKS", "Decoding", "EvalTask", "eval_task"]
