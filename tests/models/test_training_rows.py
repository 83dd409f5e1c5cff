"""Training rows: labels recomputed by hand from the tokenizer, for each family of tokenizers."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers import BlipImageProcessorPil

from instructblip_hf.models.instructblip.processing_instructblip import InstructBlipProcessor
from tiny_tokenizers import LANGUAGE_TOKENIZERS, language_tokenizer, qformer_tokenizer


QUERIES = 3
IGNORED = -100
QUESTION = "What color is the circle?"
ANSWER = "The circle is red."
SECOND_QUESTION = "Where is it?"
SECOND_ANSWER = "In the upper right corner"
CAUSAL = [kind for kind in LANGUAGE_TOKENIZERS if kind != "t5"]


def processor(kind: str = "llama", **options: Any) -> InstructBlipProcessor:
    return InstructBlipProcessor(
        BlipImageProcessorPil(size={"height": 14, "width": 14}),
        language_tokenizer(kind),
        qformer_tokenizer(),
        num_query_tokens=QUERIES,
        **options,
    )


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.RandomState(seed).randint(0, 256, (9, 8, 3), dtype=np.uint8))


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def answer_ids(ours: InstructBlipProcessor, text: str) -> list[int]:
    """An answer after a space: SentencePiece writes the space by itself, byte-level tokenizers are given it."""
    gap = " " if ours.tokenizer.tokenize("a") == ["a"] else ""
    return ours.tokenizer(gap + text, add_special_tokens=False)["input_ids"]


def rows_of(inputs: Any) -> list[tuple[list[int], list[int]]]:
    """Unpadded ids and labels of causal rows; padding is checked on the way."""
    result = []
    for ids, mask, labels in zip(inputs["input_ids"], inputs["attention_mask"], inputs["labels"]):
        length = int(mask.sum())
        assert mask.tolist() == [1] * length + [0] * (len(mask) - length)
        assert set(labels[length:].tolist()) <= {IGNORED}
        result.append((ids[:length].tolist(), labels[:length].tolist()))
    return result


# --- causal -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CAUSAL)
def test_causal_rows_by_hand(kind: str) -> None:
    ours = processor(kind)
    examples = [
        {"images": [picture(0), picture(1)], "prompt": QUESTION, "completion": ANSWER},
        {"images": [], "prompt": SECOND_QUESTION, "completion": SECOND_ANSWER},
        {"image": picture(2), "prompt": SECOND_QUESTION, "completion": "three"},
        {"prompt": QUESTION, "completion": "Yes", "task": "no image at all"},
    ]
    inputs = ours.encode_examples(examples)
    for (ids, labels), example, images in zip(rows_of(inputs), examples, [2, 0, 1, 0]):
        prompt = [ours.image_token_id] * QUERIES * images + ours.tokenizer(example["prompt"])["input_ids"]
        answer = [*answer_ids(ours, example["completion"]), ours.tokenizer.eos_token_id]
        assert ids == prompt + answer
        assert labels == [IGNORED] * len(prompt) + answer
    alone = [ours(images=picture(seed))["pixel_values"][0] for seed in range(3)]
    np.testing.assert_array_equal(inputs["pixel_values"].numpy(), np.stack(alone))
    instructions = ours.qformer_tokenizer([QUESTION, QUESTION, SECOND_QUESTION], padding=True, return_tensors="pt")
    assert torch.equal(inputs["qformer_input_ids"], instructions["input_ids"])
    assert torch.equal(inputs["qformer_attention_mask"], instructions["attention_mask"])


@pytest.mark.parametrize("kind", CAUSAL)
def test_the_prompt_is_what_generate_gets(kind: str) -> None:
    ours = processor(kind)
    chat = [user(QUESTION), assistant(ANSWER), user(SECOND_QUESTION)]
    for prompt in (QUESTION, f"In <image>: {QUESTION}", "Short answer: ", ""):
        ids, labels = rows_of(ours.encode_examples([{"image": picture(), "prompt": prompt, "completion": ANSWER}]))[0]
        expected = ours(images=picture(), text=prompt)["input_ids"][0]
        assert ids[: len(expected)] == expected
        assert labels[: len(expected)] == [IGNORED] * len(expected)
        assert IGNORED not in labels[len(expected) :]
    ids, labels = rows_of(ours.encode_examples([{"images": [picture()], "messages": [*chat, assistant("Yes")]}]))[0]
    expected = ours.apply_chat_template(chat, tokenize=True, images=[picture()])[0]
    assert ids[: len(expected)] == expected


def test_an_end_token_that_the_tokenizer_adds_does_not_end_the_prompt() -> None:
    ours = processor("llama")
    ours.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert ours.tokenizer(QUESTION)["input_ids"][-1] == ours.tokenizer.eos_token_id
    for prompt in (QUESTION, ""):
        ids, labels = rows_of(ours.encode_examples([{"prompt": prompt, "completion": ANSWER}]))[0]
        start = ours.tokenizer(prompt)["input_ids"][:-1]
        answer = [*answer_ids(ours, ANSWER), ours.tokenizer.eos_token_id]
        assert ids == start + answer
        assert labels == [IGNORED] * len(start) + answer


@pytest.mark.parametrize("kind", CAUSAL)
def test_all_forms_of_a_row_are_the_same(kind: str) -> None:
    ours = processor(kind)
    image = {"type": "image", "image": picture()}
    text = {"type": "text", "text": QUESTION}
    answer = {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]}
    forms = [
        {"images": [picture()], "prompt": QUESTION, "completion": ANSWER},
        {"images": [picture()], "prompt": QUESTION, "completion": f" {ANSWER}\n"},
        {"image": picture(), "prompt": f"<image>{QUESTION}", "completion": ANSWER},
        {"images": [picture()], "prompt": [user(QUESTION)], "completion": [assistant(ANSWER)]},
        {"images": [picture()], "messages": [user(QUESTION), assistant(ANSWER)]},
        {"images": [picture()], "messages": [user(f"<image>{QUESTION}"), assistant(ANSWER)]},
        {"images": [picture()], "messages": [user(f" <image>{QUESTION}"), assistant(ANSWER)]},
        {"images": [picture()], "messages": [{"role": "user", "content": [{"type": "image"}, text]}, answer]},
        {"messages": [{"role": "user", "content": [image, text]}, answer]},
    ]
    expected = ours.encode_examples(forms[:1])
    for form in forms[1:]:
        actual = ours.encode_examples([form])
        assert set(actual) == set(expected)
        for name in expected:
            assert torch.equal(actual[name], expected[name]), (name, form)


@pytest.mark.parametrize("kind", CAUSAL)
def test_all_answers_of_a_conversation_are_learnt(kind: str) -> None:
    ours = processor(kind)
    messages = [user(QUESTION), assistant(ANSWER), user(SECOND_QUESTION), assistant(SECOND_ANSWER)]
    inputs = ours.encode_examples([{"images": [picture()], "messages": messages}])
    ids, labels = rows_of(inputs)[0]
    end = ours.tokenizer.eos_token_id
    learnt = [token for token in labels if token != IGNORED]
    assert learnt == [*answer_ids(ours, ANSWER), end, *answer_ids(ours, SECOND_ANSWER), end]
    assert [token for token, label in zip(ids, labels) if label != IGNORED] == learnt
    # As one text: tokens of the whole conversation.
    bos = ours.tokenizer.bos_token if kind != "gpt2" else ""
    text = f"{QUESTION} {ANSWER}</s>{SECOND_QUESTION} {SECOND_ANSWER}</s>"
    assert ids[QUERIES:] == ours.tokenizer(text)["input_ids"]
    assert ours.apply_chat_template(messages) == bos + text
    first_learnt = next(position for position, label in enumerate(labels) if label != IGNORED)
    assert first_learnt == QUERIES + len(ours.tokenizer(QUESTION)["input_ids"])
    expected = ours.qformer_tokenizer([f"{QUESTION} {SECOND_QUESTION}"])["input_ids"]
    assert inputs["qformer_input_ids"].tolist() == expected


@pytest.mark.parametrize("kind", CAUSAL)
def test_only_the_completion_of_a_dialogue_is_learnt(kind: str) -> None:
    ours = processor(kind)
    history = [user(QUESTION), assistant(ANSWER), user(SECOND_QUESTION)]
    row = {"images": [picture()], "prompt": history, "completion": [assistant(SECOND_ANSWER)]}
    inputs = ours.encode_examples([row])
    learnt = [label for label in inputs["labels"][0].tolist() if label != IGNORED]
    assert learnt == [*answer_ids(ours, SECOND_ANSWER), ours.tokenizer.eos_token_id]
    questions = f"{QUESTION} {SECOND_QUESTION}"
    assert inputs["qformer_input_ids"].tolist() == ours.qformer_tokenizer([questions])["input_ids"]
    whole = ours.encode_examples([{"images": [picture()], "messages": [*history, assistant(SECOND_ANSWER)]}])
    assert torch.equal(whole["input_ids"], inputs["input_ids"])


@pytest.mark.parametrize("kind", CAUSAL)
def test_as_the_mask_of_the_chat_template(kind: str) -> None:
    ours = processor(kind)
    image = {"type": "image", "image": picture()}
    messages = [
        {"role": "system", "content": "Describe the image in detail."},
        {"role": "user", "content": [{"type": "text", "text": "Is there"}, image, {"type": "text", "text": "a cat"}]},
        assistant(ANSWER),
        {"role": "user", "content": [image, {"type": "text", "text": SECOND_QUESTION}]},
        assistant(SECOND_ANSWER),
    ]
    ours_rows = ours.encode_examples([{"messages": messages}])
    chat = ours.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True
    )
    masks = chat.pop("assistant_masks").bool()
    for name in chat:
        assert torch.equal(chat[name], ours_rows[name]), name
    assert torch.equal(ours_rows["labels"], chat["input_ids"].masked_fill(~masks, IGNORED))


def test_a_template_with_role_words() -> None:
    template = (
        "{% for message in messages %}{% if message.role == 'assistant' %} ASSISTANT:"
        "{% generation %} {{ message.content[0].text }}{% endgeneration %}{{ eos_token }}"
        "{% else %}USER: {% for part in message.content %}{{ part.text if part.text else '<image>' }}{% endfor %}"
        "{% endif %}{% endfor %}"
    )
    ours = processor("gpt2", chat_template=template)
    messages = [user(QUESTION), assistant(ANSWER), user(SECOND_QUESTION), assistant("Yes")]
    ids, labels = rows_of(ours.encode_examples([{"images": [picture()], "messages": messages}]))[0]
    text = f"USER: <image>{QUESTION} ASSISTANT: {ANSWER}</s>USER: {SECOND_QUESTION} ASSISTANT: Yes</s>"
    assert ids == ours(images=picture(), text=text)["input_ids"][0]
    assert ours.decode([label for label in labels if label != IGNORED]) == f" {ANSWER}</s> Yes</s>"


def test_no_images_no_image_inputs() -> None:
    inputs = processor().encode_examples([{"prompt": QUESTION, "completion": ANSWER}])
    assert set(inputs) == {"input_ids", "attention_mask", "labels"}


def test_qformer_text_of_a_row() -> None:
    ours = processor()
    row = {"image": picture(), "prompt": QUESTION, "completion": ANSWER, "qformer_text": "a cat"}
    inputs = ours.encode_examples([row])
    assert inputs["qformer_input_ids"].tolist() == ours.qformer_tokenizer(["a cat"])["input_ids"]


def test_the_answer_never_reaches_the_qformer() -> None:
    ours = processor()
    rows = [
        {"image": picture(), "prompt": QUESTION, "completion": "hat"},
        {"image": picture(), "messages": [user(QUESTION), assistant("hat")]},
        {"image": picture(), "messages": [user(QUESTION), assistant("hat"), user("Is it?"), assistant("bat")]},
    ]
    for text in ours.qformer_tokenizer.batch_decode(ours.encode_examples(rows)["qformer_input_ids"]):
        assert "hat?" in text.replace(" ", "") or ("hat" not in text.replace("what", "") and "bat" not in text)


def test_shapes_padding_and_tensor_kinds() -> None:
    ours = processor()
    rows = [
        {"image": picture(), "prompt": QUESTION, "completion": ANSWER},
        {"prompt": "Yes", "completion": "a"},
    ]
    inputs = ours.encode_examples(rows, pad_to_multiple_of=8)
    assert inputs["input_ids"].shape == inputs["labels"].shape == inputs["attention_mask"].shape
    assert inputs["input_ids"].shape[1] % 8 == 0
    assert inputs["labels"].dtype == torch.int64
    assert isinstance(ours.encode_examples(rows, return_tensors="np")["labels"], np.ndarray)
    assert isinstance(ours.encode_examples(rows, return_tensors=None)["labels"], list)


# --- sequence-to-sequence -----------------------------------------------------------------------------------------


def test_seq2seq_rows_by_hand() -> None:
    ours = processor("t5")
    tokenizer = ours.tokenizer
    rows = [
        {"images": [picture()], "prompt": QUESTION, "completion": ANSWER},
        {"images": [], "prompt": SECOND_QUESTION, "completion": "Yes"},
    ]
    inputs = ours.encode_examples(rows, is_encoder_decoder=True)
    plain = ours(
        images=[[picture()], []],
        text=[QUESTION, SECOND_QUESTION],
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    for name in plain:
        assert torch.equal(inputs[name], plain[name]), name
    expected = tokenizer(text_target=[ANSWER, "Yes"])["input_ids"]
    assert all(ids[-1] == tokenizer.eos_token_id for ids in expected)
    length = max(map(len, expected))
    assert inputs["labels"].tolist() == [ids + [IGNORED] * (length - len(ids)) for ids in expected]


def test_seq2seq_conversations_learn_the_last_answer() -> None:
    ours = processor("t5")
    history = [user(QUESTION), assistant(ANSWER), user(SECOND_QUESTION)]
    rows = [
        {"images": [picture()], "messages": [*history, assistant(SECOND_ANSWER)]},
        {"images": [picture()], "prompt": history, "completion": [assistant(SECOND_ANSWER)]},
    ]
    inputs = ours.encode_examples(rows, is_encoder_decoder=True)
    prompt = ours.apply_chat_template(history, tokenize=True, return_dict=True, images=[picture()])
    for index in range(2):
        assert inputs["input_ids"][index].tolist() == prompt["input_ids"][0]
        assert inputs["qformer_input_ids"][index].tolist() == prompt["qformer_input_ids"][0]
        assert inputs["labels"][index].tolist() == ours.tokenizer(SECOND_ANSWER)["input_ids"]


# --- truncation ---------------------------------------------------------------------------------------------------


def test_the_oldest_text_of_a_prompt_is_cut() -> None:
    ours = processor()
    row = {"image": picture(), "prompt": QUESTION, "completion": ANSWER}
    full, full_labels = rows_of(ours.encode_examples([row]))[0]
    opening = QUERIES + 1  # placeholders and the beginning token
    prompt_length = full_labels.count(IGNORED)
    for limit in range(opening, prompt_length + 2):
        ids, labels = rows_of(ours.encode_examples([row], max_prompt_length=limit))[0]
        cut = max(0, prompt_length - limit)
        assert ids == full[:opening] + full[opening + cut :]
        assert labels == full_labels[cut:]
    with pytest.raises(ValueError, match="row 0: max_prompt_length=3 cannot hold the 4 image placeholders"):
        ours.encode_examples([row], max_prompt_length=3)


def test_placeholders_between_words_survive_truncation() -> None:
    ours = processor("t5")
    row = {"image": picture(), "prompt": f"{QUESTION}<image>{SECOND_QUESTION}", "completion": ANSWER}
    inputs = ours.encode_examples([row], is_encoder_decoder=True, max_prompt_length=6)
    ids = inputs["input_ids"][0].tolist()
    assert len(ids) == 6
    assert ids[:QUERIES] == [ours.image_token_id] * QUERIES
    assert ids[-1] == ours.tokenizer.eos_token_id


def test_an_earlier_answer_that_lost_its_beginning_is_not_learnt() -> None:
    ours = processor()
    messages = [user(QUESTION), assistant(ANSWER), user(SECOND_QUESTION), assistant("Yes")]
    row = {"images": [picture()], "messages": messages}
    full, labels = rows_of(ours.encode_examples([row]))[0]
    first_answer = [position for position, label in enumerate(labels) if label != IGNORED][
        : len(answer_ids(ours, ANSWER))
    ]
    last = [*answer_ids(ours, "Yes"), ours.tokenizer.eos_token_id]
    prompt_length = len(full) - len(last)
    keeping_all = prompt_length - (first_answer[0] - QUERIES - 1)  # everything before the first answer is cut
    _, whole = rows_of(ours.encode_examples([row], max_prompt_length=keeping_all))[0]
    _, broken = rows_of(ours.encode_examples([row], max_prompt_length=keeping_all - 1))[0]
    assert [label for label in whole if label != IGNORED] == [label for label in labels if label != IGNORED]
    assert [label for label in broken if label != IGNORED] == last


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_cut_answer_has_no_end_token_and_a_warning(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    ours = processor(kind)
    is_seq2seq = kind == "t5"
    rows = [
        {"image": picture(), "prompt": QUESTION, "completion": ANSWER},
        {"prompt": QUESTION, "completion": "a"},
    ]
    answer = answer_ids(ours, ANSWER)
    end = ours.tokenizer.eos_token_id

    def learnt(limit: int | None) -> list[int]:
        inputs = ours.encode_examples(rows, is_encoder_decoder=is_seq2seq, max_completion_length=limit)
        return [label for label in inputs["labels"][0].tolist() if label != IGNORED]

    with caplog.at_level(logging.WARNING, logger="instructblip_hf"):
        assert learnt(len(answer) + 1) == learnt(None) == [*answer, end]
        assert not caplog.records
        assert learnt(len(answer)) == answer
        assert learnt(3) == answer[:3]
    assert len(caplog.records) == 1
    assert f"1 of 2 completions are longer than max_completion_length={len(answer)}" in caplog.text


# --- what cannot be aligned ---------------------------------------------------------------------------------------

GOOD = {"prompt": QUESTION, "completion": ANSWER}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("text", ["must be a dict", "str"]),
        ({"question": "a", "answer": "b"}, ['"prompt" and "completion"', '"messages"', "answer", "question"]),
        ({"prompt": "a"}, ['"completion"', "['prompt']"]),
        ({"prompt": "a", "completion": ""}, ['"completion" is empty']),
        ({"prompt": "a", "completion": "  \n"}, ['"completion" is empty']),
        ({"prompt": [user("a"), assistant("b")], "completion": []}, ['"completion" is empty']),
        ({**GOOD, "qformer_text": ["a"]}, ['"qformer_text" must be text', "list"]),
        ({"prompt": "a", "completion": [assistant("b")]}, ["both be text or both be lists", "str and list"]),
        ({**GOOD, "images": "x.png"}, ['"images" must be a list', "str"]),
        ({**GOOD, "image": picture(), "prompt": "<image><image>"}, ["2 <image> markers for 1 images"]),
        ({**GOOD, "prompt": "<image>?"}, ["1 <image> markers for 0 images"]),
        ({**GOOD, "completion": "an <image>", "image": picture()}, ["answer holds the image marker"]),
        ({"messages": []}, ["must be a list of messages"]),
        ({"messages": [user("a")]}, ['no "assistant" turn', "['user']"]),
        ({"messages": [user("a"), assistant("b"), user("c")]}, ['must end with an "assistant" turn']),
        ({"messages": [user("a"), assistant(" ")]}, ["message 1", "empty"]),
        ({"messages": [user("a"), {"role": "assistant", "content": [{"type": "image"}]}]}, ["text only"]),
        ({"messages": [{"role": "user"}, assistant("b")]}, ["message 0", '"role" and "content"']),
        ({"prompt": [user("a")], "completion": [user("c"), assistant("b")]}, ['start with an "assistant" turn']),
        (
            {
                "images": [picture()] * 2,
                "messages": [{"role": "user", "content": [{"type": "image"}]}, assistant("b")],
            },
            ["1 image parts that hold no image", "2 images beside"],
        ),
        ({"messages": [user("<image>?"), assistant("b")]}, ["1 image parts that hold no image", "0 images beside"]),
        (
            {"image": picture(), "messages": [user("a"), assistant("<image>")]},
            ["message 1", "text only"],
        ),
        ({**GOOD, "image": b"broken"}, ["image 0 of row 1", "6 bytes"]),
    ],
)
@pytest.mark.parametrize("is_encoder_decoder", [False, True])
def test_bad_rows_are_named(bad: Any, words: list[str], is_encoder_decoder: bool) -> None:
    ours = processor("t5" if is_encoder_decoder else "llama")
    with pytest.raises(ValueError) as error:  # noqa: PT011
        ours.encode_examples([GOOD, bad], is_encoder_decoder=is_encoder_decoder)
    for word in [*words, "1"]:
        assert word in str(error.value)


def test_rows_that_a_template_or_tokenizer_cannot_align() -> None:
    chat = {"messages": [user("a"), assistant("b")]}
    words = "{% for m in messages %}{{ m['content'][0]['text'] }}{% endfor %}"
    with pytest.raises(ValueError, match="row 0: the chat template marks 0 of 1 assistant turns"):
        processor(chat_template=words).encode_examples([chat])
    with pytest.raises(ValueError, match="row 0: the chat template is for messages of text alone"):
        processor(chat_template="{{ messages }}").encode_examples([chat])
    several = {"prompt": [user("a")], "completion": [assistant("b"), user("c"), assistant("d")]}
    assert processor().encode_examples([several])
    with pytest.raises(ValueError, match='"completion" has 2 assistant turns'):
        processor("t5").encode_examples([several], is_encoder_decoder=True)
    endless = processor()
    endless.tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no eos_token"):
        endless.encode_examples([GOOD])
    with pytest.raises(ValueError, match="non-empty list of rows"):
        processor().encode_examples([])
    with pytest.raises(ValueError, match="non-empty list of rows"):
        processor().encode_examples(GOOD)  # type: ignore[arg-type]
