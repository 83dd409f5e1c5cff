"""The LLaVA processor: stock transformers as oracle, the rest by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import CLIPImageProcessorPil

from instructblip_hf.models.llava import LlavaProcessor
from tiny_models import IMAGE_SIZE, our_llava, stock_llava
from tiny_processors import language_tokenizer as word_tokenizer
from tiny_tokenizers import language_tokenizer


SIZE = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
TURN = "USER: <image>\nWhat color is the circle? ASSISTANT:"
TEXTS = {
    "in front": "<image>\nWhat color is the circle?",
    "in a turn": TURN,
    "at the end": "USER: What color is the circle?\n<image> ASSISTANT:",
    "with a written beginning": "<s>USER: <image>\nWhat color? ASSISTANT: Red.</s>USER: And the square?",
}
TOKENIZERS = ("llama", "llama_legacy", "vicuna", "gpt2")


def picture(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    values = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def build(cls: Any, kind: str = "llama", tokenizer: Any = None, **options: Any) -> Any:
    tokenizer = tokenizer if tokenizer is not None else language_tokenizer(kind)
    # Stock's does not add the marker where the tokenizer lacks it.
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    fields = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    images = CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=SIZE)
    return cls(images, tokenizer, **{**fields, **options})


# The last text is written with the beginning of LLaMA's tokenizer.
CASES = [(kind, name) for kind in TOKENIZERS for name in TEXTS if kind == "llama" or "written" not in name]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_inputs_equal_stocks(kind, name):
    text = TEXTS[name]
    ours = build(LlavaProcessor, kind)(images=picture(), text=text, return_tensors="pt")
    if text.startswith("<s>"):
        text = text.removeprefix("<s>")  # stock adds a second one
    theirs = build(transformers.LlavaProcessor, kind)(images=picture(), text=text, return_tensors="pt")
    assert set(ours) == set(theirs) - {"token_type_ids"}
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]), key
    assert (ours["input_ids"] == ours_image_id(kind)).sum() == 4


def ours_image_id(kind: str) -> int:
    return build(LlavaProcessor, kind).image_token_id


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_equal_stocks(side):
    texts = [TURN, "USER: Hello ASSISTANT:", "USER: <image> and <image> ASSISTANT:"]
    images = [[picture(0)], [], [picture(1), picture(2)]]
    options = {"padding": True, "padding_side": side, "return_tensors": "pt"}
    ours = build(LlavaProcessor)(images=images, text=texts, **options)
    theirs = build(transformers.LlavaProcessor)(images=[picture(0), picture(1), picture(2)], text=texts, **options)
    for key in ("input_ids", "attention_mask", "pixel_values"):
        assert torch.equal(ours[key], theirs[key]), key


def test_without_markers_images_stand_first_as_in_training():
    processor = build(LlavaProcessor)
    images = [picture(0), picture(1)]
    written = processor(images=images, text="<image>\n<image>\nWhat is this?", return_tensors="pt")
    assert torch.equal(
        processor(images=images, text="What is this?", return_tensors="pt")["input_ids"], written["input_ids"]
    )
    assert written["input_ids"][0, 0] == processor.tokenizer.bos_token_id


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({}, 4),
        ({"vision_feature_select_strategy": "full"}, 5),
        ({"vision_feature_select_strategy": "full", "num_additional_image_tokens": 0}, 4),
        ({"patch_size": 7}, 16),
        ({"num_query_tokens": 3}, 3),
    ],
)
def test_tokens_per_image(options, tokens):
    processor = build(LlavaProcessor, **options)
    assert processor.tokens_per_image == tokens
    ids = processor(images=picture(), text="What?", return_tensors="pt")["input_ids"]
    assert (ids == processor.image_token_id).sum() == tokens


def test_what_the_number_of_tokens_cannot_be_read_from():
    with pytest.raises(ValueError, match="patch_size of the processor is None"):
        build(LlavaProcessor, patch_size=None)(images=picture(), text="What?")
    processor = build(LlavaProcessor)
    processor.image_processor.do_center_crop = False
    with pytest.raises(ValueError, match="size of the image processor is .*images of one size"):
        processor(images=picture(), text="What?")
    processor.image_processor.size = {"height": 42, "width": 28}
    assert processor.tokens_per_image == 6


def test_saved_processors_are_exchanged(tmp_path):
    ours = build(LlavaProcessor)
    ours.save_pretrained(tmp_path / "ours")
    stock = transformers.LlavaProcessor.from_pretrained(tmp_path / "ours")
    stock.save_pretrained(tmp_path / "stock")
    again = LlavaProcessor.from_pretrained(tmp_path / "stock")
    for processor in (stock, again):
        assert processor.patch_size == 14
        assert processor.num_additional_image_tokens == 1
        assert processor.vision_feature_select_strategy == "default"
        assert processor.chat_template == ours.chat_template
        inputs = processor(images=picture(), text=TURN, return_tensors="pt")
        for key, value in ours(images=picture(), text=TURN, return_tensors="pt").items():
            assert torch.equal(inputs[key], value), key


def test_padded_images(tmp_path):
    """LLaVA 1.5's way with images that are not square, with transformers' own image processor for it."""
    image_processor = transformers.LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": IMAGE_SIZE}, crop_size=SIZE, image_mean=[0.5, 0.25, 0.75]
    )
    processor = LlavaProcessor(
        image_processor, language_tokenizer("llama"), 14, "default", num_additional_image_tokens=1
    )
    processor.save_pretrained(tmp_path)
    for one in (processor, LlavaProcessor.from_pretrained(tmp_path)):
        pixels = one(images=picture(size=(40, 20)), text="What?", return_tensors="pt")["pixel_values"]
        assert pixels.shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)
        # The bars above and below have the mean colour, which is zero after normalisation but for rounding to bytes.
        mean, std = torch.tensor([0.5, 0.25, 0.75]), torch.tensor(image_processor.image_std)
        colour = torch.tensor([int(value * 255) / 255 for value in mean.tolist()])
        expected = (colour - mean) / std
        torch.testing.assert_close(pixels[0, :, 1, 14], expected, atol=1e-6, rtol=0)


def test_model_and_processor_answer_as_stocks():
    """From pictures and words to words."""
    stock_model, model = stock_llava(), our_llava(seed=1)
    renamed = {
        name.replace("model.language_model.", "language_model.model.", 1)
        .replace("model.vision_tower", "vision_tower")
        .replace("model.multi_modal_projector", "multi_modal_projector")
        .replace("lm_head", "language_model.lm_head"): tensor
        for name, tensor in stock_model.state_dict().items()
    }
    model.load_state_dict(renamed)
    ours = build(LlavaProcessor, tokenizer=word_tokenizer())
    theirs = build(transformers.LlavaProcessor, tokenizer=word_tokenizer())
    text = "user : <image> what color is the circle ? assistant :"
    answers = []
    for one, processor in ((model, ours), (stock_model, theirs)):
        tokens = one.generate(**processor(images=picture(), text=text, return_tensors="pt"), max_new_tokens=8)
        answers.append(processor.batch_decode(tokens, skip_special_tokens=True))
    assert answers[0] == answers[1]


def test_a_question_is_worded_by_the_chat_template():
    template = "{% for m in messages %}[{% for p in m['content'] %}{{ p['text'] if p['type'] == 'text' else '<image>|' }}{% endfor %}]{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    processor = build(LlavaProcessor, chat_template=template)
    assert processor.user_turn("What?") == "[<image>|What?]>"
    assert processor.user_turn("What?", images=2) == "[<image>|<image>|What?]>"
    assert processor.user_turn("What is <image>?") == "[What is <image>|?]>"
    assert processor.user_turn("Hello", images=0) == "[Hello]>"


# In the form of the published folders': a blank behind an answer, and no end token.
PUBLISHED = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ part['text'] + ' ' }}{% endgeneration %}"
    "{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@pytest.mark.parametrize(
    "template", [PUBLISHED, PUBLISHED.replace("{% generation %}", "").replace("{% endgeneration %}", "")]
)
def test_templates_that_do_not_tell_what_ends_an_answer(template):
    """A blank ends nothing: the end token does, which is not written."""
    processor = build(LlavaProcessor, chat_template=template)
    assert processor.stop_strings == []
    assert processor.generation_options() == {}
    assert processor.user_turn("What?") == "USER: <image>\nWhat? ASSISTANT:"


@pytest.mark.parametrize(("template", "ending"), [("v0", "###"), ("llava_v0", "###"), ("v1", None), ("plain", "\n")])
def test_generation_stops_where_training_ends_an_answer(template, ending):
    processor = build(LlavaProcessor, "gpt2", chat_template=template)
    assert processor.stop_strings == ([ending] if ending else [])
    ids = processor.tokenizer(f"A red circle{ending or ''} Human: And", add_special_tokens=False)["input_ids"]
    expected = "A red circle" if ending else "A red circle Human: And"
    assert processor.answers([ids, ids[:2]])[0] == expected
    options = processor.generation_options()
    assert bool(options) == bool(ending)
    if ending:
        # A model that would say the whole of it stops right behind the ending.
        model = stock_llava(
            text_config={**stock_llava().config.text_config.to_dict(), "vocab_size": len(processor.tokenizer)}
        )
        prompt = processor.tokenizer(f"### Human: What?{ending}", return_tensors="pt")["input_ids"]
        told = iter([*ids, *ids])

        class Says(transformers.LogitsProcessor):
            def __call__(self, input_ids, scores):
                scores[:] = -1e9
                scores[:, next(told)] = 0
                return scores

        tokens = model.generate(prompt, logits_processor=[Says()], max_new_tokens=40, **options)
        said = tokens[:, prompt.shape[1] :]
        assert processor.answers(said) == ["A red circle"]
        assert processor.tokenizer.decode(said[0]) == f"A red circle{ending}"


def test_templates_that_teach_no_end_are_refused_in_training():
    row = {
        "images": [picture()],
        "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Red."}],
    }
    with pytest.raises(
        ValueError, match=r"row 0: the chat template marks nothing after an answer.*chat_template='v1'"
    ):
        build(LlavaProcessor, chat_template=PUBLISHED).encode_examples([row])
    labels = build(LlavaProcessor, chat_template="v1").encode_examples([row])["labels"]
    assert labels[0, -1] == build(LlavaProcessor).tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "for messages of text alone"),
        ("{% for m in messages %}{{ 'user ' + m['content'] }}{% endfor %}", "for messages of text alone"),
        ("{{ raise_exception('not so') }}", "the chat template refuses the conversation: not so"),
    ],
)
def test_templates_that_cannot_word_a_question(template, message):
    with pytest.raises(ValueError, match=message):
        build(LlavaProcessor, chat_template=template).user_turn("What?")
