"""The InstructBLIP processor: stock transformers as oracle where stock is right, the rest by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import BlipImageProcessorPil

from instructblip_hf.models.chat import DEFAULT_CHAT_TEMPLATE, RenderedInstructions
from instructblip_hf.models.instructblip.processing_instructblip import InstructBlipProcessor
from tiny_tokenizers import LANGUAGE_TOKENIZERS, language_tokenizer, qformer_tokenizer


QUERIES = 3
QUESTION = "What color is the circle?"
LONGER = "Is there a blue square to the left of the green digit?"


def picture(seed: int = 0, size: tuple[int, int] = (30, 20)) -> Image.Image:
    values = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def parts(kind: str = "llama", qformer_length: int = 512, **options: Any) -> tuple[Any, Any, Any]:
    image_processor = BlipImageProcessorPil(size={"height": 14, "width": 14})
    return image_processor, language_tokenizer(kind, **options), qformer_tokenizer(qformer_length)


def processor(kind: str = "llama", qformer_length: int = 512, **options: Any) -> InstructBlipProcessor:
    return InstructBlipProcessor(*parts(kind, qformer_length), num_query_tokens=QUERIES, **options)


def stock(kind: str = "llama", **options: Any) -> Any:
    return transformers.InstructBlipProcessor(*parts(kind, **options), num_query_tokens=QUERIES)


def unpadded(ids: Any, mask: Any) -> list[list[int]]:
    rows = zip(np.asarray(ids).tolist(), np.asarray(mask).tolist())
    return [[token for token, keep in zip(row, flags) if keep] for row, flags in rows]


# --- as stock -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LANGUAGE_TOKENIZERS)
@pytest.mark.parametrize("tensors", ["pt", "np", None])
def test_one_image_and_text_equal_stock_exactly(kind: str, tensors: str | None) -> None:
    ours = processor(kind)(images=picture(), text=QUESTION, return_tensors=tensors)
    theirs = stock(kind)(images=picture(), text=QUESTION, return_tensors=tensors)
    assert set(ours) == set(theirs)
    for name in theirs:
        np.testing.assert_array_equal(np.asarray(ours[name]), np.asarray(theirs[name]), err_msg=name)
        assert type(ours[name]) is type(theirs[name]), name
        if tensors == "pt":
            assert ours[name].dtype == theirs[name].dtype


@pytest.mark.parametrize("kind", LANGUAGE_TOKENIZERS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "options",
    [
        {"padding": True},
        {"padding": "longest", "truncation": True, "max_length": 9},
        {"padding": "max_length", "max_length": 50},
        {"padding": "max_length", "max_length": 12, "truncation": True},
        {"padding": True, "add_special_tokens": False},
        {"text_kwargs": {"padding": True}, "images_kwargs": {"do_normalize": False}},
    ],
    ids=str,
)
def test_batches_equal_stock(kind: str, side: str, options: dict[str, Any]) -> None:
    inputs = {"images": [picture(0), picture(1, (9, 40))], "text": [QUESTION, LONGER], "return_tensors": "pt"}
    ours_processor, stock_processor = processor(kind), stock(kind)
    if "text_kwargs" in options:
        ours_processor.tokenizer.padding_side = stock_processor.tokenizer.padding_side = side
    else:
        inputs["padding_side"] = side
    ours, theirs = ours_processor(**inputs, **options), stock_processor(**inputs, **options)
    for name in ("input_ids", "attention_mask", "pixel_values"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0, msg=name)
    # Stock lets the options of the language model reach the Q-Former; ours are those of plain padding.
    plain = stock_processor(images=inputs["images"], text=inputs["text"], padding=True, padding_side="right")
    assert ours["qformer_input_ids"].tolist() == plain["qformer_input_ids"]
    assert ours["qformer_attention_mask"].tolist() == plain["qformer_attention_mask"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_side_of_the_tokenizer(side: str) -> None:
    ours = processor()
    ours.tokenizer.truncation_side = side
    theirs = stock(truncation_side=side)
    for options in ({"truncation": True}, {"truncation": "longest_first"}, {}, {"truncation": False}):
        inputs = {"images": picture(), "text": LONGER, "max_length": 10, **options}
        assert ours(**inputs)["input_ids"] == theirs(**inputs)["input_ids"]


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "P"])
def test_image_modes_equal_stock(mode: str) -> None:
    image = picture().convert(mode)
    ours, theirs = processor()(images=image), stock()(images=image, return_tensors="np")
    assert list(ours) == ["pixel_values"]
    np.testing.assert_array_equal(np.asarray(ours["pixel_values"]), theirs["pixel_values"])


def test_text_alone_has_no_image_inputs() -> None:
    ours = processor()(text=[QUESTION, LONGER], padding=True, return_tensors="pt")
    assert set(ours) == {"input_ids", "attention_mask"}
    theirs = stock()(text=[QUESTION, LONGER], padding=True, return_tensors="pt")
    assert torch.equal(ours["input_ids"], theirs["input_ids"])


def test_names_and_attributes() -> None:
    ours, theirs = processor(), stock()
    assert ours.model_input_names == theirs.model_input_names
    assert ours.image_token == "<image>"
    assert ours.image_token_id == theirs.tokenizer.convert_tokens_to_ids("<image>") == len(ours.tokenizer) - 1
    assert ours.num_query_tokens == ours.tokens_per_image == QUERIES
    assert ours.get_attributes() == theirs.get_attributes()


def test_a_tokenizer_with_its_own_image_token() -> None:
    tokenizer = language_tokenizer("llama", extra_special_tokens={"image_token": "<picture>"})
    assert tokenizer.image_token == "<picture>"
    image_processor, _, qformer = parts()
    ours = InstructBlipProcessor(image_processor, tokenizer, qformer, num_query_tokens=QUERIES)
    inputs = ours(images=picture(), text="What is<picture>in it?")
    assert inputs["input_ids"][0].count(ours.image_token_id) == QUERIES
    assert ours.image_token == "<picture>"
    assert "<picture>" in ours.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}])


# --- images and markers -------------------------------------------------------------------------------------------


def placeholder_runs(ids: list[int], image_token_id: int) -> list[int]:
    runs, length = [], 0
    for token in [*ids, None]:
        if token == image_token_id:
            length += 1
        elif length:
            runs.append(length)
            length = 0
    return runs


@pytest.mark.parametrize("kind", LANGUAGE_TOKENIZERS)
def test_markers_are_expanded_in_place(kind: str) -> None:
    ours = processor(kind)
    images = [picture(seed) for seed in range(3)]
    ids = ours(images=images, text="<image>What is in <image> and in<image>?")["input_ids"][0]
    token = ours.image_token_id
    assert placeholder_runs(ids, token) == [QUERIES] * 3
    collapsed = [one for index, one in enumerate(ids) if one != token or ids[index - 1] != token or index == 0]
    expected = ours.tokenizer("What is in <image> and in<image>?")["input_ids"]
    assert collapsed == [token, *expected]


def test_markers_in_front_equal_no_markers() -> None:
    ours = processor()
    images = [picture(0), picture(1)]
    plain = ours(images=images, text=QUESTION)
    for text in (f"<image><image>{QUESTION}", f" <image> <image>{QUESTION}", f"<image><image><s>{QUESTION}"):
        marked = ours(images=images, text=text)
        assert marked["input_ids"] == plain["input_ids"]
        assert marked["qformer_input_ids"] == plain["qformer_input_ids"]
        if "<s>" not in text:
            chat = [{"role": "user", "content": text}]
            assert ours.apply_chat_template(chat, tokenize=True, images=images) == plain["input_ids"]


def test_pixel_values_in_reading_order() -> None:
    ours = processor()
    images = [picture(seed) for seed in range(4)]
    nested = ours(images=[[images[0], images[1]], [], [images[2]], [images[3]]], text=[QUESTION] * 4, padding=True)
    alone = [ours(images=image)["pixel_values"][0] for image in images]
    np.testing.assert_array_equal(np.stack(nested["pixel_values"]), np.stack(alone))
    counts = [row.count(ours.image_token_id) for row in nested["input_ids"]]
    assert counts == [2 * QUERIES, 0, QUERIES, QUERIES]


def test_one_qformer_row_an_image() -> None:
    ours = processor()
    inputs = ours(images=[[picture(), picture()], [], [picture()]], text=[QUESTION, "Where is it?", LONGER])
    rows = ours.qformer_tokenizer([QUESTION, QUESTION, LONGER], padding=True)
    assert inputs["qformer_input_ids"] == rows["input_ids"]
    assert inputs["qformer_attention_mask"] == rows["attention_mask"]


@pytest.mark.parametrize(
    ("images", "texts", "counts"),
    [
        (picture(), QUESTION, [1]),
        ([picture()], QUESTION, [1]),
        ([picture(), picture()], QUESTION, [2]),
        ([[picture(), picture()]], QUESTION, [2]),
        ([picture(), picture()], [QUESTION, LONGER], [1, 1]),
        ([picture(), [picture(), picture()]], [QUESTION, LONGER], [1, 2]),
        ([picture(), None], [QUESTION, LONGER], [1, 0]),
        ((picture(), picture()), (QUESTION, LONGER), [1, 1]),
        ([[], []], [QUESTION, LONGER], [0, 0]),
        ([], [QUESTION, LONGER], [0, 0]),
        (None, [QUESTION, LONGER], [0, 0]),
        (np.zeros((2, 4, 4, 3), dtype=np.uint8), [QUESTION, LONGER], [1, 1]),
        (torch.zeros(2, 3, 4, 4), QUESTION, [2]),
    ],
)
def test_which_images_belong_to_which_text(images: Any, texts: Any, counts: list[int]) -> None:
    ours = processor()
    inputs = ours(images=images, text=texts, padding=True)
    assert [row.count(ours.image_token_id) // QUERIES for row in inputs["input_ids"]] == counts
    assert ("pixel_values" in inputs) == ("qformer_input_ids" in inputs) == bool(sum(counts))
    assert len(inputs.get("pixel_values", [])) == sum(counts)


def test_paths_bytes_and_float_arrays(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    image = picture()
    image.save(path)
    ours = processor()
    expected = ours(images=image)["pixel_values"][0]
    floats = np.asarray(image) / 255.0
    for source in (str(path), path, path.read_bytes(), np.asarray(image), floats, torch.from_numpy(floats)):
        np.testing.assert_array_equal(ours(images=source)["pixel_values"][0], expected)
    np.testing.assert_array_equal(ours(images=floats, do_rescale=False)["pixel_values"][0], expected)


def test_videos_become_images() -> None:
    ours = processor()
    frames = [picture(seed) for seed in range(8)]
    inputs = ours(videos=[frames, [], frames[:2]], text=[QUESTION] * 3, padding=True)
    expected = [ours(images=frames[index])["pixel_values"][0] for index in (0, 2, 4, 6, 0, 1)]
    np.testing.assert_array_equal(np.stack(inputs["pixel_values"]), np.stack(expected))
    counts = [row.count(ours.image_token_id) // QUERIES for row in inputs["input_ids"]]
    assert counts == [4, 0, 2]
    assert len(inputs["qformer_input_ids"]) == 6
    single = ours(videos=frames, text=QUESTION, num_frames=3)
    assert len(single["pixel_values"]) == 3
    both = ours(images=picture(9), videos=[np.stack([np.asarray(frame) for frame in frames])], text=QUESTION)
    assert len(both["pixel_values"]) == 5
    np.testing.assert_array_equal(both["pixel_values"][0], ours(images=picture(9))["pixel_values"][0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, ["images, text or videos"]),
        ({"text": []}, ["text must be", "[]"]),
        ({"text": [1]}, ["text must be", "[1]"]),
        ({"text": 3}, ["text must be"]),
        ({"images": [picture()] * 2, "text": [QUESTION] * 3}, ["2 images for 3 texts"]),
        ({"images": picture(), "text": [QUESTION] * 2}, ["1 images for 2 texts"]),
        ({"images": [[picture()]] * 2, "text": QUESTION}, ["2 lists of images for 1 texts"]),
        ({"images": picture(), "text": "<image> or <image>"}, ["text 0", "2 <image> markers for 1 images"]),
        ({"text": ["Hello", "<image>"]}, ["text 1", "1 <image> markers for 0 images"]),
        ({"images": [picture(), b"x"], "text": [QUESTION] * 2}, ["image 0 of sample 1", "1 bytes"]),
        ({"videos": [[picture()]] * 2, "text": [QUESTION] * 3}, ["2 videos for 3 texts"]),
        ({"videos": [picture(), picture()], "text": [QUESTION] * 2}, ["video 0", "list of frames"]),
        ({"text": QUESTION, "audio": [1.0]}, ["audio"]),
        ({"text": [QUESTION] * 2, "images": [picture()] * 2, "qformer_text": ["a"] * 3}, ["3 entries for 2 texts"]),
        ({"text": QUESTION, "return_overflowing_tokens": True}, ["return_overflowing_tokens"]),
        (
            {"text": QUESTION, "images": picture(), "truncation": True, "max_length": 3},
            ["max_length=3", "the 4 image"],
        ),
    ],
)
def test_calls_that_cannot_be_right(arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        processor()(**arguments)
    for word in words:
        assert word in str(error.value)


def test_missing_padding_token_and_number_of_queries() -> None:
    ours = processor()
    ours.tokenizer.pad_token = None
    with pytest.raises(ValueError, match="pad_token"):
        ours(text=[QUESTION, LONGER], padding=True)
    ours.num_query_tokens = None
    assert ours(text=QUESTION)["input_ids"] == [ours.tokenizer(QUESTION)["input_ids"]]
    with pytest.raises(ValueError, match="num_query_tokens"):
        ours(images=picture(), text=QUESTION)


def test_a_language_models_tokenizer_in_the_place_of_the_qformers() -> None:
    image_processor, tokenizer, _ = parts()
    mixed_up = InstructBlipProcessor(image_processor, tokenizer, language_tokenizer("llama"), num_query_tokens=QUERIES)
    with pytest.raises(ValueError, match="qformer_tokenizer has no CLS token"):
        mixed_up(images=picture(), text=QUESTION)


# --- truncation and padding ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LANGUAGE_TOKENIZERS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_cuts_text_only(kind: str, side: str) -> None:
    ours = processor(kind)
    ours.tokenizer.truncation_side = side
    text = f"{QUESTION}<image>{LONGER}"
    full = ours(images=picture(), text=text)["input_ids"][0]
    special = sum(ours.tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"])
    for max_length in range(QUERIES + special, len(full) + 2):
        ids = ours(images=picture(), text=text, truncation=True, max_length=max_length)["input_ids"][0]
        assert len(ids) == min(max_length, len(full))
        assert ids.count(ours.image_token_id) == QUERIES
        if kind == "t5":
            assert ids[-1] == ours.tokenizer.eos_token_id
        elif special:
            assert ids[0] == ours.tokenizer.bos_token_id
        fixed = {ours.image_token_id, full[0]} if kind != "t5" else {ours.image_token_id, full[-1]}
        text_ids = [token for token in ids if token not in fixed]
        all_text = [token for token in full if token not in fixed]
        kept = all_text[: len(text_ids)] if side == "right" else all_text[len(all_text) - len(text_ids) :]
        if special:
            assert text_ids == kept
    with pytest.raises(ValueError, match=f"max_length={QUERIES + special - 1} cannot hold the {QUERIES + special}"):
        ours(images=picture(), text=text, truncation=True, max_length=QUERIES + special - 1)


def test_the_limit_of_the_tokenizer_counts_placeholders() -> None:
    ours = processor()
    ours.tokenizer.model_max_length = 12
    assert len(ours(images=picture(), text=LONGER, truncation=True)["input_ids"][0]) == 12
    assert len(ours(images=picture(), text=LONGER)["input_ids"][0]) > 12


def test_padding_with_different_numbers_of_images() -> None:
    ours = processor()
    images = [[picture()] * 2, [], [picture()]]
    for side in ("left", "right"):
        inputs = ours(images=images, text=[QUESTION, LONGER, "Yes"], padding=True, padding_side=side)
        assert len({len(row) for row in inputs["input_ids"]}) == 1
        rows = unpadded(inputs["input_ids"], inputs["attention_mask"])
        for row, own, text in zip(rows, images, [QUESTION, LONGER, "Yes"]):
            assert row == ours(images=own, text=text)["input_ids"][0]
        last = [row[-1] for row in inputs["attention_mask"]]
        assert last == ([1, 1, 1] if side == "left" else [0, 1, 0])


@pytest.mark.parametrize("kind", LANGUAGE_TOKENIZERS)
def test_left_padding_is_before_markers_that_are_written(kind: str) -> None:
    """Trainers move rows to the left by their leading padding, and a hole would stay."""
    ours = processor(kind)
    bos = ours.tokenizer.bos_token if kind not in ("t5", "gpt2") else ""
    texts = [f"<image>{bos}{QUESTION}", f"<image>{bos}{LONGER}", f"Yes <image>{bos}"]
    inputs = ours(images=[picture()] * 3, text=texts, padding=True, padding_side="left", return_tensors="pt")
    mask = inputs["attention_mask"]
    assert torch.equal(mask, mask.sort(dim=1).values)
    for row, own, text in zip(inputs["input_ids"], mask.bool(), texts):
        assert row[own].tolist() == ours(images=picture(), text=text)["input_ids"][0]


def test_pad_to_multiple_of() -> None:
    inputs = processor()(images=picture(), text=QUESTION, padding=True, pad_to_multiple_of=8, return_tensors="pt")
    assert inputs["input_ids"].shape[1] % 8 == 0


# --- the Q-Former's text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"padding": True, "padding_side": "left"},
        {"padding": "max_length", "max_length": 60, "add_special_tokens": False},
        {"truncation": True, "max_length": 9, "padding": True},
        {"padding": True, "pad_to_multiple_of": 16},
        {},
    ],
    ids=str,
)
def test_the_qformer_is_independent_of_the_language_model(options: dict[str, Any]) -> None:
    ours = processor()
    tokenizer = ours.qformer_tokenizer
    tokenizer.padding_side = "left"
    inputs = ours(images=[picture()] * 2, text=[QUESTION, LONGER], **options)
    first = [
        tokenizer.cls_token_id,
        *tokenizer(QUESTION, add_special_tokens=False)["input_ids"],
        tokenizer.sep_token_id,
    ]
    second = [
        tokenizer.cls_token_id,
        *tokenizer(LONGER, add_special_tokens=False)["input_ids"],
        tokenizer.sep_token_id,
    ]
    missing = len(second) - len(first)
    assert inputs["qformer_input_ids"] == [first + [tokenizer.pad_token_id] * missing, second]
    assert inputs["qformer_attention_mask"] == [[1] * len(first) + [0] * missing, [1] * len(second)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_qformer_text_is_cut_at_its_limit(side: str) -> None:
    ours = processor(qformer_length=512)
    ours.qformer_tokenizer.truncation_side = side
    words = " ".join(["circle"] * 300 + ["square"] * 300)
    ids = ours(images=picture(), text=words)["qformer_input_ids"][0]
    assert len(ids) == 512
    assert ids[0] == ours.qformer_tokenizer.cls_token_id
    assert ids[-1] == ours.qformer_tokenizer.sep_token_id
    text = ours.qformer_tokenizer.decode(ids, skip_special_tokens=True)
    assert text.startswith("circle") == (side == "right")


def test_qformer_limits() -> None:
    long_text = " ".join(["circle"] * 700)
    unlimited = int(1e30)
    for own, given, expected in [
        (40, None, 40),
        (40, 20, 20),
        (40, 90, 40),
        (unlimited, None, 512),
        (unlimited, 9, 9),
    ]:
        ours = processor(qformer_length=own, max_qformer_length=given)
        assert len(ours(images=picture(), text=long_text)["qformer_input_ids"][0]) == expected


def test_qformer_text_leaves_markers_and_special_tokens_out() -> None:
    ours = processor()
    expected = ours.qformer_tokenizer([QUESTION])["input_ids"]
    for text in (f"<image>{QUESTION}", f"{QUESTION}<image>", f"<image><s>{QUESTION}</s>"):
        assert ours(images=picture(), text=text)["qformer_input_ids"] == expected


def test_qformer_text_can_be_given() -> None:
    ours = processor()
    one = ours(images=[picture()] * 2, text=[QUESTION, LONGER], qformer_text="Where is it?", padding=True)
    assert one["qformer_input_ids"] == ours.qformer_tokenizer(["Where is it?"] * 2)["input_ids"]
    two = ours(images=[picture()] * 2, text=[QUESTION, LONGER], qformer_text=["Yes", "there"], padding=True)
    assert two["qformer_input_ids"] == ours.qformer_tokenizer(["Yes", "there"], padding=True)["input_ids"]
    assert two["input_ids"] == one["input_ids"]


# --- chat ---------------------------------------------------------------------------------------------------------


def conversation(image: Any = None) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": [{"type": "text", "text": "The circle is red."}]},
        {"role": "user", "content": "Where is it?"},
    ]


@pytest.mark.parametrize("kind", LANGUAGE_TOKENIZERS)
def test_a_single_turn_is_the_plain_prompt(kind: str) -> None:
    ours = processor(kind)
    plain = ours(images=picture(), text=QUESTION, return_tensors="pt")
    for message in (conversation(picture())[:1], [{"role": "user", "content": QUESTION}]):
        extra = {} if isinstance(message[0]["content"], list) else {"processor_kwargs": {"images": [picture()]}}
        chat = ours.apply_chat_template(
            message, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **extra
        )
        assert set(chat) == set(plain)
        for name in plain:
            assert torch.equal(chat[name], plain[name]), name


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("llama", f"<image><s>{QUESTION} The circle is red.</s>Where is it?"),
        ("gpt2", f"<image>{QUESTION} The circle is red.</s>Where is it?"),
        ("t5", f"<image>{QUESTION} The circle is red. Where is it?"),
    ],
)
def test_turns_are_joined(kind: str, expected: str) -> None:
    assert processor(kind).apply_chat_template(conversation()) == expected


def test_rendering_leaves_the_conversation_alone() -> None:
    messages = conversation(picture())
    before = [dict(message) for message in messages]
    processor().apply_chat_template(messages, tokenize=True)
    assert messages == before


@pytest.mark.parametrize("kind", LANGUAGE_TOKENIZERS)
def test_rendered_text_through_the_call_equals_tokenize(kind: str) -> None:
    # What TRL does with prompts: render, then tokenise without special tokens.
    ours = processor(kind)
    chat = ours.apply_chat_template(conversation(picture()), tokenize=True, return_dict=True)
    text = ours.apply_chat_template(conversation())
    assert ours(images=picture(), text=text)["input_ids"] == chat["input_ids"]
    if kind != "t5":
        assert ours(images=picture(), text=text, add_special_tokens=False)["input_ids"] == chat["input_ids"]
        assert chat["input_ids"][0].count(ours.tokenizer.eos_token_id) >= 1


def test_the_qformer_reads_the_user_and_never_the_answer() -> None:
    ours = processor()

    def instruction(messages: list[dict[str, Any]], **options: Any) -> str:
        inputs = ours.apply_chat_template(messages, tokenize=True, return_dict=True, **options)
        return ours.qformer_tokenizer.decode(inputs["qformer_input_ids"][0], skip_special_tokens=True)

    full = conversation(picture())
    both = f"{QUESTION} Where is it?".lower()
    assert instruction(full, add_generation_prompt=True) == both
    assert instruction(full[:2]) == QUESTION.lower()
    answered = [*full, {"role": "assistant", "content": "In the upper right corner."}]
    assert instruction(answered) == both
    assert instruction(answered, continue_final_message=True) == both
    system = [{"role": "system", "content": "Describe the image in detail."}, *full[:1]]
    assert instruction(system) == QUESTION.lower()
    image_last = [full[0], full[1], {"role": "user", "content": [{"type": "image", "image": picture(1)}]}]
    assert instruction(image_last) == QUESTION.lower()
    assert instruction(full, processor_kwargs={"qformer_text": "a cat"}) == "a cat"


def test_a_rendered_text_keeps_the_instruction_of_its_conversation() -> None:
    ours = processor()
    history = [{"role": "system", "content": "Describe the image."}, *conversation(picture())]
    for messages in (history, history[1:], history[1:2]):
        text = ours.apply_chat_template(messages, add_generation_prompt=True)
        two_steps = ours(images=picture(), text="".join(list(text)))
        at_once = ours.apply_chat_template(messages, tokenize=True, return_dict=True)
        for name in ("input_ids", "qformer_input_ids", "qformer_attention_mask"):
            assert two_steps[name] == at_once[name], name
    text = ours.apply_chat_template(history)
    given = ours(images=picture(), text=text, qformer_text="a cat")
    assert given["qformer_input_ids"] == ours.qformer_tokenizer(["a cat"])["input_ids"]
    # The same text from the system and the user, and from the user alone.
    parts = [{"role": "system", "content": "Describe it."}, {"role": "user", "content": QUESTION}]
    for messages in (parts, [{"role": "user", "content": f"Describe it. {QUESTION}"}]):
        text = ours.apply_chat_template(messages)
        assert text == f"<s>Describe it. {QUESTION}"
        expected = [messages[-1]["content"]]
        assert ours(images=picture(), text=text)["qformer_input_ids"] == ours.qformer_tokenizer(expected)["input_ids"]


def test_the_number_of_instructions_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RenderedInstructions, "MOST", 2)
    noted = RenderedInstructions()
    for text in ("a", "b", "a", "c"):
        noted.note(text, text.upper())
    assert [noted.get(text) for text in "abc"] == ["A", None, "C"]
    noted.note("a", None)
    assert noted.get("a") is None


def test_batched_conversations() -> None:
    ours = processor()
    batch = [conversation(picture()), [{"role": "user", "content": "Yes"}]]
    inputs = ours.apply_chat_template(
        batch, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs={"padding": True}
    )
    assert inputs["input_ids"].shape[0] == 2
    assert inputs["pixel_values"].shape[0] == inputs["qformer_input_ids"].shape[0] == 1
    assert ours.apply_chat_template(batch) == [ours.apply_chat_template(one) for one in batch]
    assert ours.apply_chat_template(batch, tokenize=True) == [
        ours.apply_chat_template(one, tokenize=True)[0] for one in batch
    ]


def test_options_of_the_call_are_taken_as_keywords_too() -> None:
    ours = processor()
    batch = [conversation(picture()), [{"role": "user", "content": "Yes"}]]
    direct = ours.apply_chat_template(
        batch, tokenize=True, return_dict=True, padding=True, max_length=9, truncation=True
    )
    inside = ours.apply_chat_template(
        batch,
        tokenize=True,
        return_dict=True,
        processor_kwargs={"padding": True, "max_length": 9, "truncation": True},
    )
    assert direct["input_ids"] == inside["input_ids"]
    assert {len(row) for row in direct["input_ids"]} == {9}


def test_image_parts_of_every_form(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    picture().save(path)
    ours = processor()
    expected = ours(images=picture())["pixel_values"][0]
    forms: list[dict[str, Any]] = [
        {"type": "image", "image": picture()},
        {"type": "image", "path": str(path)},
        {"type": "image", "url": path.as_uri()},
        {"type": "image_url", "image_url": {"url": path.as_uri()}},
        {"type": "image", "image": None, "text": None, "path": str(path)},
    ]
    for form in forms:
        messages = [{"role": "user", "content": [form, {"type": "text", "text": QUESTION}]}]
        inputs = ours.apply_chat_template(messages, tokenize=True, return_dict=True)
        np.testing.assert_array_equal(inputs["pixel_values"][0], expected)


def test_images_between_words_and_video_parts() -> None:
    ours = processor()
    frames = [picture(seed) for seed in range(6)]
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Is "},
                {"type": "image", "image": picture(9)},
                {"type": "text", "text": " in "},
                {"type": "video", "video": frames},
                {"type": "text", "text": "?"},
            ],
        }
    ]
    text = ours.apply_chat_template(messages, processor_kwargs={"num_frames": 2})
    assert text == "<s>Is <image> in <image><image>?"
    inputs = ours.apply_chat_template(messages, tokenize=True, return_dict=True, processor_kwargs={"num_frames": 2})
    expected = [ours(images=image)["pixel_values"][0] for image in (picture(9), frames[0], frames[3])]
    np.testing.assert_array_equal(np.stack(inputs["pixel_values"]), np.stack(expected))


@pytest.mark.parametrize("kind", [kind for kind in LANGUAGE_TOKENIZERS if kind != "t5"])
def test_assistant_mask_covers_answers_and_their_end(kind: str) -> None:
    ours = processor(kind)
    messages = [*conversation(picture()), {"role": "assistant", "content": "It is in the upper right corner"}]
    inputs = ours.apply_chat_template(
        [messages, messages[:2]],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding": True, "padding_side": "right", "add_special_tokens": False},
    )
    assert "offset_mapping" not in inputs
    marked = [ids[mask.bool()] for ids, mask in zip(inputs["input_ids"], inputs["assistant_masks"])]
    end = ours.tokenizer.eos_token
    first = f"The circle is red.{end}"
    texts = [ours.tokenizer.decode(ids).replace("▁", " ").replace(f"{end} ", end).strip() for ids in marked]
    assert texts[1] == first
    assert texts[0].replace(" ", "") == f"{first}It is in the upper right corner{end}".replace(" ", "")


def test_continue_final_message() -> None:
    ours = processor()
    messages = [*conversation()[:1], {"role": "assistant", "content": "The circle"}]
    assert ours.apply_chat_template(messages, continue_final_message=True) == f"<image><s>{QUESTION} The circle"


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], ["conversation 0 must be a list of messages"]),
        ([{"role": "user"}], ["message 0", '"role" and "content"']),
        (["hello"], ["message 0", "hello"]),
        ([{"role": "user", "content": [{"type": "audio"}]}], ["message 0", "audio"]),
        ([{"role": "user", "content": [{"type": "video", "path": "x.mp4"}]}], ["frames"]),
        ([{"role": "user", "content": [{"type": "image"}]}], ["1 image parts that hold no image", "0 images beside"]),
    ],
)
def test_malformed_conversations(messages: Any, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        processor().apply_chat_template(messages, tokenize=True)
    for word in words:
        assert word in str(error.value)


def test_other_templates() -> None:
    template = "{% for message in messages %}{{ message.role }}: {{ message.content[0].text }}\n{% endfor %}"
    ours = processor(chat_template={"default": DEFAULT_CHAT_TEMPLATE, "roles": template})
    messages = [{"role": "user", "content": QUESTION}]
    assert ours.apply_chat_template(messages, chat_template="roles") == f"user: {QUESTION}\n"
    assert ours.apply_chat_template(messages, chat_template=template) == f"user: {QUESTION}\n"
    assert ours.apply_chat_template(messages) == f"<s>{QUESTION}"
    with pytest.raises(ValueError, match="no chat template named default"):
        processor(chat_template={"roles": template}).apply_chat_template(messages)


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LANGUAGE_TOKENIZERS)
def test_stock_loads_what_we_save_and_the_other_way_round(kind: str, tmp_path: Path) -> None:
    ours, theirs = processor(kind), stock(kind)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "stock")
    inputs = {"images": picture(), "text": QUESTION, "return_tensors": "pt"}
    expected = theirs(**inputs)
    loaded = {
        "stock class": transformers.InstructBlipProcessor.from_pretrained(tmp_path / "ours"),
        "auto class": transformers.AutoProcessor.from_pretrained(tmp_path / "ours"),
        "ours from ours": InstructBlipProcessor.from_pretrained(tmp_path / "ours"),
        "ours from stock": InstructBlipProcessor.from_pretrained(tmp_path / "stock"),
    }
    for name, one in loaded.items():
        actual = one(**inputs)
        for key in expected:
            assert torch.equal(actual[key], expected[key]), (name, key)
        assert one.num_query_tokens == QUERIES, name
    assert (tmp_path / "ours" / "qformer_tokenizer" / "tokenizer_config.json").is_file()


def test_everything_survives_save_and_load(tmp_path: Path) -> None:
    template = "{{ messages[0].content[0].text }}!"
    ours = processor(chat_template=template, max_qformer_length=7)
    ours.save_pretrained(tmp_path)
    loaded = InstructBlipProcessor.from_pretrained(tmp_path)
    assert loaded.chat_template == template
    assert loaded.max_qformer_length == 7
    assert loaded.image_token_id == ours.image_token_id
    assert loaded.to_dict() == ours.to_dict()
    assert loaded.apply_chat_template([{"role": "user", "content": "Yes"}]) == "Yes!"
    assert InstructBlipProcessor.from_pretrained(tmp_path, chat_template="x").chat_template == "x"
    processor(chat_template={"default": template, "other": "x"}).save_pretrained(tmp_path / "several")
    several = InstructBlipProcessor.from_pretrained(tmp_path / "several")
    assert several.chat_template == {"default": template, "other": "x"}


def test_default_template_where_a_folder_has_none(tmp_path: Path) -> None:
    stock().save_pretrained(tmp_path)
    assert InstructBlipProcessor.from_pretrained(tmp_path).chat_template == DEFAULT_CHAT_TEMPLATE


# --- decoding -----------------------------------------------------------------------------------------------------


def test_decoding_a_finished_row_of_a_published_vicuna_checkpoint() -> None:
    ours = processor("vicuna")
    answer = ours.tokenizer("The circle is red.", add_special_tokens=False)["input_ids"]
    end, pad = ours.tokenizer.eos_token_id, ours.tokenizer.pad_token_id
    assert ours.tokenizer.decode([*answer, end, 0, 0], skip_special_tokens=True) != "The circle is red."  # the trap
    alone = ours.batch_decode([[*answer, end]], skip_special_tokens=True)
    assert alone == ["The circle is red."]
    for filler in (0, pad, -100):
        batch = torch.tensor([[*answer, end, filler, filler], [*answer, *answer[:3]]])
        for decode in (ours.batch_decode, ours.post_process_image_text_to_text, ours.decode):
            assert decode(batch, skip_special_tokens=True)[0] == alone[0]


@pytest.mark.parametrize("kind", LANGUAGE_TOKENIZERS)
def test_decoding_equals_the_tokenizer(kind: str) -> None:
    ours = processor(kind)
    ids = [ours.tokenizer(text)["input_ids"] for text in (QUESTION, LONGER)]
    for skip in (True, False):
        expected = [ours.tokenizer.decode(row, skip_special_tokens=skip) for row in ids]
        assert ours.batch_decode(ids, skip_special_tokens=skip) == expected
        assert ours.batch_decode([torch.tensor(row) for row in ids], skip_special_tokens=skip) == expected
        assert ours.decode(ids[0], skip_special_tokens=skip) == expected[0]
        assert ours.decode(np.array(ids[0]), skip_special_tokens=skip) == expected[0]
        assert ours.batch_decode(torch.tensor(ids[:1]), skip_special_tokens=skip) == expected[:1]
    assert ours.decode(ids[0][1]) == ours.tokenizer.decode(ids[0][1])
    assert ours.batch_decode([]) == []
    assert ours.post_process_image_text_to_text(ids) == ours.batch_decode(ids, skip_special_tokens=True)
    assert ours.batch_decode([[-100, *ids[0], -100]]) == ours.batch_decode(ids[:1])


# --- the documentation --------------------------------------------------------------------------------------------


def test_the_documentation_runs() -> None:
    page = (Path(__file__).parents[3] / "docs" / "processor.md").read_text(encoding="utf-8")
    code = "\n".join(block.split("```")[0] for block in page.split("```python\n")[1:])
    scope: dict[str, Any] = {}
    exec(compile(code, "docs/processor.md", "exec"), scope)
    assert scope["batch"]["labels"].shape == scope["batch"]["input_ids"].shape
    assert scope["ids"].shape[0] == 1
