"""Training rows of conversations, tokenised as a whole, with labels where the chat template says what is learnt.

LLaVA's way: the text of the whole conversation is split into tokens at once, by the same function that prepares prompts, so
that a prompt's tokens are those the row begins with. LLaVA found its masks by tokenising pieces again and subtracting what
their ends add (``preprocess`` of ``llava/train/train.py``); here a token is learnt if any of its characters is inside of
``{% generation %}``. Where LLaVA's count did not come out and the sample's loss was dropped with a printed line, there is
an error that names the row.

`training_rows` has the other way, that of LAVIS: answers tokenised apart from what stands before them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..constants import IGNORE_INDEX
from .chat import instruction_of
from .prompt_tokens import TokenRow, pad_rows, truncate_row
from .training_rows import TextRow, TrainingRows, form_of_row, images_of_row, read_conversation


logger = logging.getLogger(__name__)

# In place of the number of an answer, for tokens that are not learnt.
_NO_ANSWER = -1


@dataclass
class _Row:
    """A row as text.

    Args:
        name (`str`): What errors call it.
        images (`list`): Sources, in reading order.
        instruction (`str`): The turns of the user.
        text (`str`): All of it, with markers for images.
        learnt (`list[tuple[int, int]]`): Where in the text labels are, in characters.
        last_answer (`int`): Where the last answer begins.
    """

    name: str
    images: list[Any]
    instruction: str
    text: str
    learnt: list[tuple[int, int]]
    last_answer: int


def encode_conversation_rows(
    processor: Any,
    examples: Sequence[Mapping[str, Any]],
    is_encoder_decoder: bool = False,
    max_prompt_length: int | None = None,
    max_completion_length: int | None = None,
    max_length: int | None = None,
    pad_to_multiple_of: int | None = None,
) -> TrainingRows:
    """Encode rows for `VisionLanguageProcessor.encode_examples`, which documents arguments and errors.

    A prompt and a completion as text are a turn of the user and one of the assistant, as `user_turn` words a question
    where a model is asked; with the default chat template they stay as they are.
    """
    if isinstance(examples, Mapping) or not len(examples):
        raise ValueError("examples must be a non-empty list of rows")
    if is_encoder_decoder:
        raise ValueError("conversations tokenised as a whole are for causal language models, not sequence-to-sequence")
    opener = _opener_of_answers(processor)
    rows = [_read_row(processor, example, index, opener) for index, example in enumerate(examples)]
    encoded = [_encode(processor, row, max_prompt_length, max_completion_length, max_length) for row in rows]
    cut = sum(was_cut for _, _, was_cut in encoded)
    if cut and not getattr(processor, "_warned_of_cut_completions", False):
        processor._warned_of_cut_completions = True
        logger.warning(
            "%d of %d rows have an answer that is cut (max_completion_length=%s, max_length=%s): it is learnt without its "
            "end (said once)",
            cut,
            len(rows),
            max_completion_length,
            max_length,
        )
    multiple = pad_to_multiple_of or 1
    length = -(-max(len(tokens) for tokens, _, _ in encoded) // multiple) * multiple
    ids, masks, _ = pad_rows(
        [tokens for tokens, _, _ in encoded],
        processor.image_token_id,
        processor.tokenizer.pad_token_id,
        length,
        "right",
    )
    labels = [own + [IGNORE_INDEX] * (length - len(own)) for _, own, _ in encoded]
    data = {"input_ids": ids, "attention_mask": masks, "labels": labels}
    return TrainingRows(data, [row.images for row in rows], [row.instruction for row in rows])


# --- reading ------------------------------------------------------------------------------------------------------


def _read_row(processor: Any, example: Mapping[str, Any], index: int, opener: str) -> _Row:
    name = f"row {index}"
    images = images_of_row(example, name)
    form = form_of_row(example, name)
    if isinstance(form, TextRow):
        row = _read_strings(processor, form.prompt, form.completion, images, name, opener)
    else:
        row = _read_messages(processor, form.messages, form.completion_length, images, name, opener)
    for start, stop in row.learnt:
        if processor.image_token in row.text[start:stop]:
            raise ValueError(f"{name}: an answer holds the image marker {processor.image_token}")
    return row


def _read_strings(processor: Any, prompt: str, completion: str, images: list[Any], name: str, opener: str) -> _Row:
    if processor.user_turn(prompt, len(images)) != prompt:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion.strip()}]
        return _read_messages(processor, turns, None, images, name, opener)
    instruction = processor._without_special_tokens(prompt)
    prompt = processor.mark_images(prompt, len(images))
    gap = " " if prompt and not prompt[-1].isspace() else ""
    text = f"{prompt}{gap}{completion.strip()}{processor.tokenizer.eos_token}"
    return _Row(name, images, instruction, text, [(len(prompt), len(text))], len(prompt))


def _read_messages(
    processor: Any, messages: Any, completion_length: int | None, images: list[Any], name: str, opener: str
) -> _Row:
    conversation, images, trained = read_conversation(messages, completion_length, images, processor.image_token, name)
    for position, message in enumerate(conversation):
        _check_words(processor, message, opener, f"{name}, message {position}")
    try:
        texts, spans = processor.render([conversation], return_spans=True, eos_token=processor.tokenizer.eos_token)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    text, learnt = texts[0], [tuple(span) for span in spans[0]]
    answers = [message["content"] for message in conversation if message["role"] == "assistant"]
    starts = _answer_spans(text, learnt, [_answer_text(parts) for parts in answers], name)
    ending = text[slice(*learnt[-1])].rpartition(_answer_text(answers[-1]))[2]
    if not ending.strip() and "\n" not in ending:
        raise ValueError(
            f"{name}: the chat template marks nothing after an answer with {{% generation %}}, so that no end of an answer "
            "would be learnt, as with those of published LLaVA folders: give the processor another one, like "
            "chat_template='v1', or write the end token inside of the marks"
        )
    if trained < len(answers):
        # What is marked before the first answer to be learnt belongs to what came before.
        learnt = learnt[starts[-trained] :]
    return _Row(name, images, instruction_of(conversation), text, learnt, learnt[-1][0])


def _answer_text(parts: Sequence[Mapping[str, Any]]) -> str:
    """Words of an answer, as a template may trim them."""
    return "".join(part["text"] for part in parts).strip()


def _check_words(processor: Any, message: Mapping[str, Any], opener: str, name: str) -> None:
    """Refuses words that only the template may write: nobody could tell where the answer begins or ends."""
    words = "".join(part.get("text", "\0") for part in message["content"])
    for reserved, meaning in ((opener, "opens an answer"), (processor.tokenizer.eos_token, "ends an answer")):
        if reserved and reserved in words:
            raise ValueError(
                f"{name} holds {reserved!r}, which {meaning} in this chat template; LLaVA trained on nothing of such a "
                "sample. Change the text, or leave the row out"
            )


def _answer_spans(text: str, spans: Sequence[tuple[int, int]], answers: Sequence[str], name: str) -> list[int]:
    """For each answer the number of the span that holds it; a template may mark more than answers."""
    found: list[int] = []
    number = -1
    for answer in answers:
        number += 1
        while number < len(spans) and answer.strip() not in text[slice(*spans[number])]:
            number += 1
        if number == len(spans):
            raise ValueError(
                f"{name}: the chat template marks {len(found)} of {len(answers)} assistant turns with "
                "{% generation %}, which tells answers from the rest"
            )
        found.append(number)
    return found


def _opener_of_answers(processor: Any) -> str:
    """What the template writes between a question and its answer, without white space around it."""
    question, answer = "quaestio", "responsum"
    turns = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for role, text in (("user", question), ("assistant", answer))
    ]
    texts, _ = processor.render([turns])
    return str(texts[0].rpartition(answer)[0].rpartition(question)[2].strip())


# --- encoding -----------------------------------------------------------------------------------------------------


def _encode(
    processor: Any,
    row: _Row,
    max_prompt_length: int | None,
    max_completion_length: int | None,
    max_length: int | None,
) -> tuple[TokenRow, list[int], bool]:
    """Tokens and labels of a row, and whether an answer lost its end."""
    try:
        encoding = processor._text_inputs([row.text], [len(row.images)], {"return_offsets_mapping": True})
    except ValueError as error:
        raise ValueError(f"{row.name}: {error}") from error
    ids, offsets = encoding["input_ids"][0], encoding["offset_mapping"][0]
    if ids[-1] == processor.tokenizer.eos_token_id and offsets[-1][0] == offsets[-1][1]:
        # The tokenizer closes every text, and this one brings its own end.
        ids, offsets = ids[:-1], offsets[:-1]
    answer_of = _answers_of_tokens(processor, row, ids, offsets)
    first = next(p for p, (begin, end) in enumerate(offsets) if end > max(begin, row.last_answer))

    kept = list(range(len(ids)))
    if max_completion_length is not None:
        kept = kept[: first + max_completion_length]
    broken: set[int] = set()
    if max_prompt_length is not None:
        fixed_ids = {processor.image_token_id, *processor.tokenizer.all_special_ids}
        prompt = TokenRow(0, kept[:first], [token_id in fixed_ids for token_id in ids[:first]])
        try:
            gone = truncate_row(prompt, max_prompt_length, "left", "max_prompt_length")
        except ValueError as error:
            raise ValueError(f"{row.name}: {error}") from error
        # What is left of an answer that lost its beginning is context, not something to learn.
        broken = {answer_of[position] for position in gone}
        kept = prompt.ids + kept[first:]
    kept = kept[:max_length]

    lost = range(kept[-1] + 1, len(ids))
    if any(ids[position] == processor.image_token_id for position in lost):
        raise ValueError(f"{row.name}: max_length={max_length} cannot hold its image placeholders, which are not cut")
    learnt = [answer_of[position] not in (_NO_ANSWER, *broken) for position in kept]
    if not any(learnt):
        raise ValueError(
            f"{row.name}: nothing of its answers is left to learn within max_prompt_length={max_prompt_length}, "
            f"max_completion_length={max_completion_length}, max_length={max_length}"
        )
    was_cut = len(lost) > 0 and learnt[-1] and answer_of[lost[0]] == answer_of[kept[-1]]
    kept_ids = [ids[position] for position in kept]
    labels = [token_id if is_learnt else IGNORE_INDEX for token_id, is_learnt in zip(kept_ids, learnt)]
    return TokenRow(0, kept_ids, [False] * len(kept)), labels, was_cut


def _answers_of_tokens(processor: Any, row: _Row, ids: Sequence[int], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """For each token the number of the span of ``row.learnt`` that it is in."""
    answer_of = [_NO_ANSWER] * len(ids)
    for position, (begin, end) in enumerate(offsets):
        for number, (start, stop) in enumerate(row.learnt):
            if begin < stop and end > start:
                if begin < start:
                    raise ValueError(
                        f"{row.name}: the token {processor.tokenizer.convert_ids_to_tokens(ids[position])!r} is partly of "
                        "the prompt and partly of the answer, so that no prompt leads to this answer"
                    )
                answer_of[position] = number
    return answer_of


__all__ = ["encode_conversation_rows"]
