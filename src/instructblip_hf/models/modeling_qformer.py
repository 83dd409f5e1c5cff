"""What InstructBLIP and BLIP-2 share: a Q-Former between a vision tower and a language model.

Walk: images go through the vision tower; learned queries read them in the Q-Former, beside the instruction in
InstructBLIP; a linear projection takes the queries into the language model, where they stand in the place of
placeholder tokens. The families differ in what their Q-Former is given, and in the names they are known by.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import CompileConfig, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .composition import grow_embeddings, kept_attention, load_language_model, load_vision_tower, placeholder_of
from .connectors.configuration_qformer import QFormerConfig
from .connectors.qformer_model import QFormerModel, build_qformer
from .connectors.shared_images import check_image_index
from .image_cache import ImageCache, check_image_cache
from .model_part import NO_SPLIT_MODULES, as_input_of
from .modeling_base import VisionLanguageModel
from .vision_towers.eva_vit_model import EvaVitModel
from .vision_towers.running import run_vision_tower


@dataclass
class QFormerImageFeatures(ModelOutput):
    """What ``get_image_features`` returns.

    Args:
        pooler_output (`torch.Tensor`): Shape (images, queries, language model hidden): what the prompt takes up.
        vision_outputs (`BaseModelOutputWithPooling`, *optional*): Of the vision tower; `None` for given features.
        qformer_outputs (`BaseModelOutputWithPoolingAndCrossAttentions`): Of the Q-Former.
    """

    pooler_output: torch.Tensor | None = None
    vision_outputs: ModelOutput | None = None
    qformer_outputs: ModelOutput | None = None


@dataclass
class QFormerLanguageModelOutput(ModelOutput):
    """Output of InstructBLIP and BLIP-2 with a language model.

    Args:
        loss (`torch.Tensor`, *optional*): Scalar, with ``labels``.
        logits (`torch.Tensor`, *optional*): Shape (batch, tokens, vocabulary); target tokens for sequence-to-sequence
            models. `None` with ``logits_at_labels``.
        vision_outputs (`ModelOutput`, *optional*): Of the vision tower, where images were given.
        qformer_outputs (`ModelOutput`, *optional*): Of the Q-Former, where images were given.
        language_model_outputs (`ModelOutput`): Of the language model.
        label_losses (`torch.Tensor`, *optional*): With ``logits_at_labels``: loss of every label, of shape (labels that
            are not -100,) in reading order, without a gradient.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    vision_outputs: ModelOutput | None = None
    qformer_outputs: ModelOutput | None = None
    language_model_outputs: ModelOutput | None = None
    label_losses: torch.Tensor | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


class QFormerLanguageModel(VisionLanguageModel):
    """Vision tower, Q-Former, projection and language model.

    A family sets the classes of its own parts, and gives ``get_image_features``, ``forward`` and ``generate`` their
    signatures.
    """

    base_model_prefix = ""
    image_side = ("vision_model", "qformer", "language_projection")
    _no_split_modules = NO_SPLIT_MODULES

    vision_class: type[EvaVitModel]
    qformer_class: type[QFormerModel]
    output_class: type[QFormerLanguageModelOutput]

    def __init__(
        self,
        config: Any,
        vision_model: PreTrainedModel | None = None,
        qformer: QFormerModel | None = None,
        language_model: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config)
        self.vision_model = vision_model or self.build_vision_tower(config.vision_config)
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, config.qformer_config.hidden_size))
        self.qformer = qformer or self.qformer_class._from_config(config.qformer_config)
        self.language_projection = nn.Linear(config.qformer_config.hidden_size, config.text_config.hidden_size)
        self.language_model = language_model or self.build_language_model(config)
        self.post_init()

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision: str | os.PathLike[str] | PreTrainedModel,
        text: str | os.PathLike[str] | PreTrainedModel,
        qformer: str | os.PathLike[str] | PreTrainedModel | None = None,
        num_query_tokens: int = 32,
        processor: Any = None,
        image_token_index: int | None = None,
        qformer_config: QFormerConfig | None = None,
        vision_kwargs: dict[str, Any] | None = None,
        text_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Compose a model of a vision tower, a language model and a Q-Former; the projection and the queries are new.

        Args:
            vision (`str`, `os.PathLike` or `PreTrainedModel`):
                Folder, Hub id or model. Of an image-text checkpoint such as CLIP the vision tower is taken. Any
                tower whose ``last_hidden_state`` has shape (images, tokens, hidden): EVA ViT, CLIP, SigLIP, DINOv2.
            text (`str`, `os.PathLike` or `PreTrainedModel`):
                Causal or sequence-to-sequence language model with its head: OPT, LLaMA, Qwen, Gemma, T5, ...
            qformer (`str`, `os.PathLike` or `PreTrainedModel`, *optional*):
                A Q-Former of the family; or a BERT, whose text weights it then starts from, the queries' feed-forward layers as
                copies of the text's (LAVIS `blip2_qformer.py`). By default a new one of ``qformer_config``.
            num_query_tokens (`int`, *optional*, defaults to 32): Query tokens an image.
            processor (`ProcessorMixin`, *optional*):
                Gives the placeholder's token id, and the sizes that embeddings grow to where its tokenizers are
                larger.
            image_token_index (`int`, *optional*):
                Token id of the placeholder, in place of ``processor``; by default a new row at the end of the
                language model's embedding.
            qformer_config ([`QFormerConfig`], *optional*): Of a new Q-Former.
            vision_kwargs (`dict`, *optional*): For loading the vision tower.
            text_kwargs (`dict`, *optional*): For loading the language model.

        Returns:
            The model, in evaluation mode.

        Raises:
            KeyError: If a part's checkpoint lacks weights.
            ValueError: If the Q-Former was made for image features of another width, or options contradict.
        """
        vision_model = load_vision_tower(vision, **(vision_kwargs or {}))
        language_model = load_language_model(text, **(text_kwargs or {}))
        if processor is not None and processor.num_query_tokens not in (None, num_query_tokens):
            raise ValueError(f"num_query_tokens is {num_query_tokens}, the processor's {processor.num_query_tokens}")
        image_token_index, needed = placeholder_of(language_model, processor, image_token_index)
        built_qformer = build_qformer(cls.qformer_class, qformer, vision_model.config.hidden_size, qformer_config)
        if processor is not None:
            cls._fit_qformer(built_qformer, processor)
        config_class: Any = cls.config_class
        with kept_attention(vision_model, built_qformer, language_model):
            config = config_class(
                vision_config=vision_model.config,
                qformer_config=built_qformer.config,
                text_config=language_model.config,
                num_query_tokens=num_query_tokens,
                image_token_index=image_token_index,
            )
        model = cls(config, vision_model=vision_model, qformer=built_qformer, language_model=language_model)
        grow_embeddings(model, needed)
        return model.eval()

    @classmethod
    def build_vision_tower(cls, config: PreTrainedConfig) -> PreTrainedModel:
        """New vision tower: the family's own, or any that `AutoModel` knows."""
        own: Any = cls.vision_class.config_class
        if isinstance(config, own):
            return cls.vision_class._from_config(config)
        return super().build_vision_tower(config)

    @staticmethod
    def _fit_qformer(qformer: Any, processor: Any) -> None:
        """Let a new Q-Former's embeddings grow to the processor's tokenizer, where it reads text."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            # As LAVIS draws them; equal queries would stay equal for ever.
            init.normal_(self.query_tokens, std=self.config.qformer_config.initializer_range)

    # --- images ---------------------------------------------------------------------------------------------------

    def _get_image_features(
        self,
        pixel_values: torch.Tensor | None,
        image_embeds: torch.Tensor | None,
        interpolate_pos_encoding: bool,
        output_hidden_states: bool | None,
        output_attentions: bool | None,
        image_index: torch.Tensor | None,
        image_cache: ImageCache | None,
        compile_config: CompileConfig | None = None,
        queries_only: bool = False,
        **instruction: torch.Tensor | None,
    ) -> QFormerImageFeatures:
        """Vision tower, Q-Former and projection; ``instruction`` is for [`_instructions`]."""
        vision_outputs: Any = None
        kept: Any = None
        frames = 1
        if image_cache is not None:
            check_image_cache(image_cache, self, pixel_values=pixel_values, image_embeds=image_embeds)
            image_embeds = image_cache.image_embeds
            if not output_hidden_states and not output_attentions:
                pooled = self._kept_features(image_cache, image_index)
                if pooled is not None:
                    return QFormerImageFeatures(pooler_output=pooled)
            kept = self._kept_keys_and_values(image_cache)
        elif (pixel_values is None) == (image_embeds is None):
            raise ValueError("give either pixel_values or image_embeds, or image_cache")
        elif pixel_values is not None:
            if pixel_values.dim() == 5:
                if image_index is not None:
                    raise ValueError(
                        "image_index counts images, and cannot be combined with pixel_values of shape (batch, frames, 3, "
                        "height, width): give frames as images, (frames of all rows, 3, height, width)"
                    )
                frames = pixel_values.shape[1]
            vision_outputs = run_vision_tower(
                self._compiled_calls.of(self.vision_model, compile_config),
                pixel_values,
                interpolate_pos_encoding,
                output_hidden_states,
                output_attentions,
            )
        features: Any = image_embeds if vision_outputs is None else vision_outputs.last_hidden_state

        if image_index is not None:
            image_index = check_image_index(image_index, features.shape[0])
        images = features.shape[0] if image_index is None else image_index.shape[0]
        queries = self.query_tokens.expand(images, -1, -1)
        qformer_outputs = self._compiled_calls.of(self.qformer, compile_config)(
            **self._instructions(images, frames, **instruction),
            query_embeds=queries,
            encoder_hidden_states=features.to(queries.device) if kept is None else None,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
            encoder_index=image_index,
            encoder_keys_and_values=kept,
            queries_only=queries_only,
        )
        query_output = qformer_outputs.last_hidden_state[:, : queries.shape[1]]
        # A Q-Former in float32 may stand between parts in half precision.
        query_output = as_input_of(self.language_projection, query_output)
        return QFormerImageFeatures(
            pooler_output=self.language_projection(query_output),  # [images, queries, language model hidden]
            vision_outputs=vision_outputs,
            qformer_outputs=qformer_outputs,
        )

    @property
    def reads_instruction(self) -> bool:
        """Whether what stands in the prompt for an image depends on the instruction."""
        return False

    def _image_embeds(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool, compile_config: CompileConfig | None
    ) -> torch.Tensor:
        tower = self._compiled_calls.of(self.vision_model, compile_config)
        outputs = run_vision_tower(tower, pixel_values, interpolate_pos_encoding)
        embeds: torch.Tensor = outputs.last_hidden_state
        return embeds

    def _beyond_image_embeds(
        self, image_embeds: torch.Tensor
    ) -> tuple[dict[str, Any], Sequence[nn.Module | nn.Parameter]]:
        if not self.reads_instruction:
            return super()._beyond_image_embeds(image_embeds)
        keys, values = zip(*self.qformer.keys_and_values(image_embeds.to(self.query_tokens.device)))
        return {"keys": keys, "values": values}, self.qformer.key_and_value_layers()

    def _kept_keys_and_values(self, cache: ImageCache) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
        """Keys and values of a cache, or `None` where they have to be computed from its features."""
        layers = self.qformer.key_and_value_layers()
        if not cache.keys or not cache.still_holds(cache.keys[0], layers):
            return None
        cache.check_precision(cache.keys[0], layers[0], "Q-Former")
        device = self.query_tokens.device
        return [(key.to(device), value.to(device)) for key, value in zip(cache.keys, cache.values)]

    def _instructions(self, images: int, frames: int) -> dict[str, Any]:
        """What the Q-Former is given beside queries and images; a family's arguments are those of its own inputs."""
        return {}

    def _outputs(
        self,
        features: QFormerImageFeatures | None,
        language_model_outputs: Any,
        loss: torch.Tensor | None,
        label_losses: torch.Tensor | None,
    ) -> QFormerLanguageModelOutput:
        return self.output_class(
            loss=loss,
            logits=language_model_outputs.get("logits"),
            vision_outputs=features.vision_outputs if features is not None else None,
            qformer_outputs=features.qformer_outputs if features is not None else None,
            language_model_outputs=language_model_outputs,
            label_losses=label_losses,
        )


__all__ = ["QFormerImageFeatures", "QFormerLanguageModel", "QFormerLanguageModelOutput"]
