"""What the InstructBLIP, BLIP-2 and LLaVA models share.

All three have the module tree of published checkpoints: a vision tower, a connector and a full ``language_model``.
This file holds the parts of their life that do not depend on the connector: placing image features into the prompt,
the pass through the language model, generation and ranking by it, and handing embedding and device questions on to it.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import (
    AutoModel,
    CompileConfig,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import ModelOutput

from .base_model_view import BaseModelView
from .blank_images import blank_image, needs_blank_image
from .compiled_calls import CompiledCalls, compile_config_for
from .connectors.shared_images import check_image_index
from .image_cache import CacheOrigin, ImageCache, parts_of, weights_version
from .language_models.adapter import build_language_model, run_language_model
from .language_models.continuous_batching import (
    ROWS_ON_CPU,
    Request,
    answer_requests,
    check_language_model,
    checked_config,
    requests_of,
    sized_config,
)
from .language_models.padded_prompts import PaddedPrompt, StreamerWithoutPadding, length_multiple
from .language_models.shared_prefill import prompts_read_once
from .model_part import value_or_default
from .ranking import RankingOutput, rank_continuations
from .strict_loading import StrictLoadingMixin


# Filled in from the language model's own generation configuration where a checkpoint's outer one leaves them out.
_TOKEN_ID_OPTIONS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


class VisionLanguageModel(StrictLoadingMixin, PreTrainedModel, GenerationMixin):
    """Base of the families: vision tower, connector, language model.

    A family sets ``image_side``, the names of its modules beside the language model, the vision tower first, builds
    them, and gives ``get_image_features``, ``forward`` and ``generate`` their signatures.
    """

    image_side: tuple[str, ...] = ()
    images_before_bos = True
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _supports_attention_backend = True
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    # For ``get_image_features`` where nothing but the features is read.
    _of_features_alone: ClassVar[dict[str, Any]] = {}

    language_model: PreTrainedModel

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self._compiled_calls = CompiledCalls()

    # --- parts ----------------------------------------------------------------------------------------------------

    @property
    def image_tower(self) -> Any:
        """The vision tower, by whatever name the family has for it."""
        return getattr(self, self.image_side[0])

    @property
    def image_embeds_size(self) -> int:
        """Width of ``image_embeds``: what the connector reads."""
        return self.image_tower.config.hidden_size

    @property
    def base_model(self) -> Any:
        """The model without the language model's head, as a function; it holds no weights of its own."""
        return BaseModelView(self)

    @classmethod
    def build_vision_tower(cls, config: PreTrainedConfig) -> PreTrainedModel:
        """New vision tower of any type that `AutoModel` knows."""
        return AutoModel.from_config(config)

    @staticmethod
    def build_language_model(config: PreTrainedConfig) -> PreTrainedModel:
        """New language model for the composite configuration ``config``."""
        return build_language_model(config.text_config, config.is_encoder_decoder)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        return self.language_model.get_encoder() if modality is None else super().get_encoder(modality=modality)

    def get_decoder(self) -> nn.Module:
        return self.language_model.get_decoder()

    @property
    def generation_config(self) -> GenerationConfig:
        """The one generation configuration: the language model's own, so that a checkpoint's outer one counts."""
        language_model: Any = self._modules.get("language_model")
        if language_model is not None:
            return language_model.generation_config
        # `PreTrainedModel.__init__` asks before there is a language model.
        early: Any = self.__dict__.get("_early_generation_config")
        return early

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        language_model: Any = self._modules.get("language_model")
        if language_model is None:
            self.__dict__["_early_generation_config"] = value
            return
        if value is not None:
            own = language_model.generation_config
            missing = {
                name: getattr(own, name)
                for name in _TOKEN_ID_OPTIONS
                if getattr(value, name, None) is None and getattr(own, name, None) is not None
            }
            if missing:
                value = copy.deepcopy(value)
                value.update(**missing)
        language_model.generation_config = value

    @classmethod
    def _keep_image_side_whole(cls, quantization_config: Any) -> Any:
        """Name vision tower and connector as modules to leave alone, where the user's configuration names none."""
        quantization_config = copy.deepcopy(quantization_config)
        for option in ("llm_int8_skip_modules", "modules_to_not_convert"):
            if hasattr(quantization_config, option) and getattr(quantization_config, option) is None:
                setattr(quantization_config, option, [*cls.image_side, "lm_head"])
        return quantization_config

    # --- image features into the prompt ---------------------------------------------------------------------------

    def place_image_features(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        image_features: torch.Tensor | None,
    ) -> torch.Tensor:
        """Embed the prompt and put one image feature in the place of every placeholder, in reading order.

        Args:
            input_ids (`torch.LongTensor`, *optional*): Shape (batch, tokens), with placeholders.
            inputs_embeds (`torch.Tensor`, *optional*):
                Shape (batch, tokens, hidden), in place of ``input_ids``; placeholders are then the positions that
                equal the placeholder's embedding.
            image_features (`torch.Tensor`, *optional*): Shape (images, tokens an image, hidden).

        Returns:
            `torch.Tensor`: Shape (batch, tokens, hidden).

        Raises:
            ValueError: If placeholders and features differ in number, or a row holds part of an image.
        """
        if image_features is not None and self.config.image_token_id is None:
            raise ValueError(
                "config.image_token_index is None: set it to the id of the placeholder that stands for images in the "
                "prompt (processor.image_token_id)"
            )
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("input_ids or inputs_embeds are needed")
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if input_ids is not None:
            is_placeholder = input_ids == self.config.image_token_id
        else:
            placeholder = torch.tensor(self.config.image_token_id, device=inputs_embeds.device)
            is_placeholder = (inputs_embeds == self.get_input_embeddings()(placeholder)).all(-1)
        is_placeholder = is_placeholder.to(inputs_embeds.device)

        counts = is_placeholder.sum(-1)  # [batch]
        tokens_an_image = image_features.shape[1] if image_features is not None else 1
        images = image_features.shape[0] if image_features is not None else 0
        if int(counts.sum()) != images * tokens_an_image:
            raise ValueError(
                f"Image features and image tokens do not match, tokens: {int(counts.sum())}, features: "
                f"{images * tokens_an_image} ({images} images of {tokens_an_image}); a row of input_ids holds "
                f"{tokens_an_image} placeholders (id {self.config.image_token_id}) for each of its images"
            )
        if image_features is None:
            return inputs_embeds
        if bool((counts % tokens_an_image).any()):
            row = int((counts % tokens_an_image).nonzero()[0])
            raise ValueError(
                f"row {row} holds {int(counts[row])} image placeholders, not a multiple of {tokens_an_image}, the "
                "number of one image"
            )
        image_features = image_features.to(inputs_embeds.device, inputs_embeds.dtype)
        return inputs_embeds.masked_scatter(is_placeholder.unsqueeze(-1), image_features)

    def _no_image_features(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Features of no image, shape (0, tokens an image, hidden), in the graph of the image side where that has to run."""
        prompt = input_ids if input_ids is not None else inputs_embeds
        if prompt is None or not needs_blank_image(self):
            return None
        model: Any = self
        blank = {**blank_image(self, prompt.device), **self._blank_instruction(prompt.device)}
        features = model.get_image_features(**blank).pooler_output
        return features[:0]

    def _blank_instruction(self, device: torch.device) -> dict[str, torch.Tensor]:
        """What ``get_image_features`` needs beside a blank image."""
        return {}

    # --- images kept ----------------------------------------------------------------------------------------------

    def encode_images(
        self,
        pixel_values: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        vision_only: bool = False,
        compile_config: CompileConfig | None = None,
    ) -> ImageCache:
        """Compute of images what does not depend on the question, to be read by any number of questions.

        ``forward``, ``generate``, ``rank_candidates``, ``embed_prompt`` and ``get_image_features`` take it as
        ``image_cache``, with ``image_index`` where images and the text's images are not one each in order. Call it under
        `torch.no_grad` unless something of it is to train. In training mode a connector without instruction is left out, as
        its dropout differs from pass to pass.

        Args:
            pixel_values (`torch.Tensor`, *optional*): Shape (images, 3, height, width).
            image_embeds (`torch.Tensor`, *optional*): Vision features, in place of pixels, as in ``get_image_features``.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`): For images of another size.
            vision_only (`bool`, *optional*, defaults to `False`):
                Whether to keep the vision features alone, which take less room, and all that the connector needs to train.
            compile_config (`CompileConfig`, *optional*):
                Compiles the vision tower; by default where ``generation_config`` asks for a cache of fixed size, as in
                ``generate``.

        Returns:
            [`ImageCache`]: On the devices of the parts that computed it, with a row an image.

        Raises:
            ValueError: If both or neither of pixels and features are given, or the pixels are videos.
        """
        if (pixel_values is None) == (image_embeds is None):
            raise ValueError("give either pixel_values or image_embeds")
        is_given = pixel_values is None
        if pixel_values is not None:
            if pixel_values.dim() != 4:
                raise ValueError(
                    f"pixel_values of a cache have shape (images, 3, height, width), got {tuple(pixel_values.shape)}; frames "
                    "of videos are given as images, (frames of all rows, 3, height, width)"
                )
            compile_config = compile_config or compile_config_for(self, {})
            image_embeds = self._image_embeds(pixel_values, interpolate_pos_encoding, compile_config)
        embeds: Any = image_embeds
        kept, parts = ({}, []) if vision_only else self._beyond_image_embeds(embeds)
        tower, connector = parts_of(self)
        origin = CacheOrigin(
            tower=weakref.ref(tower),
            connector=weakref.ref(connector),
            tower_version=None if is_given else weights_version([tower]),
            connector_version=weights_version(parts) if kept else None,
        )
        return ImageCache(embeds, origin=origin, **kept)

    def _image_embeds(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool, compile_config: CompileConfig | None
    ) -> torch.Tensor:
        """What the connector reads, (images, image tokens, width)."""
        raise NotImplementedError

    def _beyond_image_embeds(
        self, image_embeds: torch.Tensor
    ) -> tuple[dict[str, Any], Sequence[nn.Module | nn.Parameter]]:
        """What a cache keeps beside vision features, by name, and the parts that computed it."""
        if self.training:
            return {}, []
        model: Any = self
        features = model.get_image_features(image_embeds=image_embeds).pooler_output
        return {"features": features}, self._connector_parts()

    def _kept_features(self, cache: ImageCache, image_index: torch.Tensor | None) -> torch.Tensor | None:
        """What a cache has for the prompt, or `None` where that has to be computed from its vision features."""
        if cache.features is None or self.training or not cache.still_holds(cache.features, self._connector_parts()):
            return None
        cache.check_precision(cache.features, self._last_projection, "connector")
        if image_index is None:
            return cache.features
        index = check_image_index(image_index, len(cache))
        return cache.features.index_select(0, index.to(cache.features.device))

    @property
    def _last_projection(self) -> nn.Module:
        """What makes the features that stand in the prompt."""
        connector: nn.Module = getattr(self, self.image_side[-1])
        return getattr(connector, "language_projection", connector)

    def _connector_parts(self) -> list[nn.Module | nn.Parameter]:
        own = [one for one in self._parameters.values() if one is not None]
        return [*own, *(getattr(self, name) for name in self.image_side[1:])]

    # --- forward --------------------------------------------------------------------------------------------------

    def _forward(
        self,
        images: dict[str, Any],
        image_states: torch.Tensor | None,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        output_hidden_states: bool | None,
        output_attentions: bool | None,
        return_dict: bool | None,
        labels: torch.Tensor | None,
        **kwargs: Any,
    ) -> Any:
        """The families' ``forward``: ``images`` is for ``get_image_features``, ``kwargs`` for [`run_language_model`]."""
        model: Any = self
        if image_states is not None:
            if _has_images(images):
                raise ValueError("give one of pixel_values, image_embeds, image_cache and image_states")
            images = {**images, "image_embeds": model.image_tower.post_layernorm(image_states)}
        features = None
        if _has_images(images):
            features = model.get_image_features(
                **images, output_hidden_states=output_hidden_states, output_attentions=output_attentions
            )
        image_features = (
            features.pooler_output if features is not None else self._no_image_features(input_ids, inputs_embeds)
        )
        inputs_embeds = self.place_image_features(input_ids, inputs_embeds, image_features)
        if attention_mask is None:
            attention_mask = torch.ones(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
        if output_hidden_states is not None:
            kwargs["output_hidden_states"] = output_hidden_states
        if output_attentions is not None:
            kwargs["output_attentions"] = output_attentions
        if self.training and labels is not None:
            # FSDP's activation checkpointing runs a layer a second time, over the cache that the first one filled.
            kwargs.setdefault("use_cache", False)
        loss, language_model_outputs, label_losses = run_language_model(
            self.language_model,
            self.config.is_encoder_decoder,
            inputs_embeds,
            attention_mask,
            labels=labels,
            **kwargs,
        )
        outputs = self._outputs(features, language_model_outputs, loss, label_losses)
        return outputs if value_or_default(return_dict, self.config.return_dict) else outputs.to_tuple()

    def _outputs(
        self,
        features: Any,
        language_model_outputs: Any,
        loss: torch.Tensor | None,
        label_losses: torch.Tensor | None,
    ) -> ModelOutput:
        """The family's output; ``features`` is what ``get_image_features`` returned, if there were images."""
        raise NotImplementedError

    def embed_prompt(
        self, input_ids: torch.Tensor | None = None, inputs_embeds: torch.Tensor | None = None, **images: Any
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """The prompt as the language model reads it, for ``generate`` and ``rank_candidates``.

        Args:
            input_ids, inputs_embeds: As in ``generate``.
            images: As in ``get_image_features``.

        Returns:
            `tuple`: ``input_ids``, where they were given or could be made, and embeddings of shape
            (batch, tokens, hidden) with the image features in place.

        Raises:
            ValueError: As in ``forward``.
        """
        model: Any = self
        image_features: Any = None
        pixel_values = images.get("pixel_values")
        if _has_images(images):
            image_features = model.get_image_features(**images, **self._of_features_alone).pooler_output
            if input_ids is None and inputs_embeds is None:
                has_videos = pixel_values is not None and images.get("image_index") is None
                rows: Any = pixel_values if has_videos else image_features
                input_ids = self._image_prompt(len(rows), image_features)
        else:
            image_features = self._no_image_features(input_ids, inputs_embeds)
        return input_ids, self.place_image_features(input_ids, inputs_embeds, image_features)

    def _image_prompt(self, rows: int, image_features: torch.Tensor) -> torch.Tensor:
        """Placeholders and the token that an empty text comes down to: BOS, or for T5 the end token."""
        placeholders = image_features.shape[0] * image_features.shape[1] // rows
        config = self.generation_config
        last = config.eos_token_id if self.config.is_encoder_decoder else config.bos_token_id
        last = last[0] if isinstance(last, list) else last
        if last is None:
            raise ValueError("without input_ids the generation_config needs a bos_token_id (T5: eos_token_id)")
        image = [self.config.image_token_id] * placeholders
        prompt = [*image, last] if self.images_before_bos else [last, *image]
        return torch.tensor([prompt] * rows, dtype=torch.long, device=image_features.device)

    # --- generation -----------------------------------------------------------------------------------------------

    def generate_from_embeddings(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        input_ids: torch.Tensor | None,
        return_full_text: bool,
        pad_to_multiple_of: int | None = None,
        **generate_kwargs: Any,
    ) -> torch.Tensor | ModelOutput:
        """Let the language model continue the prompt; `return_full_text=False` cuts the prompt off, here alone.

        With several beams or samples a prompt is read once for all of them.

        Args:
            inputs_embeds (`torch.Tensor`): Shape (batch, tokens, hidden), image features in place.
            attention_mask (`torch.Tensor`, *optional*): Shape (batch, tokens); by default all ones.
            input_ids (`torch.LongTensor`, *optional*): Shape (batch, tokens), what a causal model's output starts with.
            return_full_text (`bool`): Whether a causal model's sequences start with the prompt.
            pad_to_multiple_of (`int`, *optional*):
                Pads prompts to such a length, so that compiled passes see few shapes. By default 64 with a cache of fixed
                size (``cache_implementation="static"``), and otherwise not at all.
            generate_kwargs: As for `transformers.GenerationMixin.generate`.

        Returns:
            `torch.LongTensor` of shape (batch * num_return_sequences, tokens), or a `ModelOutput`.

        Raises:
            ValueError: If ``pad_to_multiple_of`` is below 1, or given where lengths are counted with the prompt.
        """
        language_model: Any = self.language_model
        if hasattr(language_model, "_hf_hook"):
            # The prompt may live on another device than the language model's last layer.
            language_model._hf_hook.io_same_device = True
        if attention_mask is None:
            attention_mask = torch.ones(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
        multiple = length_multiple(
            pad_to_multiple_of,
            generate_kwargs,
            self.generation_config,
            inputs_embeds.shape[1],
            self.config.is_encoder_decoder,
        )
        prompt = PaddedPrompt.of(inputs_embeds, attention_mask, input_ids, multiple, self.config)
        inputs = {"inputs_embeds": prompt.inputs_embeds, "attention_mask": prompt.attention_mask}
        # What is cut off: all of the prompt, or the padding before it.
        prompt_length = 0
        if not self.config.is_encoder_decoder and prompt.input_ids is not None:
            inputs["input_ids"] = prompt.input_ids
            prompt_length = prompt.padding if return_full_text else prompt.input_ids.shape[1]
            if prompt.padding and generate_kwargs.get("streamer") is not None:
                generate_kwargs["streamer"] = StreamerWithoutPadding(generate_kwargs["streamer"], prompt.padding)
        with prompts_read_once(language_model):
            outputs = language_model.generate(**inputs, **generate_kwargs)
        if not prompt_length:
            return outputs
        if isinstance(outputs, torch.Tensor):
            return outputs[:, prompt_length:]
        outputs.sequences = outputs.sequences[:, prompt_length:]
        return outputs

    @torch.no_grad()
    def encode_requests(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **images: Any
    ) -> list[Request]:
        """Prompts with their images, for ``generate_batch``: collected batch by batch, so that pixels, and what is computed of
        them on the way, are there for one batch at a time.

        Args:
            input_ids (`torch.LongTensor`): Shape (requests, tokens), as the processor makes them.
            attention_mask (`torch.Tensor`, *optional*): Shape (requests, tokens); by default all ones.
            images: As in ``get_image_features``.

        Returns:
            `list[Request]`: One a row.

        Raises:
            ValueError: As in ``forward``.
        """
        _, inputs_embeds = self.embed_prompt(input_ids=input_ids, **images)
        return requests_of(input_ids, attention_mask, inputs_embeds, self.config.image_token_id)

    @torch.no_grad()
    def generate_batch(  # type: ignore[override]
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        continuous_batching_config: Any = None,
        max_new_tokens: int | None = None,
        requests: Sequence[Request] | None = None,
        rows_at_once: int | None = None,
        **images: Any,
    ) -> list[Any]:
        """Continuous batching by transformers' own: a row that has ended makes room for the next one.

        For many requests at once, of prompts and answers of any lengths. Images are encoded together first, or before, by
        ``encode_requests``.

        Args:
            input_ids (`torch.LongTensor`, *optional*): Shape (requests, tokens), as the processor makes them.
            attention_mask (`torch.Tensor`, *optional*): Shape (requests, tokens); by default all ones.
            generation_config (`GenerationConfig`, *optional*): By default the model's.
            continuous_batching_config (`ContinuousBatchingConfig`, *optional*):
                Of transformers; by default a cache for ``rows_at_once``, and without these too one that takes most of the
                memory of an accelerator that is free.
            max_new_tokens (`int`, *optional*):
                In place of the configuration's; where neither says it 20, as in ``generate``.
            requests (`Sequence[Request]`, *optional*): Of ``encode_requests``, in place of ``input_ids`` and images.
            rows_at_once (`int`, *optional*): Requests in the language model at the same time; by default 8 on a CPU.
            images: As in ``get_image_features``; ``image_cache`` and ``image_index`` too.

        Returns:
            `list[GenerationOutput]`: One a request, in order; ``generated_tokens`` are the answer's.

        Raises:
            ValueError: For an encoder-decoder, a language model with an attention of its own, several beams or samples, an
                option that reads what was written before, a length that counts the prompt, autocast, or arguments that do
                not go together.
            RuntimeError: If transformers gives no answer to a request.
        """
        check_language_model(self.language_model)
        config = checked_config(generation_config, self.generation_config, max_new_tokens)
        if (input_ids is None) == (requests is None):
            raise ValueError("give one of input_ids and requests")
        if requests is not None and images:
            raise ValueError(f"requests have their images already: {', '.join(images)} cannot come beside them")
        if rows_at_once is not None and continuous_batching_config is not None:
            raise ValueError(
                "give one of rows_at_once and continuous_batching_config, which has max_requests_per_batch"
            )
        if rows_at_once is not None and rows_at_once < 1:
            raise ValueError(f"rows_at_once is {rows_at_once}; it must be at least 1")
        if input_ids is not None:
            requests = self.encode_requests(input_ids, attention_mask, **images)
        if continuous_batching_config is None and rows_at_once is None and self.device.type == "cpu":
            rows_at_once = ROWS_ON_CPU
        if rows_at_once is not None and requests:
            continuous_batching_config = sized_config(
                requests, config.max_new_tokens, rows_at_once, self.language_model
            )
        return answer_requests(
            self.language_model, requests or [], config, continuous_batching_config, self.config.image_token_id
        )

    # --- ranking --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def rank_candidates(
        self,
        candidates: Sequence[Sequence[int]] | Sequence[Sequence[Sequence[int]]],
        attention_mask: torch.Tensor | None = None,
        length_penalty: float = 0.0,
        top_k: int | None = None,
        chunk_size: int = 256,
        return_greedy: bool = False,
        **inputs: Any,
    ) -> RankingOutput:
        """Vocabulary ranking: candidates in the order of their likelihood as the answer (InstructBLIP, section 2.4).

        Image and prompt are read once for all candidates, and beginnings that candidates share once.

        Args:
            candidates (`list[list[int]]` or `list[list[list[int]]]`):
                Token ids of each candidate, the same for all samples, or such a list for each sample; see
                ``processor.encode_candidates``.
            attention_mask (`torch.Tensor`, *optional*): Shape (batch, tokens); padding may stand on either side.
            length_penalty (`float`, *optional*, defaults to 0.0):
                The sum of log-probabilities is divided by the number of tokens to this power: 0 for the sum, LAVIS's
                order, 1 for the mean.
            top_k (`int`, *optional*): Only so many of the best are wanted; the rest is left out where it is safe.
            chunk_size (`int`, *optional*, defaults to 256):
                Most tokens of candidates a sample that are read at once, which bounds the memory.
            return_greedy (`bool`, *optional*, defaults to `False`):
                Whether the output says of each candidate if greedy decoding begins with it.
            inputs: The prompt, as the processor makes it: ``pixel_values``, ``input_ids``, ...; and what else
                ``get_image_features`` takes.

        Returns:
            [`RankingOutput`]: ``scores`` (batch, candidates) and ``order``, best first.

        Raises:
            ValueError: For candidates or inputs that do not fit.
        """
        model: Any = self
        _, inputs_embeds = model.embed_prompt(**inputs)
        return rank_continuations(
            self.language_model,
            self.config.is_encoder_decoder,
            inputs_embeds,
            attention_mask,
            candidates,
            length_penalty,
            top_k,
            chunk_size,
            return_greedy,
        )


def _has_images(images: dict[str, Any]) -> bool:
    return any(images.get(name) is not None for name in ("pixel_values", "image_embeds", "image_cache"))


__all__ = ["VisionLanguageModel"]
