"""The vocabulary-ranking pipeline against the loss of stock transformers' model, one candidate at a time."""

import math

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import pipeline

from instructblip_hf import VocabularyRankingPipeline
from tiny_models import our_model, stock_model
from tiny_processors import our_processor


KINDS = ("llama", "t5")
PROMPT = "what color is the circle ?"
COLORS = ["red", "blue circle", "green square", "blue"]


def image(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def rankers(tmp_path_factory):
    result = {}
    for kind in KINDS:
        folder = str(tmp_path_factory.mktemp(kind))
        our_model(kind).save_pretrained(folder)
        our_processor(kind).save_pretrained(folder)
        result[kind] = pipeline("vocabulary-ranking", model=folder)
    return result


def log_probability(kind, picture, prompt, text):
    """Of an answer, from the logits of stock's model on the row that training would see."""
    processor, model = our_processor(kind), stock_model(kind).eval()
    row = {"images": [picture], "prompt": prompt, "completion": text}
    batch = processor.encode_examples([row], is_encoder_decoder=kind == "t5")
    labels = batch.pop("labels")
    # LAVIS scores the end token of T5's answers, and none of Vicuna's.
    counted = labels != -100
    if kind != "t5":
        counted[:, -1] = False
    with torch.no_grad():
        if kind == "t5":
            logits = model(**batch, labels=labels).logits
        else:
            logits = model(**batch).logits[:, :-1]
            labels, counted = labels[:, 1:], counted[:, 1:]
    steps = logits.log_softmax(-1).gather(2, labels.clamp(min=0).unsqueeze(-1))[..., 0]
    return steps[counted].sum().item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", [PROMPT, ""])
def test_scores_are_those_of_stock(rankers, kind, prompt):
    found = rankers[kind](image(0), prompt=prompt, candidates=COLORS)
    expected = {text: log_probability(kind, image(0), prompt, text) for text in COLORS}
    assert [entry["label"] for entry in found] == sorted(expected, key=expected.get, reverse=True)
    total = sum(map(math.exp, expected.values()))
    for entry in found:
        assert entry["log_probability"] == pytest.approx(expected[entry["label"]], abs=1e-4)
        assert entry["score"] == pytest.approx(math.exp(expected[entry["label"]]) / total, rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_and_inputs_with_their_own_prompt_and_candidates(rankers, kind):
    ranker = rankers[kind]
    inputs = [
        {"image": image(0)},
        {"image": image(1), "prompt": "is it red ? it is blue . is it ?", "candidates": ["yes", "no", "red"]},
        {"image": image(2), "candidates": COLORS[:2]},
    ]
    options = {"prompt": PROMPT, "candidates": COLORS}
    alone = [ranker(one, **options) for one in inputs]
    assert [len(ranking) for ranking in alone] == [4, 3, 2]
    for together in (ranker(inputs, batch_size=2, **options), ranker(inputs, batch_size=3, num_workers=1, **options)):
        for found, expected in zip(together, alone, strict=True):
            assert [entry["label"] for entry in found] == [entry["label"] for entry in expected]
            for entry, wanted in zip(found, expected):
                assert entry["log_probability"] == pytest.approx(wanted["log_probability"], abs=1e-4)


def test_labels_of_several_answers_and_top_k(rankers):
    ranker = rankers["llama"]
    single = {entry["label"]: entry["log_probability"] for entry in ranker(image(0), prompt=PROMPT, candidates=COLORS)}
    groups = {"warm": ["red"], "cold": ["blue", "green square"]}
    found = ranker(image(0), prompt=PROMPT, candidates=groups)
    sums = {label: math.log(sum(math.exp(single[text]) for text in texts)) for label, texts in groups.items()}
    assert {entry["label"]: entry["log_probability"] for entry in found} == pytest.approx(sums, abs=1e-4)
    assert sum(entry["score"] for entry in found) == pytest.approx(1)
    best = ranker(image(0), prompt=PROMPT, candidates=groups, reduction="max")
    assert {entry["label"]: entry["log_probability"] for entry in best} == pytest.approx(
        {label: max(single[text] for text in texts) for label, texts in groups.items()}, abs=1e-4
    )
    first = ranker(image(0), prompt=PROMPT, candidates=COLORS, top_k=2)
    assert [entry["label"] for entry in first] == sorted(single, key=single.get, reverse=True)[:2]


def test_a_penalty_divides_by_the_tokens(rankers):
    options = {"prompt": PROMPT, "candidates": ["blue circle", "red"]}
    sums, means = (
        {entry["label"]: entry["log_probability"] for entry in rankers["llama"](image(0), length_penalty=p, **options)}
        for p in (0.0, 1.0)
    )
    assert means["blue circle"] == pytest.approx(sums["blue circle"] / 2, abs=1e-4)
    assert means["red"] == pytest.approx(sums["red"], abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "candidates is missing"),
        ({"candidates": []}, "candidates is empty"),
        ({"candidates": "red"}, "must be a list of texts, or a dict"),
        ({"candidates": ["red", "red"]}, "'red' is given twice"),
        ({"candidates": {"warm": "red"}}, "'warm' needs a list"),
        ({"candidates": ["red", " "]}, "candidate 1 must be a text"),
        ({"candidates": ["red"], "top_k": 0}, "top_k is 0"),
        ({"candidates": ["red"], "reduction": "mean"}, "allowed are sum, max"),
        ({"candidates": ["red"], "prompt": ["a"]}, "prompt must be one string"),
    ],
)
def test_refuses(rankers, options, message):
    with pytest.raises(ValueError, match=message):
        rankers["llama"](image(0), **options)


def test_an_input_with_unknown_keys_or_no_image(rankers):
    with pytest.raises(ValueError, match="it must have image"):
        rankers["llama"]({"picture": image(0)}, candidates=["red"])
    with pytest.raises(ValueError, match="is missing"):
        rankers["llama"](candidates=["red"])
    assert rankers["llama"]([], candidates=["red"]) == []


def test_stock_models_cannot_rank():
    with pytest.raises(
        ValueError, match=r"needs a model of instructblip_hf, got InstructBlip.*AutoModelForVision2Seq"
    ):
        VocabularyRankingPipeline(model=stock_model("llama"), processor=our_processor("llama"))
    assert transformers.pipelines.check_task("vocabulary-ranking")[0] == "vocabulary-ranking"
