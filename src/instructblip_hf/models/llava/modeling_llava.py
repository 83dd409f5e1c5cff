"""LLaVA (Liu et al., 2023, arXiv 2304.08485; 1.5: arXiv 2310.03744) with any vision tower and causal language model.

Walk: images go through the vision tower; the states of one of its layers, CLIP's last but one without the class token,
go through the connector into the language model, where they stand in the place of placeholder tokens. Class names, module
names and the names of tensors on disk are transformers' own, so checkpoints are exchanged in both directions.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import CompileConfig, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from ..blip_2.modeling_blip_2_parts import Blip2QFormerModel
from ..compiled_calls import compile_config_for
from ..composition import grow_embeddings, kept_attention, load_language_model, load_vision_tower, placeholder_of
from ..connectors.configuration_qformer import QFormerConfig
from ..connectors.qformer_model import build_qformer
from ..connectors.shared_images import check_image_index
from ..image_cache import ImageCache, check_image_cache
from ..model_part import NO_SPLIT_MODULES
from ..modeling_base import VisionLanguageModel
from ..vision_towers.running import run_vision_tower
from .configuration_llava import LlavaConfig
from .multi_modal_projector import LlavaQFormerProjector, UnchangedStates, build_projector
from .processing_llava import LlavaProcessor
from .projector_files import load_projector, save_projector


@dataclass
class LlavaImageFeatures(ModelOutput):
    """What ``get_image_features`` returns.

    Args:
        pooler_output (`torch.Tensor`): Shape (images, tokens an image, language model hidden): what the prompt takes up.
        vision_outputs (`BaseModelOutputWithPooling`, *optional*): Of the vision tower; `None` for given features.
        qformer_outputs (`BaseModelOutputWithPoolingAndCrossAttentions`, *optional*): Of a connector that is a Q-Former.
    """

    pooler_output: torch.Tensor | None = None
    vision_outputs: ModelOutput | None = None
    qformer_outputs: ModelOutput | None = None


@dataclass
class LlavaCausalLMOutputWithPast(ModelOutput):
    """Output of [`LlavaForConditionalGeneration`].

    Args:
        loss (`torch.Tensor`, *optional*): Scalar, with ``labels``.
        logits (`torch.Tensor`, *optional*): Shape (batch, tokens, vocabulary). `None` with ``logits_at_labels``.
        past_key_values (`Cache`, *optional*): Of the language model.
        hidden_states (`tuple[torch.Tensor]`, *optional*): Of the language model, (batch, tokens, hidden) each.
        attentions (`tuple[torch.Tensor]`, *optional*): Of the language model, (batch, heads, tokens, tokens) each.
        image_hidden_states (`torch.Tensor`, *optional*): Shape (images, tokens an image, hidden): what stands in the
            prompt.
        vision_outputs (`ModelOutput`, *optional*): Of the vision tower, where images were given.
        qformer_outputs (`ModelOutput`, *optional*): Of a connector that is a Q-Former.
        language_model_outputs (`ModelOutput`): Of the language model.
        label_losses (`torch.Tensor`, *optional*): With ``logits_at_labels``: loss of every label, of shape (labels that
            are not -100,) in reading order, without a gradient.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Any = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_hidden_states: torch.Tensor | None = None
    vision_outputs: ModelOutput | None = None
    qformer_outputs: ModelOutput | None = None
    language_model_outputs: ModelOutput | None = None
    label_losses: torch.Tensor | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        """Stock transformers' values alone, in its order."""
        names = ("loss", "logits", "past_key_values", "hidden_states", "attentions", "image_hidden_states")
        return tuple(self[name] for name in names if self.get(name) is not None)


class LlavaForConditionalGeneration(VisionLanguageModel, GenerationMixin):
    """LLaVA: a vision tower, a connector (one linear layer, an MLP or a Q-Former) and a causal language model.

    Example:

    ```python
    >>> from instructblip_hf import LlavaForConditionalGeneration, LlavaProcessor
    >>> model = LlavaForConditionalGeneration.from_pretrained("llava-hf/llava-1.5-7b-hf")
    >>> processor = LlavaProcessor.from_pretrained("llava-hf/llava-1.5-7b-hf")
    >>> question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    >>> prompt = processor.apply_chat_template(question, add_generation_prompt=True)
    >>> inputs = processor(images="scene.png", text=prompt, return_tensors="pt")
    >>> processor.batch_decode(model.generate(**inputs, return_full_text=False), skip_special_tokens=True)
    ```
    """

    config: LlavaConfig
    config_class = LlavaConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    image_side = ("vision_tower", "multi_modal_projector")
    images_before_bos = False
    _no_split_modules = NO_SPLIT_MODULES
    # Stock transformers' own names in memory, under which it saves folders on demand.
    _other_layout = {
        r"^model\.vision_tower\.": "vision_tower.",
        r"^model\.multi_modal_projector\.": "multi_modal_projector.",
        r"^model\.language_model\.": "language_model.model.",
        r"^lm_head\.": "language_model.lm_head.",
    }

    def __init__(
        self,
        config: LlavaConfig,
        vision_tower: PreTrainedModel | None = None,
        qformer: Blip2QFormerModel | None = None,
        language_model: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config)
        self.vision_tower = vision_tower or self.build_vision_tower(config.vision_config)
        self.multi_modal_projector: Any = build_projector(config, qformer)
        self.language_model = language_model or self.build_language_model(config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Load a model, see [`StrictLoadingMixin.from_pretrained`]; both layouts of LLaVA folders are known.

        Raises:
            KeyError: If keys are missing or unexpected; it names them.
            ValueError: If a connector that is said to be one linear layer has a second.
        """
        kwargs["key_mapping"] = {**cls._other_layout, **(kwargs.get("key_mapping") or {})}
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        second = getattr(model.multi_modal_projector, "linear_2", None)
        if isinstance(second, UnchangedStates) and not second.is_unchanged():
            raise ValueError(
                f"{pretrained_model_name_or_path} has projector_type 'linear', and its second layer, linear_2, is not the "
                "identity: it has been trained since. Set projector_type to 'mlp' in its config.json"
            )
        return loaded

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision: str | os.PathLike[str] | PreTrainedModel,
        text: str | os.PathLike[str] | PreTrainedModel,
        projector_type: str = "mlp",
        qformer: str | os.PathLike[str] | PreTrainedModel | None = None,
        num_query_tokens: int | None = None,
        processor: Any = None,
        image_token_index: int | None = None,
        vision_feature_layer: int | list[int] = -2,
        vision_feature_select_strategy: str = "default",
        qformer_config: QFormerConfig | None = None,
        vision_kwargs: dict[str, Any] | None = None,
        text_kwargs: dict[str, Any] | None = None,
    ) -> LlavaForConditionalGeneration:
        """Compose a model of a vision tower and a language model; the connector is new.

        Args:
            vision (`str`, `os.PathLike` or `PreTrainedModel`):
                Folder, Hub id or model. Of an image-text checkpoint such as CLIP the vision tower is taken.
            text (`str`, `os.PathLike` or `PreTrainedModel`): Causal language model with its head.
            projector_type (`str`, *optional*, defaults to `"mlp"`): `"mlp"`, `"linear"` or `"qformer"`.
            qformer (`str`, `os.PathLike` or `PreTrainedModel`, *optional*):
                With `"qformer"`: BLIP-2's Q-Former, or a BERT that it starts from; by default a new one.
            num_query_tokens (`int`, *optional*): With `"qformer"`, by default 32.
            processor ([`LlavaProcessor`], *optional*):
                Gives the placeholder's token id, and the size that embeddings grow to where its tokenizer is larger.
            image_token_index (`int`, *optional*):
                Token id of the placeholder, in place of ``processor``; by default a new row at the end of the
                language model's embedding.
            vision_feature_layer (`int` or `list[int]`, *optional*, defaults to -2): See [`LlavaConfig`].
            vision_feature_select_strategy (`str`, *optional*, defaults to `"default"`):
                See [`LlavaConfig`]; `"full"` for towers without a class token, such as SigLIP.
            qformer_config ([`QFormerConfig`], *optional*): Of a new Q-Former.
            vision_kwargs (`dict`, *optional*): For loading the vision tower.
            text_kwargs (`dict`, *optional*): For loading the language model.

        Returns:
            The model, in evaluation mode.

        Raises:
            KeyError: If a part's checkpoint lacks weights.
            ValueError: If parts or options do not fit together.
        """
        if projector_type != "qformer" and (qformer is not None or qformer_config is not None):
            raise ValueError(f"qformer is for projector_type='qformer', and it is {projector_type!r}")
        vision_tower = load_vision_tower(vision, **(vision_kwargs or {}))
        language_model = load_language_model(text, **(text_kwargs or {}))
        image_token_index, needed = placeholder_of(language_model, processor, image_token_index)
        built_qformer = None
        if projector_type == "qformer":
            layers = 1 if isinstance(vision_feature_layer, int) else len(vision_feature_layer)
            width = vision_tower.config.hidden_size * layers
            if qformer is None and qformer_config is None:
                qformer_config = Blip2QFormerModel.config_class()
            built_qformer = build_qformer(Blip2QFormerModel, qformer, width, qformer_config)
        with kept_attention(vision_tower, language_model, *([built_qformer] if built_qformer else [])):
            config = LlavaConfig(
                vision_config=vision_tower.config,
                text_config=language_model.config,
                image_token_index=image_token_index,
                vision_feature_layer=vision_feature_layer,
                vision_feature_select_strategy=vision_feature_select_strategy,
                projector_type=projector_type,
                qformer_config=built_qformer.config if built_qformer is not None else None,
                num_query_tokens=num_query_tokens,
            )
        model = cls(config, vision_tower=vision_tower, qformer=built_qformer, language_model=language_model)
        grow_embeddings(model, needed)
        model.eval()
        if projector_type != "qformer":
            config.image_seq_length = model._tokens_of_blank_image(processor)
        if processor is not None and processor.tokens_per_image != config.image_seq_length:
            raise ValueError(
                f"the processor has {processor.tokens_per_image} placeholders an image and the model "
                f"{config.image_seq_length} features: check patch_size, num_additional_image_tokens, "
                "vision_feature_select_strategy and the size of images of the processor"
            )
        return model

    def save_projector(
        self, folder: str | os.PathLike[str], state_dict: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        """Writes the connector alone, what the first stage of training leaves; see [`save_projector`]."""
        save_projector(self, folder, state_dict)

    def load_projector(self, folder: str | os.PathLike[str]) -> None:
        """Puts a saved connector in the place of the model's; see [`load_projector`]."""
        load_projector(self, folder)

    @staticmethod
    def adopt_processor(processor: Any) -> LlavaProcessor | None:
        """Our processor over the components of stock's, which `AutoProcessor` finds in every LLaVA folder."""
        if processor is None or isinstance(processor, LlavaProcessor):
            return processor
        return LlavaProcessor(
            image_processor=processor.image_processor,
            tokenizer=processor.tokenizer,
            patch_size=processor.patch_size,
            vision_feature_select_strategy=processor.vision_feature_select_strategy,
            chat_template=processor.chat_template,
            image_token=processor.image_token,
            num_additional_image_tokens=processor.num_additional_image_tokens,
            num_query_tokens=getattr(processor, "num_query_tokens", None),
        )

    @torch.no_grad()
    def _tokens_of_blank_image(self, processor: LlavaProcessor | None) -> int:
        """As many features as an image has at the size that the processor gives it, by default the tower's own."""
        size = self.vision_tower.config.image_size if processor is None else processor.image_size
        height, width = (size, size) if isinstance(size, int) else size
        weight = next(self.vision_tower.parameters())
        image = torch.zeros(1, 3, height, width, dtype=weight.dtype, device=weight.device)
        return self.tower_features(image).shape[1]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, UnchangedStates):
            init.eye_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, LlavaQFormerProjector):
            # As LAVIS draws them; equal queries would stay equal for ever.
            init.normal_(module.query_tokens, std=self.config.qformer_config.initializer_range)

    # --- images ---------------------------------------------------------------------------------------------------

    @property
    def image_embeds_size(self) -> int:
        return self.config.image_features_size

    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        image_index: torch.Tensor | None = None,
        image_cache: ImageCache | None = None,
        compile_config: CompileConfig | None = None,
    ) -> LlavaImageFeatures:
        """Vision tower and connector.

        Args:
            pixel_values (`torch.Tensor`, *optional*):
                Shape (images, 3, height, width), or (batch, frames, 3, height, width) for video.
            image_embeds (`torch.Tensor`, *optional*):
                Shape (images, image tokens, ``config.image_features_size``): what the connector reads, in place of
                pixels.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`): For images of another size.
            output_hidden_states (`bool`, *optional*): Also of a Q-Former; those of the vision tower are there anyway.
            output_attentions (`bool`, *optional*): Also of vision tower and Q-Former; needs eager attention.
            image_index (`torch.LongTensor`, *optional*):
                Shape (images in the text,), in reading order: for each the row of ``pixel_values`` or
                ``image_embeds`` that it is. By default one each.
            image_cache ([`ImageCache`], *optional*):
                What [`encode_images`] kept of the images, in place of pixels and features; ``image_index`` then names its
                rows.
            compile_config (`CompileConfig`, *optional*):
                Compiles vision tower and connector; ``generate`` gives it with a cache of fixed size. Not for training.

        Returns:
            [`LlavaImageFeatures`]: ``pooler_output`` has shape (images, tokens an image, language model hidden), with
            ``image_index`` (images in the text, tokens an image, language model hidden).

        Raises:
            ValueError: If not one of pixels, features and a cache is given, the cache is of another model, the tower has no such layer, or
                ``image_index`` does not fit or comes with video.
        """
        vision_outputs: Any = None
        features: Any = image_embeds
        if image_cache is not None:
            check_image_cache(image_cache, self, pixel_values=pixel_values, image_embeds=image_embeds)
            if not output_hidden_states and not output_attentions:
                kept = self._kept_features(image_cache, image_index)
                if kept is not None:
                    return LlavaImageFeatures(pooler_output=kept)
            features = image_cache.image_embeds
        elif (pixel_values is None) == (image_embeds is None):
            raise ValueError("give either pixel_values or image_embeds, or image_cache")
        elif pixel_values is not None:
            if pixel_values.dim() == 5 and image_index is not None:
                raise ValueError(
                    "image_index counts images, and cannot be combined with pixel_values of shape (batch, frames, 3, "
                    "height, width): give frames as images, (frames of all rows, 3, height, width)"
                )
            features, vision_outputs = self._run_tower(
                pixel_values, interpolate_pos_encoding, output_attentions, compile_config
            )
        if image_index is not None:
            image_index = check_image_index(image_index, features.shape[0])
        connector_device = next(self.multi_modal_projector.parameters()).device
        projected, qformer_outputs = self._compiled_calls.of(self.multi_modal_projector, compile_config)(
            features.to(connector_device),
            image_index,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        return LlavaImageFeatures(
            pooler_output=projected, vision_outputs=vision_outputs, qformer_outputs=qformer_outputs
        )

    def _image_embeds(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool, compile_config: CompileConfig | None
    ) -> torch.Tensor:
        return self._run_tower(pixel_values, interpolate_pos_encoding, compile_config=compile_config)[0]

    def tower_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the connector reads of images, to be given as ``image_embeds``.

        Args:
            pixel_values (`torch.Tensor`): Shape (images, 3, height, width).

        Returns:
            `torch.Tensor`: Shape (images, image tokens, ``config.image_features_size``).

        Raises:
            ValueError: If the tower has no such layer.
        """
        return self._run_tower(pixel_values)[0]

    def _run_tower(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        output_attentions: bool | None = None,
        compile_config: CompileConfig | None = None,
    ) -> tuple[torch.Tensor, Any]:
        """What the connector reads (images, image tokens, features), and all that the tower returned."""
        tower = self._compiled_calls.of(self.vision_tower, compile_config)
        outputs = run_vision_tower(tower, pixel_values, interpolate_pos_encoding, True, output_attentions)
        states = outputs.hidden_states
        for layer in self.config.vision_feature_layers:
            if not -len(states) <= layer < len(states):
                raise ValueError(
                    f"config.vision_feature_layer names {layer}, and the vision tower has states {-len(states)} to "
                    f"{len(states) - 1}"
                )
        first = 1 if self.config.vision_feature_select_strategy == "default" else 0
        chosen = [states[layer][:, first:] for layer in self.config.vision_feature_layers]
        return (chosen[0] if len(chosen) == 1 else torch.cat(chosen, dim=-1)), outputs

    # --- forward --------------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        image_index: torch.Tensor | None = None,
        image_cache: ImageCache | None = None,
        logits_at_labels: bool = False,
        **kwargs: Any,
    ) -> LlavaCausalLMOutputWithPast | tuple[Any, ...]:
        """Logits, and with labels the loss, for a batch whose rows hold no, one or several images.

        Args:
            input_ids (`torch.LongTensor`, *optional*):
                Shape (batch, tokens), with as many placeholders for each of a row's images as it has features.
            pixel_values (`torch.Tensor`, *optional*):
                Shape (images, 3, height, width), all images of the batch in reading order, or
                (batch, frames, 3, height, width) for video.
            attention_mask (`torch.Tensor`, *optional*): Shape (batch, tokens); by default all ones.
            inputs_embeds (`torch.Tensor`, *optional*): Shape (batch, tokens, hidden), in place of ``input_ids``.
            labels (`torch.LongTensor`, *optional*): Shape (batch, tokens); -100 is left out.
            image_embeds (`torch.Tensor`, *optional*): Vision features in place of pixels, see [`get_image_features`].
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`): For images of another size.
            output_hidden_states (`bool`, *optional*): Of all parts.
            output_attentions (`bool`, *optional*): Of all parts; needs eager attention.
            return_dict (`bool`, *optional*): `False` for a tuple.
            image_index (`torch.LongTensor`, *optional*):
                Shape (images in the text,), for rows that share images, see [`get_image_features`].
            image_cache ([`ImageCache`], *optional*):
                Images that have been encoded, in place of pixels, see [`encode_images`]. Outputs have no
                ``vision_outputs`` then, and where all is kept that stands in the prompt no ``qformer_outputs``.
            logits_at_labels (`bool`, *optional*, defaults to `False`):
                For training: the loss alone, and ``label_losses``. Logits are computed where there are labels, a chunk
                at a time, and not returned, which saves most of the language model's memory at its head.
            kwargs: For the language model, like ``position_ids``, ``past_key_values`` and ``logits_to_keep``;
                ``num_items_in_batch`` for the loss.

        Returns:
            [`LlavaCausalLMOutputWithPast`]

        Raises:
            ValueError: If placeholders and images do not match, images are given in two ways, or ``logits_at_labels``
                comes without labels or does not suit the language model.
        """
        images = {
            "pixel_values": pixel_values,
            "image_embeds": image_embeds,
            "interpolate_pos_encoding": interpolate_pos_encoding,
            "image_index": image_index,
            "image_cache": image_cache,
        }
        return self._forward(
            images,
            None,
            input_ids,
            attention_mask,
            inputs_embeds,
            output_hidden_states,
            output_attentions,
            return_dict,
            labels,
            logits_at_labels=logits_at_labels,
            **kwargs,
        )

    def _outputs(
        self,
        features: LlavaImageFeatures | None,
        language_model_outputs: Any,
        loss: torch.Tensor | None,
        label_losses: torch.Tensor | None,
    ) -> LlavaCausalLMOutputWithPast:
        return LlavaCausalLMOutputWithPast(
            loss=loss,
            logits=language_model_outputs.get("logits"),
            past_key_values=language_model_outputs.get("past_key_values"),
            hidden_states=language_model_outputs.get("hidden_states"),
            attentions=language_model_outputs.get("attentions"),
            image_hidden_states=features.pooler_output if features is not None else None,
            vision_outputs=features.vision_outputs if features is not None else None,
            qformer_outputs=features.qformer_outputs if features is not None else None,
            language_model_outputs=language_model_outputs,
            label_losses=label_losses,
        )

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        return_full_text: bool = True,
        image_index: torch.Tensor | None = None,
        image_cache: ImageCache | None = None,
        **generate_kwargs: Any,
    ) -> torch.Tensor | ModelOutput:
        """Describe or answer. The images are encoded once, also for beams and several sequences.

        Args:
            input_ids, pixel_values, attention_mask, inputs_embeds, image_embeds, interpolate_pos_encoding: As in
                [`forward`]. Without ``input_ids`` the prompt is the image alone, one image a row. Batches are padded
                on the left.
            return_full_text (`bool`, *optional*, defaults to `True`):
                Whether sequences start with the prompt, as stock transformers returns them. `False` returns the
                completion alone.
            image_index (`torch.LongTensor`, *optional*), image_cache ([`ImageCache`], *optional*): As in [`forward`].
            generate_kwargs: As for `transformers.GenerationMixin.generate`; defaults are ``generation_config``'s.

        Returns:
            `torch.LongTensor` of shape (batch * num_return_sequences, tokens), or a `ModelOutput` where
            ``return_dict_in_generate`` is set.

        Raises:
            ValueError: As in [`forward`].
        """
        input_ids, inputs_embeds = self.embed_prompt(
            input_ids,
            inputs_embeds,
            pixel_values=pixel_values,
            image_embeds=image_embeds,
            interpolate_pos_encoding=interpolate_pos_encoding,
            image_index=image_index,
            image_cache=image_cache,
            compile_config=compile_config_for(self, generate_kwargs),
        )
        return self.generate_from_embeddings(
            inputs_embeds, attention_mask, input_ids, return_full_text, **generate_kwargs
        )


__all__ = ["LlavaCausalLMOutputWithPast", "LlavaForConditionalGeneration", "LlavaImageFeatures"]
