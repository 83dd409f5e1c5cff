"""What the processors of the three families share: images of any kind, prompts with placeholders, chat, decoding.

A family's processor subclasses `VisionLanguageProcessor`, names its parts in its own ``__init__`` (transformers reads
them from that signature) and says how many placeholders an image has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2.exceptions import TemplateError
from tokenizers import AddedToken
from transformers import BatchFeature, ProcessorMixin, StoppingCriteriaList
from transformers.processing_utils import ProcessingKwargs
from transformers.utils.chat_template_utils import render_jinja_template

from ..constants import IMAGE_TOKEN
from ..utils.images import load_image
from ..utils.same_images import distinct_images, source_key
from .chat import DEFAULT_CHAT_TEMPLATE, RenderedInstructions, fill_images, instruction_of, normalize_conversation
from .prompt_tokens import encode_texts, pad_rows, truncate_row
from .sample_images import images_of_samples, is_given
from .stopping_criteria import StopAtText
from .training_rows import TrainingRows, encode_answer, encode_target, encode_training_rows


# A tokenizer without a limit of its own says so with a very large one.
NO_LIMIT = 10**9
_UNSUPPORTED_TEXT_OPTIONS = (
    "text_pair",
    "text_target",
    "text_pair_target",
    "is_split_into_words",
    "return_overflowing_tokens",
    "sanitize_control_tokens",
)
_TEXT_TEMPLATE = (
    "the chat template is for messages of text alone: here the content of a message is a list of parts, {'type': 'image'} and "
    "{'type': 'text', 'text': ...}"
)
_CALL_OPTIONS = ("qformer_text", "num_frames", "timeout", "image_inputs")


class VisionLanguageProcessor(ProcessorMixin):
    """Base of the processors; see the family's class for use."""

    tokenizer: Any
    image_processor: Any
    image_token: str
    num_query_tokens: int | None
    images_before_bos = True
    """Whether placeholders that open a prompt stand before the beginning-of-sequence token."""
    split_at_images = False
    """Whether text between images is tokenised apart, see `encode_texts`."""

    @property
    def tokens_per_image(self) -> int:
        """Placeholder tokens that stand for one image in the language model's prompt."""
        if self.num_query_tokens is None:
            raise ValueError(
                "num_query_tokens of the processor is None: set it to the model's config.num_query_tokens, so that "
                "prompts get as many placeholders an image"
            )
        return self.num_query_tokens

    @property
    def image_token_id(self) -> int:
        """Id of the placeholder token."""
        return self.tokenizer.convert_tokens_to_ids(self.image_token)

    @property
    def end_token_id(self) -> int | None:
        """Id of the token that ends an answer: what training teaches, and what generation stops at.

        Raises:
            ValueError: If ``end_token`` is not one token.
        """
        end_token = getattr(self, "end_token", None)
        if end_token is None:
            return self.tokenizer.eos_token_id
        ids = self.tokenizer(end_token, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ValueError(f"end_token {end_token!r} is {len(ids)} tokens of the tokenizer; it must be one")
        return ids[0]

    @staticmethod
    def _adopt_image_token(tokenizer: Any, image_token: str = IMAGE_TOKEN) -> str:
        """The tokenizer's own image token, or else the given one, added to it as a special token."""
        own = getattr(tokenizer, "image_token", None)
        if own is not None:
            return str(own)
        # No whitespace is swallowed around it, and it is matched in the text as written.
        token = AddedToken(image_token, normalized=False, special=True)
        tokenizer.add_tokens([token], special_tokens=True)
        return image_token

    def mark_images(self, text: str, images: int) -> str:
        """A prompt with markers for its images, where the family needs them written and there are none."""
        return text

    def _instruction_inputs(self, instructions: Sequence[str], image_counts: Sequence[int]) -> dict[str, Any]:
        """Inputs of the connector, one row an image; none where it reads no text."""
        return {}

    # --- images and text ------------------------------------------------------------------------------------------

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        audio: None = None,
        *,
        qformer_text: str | Sequence[str] | None = None,
        num_frames: int = 4,
        timeout: float | None = 20.0,
        image_inputs: Callable[[Sequence[Sequence[Any]]], Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare images and prompts for the model.

        Args:
            images (*optional*):
                An image of any kind that `load_image` takes; a list, one image a text; any number of images with a
                single text; or a list of images for each text, empty where it has none.
            text (`str` or `list[str]`, *optional*):
                Prompts. Placeholders go in front, or where `<image>` stands: one marker an image.
            videos (`list`, *optional*): A list of frames for each text; frames become images of the sample.
            audio (`None`): Not taken; named because transformers' callers name it.
            qformer_text (`str` or `list[str]`, *optional*):
                What the Q-Former reads, one or one a text; by default the prompts without markers, and of a prompt
                that `apply_chat_template` rendered the turns of the user.
            num_frames (`int`, *optional*, defaults to 4): Most frames of a video, evenly spaced.
            timeout (`float`, *optional*, defaults to 20.0): Seconds for an image to be downloaded.
            image_inputs (`Callable`, *optional*):
                Makes model inputs of the images of all texts, a list for each, in place of the image processor and its
                options, such as [`RecentImages`].
            kwargs:
                ``return_tensors``, ``padding``, ``padding_side``, ``truncation``, ``max_length`` (counts
                placeholders; only text is cut), ``add_special_tokens``, ``pad_to_multiple_of``,
                ``return_offsets_mapping`` for the language model's text; options of the image processor; or both
                kinds in ``text_kwargs`` and ``images_kwargs``.

        Returns:
            `BatchFeature`: With text ``input_ids`` and ``attention_mask`` (texts, tokens); with images
            ``pixel_values`` (images, 3, height, width); with both ``qformer_input_ids`` and
            ``qformer_attention_mask`` (images, instruction tokens), always right-padded with CLS and SEP, a row for
            each image.

        Raises:
            ValueError: If an image cannot be read, images and texts or markers do not fit together, or
                ``max_length`` cannot hold the placeholders, or options of the image processor come with ``image_inputs``;
                or if ``qformer_tokenizer`` has no CLS token:
                transformers hands over the language model's tokenizer where it cannot find the Q-Former's, and the
                Q-Former would read other words without a sign of it.
        """
        if is_given(audio):
            raise ValueError(f"audio must be None, got {type(audio).__name__}: this model has no audio input")
        if images is None and text is None and not is_given(videos):
            raise ValueError("images, text or videos must be given, all are None")
        text_options, image_options = self._split_options(kwargs)
        return_tensors = text_options.get("return_tensors")
        texts = None if text is None else _as_texts(text, "text")
        image_lists = images_of_samples(images, videos, num_frames, None if texts is None else len(texts))
        counts = [len(sample) for sample in image_lists]

        data: dict[str, Any] = {}
        if texts is not None:
            data.update(self._text_inputs(texts, counts, text_options))
        if any(counts):
            if texts is not None:
                instructions = self._instructions(texts, qformer_text)
                data.update(self._instruction_inputs(instructions, counts))
            if image_inputs is not None:
                unread = sorted(set(image_options) - {"return_tensors"})
                if unread:
                    raise ValueError(
                        f"{', '.join(unread)}: image_inputs takes the image processor's place and its options"
                    )
                data.update(image_inputs(image_lists))
            else:
                data.update(self._image_inputs(image_lists, image_options, timeout))
        return BatchFeature(data, tensor_type=return_tensors)

    def _split_options(self, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        merge: Any = self._merge_kwargs
        options = merge(ProcessingKwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        return options["text_kwargs"], options["images_kwargs"]

    def _instructions(self, texts: Sequence[str], qformer_text: str | Sequence[str] | None) -> list[str]:
        if qformer_text is None:
            noted = [self._rendered_instructions.get(text) for text in texts]
            return [self._without_special_tokens(text) if own is None else own for text, own in zip(texts, noted)]
        given = _as_texts(qformer_text, "qformer_text")
        if len(given) == 1:
            given = given * len(texts)
        if len(given) != len(texts):
            raise ValueError(f"qformer_text has {len(given)} entries for {len(texts)} texts: give one, or one a text")
        return given

    @property
    def _rendered_instructions(self) -> RenderedInstructions:
        return self.__dict__.setdefault("_rendered_instructions_by_text", RenderedInstructions())

    def _without_special_tokens(self, text: str) -> str:
        for token in (self.image_token, self.tokenizer.bos_token, self.tokenizer.eos_token):
            if token and token in text:
                text = text.replace(token, " ").strip()
        return text

    def _text_inputs(self, texts: list[str], counts: list[int], options: dict[str, Any]) -> dict[str, Any]:
        unsupported = [name for name in _UNSUPPORTED_TEXT_OPTIONS if options.get(name)]
        if unsupported:
            raise ValueError(f"{', '.join(unsupported)} cannot be combined with image placeholders")
        with_offsets = bool(options.get("return_offsets_mapping"))
        rows = encode_texts(
            self.tokenizer,
            [self.mark_images(text, images) for text, images in zip(texts, counts)],
            counts,
            self.image_token,
            self.tokens_per_image if any(counts) else 1,
            add_special_tokens=options.get("add_special_tokens") is not False,
            with_offsets=with_offsets,
            images_before_bos=self.images_before_bos,
            split_at_images=self.split_at_images,
        )
        padding, truncation, max_length = (options.get(name) for name in ("padding", "truncation", "max_length"))
        padding = getattr(padding, "value", padding)
        truncation = getattr(truncation, "value", truncation)
        if truncation is None and max_length is not None and not padding:
            truncation = True
        if max_length is None and self.tokenizer.model_max_length < NO_LIMIT:
            max_length = self.tokenizer.model_max_length
        if truncation and truncation != "do_not_truncate" and max_length is not None:
            for row in rows:
                truncate_row(row, max_length, self.tokenizer.truncation_side, "max_length")

        length = None
        if padding and padding != "do_not_pad":
            length = max(len(row) for row in rows)
            if padding == "max_length" and max_length is not None:
                length = max(length, max_length)
            multiple = options.get("pad_to_multiple_of") or 1
            length = -(-length // multiple) * multiple
        side = options.get("padding_side") or self.tokenizer.padding_side
        ids, masks, offsets = pad_rows(rows, self.image_token_id, self.tokenizer.pad_token_id, length, side)
        data: dict[str, Any] = {"input_ids": ids}
        if options.get("return_attention_mask") is not False:
            data["attention_mask"] = masks
        if with_offsets:
            data["offset_mapping"] = offsets
        return data

    def _image_inputs(
        self,
        image_lists: Sequence[Sequence[Any]],
        options: dict[str, Any],
        timeout: float | None,
        sample_name: str = "sample",
        share_images: bool = False,
    ) -> dict[str, Any]:
        loaded = []
        known: dict[Any, Any] = {}
        for sample, sources in enumerate(image_lists):
            for index, source in enumerate(sources):
                key = source_key(source) if share_images else None
                try:
                    image = known[key] if key in known else load_image(source, timeout=timeout)
                except ValueError as error:
                    raise ValueError(f"image {index} of {sample_name} {sample}: {error}") from error
                loaded.append(image)
                if key is not None:
                    known[key] = image
        if any("float" in str(getattr(source, "dtype", "")) for sources in image_lists for source in sources):
            # Floats 0-1 have become 8-bit images, which need the scaling that a caller with floats turns off.
            options = {key: value for key, value in options.items() if key != "do_rescale"}
        if not share_images:
            return dict(self.image_processor(loaded, **options))
        distinct, image_index = distinct_images(loaded)
        data = dict(self.image_processor(distinct, **options))
        return {**data, "image_index": image_index} if len(distinct) < len(loaded) else data

    # --- chat -----------------------------------------------------------------------------------------------------

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Any,
        chat_template: str | None = None,
        tools: Any = None,
        documents: Any = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = False,
        return_tensors: str | None = None,
        return_dict: bool = False,
        processor_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Render conversations, and with ``tokenize=True`` prepare them for the model.

        Args:
            conversation (`list[dict]` or `list[list[dict]]`): One conversation or a batch.
            chat_template (`str`, *optional*): A template, or the name of one of several; by default the processor's.
            tools, documents (*optional*): Handed on to the template.
            add_generation_prompt (`bool`, *optional*, defaults to `False`):
                Handed on to the template; the default template has no words for it.
            continue_final_message (`bool`, *optional*, defaults to `False`):
                Leave the last message open, for the model to continue.
            return_assistant_tokens_mask (`bool`, *optional*, defaults to `False`):
                Adds ``assistant_masks``, 1 on the tokens of answers. Needs ``return_dict`` and a fast tokenizer.
            tokenize (`bool`, *optional*, defaults to `False`): Whether to return model inputs rather than text.
            return_tensors (`str`, *optional*): `"pt"` or `"np"`; by default lists.
            return_dict (`bool`, *optional*, defaults to `False`):
                Whether ``tokenize=True`` returns all model inputs rather than ``input_ids`` alone.
            processor_kwargs (`dict`, *optional*):
                Options of the call: ``padding``, ``max_length``, ``qformer_text``, ``num_frames`` ... and ``images``,
                which fill image parts that have none.
            kwargs: Variables of the template; options of the call are accepted here too.

        Returns:
            `str` or `list[str]`, token ids, or a `BatchFeature`. The Q-Former reads all user turns, as
            in training, and never an answer.

        Raises:
            ValueError: If a message is malformed, or image parts and images differ in number.
        """
        if kwargs.get("sanitize_control_tokens"):
            raise ValueError("sanitize_control_tokens cannot be combined with image placeholders")
        is_batched = bool(conversation) and isinstance(conversation[0], (list, tuple))
        conversations = conversation if is_batched else [conversation]
        call_options = dict(processor_kwargs or {})
        for key in self._call_option_names() & set(kwargs):
            call_options.setdefault(key, kwargs.pop(key))
        num_frames = call_options.get("num_frames", 4)

        names = [f"conversation {index}" for index in range(len(conversations))]
        parsed = [
            normalize_conversation(item, self.image_token, num_frames, name)
            for item, name in zip(conversations, names)
        ]
        images: list[list[Any]] = []
        if tokenize:
            beside = call_options.pop("images", None)
            beside = images_of_samples(beside, None, num_frames, len(parsed))
            images = [
                fill_images(messages, sources, extra, name)
                for (messages, sources), extra, name in zip(parsed, beside, names)
            ]
        texts, spans = self.render(
            [messages for messages, _ in parsed],
            chat_template=chat_template,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            return_spans=return_assistant_tokens_mask,
            **kwargs,
        )
        if not tokenize:
            # A caller that prepares the text in a second step, as TRL does, is to have the same instruction.
            for text, (messages, _) in zip(texts, parsed):
                instruction = instruction_of(messages)
                is_text = instruction == self._without_special_tokens(text)
                self._rendered_instructions.note(text, None if is_text else instruction)
            return texts if is_batched else texts[0]

        call_options.setdefault("qformer_text", [instruction_of(messages) for messages, _ in parsed])
        if return_tensors not in (None, "auto"):
            call_options["return_tensors"] = return_tensors
        tensor_type = call_options.get("return_tensors")
        if return_assistant_tokens_mask:
            call_options["return_offsets_mapping"] = True
        outputs = self(images=images, text=texts, **call_options)
        if return_assistant_tokens_mask:
            offsets = outputs.pop("offset_mapping")
            offsets = offsets.tolist() if hasattr(offsets, "tolist") else offsets
            outputs["assistant_masks"] = [_mask_of_spans(row, own) for row, own in zip(offsets, spans)]
            outputs = outputs.convert_to_tensors(tensor_type)
        return outputs if return_dict else outputs["input_ids"]

    def user_turn(self, text: str, images: int = 1) -> str:
        """The prompt for a question, as the chat template words the only turn of a user, ready for the answer.

        With the default template it is the text itself, what InstructBLIP and BLIP-2 were trained with.

        Args:
            text (`str`): The question or instruction, with or without markers for the images.
            images (`int`, *optional*, defaults to 1): Images that it is about; without markers they stand first.

        Returns:
            `str`: To be given to the processor as ``text``, together with the images.
        """
        if self._find_chat_template(None) == DEFAULT_CHAT_TEMPLATE:
            return text
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        if self.image_token not in text:
            content[:0] = [{"type": "image"}] * images
        turn = [{"role": "user", "content": content}]
        prompt: str = self.apply_chat_template(turn, add_generation_prompt=True)
        return prompt

    def _call_option_names(self) -> set[str]:
        known = set(_CALL_OPTIONS) | {"images", "text_kwargs", "images_kwargs", "return_tensors"}
        for modality in ("text_kwargs", "images_kwargs"):
            known |= set(ProcessingKwargs.__annotations__[modality].__annotations__)
        return known

    def render(
        self,
        conversations: Sequence[Sequence[Mapping[str, Any]]],
        chat_template: str | None = None,
        return_spans: bool = False,
        **kwargs: Any,
    ) -> tuple[list[str], list[list[tuple[int, int]]]]:
        """Text of normalised conversations, and with ``return_spans`` where in it the answers are.

        A beginning token is written only where the tokenizer puts one itself, an end token only where it does not:
        a sequence-to-sequence tokenizer closes the whole text.

        Raises:
            ValueError: If the template refuses a conversation, or was made for messages of text alone.
        """
        prefix, suffix = self._added_tokens()
        special: dict[str, Any] = dict(self.tokenizer.special_tokens_map)
        special.update(bos_token=prefix, image_token=self.image_token)
        if suffix:
            special["eos_token"] = ""
        try:
            rendered: Any = render_jinja_template(
                conversations=[[dict(message) for message in messages] for messages in conversations],
                chat_template=self._find_chat_template(chat_template),
                return_assistant_tokens_mask=return_spans,
                **{**special, **kwargs},
            )
        except TemplateError as error:
            raise ValueError(f"the chat template refuses the conversation: {error}") from error
        except TypeError as error:
            raise ValueError(f"{_TEXT_TEMPLATE} ({error})") from error
        if any("[{'type': '" in text for text in rendered[0]):
            raise ValueError(_TEXT_TEMPLATE)
        return rendered

    def _find_chat_template(self, chat_template: str | None) -> str:
        own = self.chat_template
        templates = own if isinstance(own, Mapping) else {"default": own}
        found = templates.get("default") if chat_template is None else templates.get(chat_template, chat_template)
        if not found:
            raise ValueError(f"the processor has no chat template named default, only {sorted(templates)}")
        return found

    def _added_tokens(self) -> tuple[str, str]:
        """Beginning and end token, as text, where the tokenizer adds them itself."""
        encoding = self.tokenizer("a", return_special_tokens_mask=True, verbose=False)
        ids, added = encoding["input_ids"], encoding["special_tokens_mask"]
        begins = bool(added[0]) and ids[0] == self.tokenizer.bos_token_id
        ends = bool(added[-1]) and ids[-1] == self.tokenizer.eos_token_id
        return self.tokenizer.bos_token if begins else "", self.tokenizer.eos_token if ends else ""

    # --- ranking --------------------------------------------------------------------------------------------------

    def encode_candidates(
        self,
        candidates: Sequence[str] | Sequence[Sequence[str]],
        is_encoder_decoder: bool = False,
        add_end_token: bool | None = None,
        add_prefix_space: bool = True,
    ) -> list[Any]:
        """Token ids of candidates for ``model.rank_candidates``, as training encodes answers.

        Args:
            candidates (`list[str]` or `list[list[str]]`): Candidates for all samples, or a list for each sample.
            is_encoder_decoder (`bool`, *optional*, defaults to `False`):
                Whether the language model is sequence-to-sequence, as ``model.config.is_encoder_decoder`` says.
            add_end_token (`bool`, *optional*):
                Whether the end token is part of a candidate. By default of a sequence-to-sequence model's, as in LAVIS.
            add_prefix_space (`bool`, *optional*, defaults to `True`):
                Whether a space parts prompt and candidate; not for prompts that end with one. Tokenizers that mark the
                beginnings of words by themselves do so either way.

        Returns:
            `list[list[int]]`, or `list[list[list[int]]]` for lists for each sample.

        Raises:
            ValueError: If there is no candidate, or one is empty or no text.
        """
        if isinstance(candidates, str) or not len(candidates):
            raise ValueError(f"candidates must be a non-empty list of texts, or of such lists; got {candidates!r}")
        if not isinstance(candidates[0], str):
            options = (is_encoder_decoder, add_end_token, add_prefix_space)
            return [self.encode_candidates(own, *options) for own in candidates]
        if add_end_token is None:
            add_end_token = is_encoder_decoder
        encoded = []
        for index, candidate in enumerate(candidates):
            if not isinstance(candidate, str) or not candidate.strip():
                raise ValueError(f"candidate {index} must be a text that is not empty, got {candidate!r}")
            if is_encoder_decoder:
                ids = encode_target(self.tokenizer, candidate)
            else:
                text = candidate.strip()
                ids = encode_answer(self.tokenizer, f" {text}" if add_prefix_space else text)
            encoded.append([*ids, self.end_token_id] if add_end_token else ids)
        return encoded

    # --- training rows --------------------------------------------------------------------------------------------

    def encode_examples(
        self,
        examples: Sequence[Mapping[str, Any]],
        is_encoder_decoder: bool = False,
        max_prompt_length: int | None = None,
        max_completion_length: int | None = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        timeout: float | None = 20.0,
        return_tensors: str | None = "pt",
        share_images: bool = False,
        image_inputs: Callable[[Sequence[Sequence[Any]]], Mapping[str, Any]] | None = None,
    ) -> BatchFeature:
        """Prepare training rows, with labels on the answers alone.

        Args:
            examples (`Sequence[Mapping]`):
                Rows in TRL's form: ``"prompt"`` and ``"completion"`` (text or messages), or ``"messages"``; with
                ``"images"`` (a list) or ``"image"``; and optionally ``"qformer_text"``, what the Q-Former reads in
                place of the user's turns. Other keys are left alone.
            is_encoder_decoder (`bool`, *optional*, defaults to `False`):
                Causal rows are prompt, answer and end token in one, with labels aligned. Sequence-to-sequence rows
                have the prompt as input and the last answer as labels.
            max_prompt_length (`int`, *optional*):
                Most tokens before the last answer, placeholders included. The oldest text is cut.
            max_completion_length (`int`, *optional*):
                Most tokens of the last answer, end token included. An answer that is cut has no end token; the
                first time, a warning says so.
            max_length (`int`, *optional*):
                Most tokens of a whole row, which is cut at its end, turns and all. Only for processors that tokenise
                rows as a whole, as LLaVA's.
            pad_to_multiple_of (`int`, *optional*): Pads rows to such a length.
            timeout (`float`, *optional*, defaults to 20.0): Seconds for an image to be downloaded.
            return_tensors (`str`, *optional*, defaults to `"pt"`): `"pt"`, `"np"` or `None` for lists.
            share_images (`bool`, *optional*, defaults to `False`):
                Whether an image that stands in several places is given once. The batch then has ``image_index``,
                which the models of this package take; without repeats it is as ever.
            image_inputs (`Callable`, *optional*):
                Makes model inputs of the images of all rows, a list for each, in place of the image processor and of
                ``share_images``.

        Returns:
            `BatchFeature`: ``input_ids``, ``attention_mask``, ``labels`` (batch, tokens), right-padded; with images
            also ``pixel_values`` (images, 3, height, width), and for the Q-Former ``qformer_input_ids`` and
            ``qformer_attention_mask`` (images, tokens). Where images are shared, ``pixel_values`` hold the distinct
            ones and ``image_index`` (images,) says which of them each image of the text is.

        Raises:
            ValueError: If a row cannot be made into an example; it names the row and what is wrong.
        """
        rows = self._encode_rows(
            examples,
            is_encoder_decoder=is_encoder_decoder,
            max_prompt_length=max_prompt_length,
            max_completion_length=max_completion_length,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
        )
        counts = [len(images) for images in rows.images]
        data = rows.data
        if any(counts):
            data.update(self._instruction_inputs(rows.instructions, counts))
            if image_inputs is not None:
                data.update(image_inputs(rows.images))
            else:
                options = {"return_tensors": return_tensors}
                data.update(self._image_inputs(rows.images, options, timeout, "row", share_images))
        return BatchFeature(data, tensor_type=return_tensors)

    def _encode_rows(
        self, examples: Sequence[Mapping[str, Any]], *, max_length: int | None, **options: Any
    ) -> TrainingRows:
        """Tokens and labels of rows, with answers tokenised apart; a family that learnt otherwise overrides it."""
        if max_length is not None:
            raise ValueError(
                f"max_length is {max_length}, but {type(self).__name__} tokenises answers apart from their prompts: set "
                "max_prompt_length and max_completion_length"
            )
        return encode_training_rows(self, examples, **options)

    # --- decoding -------------------------------------------------------------------------------------------------

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **kwargs: Any) -> Any:
        """Text of token ids, or a list of texts of a batch, as the tokenizer's own ``decode``.

        Negative ids, as in labels, are left out. Where id 0 is the piece ``<unk>`` but not the tokenizer's unknown
        token, as in published Vicuna checkpoints, models fill rows with it after their end: it counts as end token.
        """
        return self.tokenizer.decode(self._readable(token_ids), skip_special_tokens=skip_special_tokens, **kwargs)

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False, **kwargs: Any) -> list[str]:
        """Texts of a batch of token ids; see `decode`. A single row gives a list of one."""
        texts = self.decode(sequences, skip_special_tokens=skip_special_tokens, **kwargs) if len(sequences) else []
        return [texts] if isinstance(texts, str) else texts

    @property
    def stop_strings(self) -> list[str]:
        """Text that ends an answer in place of the end token, for ``generate``; for most processors there is none."""
        return []

    def generation_options(self) -> dict[str, Any]:
        """What ``model.generate`` needs to stop where an answer ends; empty where the end token ends it."""
        stop_strings = self.stop_strings
        if not stop_strings:
            return {}
        return {"stopping_criteria": StoppingCriteriaList([StopAtText(self._answer_texts, stop_strings)])}

    def answers(self, sequences: Any) -> list[str]:
        """Answers out of completions: without special tokens, what ends an answer, and white space around it.

        Args:
            sequences (`torch.LongTensor`): Shape (batch, tokens), of ``generate`` with ``return_full_text=False``.
        """
        texts = self._answer_texts(sequences)
        for ending in self.stop_strings:
            texts = [text.partition(ending)[0] for text in texts]
        return [text.strip() for text in texts]

    def _answer_texts(self, sequences: Any) -> list[str]:
        return self.batch_decode(sequences, skip_special_tokens=True)

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """Texts of what ``generate`` returned, without special tokens; see `decode`."""
        return self.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)

    def _readable(self, token_ids: Any) -> Any:
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        if isinstance(ids, int):
            ids = [ids]
        if len(ids) and not isinstance(ids[0], int) and (hasattr(ids[0], "__len__") and getattr(ids[0], "ndim", 1)):
            return [self._readable(row) for row in ids]
        filler, end = self._filler_id(), self.tokenizer.eos_token_id
        return [end if token_id == filler else token_id for token_id in map(int, ids) if token_id >= 0]

    def _filler_id(self) -> int | None:
        tokenizer = self.tokenizer
        if tokenizer.eos_token_id is None or 0 in tokenizer.all_special_ids:
            return None
        return 0 if tokenizer.convert_ids_to_tokens(0) == "<unk>" else None


def _as_texts(text: str | Sequence[str], name: str) -> list[str]:
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(item, str) for item in texts):
        raise ValueError(f"{name} must be a string or a non-empty list of strings, got {text!r:.80}")
    return list(texts)


def _mask_of_spans(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[int]:
    return [int(any(begin < stop and end > start for start, stop in spans)) for begin, end in offsets]


__all__ = ["NO_LIMIT", "VisionLanguageProcessor"]
