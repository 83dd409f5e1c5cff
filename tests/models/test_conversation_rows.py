"""Rows of conversations, judged by LLaVA's own masks.

`llava_rows.json` was written with LLaVA's own functions (haotian-liu/LLaVA at c121f043, ``preprocess`` and what it calls in
``llava/train/train.py``, ``tokenizer_image_token`` of ``llava/mm_utils.py``), taken out of their files by name and run on
transformers 4.49 with the slow `LlamaTokenizer`, ``legacy`` and not, one sample at a time. ``order`` "first" is after
``preprocess_multimodal``. The tokenizer is a SentencePiece model of 640 pieces with byte fallback, trained on the words of
the templates and a few more. Its first pieces were set by hand so that LLaVA's counts come out as with LLaMA's vocabulary:
a piece for `USER` but none for ` USER`, one for ` ###` but not for `###`. Of each row there are the token ids (-200 is an
image) and the runs of labels that are not -100; ``dropped`` where LLaVA printed "tokenization mismatch" and masked it all.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers import BlipImageProcessorPil

from instructblip_hf.models.chat_templates import CHAT_TEMPLATES, end_of_answer
from instructblip_hf.models.instructblip import InstructBlipProcessor
from instructblip_hf.models.llava import LlavaProcessor
from tiny_llava_parts import RECORDED, recorded_tokenizer
from tiny_tokenizers import qformer_tokenizer


ROLES = {"human": "user", "gpt": "assistant"}
IMAGE, IGNORED = -200, -100
QUERIES = 3


def processor(template: str | None, kind: str = "legacy") -> LlavaProcessor:
    # LLaVA tokenised between images; a tokenizer that marks every beginning does so anyway.
    images = BlipImageProcessorPil(size={"height": 14, "width": 14})
    tokenizer = recorded_tokenizer(kind)
    return LlavaProcessor(
        images, tokenizer, chat_template=template, num_query_tokens=QUERIES, split_at_images=kind == "first"
    )


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.RandomState(seed).randint(0, 256, (9, 8, 3), dtype=np.uint8))


def row_of(conversations: list[dict[str, str]]) -> dict[str, Any]:
    messages = [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in conversations]
    images = [picture() for turn in conversations for _ in range(turn["value"].count("<image>"))]
    return {"images": images, "messages": messages}


def image_first(row: dict[str, Any]) -> dict[str, Any]:
    first, *others = row["messages"]
    words = first["content"].replace("<image>", "").strip()
    return {**row, "messages": [{**first, "content": f"<image>\n{words}"}, *others]}


def encode(ours: LlavaProcessor, row: dict[str, Any], **options: Any) -> tuple[list[int], list[int]]:
    inputs = ours.encode_examples([row], return_tensors=None, **options)
    return inputs["input_ids"][0], inputs["labels"][0]


def with_one_id_an_image(ours: LlavaProcessor, ids: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
    found_ids: list[int] = []
    found_labels: list[int] = []
    position = 0
    while position < len(ids):
        is_image = ids[position] == ours.image_token_id
        if is_image:
            assert ids[position : position + QUERIES] == [ours.image_token_id] * QUERIES
            assert labels[position : position + QUERIES] == [IGNORED] * QUERIES
        found_ids.append(IMAGE if is_image else ids[position])
        found_labels.append(labels[position])
        position += QUERIES if is_image else 1
    return found_ids, found_labels


def name_of(recorded: dict[str, Any]) -> str:
    return "-".join(recorded[key] for key in ("template", "tokenizer", "order", "name"))


@pytest.mark.parametrize("recorded", [row for row in RECORDED["rows"] if "dropped" not in row], ids=name_of)
def test_tokens_and_labels_are_llavas(recorded):
    ours = processor(recorded["template"], recorded["tokenizer"])
    row = row_of(RECORDED["conversations"][recorded["name"]])
    ids, labels = with_one_id_an_image(ours, *encode(ours, image_first(row) if recorded["order"] == "first" else row))
    assert ours.tokenizer.convert_ids_to_tokens([i for i in ids if i >= 0]) == ours.tokenizer.convert_ids_to_tokens(
        [i for i in recorded["input_ids"] if i >= 0]
    )
    assert ids == recorded["input_ids"]
    learnt = [any(start <= position < stop for start, stop in recorded["learnt"]) for position in range(len(ids))]
    assert labels == [token_id if own else IGNORED for token_id, own in zip(ids, learnt)]


@pytest.mark.parametrize("recorded", [row for row in RECORDED["rows"] if "dropped" in row], ids=name_of)
def test_what_llava_dropped_without_an_error_is_an_error(recorded):
    ours = processor(recorded["template"], recorded["tokenizer"])
    good = row_of(RECORDED["conversations"]["image first"])
    bad = row_of(RECORDED["conversations"][recorded["name"]])
    reasons = {
        "role words in a question": r"row 1, message 0 holds 'ASSISTANT:', which opens an answer",
        "role words in an answer": r"row 1, message 1 holds 'ASSISTANT:', which opens an answer",
        "role words of Llama 2 in a question": r"row 1, message 0 holds '\[/INST\]', which opens an answer",
        "end token in an answer": r"row 1, message 1 holds '</s>', which ends an answer",
        "question without an answer": r"row 1 must end with an \"assistant\" turn",
    }
    with pytest.raises(ValueError, match=reasons[recorded["name"]]):
        ours.encode_examples([good, bad])


# --- prompts and rows ---------------------------------------------------------------------------------------------

CONVERSATIONS = {
    "image first": [("<image>\nWhat is it?", "A cat. 日本 😀"), ("Where?", "on the mat")],
    "image last": [("What is it?\n<image>", "[0.1, 0.2]"), ("Where?", "é")],
    "two images": [("Is <image> left of <image>?", "no"), ("Sure?", "Yes.")],
    "an image in each turn": [("<image>\nWhat is it?", "a cat"), ("And that?\n<image>", "a dog")],
    "no image": [("What is it?", "the dog"), ("Where?", " here ")],
}
TEMPLATES = ["v0", "llava_v0", "v1", "llava_v1", "llava_llama_2", "plain"]


def conversation(name: str, turns: int = 2) -> dict[str, Any]:
    said = [
        {"from": who, "value": words}
        for pair in CONVERSATIONS[name][:turns]
        for who, words in zip(("human", "gpt"), pair)
    ]
    return row_of(said)


def prompt_ids(ours: LlavaProcessor, row: dict[str, Any]) -> list[int]:
    images = row["images"][: sum(message["content"].count("<image>") for message in row["messages"])]
    inputs = ours.apply_chat_template(
        row["messages"],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        processor_kwargs={"images": images},
    )
    return inputs["input_ids"][0]


@pytest.mark.parametrize("kind", ["legacy", "first"])
@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_prompt_is_what_its_row_begins_with(template, name, kind):
    """What `generate` is given is, token by token, what stood before the answer in training."""
    ours = processor(template, kind)
    row = conversation(name, turns=1 if template == "plain" else 2)
    ids, labels = encode(ours, row)
    for turn in range(len(row["messages"]) // 2):
        before = {**row, "messages": row["messages"][: 2 * turn + 1]}
        prompt = prompt_ids(ours, before)
        assert ids[: len(prompt)] == prompt
        assert labels[len(prompt)] == ids[len(prompt)]
        assert template == "v0" or labels[len(prompt) - 1] == IGNORED


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_ends_an_answer_is_learnt(template):
    ours = processor(template)
    ids, labels = encode(ours, conversation("image first", turns=1 if template == "plain" else 2))
    end = end_of_answer(template, bos_token="<s>", eos_token="</s>")
    learnt = ours.tokenizer.decode([label for label in labels if label != IGNORED])
    assert learnt.count(end) == {"plain": 1, "v0": 5}.get(template, 2)
    assert labels[-1] == ids[-1]


def test_one_end_token_where_the_tokenizer_adds_its_own():
    ours = processor("v1")
    expected = encode(ours, conversation("image first"))
    ours.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    ids, labels = encode(ours, conversation("image first", turns=1))
    assert ids == expected[0][: len(ids)]
    assert labels == expected[1][: len(ids)]


def test_rows_of_a_batch_are_padded_on_the_right():
    ours = processor("v1")
    rows = [conversation("image first"), conversation("no image", turns=1)]
    batch = ours.encode_examples(rows, pad_to_multiple_of=8)
    assert batch["input_ids"].shape[1] % 8 == 0
    assert batch["pixel_values"].shape == (1, 3, 14, 14)
    for row, ids, mask, labels in zip(rows, batch["input_ids"], batch["attention_mask"], batch["labels"]):
        own_ids, own_labels = encode(ours, row)
        assert ids[mask.bool()].tolist() == own_ids == ids[: len(own_ids)].tolist()
        assert labels.tolist() == own_labels + [IGNORED] * (len(labels) - len(own_labels))


@pytest.mark.parametrize("template", ["v0", "v1", "llava_llama_2"])
def test_answers_of_a_prompt_are_not_learnt(template):
    ours = processor(template)
    row = conversation("image first")
    ids, all_labels = encode(ours, row)
    split = {"images": row["images"], "prompt": row["messages"][:-1], "completion": row["messages"][-1:]}
    found, labels = encode(ours, split)
    assert found == ids
    last = len(ids) - next(n for n, (own, both) in enumerate(zip(labels[::-1], all_labels[::-1])) if own != both)
    assert labels[last:] == all_labels[last:]
    assert labels[:last] == [IGNORED] * last
    words = ours.tokenizer.decode([label for label in labels if label != IGNORED])
    assert "on the mat" in words
    assert "A cat" not in words


@pytest.mark.parametrize("template", ["v1", "llava_llama_2", "plain"])
@pytest.mark.parametrize("question", ["What is it?", "What is it?\n<image>"])
def test_rows_of_text_are_turns_as_a_model_is_asked(template, question):
    ours = processor(template)
    ids, labels = encode(ours, {"images": [picture()], "prompt": question, "completion": " A cat. "})
    prompt = ours(images=picture(), text=ours.user_turn(question))["input_ids"][0]
    assert ids[: len(prompt)] == prompt
    ending = {"v1": "</s>", "llava_llama_2": " </s>", "plain": "\n"}[template]
    answer = ours.tokenizer(f"A cat.{ending}", add_special_tokens=False)["input_ids"]
    assert ids[len(prompt) :] == answer
    assert labels == [IGNORED] * len(prompt) + answer


def test_without_a_template_rows_of_text_stay_as_they_are():
    ours = processor(None)
    ids, labels = encode(ours, {"images": [picture()], "prompt": "What is it?", "completion": " A cat. "})
    prompt = ours(images=picture(), text="What is it?")["input_ids"][0]
    answer = ours.tokenizer("A cat.</s>", add_special_tokens=False)["input_ids"]
    assert ids == prompt + answer
    assert labels == [IGNORED] * len(prompt) + answer


# --- lengths ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["v0", "v1", "llava_llama_2"])
def test_a_whole_row_is_cut_at_its_end_as_llava_does(template, caplog):
    """LLaVA cuts ids and labels at ``model_max_length`` after the images' features are in their place."""
    row = conversation("image first")
    whole_ids, whole_labels = encode(processor(template), row)
    for length in range(len(whole_ids) + 1, 0, -1):
        ours = processor(template)
        caplog.clear()
        refusal = None
        if ours.image_token_id in whole_ids[length:]:
            refusal = "cannot hold its image placeholders"
        elif set(whole_labels[:length]) == {IGNORED}:
            refusal = "nothing of its answers is left"
        if refusal is not None:
            with pytest.raises(ValueError, match=f"row 0: .*{refusal}"):
                encode(ours, row, max_length=length)
            continue
        with caplog.at_level(logging.WARNING):
            assert encode(ours, row, max_length=length) == (whole_ids[:length], whole_labels[:length])
        inside = length < len(whole_ids) and whole_labels[length - 1] != IGNORED and whole_labels[length] != IGNORED
        assert ("is cut" in caplog.text) == inside


@pytest.mark.parametrize("template", ["v1", "llava_llama_2"])
def test_limits_of_prompt_and_answer(template, caplog):
    ours = processor(template)
    row = conversation("image first")
    ids, labels = encode(ours, row)
    prompt = len(prompt_ids(ours, {**row, "messages": row["messages"][:-1]}))
    found, found_labels = encode(ours, row, max_completion_length=2)
    assert (found, found_labels) == (ids[: prompt + 2], labels[: prompt + 2])
    assert "is cut (max_completion_length=2" in caplog.text
    special = {ours.image_token_id, *ours.tokenizer.all_special_ids}
    first_answer = [position for position in range(prompt) if labels[position] != IGNORED]
    for limit in range(prompt, 0, -1):
        removable = [position for position in range(prompt) if ids[position] not in special]
        gone = set(removable[: prompt - limit])
        if prompt - limit > len(removable):
            with pytest.raises(ValueError, match=f"row 0: max_prompt_length={limit} cannot hold"):
                encode(ours, row, max_prompt_length=limit)
            continue
        is_broken = not gone.isdisjoint(first_answer)
        expected = [
            (token, IGNORED if is_broken and position in first_answer else label)
            for position, (token, label) in enumerate(zip(ids, labels))
            if position not in gone
        ]
        assert list(zip(*encode(ours, row, max_prompt_length=limit))) == expected


def test_a_limit_of_the_whole_row_is_for_rows_tokenised_as_a_whole():
    ours = InstructBlipProcessor(
        BlipImageProcessorPil(size={"height": 14, "width": 14}),
        recorded_tokenizer("first"),
        qformer_tokenizer(),
        num_query_tokens=QUERIES,
    )
    with pytest.raises(ValueError, match="max_length is 30, but InstructBlipProcessor tokenises answers apart"):
        ours.encode_examples([conversation("image first")], max_length=30)


# --- refusals -----------------------------------------------------------------------------------------------------


def user(words: Any) -> dict[str, Any]:
    return {"role": "user", "content": words}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, "row 0 must be a list of messages"),
        ({"prompt": "a"}, 'row 0 needs "prompt" and "completion"'),
        ({"prompt": "a", "completion": []}, "must both be text or both be lists"),
        ({"prompt": "a", "completion": " "}, '"completion" is empty'),
        ({"prompt": [user("a")], "completion": []}, '"completion" is empty'),
        ({"prompt": "a", "completion": "<image>"}, "assistant turn holds text only"),
        ({"messages": [user("a"), user("b"), {"role": "assistant", "content": "c"}]}, "row 0: .*users and assistants"),
        ({"images": [1], "messages": [user("<image> <image>"), {"role": "assistant", "content": "c"}]}, "row 0"),
        ("text", "row 0 must be a dict"),
    ],
)
def test_rows_that_cannot_be_used(row, message):
    with pytest.raises(ValueError, match=message):
        processor("v1").encode_examples([row])


def test_an_image_in_an_answer_without_a_template():
    with pytest.raises(ValueError, match="row 0: an answer holds the image marker <image>"):
        processor(None).encode_examples([{"images": [picture()], "prompt": "a", "completion": "<image>"}])


def test_a_template_that_marks_no_answer():
    ours = processor("v1")
    ours.chat_template = CHAT_TEMPLATES["v1"].replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    with pytest.raises(ValueError, match="row 0: the chat template marks 0 of 2 assistant turns"):
        ours.encode_examples([conversation("image first")])


def test_a_token_of_prompt_and_answer():
    """A template whose last word before the answer may grow together with it: no prompt has such a token."""
    ours = processor("v1")
    ours.chat_template = CHAT_TEMPLATES["v1"].replace(
        "{{- ' ' + content_of(message) + eos", "{{- content_of(message) + eos"
    )
    ours.chat_template = ours.chat_template.replace("'ASSISTANT:'", "'ASSISTANT: a'")
    row = {"messages": [user("What?"), {"role": "assistant", "content": "nd"}]}
    with pytest.raises(ValueError, match="row 0: the token '▁and' is partly of the prompt"):
        ours.encode_examples([row])


def test_sequence_to_sequence_models_are_refused():
    with pytest.raises(ValueError, match="causal"):
        processor("v1").encode_examples([conversation("image first")], is_encoder_decoder=True)


def test_the_processor_takes_templates_by_name(tmp_path):
    ours = processor("v1", "first")
    assert ours.chat_template == CHAT_TEMPLATES["v1"]
    ours.save_pretrained(tmp_path)
    loaded = LlavaProcessor.from_pretrained(tmp_path)
    assert loaded.chat_template == CHAT_TEMPLATES["v1"]
    assert encode(loaded, conversation("image first")) == encode(ours, conversation("image first"))
    ours = LlavaProcessor(ours.image_processor, ours.tokenizer, chat_template={"default": "v1", "stage 1": "plain"})
    assert ours.chat_template == {"default": CHAT_TEMPLATES["v1"], "stage 1": CHAT_TEMPLATES["plain"]}
    with pytest.raises(ValueError, match="'v7'"):
        processor("v7")


@pytest.mark.parametrize(
    ("template", "stops"), [("v0", ["###"]), ("plain", ["\n"]), ("v1", []), ("llava_llama_2", []), (None, [])]
)
def test_what_generation_has_to_stop_at(template, stops):
    assert processor(template).stop_strings == stops
