"""LLaVA's conversation templates as chat templates.

Words, separators and system sentences are those that LLaVA's checkpoints were trained with and are asked with, a published
protocol (haotian-liu/LLaVA at c121f043: ``llava/conversation.py``, and for `v0` the training text that
``_add_speaker_and_signal`` of ``llava/train/train.py`` makes). ``{% generation %}`` stands around what LLaVA learns.

Content is rendered in its order, an image where it stands. An image that opens or closes a turn has a line break between
itself and the words, as in LLaVA's data, unless there is white space already; one between words is left as it is.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any


_CONTENT = """\
{%- set marker = image_token if image_token is defined else '<image>' -%}
{%- macro content_of(message) -%}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- set words = namespace(first=-1, last=-1) -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] != 'image' and part['text'] -%}
                {%- if words.first < 0 -%}{%- set words.first = loop.index0 -%}{%- endif -%}
                {%- set words.last = loop.index0 -%}
            {%- endif -%}
        {%- endfor -%}
        {%- set turn = namespace(text='', opens=false) -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'image' -%}
                {%- set closes = loop.index0 > words.last and turn.text and not turn.text[-1:].isspace() -%}
                {%- set turn.text = turn.text + ('\\n' if turn.opens or closes else '') + marker -%}
                {%- set turn.opens = loop.index0 < words.first -%}
            {%- elif part['text'] -%}
                {%- set breaks = turn.opens and not part['text'][:1].isspace() -%}
                {%- set turn.text = turn.text + ('\\n' if breaks else '') + part['text'] -%}
                {%- set turn.opens = false -%}
            {%- endif -%}
        {%- endfor -%}
        {{- turn.text -}}
    {%- endif -%}
{%- endmacro -%}
"""

# The first message may be a system sentence in place of the published one; then users and assistants take turns.
_TURNS = """\
{%- if messages[0]['role'] == 'system' -%}
    {%- set system = content_of(messages[0]) -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set system = SYSTEM -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if message['role'] != ('assistant' if loop.index0 % 2 else 'user') -%}
        {{- raise_exception('users and assistants take turns, beginning with a user; turn ' + loop.index | string
            + ' is from ' + message['role'] | string) -}}
    {%- endif -%}
{%- endfor -%}
"""

_V0 = """\
{{- bos_token -}}{{- system + '\\n\\n' -}}
{%- for message in turns -%}
    {%- if message['role'] == 'user' -%}
        {%- if loop.first -%}{%- generation -%}{{- '###' -}}{%- endgeneration -%}{%- endif -%}
        {{- ' Human: ' + content_of(message) + '\\n' -}}
    {%- else -%}
        {%- generation -%}
            {{- '### Assistant: ' + content_of(message) + '\\n###' + (' ' if loop.last else '') -}}
        {%- endgeneration -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '### Assistant:' -}}{%- endif -%}
"""

_LLAVA_V0 = """\
{{- bos_token -}}{{- system + '###' -}}
{%- for message in turns -%}
    {%- if message['role'] == 'user' -%}
        {{- 'Human: ' + content_of(message) + '###' -}}
    {%- else -%}
        {{- 'Assistant:' -}}
        {%- generation -%}{{- ' ' + content_of(message) + '###' -}}{%- endgeneration -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}
"""

_V1 = """\
{{- bos_token -}}{{- system + ' ' -}}
{%- for message in turns -%}
    {%- if message['role'] == 'user' -%}
        {{- 'USER: ' + content_of(message) + ' ' -}}
    {%- else -%}
        {{- 'ASSISTANT:' -}}
        {%- generation -%}{{- ' ' + content_of(message) + eos_token -}}{%- endgeneration -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
"""

_LLAMA_2 = """\
{%- for message in turns -%}
    {%- if message['role'] == 'user' -%}
        {{- bos_token -}}{{- '[INST] ' -}}
        {%- if loop.first and system -%}{{- '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' -}}{%- endif -%}
        {{- content_of(message) + ' [/INST]' -}}
    {%- else -%}
        {%- generation -%}{{- ' ' + content_of(message) + ' ' + eos_token -}}{%- endgeneration -%}
    {%- endif -%}
{%- endfor -%}
"""

_PLAIN = """\
{%- if turns | length > 2 -%}{{- raise_exception('the plain template has one caption, not several turns') -}}{%- endif -%}
{{- bos_token -}}
{%- for message in turns -%}
    {%- if message['role'] == 'user' -%}
        {%- if message['content'] is string -%}
            {%- for piece in message['content'].split(marker)[1:] -%}{{- marker -}}{%- endfor -%}
        {%- else -%}
            {%- for part in message['content'] if part['type'] == 'image' -%}{{- marker -}}{%- endfor -%}
        {%- endif -%}
    {%- else -%}
        {%- generation -%}{{- content_of(message) + '\\n' -}}{%- endgeneration -%}
    {%- endif -%}
{%- endfor -%}
"""


def _template(body: str, system: str) -> str:
    return _CONTENT + _TURNS.replace("SYSTEM", repr(system)) + body


_CURIOUS_HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
_CURIOUS_USER = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_LANGUAGE_AND_VISION = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)

CHAT_TEMPLATES: Mapping[str, str] = types.MappingProxyType(
    {
        "v0": _template(_V0, _CURIOUS_HUMAN),
        "llava_v0": _template(_LLAVA_V0, _CURIOUS_HUMAN),
        "v1": _template(_V1, _CURIOUS_USER),
        "llava_v1": _template(_V1, _CURIOUS_HUMAN),
        "llava_llama_2": _template(_LLAMA_2, _LANGUAGE_AND_VISION),
        "plain": _template(_PLAIN, ""),
    }
)
"""Chat templates by the names that LLaVA has for them.

- ``v0``: the paper's, as the first checkpoints were trained. What is learnt is LLaVA's mask to the letter: the answer
  with its ``### Assistant:``, and the ``###`` of every human's turn, which is the paper's ``<STOP>``.
- ``llava_v0``: the same conversation as LLaVA writes it when it asks, without the blanks and line breaks of training.
- ``v1``: LLaVA 1.5 and all later training ("curious user"; LLaVA knows it as ``vicuna_v1`` too).
- ``llava_v1``: the same with "curious human", for evaluation on ScienceQA.
- ``llava_llama_2``: for Llama 2's chat models.
- ``plain``: the first stage: the image, the caption and a line break. What the user says is left out.
"""

_OTHER_NAMES = {"vicuna_v1": "v1", "v0_plain": "plain"}


def find_chat_template(name_or_template: str) -> str:
    """The chat template of a name in `CHAT_TEMPLATES`; a template is returned as it is.

    Args:
        name_or_template (`str`): A name, LLaVA's other names for the same included, or a Jinja template.

    Raises:
        ValueError: If it is neither.
    """
    name = _OTHER_NAMES.get(name_or_template, name_or_template)
    if name in CHAT_TEMPLATES:
        return CHAT_TEMPLATES[name]
    if "{{" in name or "{%" in name:
        return name
    raise ValueError(
        f"chat_template is {name!r}, which is no Jinja template and none of the names {', '.join(CHAT_TEMPLATES)}"
    )


def end_of_answer(chat_template: str, **special_tokens: Any) -> str | None:
    """What a template teaches a model to write after an answer, which is where `generate` has to stop.

    Args:
        chat_template (`str`): A template that marks answers by ``{% generation %}``, or a name as for
            `find_chat_template`.
        special_tokens: ``bos_token``, ``eos_token`` and others that the template asks for.

    Returns:
        `str`: The end token, or text such as ``###``; without the white space around it, unless there is nothing else.
        `None` where the template marks no answer, or nothing after it.
    """
    # Recipes check their templates before transformers is loaded.
    from transformers.utils.chat_template_utils import render_jinja_template

    question, answer = "question", "answer"
    probe = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for role, text in (("user", question), ("assistant", answer))
    ]
    if "generation" not in find_chat_template(chat_template):
        return None
    rendered: Any = render_jinja_template(
        conversations=[probe],
        chat_template=find_chat_template(chat_template),
        return_assistant_tokens_mask=True,
        **{"bos_token": "", **special_tokens},
    )
    texts, spans = rendered
    learnt = texts[0][slice(*spans[0][-1])] if spans[0] else ""
    ending = learnt.rpartition(answer)[2] if answer in learnt else ""
    return ending.strip() or ending or None


__all__ = ["CHAT_TEMPLATES", "end_of_answer", "find_chat_template"]
