"""What the InstructBLIP, BLIP-2 and LLaVA models share.

All three have the module tree of published checkpoints: a vision tower, a connector and a full ``language_model``.
This file holds the parts of their life that do not depend on the connector: strict loading, placing image features
into the prompt, generation by the language model, and handing embedding and device questions on to it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import ModelOutput

from .base_model_view import BaseModelView
from .language_models.adapter import build_language_model
from .ranking import RankingOutput, rank_continuations


HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
# Filled in from the language model's own generation configuration where a checkpoint's outer one leaves them out.
_TOKEN_ID_OPTIONS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


class StrictLoadingMixin:
    """`from_pretrained` that raises on missing or unexpected keys instead of reporting them."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *model_args: Any, strict: bool = True, **kwargs: Any
    ) -> Any:
        """Load a model; every key of the checkpoint must have a home and every parameter a key.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): Folder or Hub id.
            strict (`bool`, *optional*, defaults to `True`):
                `False` accepts missing keys, newly initialised, and unexpected ones, left out, as stock
                transformers does.
            kwargs: As for `transformers.PreTrainedModel.from_pretrained`.

        Returns:
            `PreTrainedModel`: In evaluation mode; with ``output_loading_info=True`` a tuple with the loading info.

        Raises:
            KeyError: If keys are missing or unexpected; it names them.
        """
        output_loading_info = kwargs.pop("output_loading_info", False)
        if isinstance(kwargs.get("config"), PreTrainedConfig):
            given = kwargs["config"]
            kwargs["config"] = cls._own_config(given)
            if kwargs["config"] is not given:
                hub_options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
                cls._read_foreign_parts(kwargs["config"], pretrained_model_name_or_path, hub_options)
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = cls._keep_image_side_whole(kwargs["quantization_config"])
        model, info = super().from_pretrained(  # type: ignore[misc]
            pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
        )
        if strict:
            raise_on_key_differences(cls.__name__, pretrained_model_name_or_path, info)
        if kwargs.get("key_mapping"):
            # Otherwise save_pretrained would write the names of the file that was read, not the model's own.
            model._weight_conversions = None
        if not cls.__module__.startswith("transformers_modules."):
            # They name code files of the folder that was read; save_pretrained would write the names, not the files.
            for name in ("auto_map", "custom_pipelines"):
                vars(model.config).pop(name, None)
        return (model, info) if output_loading_info else model

    def post_init(self) -> None:
        super().post_init()  # type: ignore[misc]
        # transformers adds the parts' patterns to the whole's. A vision tower or Q-Former leaves out the keys of its
        # neighbours when it is loaded out of a full checkpoint; here those keys are the model's own.
        own = type(self)._keys_to_ignore_on_load_unexpected or ()  # type: ignore[attr-defined]
        language_model: Any = self._modules.get("language_model")  # type: ignore[attr-defined]
        others = getattr(language_model, "_keys_to_ignore_on_load_unexpected", None) or ()
        vars(self)["_keys_to_ignore_on_load_unexpected"] = {*own, *others}

    @classmethod
    def _from_config(cls, config: PreTrainedConfig, **kwargs: Any) -> Any:
        return super()._from_config(cls._own_config(config), **kwargs)  # type: ignore[misc]

    @classmethod
    def _own_config(cls, config: PreTrainedConfig) -> PreTrainedConfig:
        """Our configuration for stock transformers' of the same type, which its `AutoConfig` returns."""
        own = cls.config_class  # type: ignore[attr-defined]
        if isinstance(config, own) or config.model_type != own.model_type:
            return config
        converted = own.from_dict(config.to_dict())
        # What to_dict leaves out.
        converted._attn_implementation = config._attn_implementation
        for name in own.sub_configs:
            getattr(converted, name)._attn_implementation = getattr(config, name)._attn_implementation
        converted.name_or_path = config.name_or_path
        return converted

    @classmethod
    def _read_foreign_parts(cls, config: PreTrainedConfig, source: Any, hub_options: dict[str, Any]) -> None:
        """Read parts of a foreign type again, which stock's configuration class has forced into its own type."""
        saved, _ = PreTrainedConfig.get_config_dict(source, **hub_options)
        for name, expected in cls.config_class.sub_configs.items():  # type: ignore[attr-defined]
            part: Any = saved.get(name) or {}
            model_type = part.get("model_type")
            if model_type and model_type != getattr(config, name).model_type and hasattr(expected, "model_type"):
                attn_implementation = getattr(config, name)._attn_implementation
                setattr(config, name, CONFIG_MAPPING[model_type](**part))
                getattr(config, name)._attn_implementation = attn_implementation

    @classmethod
    def _keep_image_side_whole(cls, quantization_config: Any) -> Any:
        return quantization_config


def raise_on_key_differences(
    class_name: str,
    source: Any,
    info: dict[str, Any],
    advice: str = "Pass strict=False to load it anyway.",
    shown: int = 20,
) -> None:
    """Raises a `KeyError` that names the missing and unexpected keys of a loading info, if there are any."""
    problems = []
    for kind in ("missing_keys", "unexpected_keys"):
        keys = sorted(map(str, info[kind]))
        if keys:
            rest = f" and {len(keys) - shown} more" if len(keys) > shown else ""
            problems.append(f"{len(keys)} {kind.replace('_', ' ')}: {', '.join(keys[:shown])}{rest}.")
    if problems:
        raise KeyError(f"{source} does not hold a whole {class_name}. {' '.join(problems)} {advice}".rstrip())


class VisionLanguageModel(StrictLoadingMixin, PreTrainedModel, GenerationMixin):
    """Base of the families: vision tower, connector, language model.

    A family sets ``image_side``, the names of its modules beside the language model, builds them, and calls
    [`place_image_features`] and [`generate_from_embeddings`].
    """

    image_side: tuple[str, ...] = ()
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _supports_attention_backend = True
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True

    language_model: PreTrainedModel

    # --- parts ----------------------------------------------------------------------------------------------------

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

    # --- generation -----------------------------------------------------------------------------------------------

    def generate_from_embeddings(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        input_ids: torch.Tensor | None,
        return_full_text: bool,
        **generate_kwargs: Any,
    ) -> torch.Tensor | ModelOutput:
        """Let the language model continue the prompt; `return_full_text=False` cuts the prompt off, here alone.

        Args:
            inputs_embeds (`torch.Tensor`): Shape (batch, tokens, hidden), image features in place.
            attention_mask (`torch.Tensor`, *optional*): Shape (batch, tokens); by default all ones.
            input_ids (`torch.LongTensor`, *optional*): Shape (batch, tokens), what a causal model's output starts with.
            return_full_text (`bool`): Whether a causal model's sequences start with the prompt.
            generate_kwargs: As for `transformers.GenerationMixin.generate`.

        Returns:
            `torch.LongTensor` of shape (batch * num_return_sequences, tokens), or a `ModelOutput`.
        """
        language_model: Any = self.language_model
        if hasattr(language_model, "_hf_hook"):
            # The prompt may live on another device than the language model's last layer.
            language_model._hf_hook.io_same_device = True
        if attention_mask is None:
            attention_mask = torch.ones(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
        inputs = {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask}
        prompt_length = 0
        if not self.config.is_encoder_decoder and input_ids is not None:
            inputs["input_ids"] = input_ids
            prompt_length = input_ids.shape[1]
        outputs = language_model.generate(**inputs, **generate_kwargs)
        if return_full_text or not prompt_length:
            return outputs
        if isinstance(outputs, torch.Tensor):
            return outputs[:, prompt_length:]
        outputs.sequences = outputs.sequences[:, prompt_length:]
        return outputs

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
            inputs: The prompt, as the processor makes it: ``pixel_values``, ``input_ids``, ...

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


__all__ = ["StrictLoadingMixin", "VisionLanguageModel"]
