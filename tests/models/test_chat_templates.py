"""LLaVA's conversation templates.

`llava_rows.json` was written with LLaVA's own code (haotian-liu/LLaVA at c121f043), loaded in isolation: ``prompts`` by
``Conversation.get_prompt`` after ``append_message`` of the turns and of an open one. What is learnt is judged token by
token in `test_conversation_rows.py`.
"""

import pytest
from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from instructblip_hf.models.chat import normalize_conversation
from instructblip_hf.models.chat_templates import CHAT_TEMPLATES, end_of_answer, find_chat_template
from tiny_llava_parts import RECORDED


ROLES = {"human": "user", "gpt": "assistant"}
IMAGE = {"type": "image"}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def text(words):
    return {"type": "text", "text": words}


def messages_of(conversations):
    return [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in conversations]


def render(name, messages, **options):
    messages, _ = normalize_conversation(messages, "<image>", 4, "conversation")
    texts, spans = render_jinja_template(
        conversations=[messages],
        chat_template=find_chat_template(name),
        return_assistant_tokens_mask=True,
        **{**TOKENS, **options},
    )
    return texts[0], spans[0]


@pytest.mark.parametrize("recorded", RECORDED["prompts"], ids=lambda recorded: recorded["template"])
def test_prompts_are_those_that_llava_asks_with(recorded):
    found, _ = render(recorded["template"], messages_of(recorded["conversations"]), add_generation_prompt=True)
    assert found.removeprefix("<s>") == recorded["prompt"]
    assert found.startswith("<s>")


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
@pytest.mark.parametrize("turns", [1, 3])
def test_a_prompt_opens_the_text_that_is_trained_on(name, turns):
    """Up to where the answer begins, which is where `generate` goes on; of `v0` that is after the role's name."""
    if name == "plain":
        turns = 1
    contents = [
        [IMAGE, text("What?")],
        [text("A cat.")],
        [text("Where?")],
        [text("Here.")],
        [text("Why?")],
        [text("!")],
    ]
    messages = [
        {"role": "assistant" if number % 2 else "user", "content": content}
        for number, content in enumerate(contents[: 2 * turns])
    ]
    whole, spans = render(name, messages)
    prompt, _ = render(name, messages[:-1], add_generation_prompt=True)
    assert whole.startswith(prompt)
    answer = whole[len(prompt) : spans[-1][1]]
    assert answer.lstrip(" ").startswith(contents[2 * turns - 1][0]["text"])
    assert len(answer) - len(answer.lstrip(" ")) == (0 if name == "plain" else 1)
    assert spans[-1][1] == len(whole), "what comes after the last answer is learnt"
    assert spans[-1][0] == (whole.rindex("### Assistant") if name == "v0" else len(prompt))


@pytest.mark.parametrize(
    ("content", "rendered"),
    [
        ([IMAGE, text("What?")], "<image>\nWhat?"),
        ([text("What?"), IMAGE], "What?\n<image>"),
        ([IMAGE, IMAGE, text("What?")], "<image>\n<image>\nWhat?"),
        ([text("What?"), IMAGE, IMAGE], "What?\n<image>\n<image>"),
        ([text("Is "), IMAGE, text(" left of "), IMAGE, text("?")], "Is <image> left of <image>?"),
        ([IMAGE, text("\nWhat?")], "<image>\nWhat?"),
        ([text("What is "), IMAGE], "What is <image>"),
        ([IMAGE], "<image>"),
        ([{**IMAGE, "text": None}, {"type": "text", "text": "What?", "image": None}], "<image>\nWhat?"),
        ("<image>\nWhat?", "<image>\nWhat?"),
    ],
)
def test_images_stand_where_they_are_put(content, rendered):
    texts, _ = render_jinja_template(
        conversations=[[{"role": "user", "content": content}]], chat_template=CHAT_TEMPLATES["v1"], **TOKENS
    )
    assert texts[0].partition("USER: ")[2] == f"{rendered} "


def test_a_system_sentence_of_ones_own():
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What?"}]
    assert render("v1", turns, add_generation_prompt=True)[0] == "<s>Be brief. USER: What? ASSISTANT:"
    assert render("llava_llama_2", turns)[0] == "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhat? [/INST]"
    turns[0]["content"] = ""
    assert render("llava_llama_2", turns)[0] == "<s>[INST] What? [/INST]"


def test_plain_is_the_image_and_the_caption():
    messages = [{"role": "user", "content": [text("Describe."), IMAGE]}, {"role": "assistant", "content": "a cat"}]
    found, spans = render("plain", messages)
    assert found == "<s><image>a cat\n"
    assert [found[start:stop] for start, stop in spans] == ["a cat\n"]
    with pytest.raises(TemplateError, match="one caption"):
        render("plain", messages * 2)


@pytest.mark.parametrize("name", sorted(set(CHAT_TEMPLATES) - {"plain"}))
@pytest.mark.parametrize(
    "roles", [("assistant",), ("user", "user"), ("user", "assistant", "assistant"), ("user", "system")]
)
def test_roles_that_the_protocol_has_no_words_for(name, roles):
    with pytest.raises(TemplateError, match=f"turn {len(roles)} is from {roles[-1]}"):
        render(name, [{"role": role, "content": "words"} for role in roles])


def test_templates_by_name():
    assert find_chat_template("v1") == find_chat_template("vicuna_v1") == CHAT_TEMPLATES["v1"]
    assert find_chat_template("{{ messages }}") == "{{ messages }}"
    with pytest.raises(ValueError, match="'v7'.*v0, llava_v0, v1"):
        find_chat_template("v7")


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("v0", "###"),
        ("llava_v0", "###"),
        ("v1", "</s>"),
        ("llava_v1", "</s>"),
        ("llava_llama_2", "</s>"),
        ("plain", "\n"),
    ],
)
def test_where_generation_has_to_stop(name, end):
    """LLaVA's own stops: ``conv.sep`` of the SINGLE style, ``conv.sep2`` of TWO and LLAMA_2."""
    assert end_of_answer(name, **TOKENS) == end


@pytest.mark.parametrize(
    "template", ["{{ messages }}", "{% generation %}{{ messages[1]['content'][0]['text'] }}{% endgeneration %}"]
)
def test_a_template_that_ends_no_answer(template):
    assert end_of_answer(template, **TOKENS) is None
