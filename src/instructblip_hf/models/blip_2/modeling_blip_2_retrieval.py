"""BLIP-2's Q-Former without a language model: images and texts compared, and matched (arXiv 2301.12597, section 3.2).

Two ways to say whether an image and a text belong together: the cosine of the best query and the text (ITC), whose
features can be kept, and the matching head on queries that have read both (ITM), which is finer and costs a pass a
pair. Names of classes, modules and parameters are transformers' own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from ..composition import load_part, load_vision_tower
from ..connectors.configuration_qformer import QFormerConfig
from ..connectors.qformer_from_bert import bert_shape, copy_bert_weights
from ..model_part import NO_SPLIT_MODULES, as_input_of, value_or_default
from ..strict_loading import StrictLoadingMixin
from ..vision_towers.running import run_vision_tower
from .attention_masks import bi_directional_mask
from .configuration_blip_2 import Blip2Config, Blip2VisionConfig
from .modeling_blip_2_parts import Blip2QFormerModel, Blip2TextEmbeddings, Blip2VisionModel
from .pretraining_losses import at_least_float32


@dataclass
class Blip2ImageEmbeds(ModelOutput):
    """Images in the space that they are compared with texts in.

    Args:
        image_embeds (`torch.Tensor`): Shape (images, queries, dimensions), every query of length 1.
        last_hidden_state (`torch.Tensor`): Shape (images, image tokens, vision hidden): what the queries read, and
            ``image_states`` of ``get_matching_logits``.
        vision_outputs (`BaseModelOutputWithPooling`, *optional*): Of the vision tower; `None` for given features.
    """

    image_embeds: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    vision_outputs: ModelOutput | None = None


@dataclass
class Blip2TextEmbeds(ModelOutput):
    """Texts in the space that they are compared with images in.

    Args:
        text_embeds (`torch.Tensor`): Shape (texts, dimensions), of length 1.
        text_outputs (`BaseModelOutputWithPoolingAndCrossAttentions`): Of the Q-Former.
    """

    text_embeds: torch.Tensor | None = None
    text_outputs: ModelOutput | None = None


@dataclass
class Blip2ImageTextMatchingModelOutput(ModelOutput):
    """Output of [`Blip2ForImageTextRetrieval`].

    Args:
        loss (`torch.Tensor`, *optional*): Always `None`; [`Blip2ForPreTraining`] has losses.
        logits_per_image (`torch.Tensor`): Shape (images, texts), cosines; of the matching head (pairs, 2).
        logits_per_text (`torch.Tensor`): The same, transposed.
        text_embeds (`torch.Tensor`): Shape (texts, dimensions); of the matching head states (pairs, tokens, hidden).
        image_embeds (`torch.Tensor`): Shape (images, queries, dimensions); of the matching head what the queries read.
        text_model_output (`ModelOutput`): Of the Q-Former on the text.
        vision_model_output (`ModelOutput`): Of the vision tower.
    """

    loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_model_output: ModelOutput | None = None
    vision_model_output: ModelOutput | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


class Blip2ForImageTextRetrieval(StrictLoadingMixin, PreTrainedModel):
    """Vision tower and Q-Former with the heads that compare and match images and texts.

    Example:

    ```python
    >>> from instructblip_hf import Blip2ForImageTextRetrieval, Blip2Processor
    >>> model = Blip2ForImageTextRetrieval.from_pretrained("Salesforce/blip2-itm-vit-g")
    >>> processor = Blip2Processor.from_pretrained("Salesforce/blip2-itm-vit-g")
    >>> images = model.get_image_features(**processor(images=["cat.png", "dog.png"], return_tensors="pt"))
    >>> texts = model.get_text_features(**processor(text=["a photo of a cat"], return_tensors="pt"))
    >>> model.similarity(images.image_embeds, texts.text_embeds)  # (2, 1), the higher the better
    ```
    """

    config: Blip2Config
    config_class = Blip2Config
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    image_side = ("vision_model", "embeddings", "qformer", "vision_projection", "text_projection", "itm_head")
    _supports_attention_backend = True
    _supports_sdpa = True
    _no_split_modules = [*NO_SPLIT_MODULES, "Blip2TextEmbeddings"]
    _keep_in_fp32_modules = ["query_tokens", "qformer"]
    # What the first stage has beyond this model.
    _keys_to_ignore_on_load_unexpected: list[str] = [r"^temp$", r"^cls\."]

    def __init__(
        self,
        config: Blip2Config,
        vision_model: PreTrainedModel | None = None,
        qformer: Blip2QFormerModel | None = None,
    ) -> None:
        super().__init__(config)
        if not config.qformer_config.use_qformer_text_input:
            raise ValueError(
                f"{type(self).__name__} reads text in its Q-Former: qformer_config.use_qformer_text_input must be True"
            )
        self.vision_model = vision_model or self.build_vision_tower(config.vision_config)
        width, shared = config.qformer_config.hidden_size, config.image_text_hidden_size
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, width))
        self.embeddings = Blip2TextEmbeddings(config.qformer_config)
        self.qformer = qformer or Blip2QFormerModel._from_config(config.qformer_config)
        self.vision_projection = nn.Linear(width, shared)
        self.text_projection = nn.Linear(width, shared)
        self.itm_head = nn.Linear(width, 2)
        self._add_heads(config)
        self.post_init()

    def _add_heads(self, config: Blip2Config) -> None:
        """Further heads of a subclass."""

    @classmethod
    def from_vision_bert_pretrained(
        cls,
        vision: str | os.PathLike[str] | PreTrainedModel,
        bert: str | os.PathLike[str] | PreTrainedModel | None = "bert-base-uncased",
        num_query_tokens: int = 32,
        image_text_hidden_size: int = 256,
        processor: Any = None,
        qformer_config: QFormerConfig | None = None,
        vision_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """A fresh start of the first stage: text, self-attention and feed-forward layers from BERT, the rest new.

        The queries' feed-forward layers start as copies of the text's; cross-attention, queries, projections and the
        matching head are new (LAVIS `blip2_qformer.py`).

        Args:
            vision (`str`, `os.PathLike` or `PreTrainedModel`):
                Folder, Hub id or model. Of an image-text checkpoint such as CLIP the vision tower is taken.
            bert (`str`, `os.PathLike` or `PreTrainedModel`, *optional*, defaults to `"bert-base-uncased"`):
                BERT with its language-model head; `None` for new weights of ``qformer_config``.
            num_query_tokens (`int`, *optional*, defaults to 32): Query tokens.
            image_text_hidden_size (`int`, *optional*, defaults to 256): Width of the space to compare in.
            processor ([`Blip2Processor`], *optional*):
                Gives the placeholder's token id, and the size that the text embedding grows to where its tokenizer is
                larger, with `[DEC]`.
            qformer_config ([`Blip2QFormerConfig`], *optional*): By default BERT's shape.
            vision_kwargs (`dict`, *optional*): For loading the vision tower.

        Returns:
            The model, in evaluation mode.

        Raises:
            KeyError: If a part's checkpoint lacks weights.
            ValueError: If shapes do not fit, or ``bert`` is of another type.
        """
        vision_model = load_vision_tower(vision, **(vision_kwargs or {}))
        source = bert if isinstance(bert, PreTrainedModel) or bert is None else load_part(bert, AutoModelForMaskedLM)
        if source is not None and source.config.model_type != "bert":
            raise ValueError(f"bert is of type {source.config.model_type!r}; it must be a BERT")
        if processor is not None and processor.num_query_tokens not in (None, num_query_tokens):
            raise ValueError(f"num_query_tokens is {num_query_tokens}, the processor's {processor.num_query_tokens}")
        shape = bert_shape(source.config) if source is not None and qformer_config is None else {}
        options = {
            **(qformer_config.to_dict() if qformer_config is not None else shape),
            "use_qformer_text_input": True,
        }
        options.pop("model_type", None)
        attention = vision_model.config._attn_implementation
        config = cls.config_class(
            vision_config=vision_model.config,
            qformer_config=options,
            num_query_tokens=num_query_tokens,
            image_text_hidden_size=image_text_hidden_size,
            # Images and texts that are prepared together come with placeholders, which are left out by this id.
            image_token_index=processor.image_token_id if processor is not None else None,
        )
        # A composite configuration resets the attention of its parts, which are models already.
        vision_model.config._attn_implementation = attention
        model: Any = cls(config, vision_model=vision_model)
        if source is not None:
            model._start_from_bert(source)
        if processor is not None:
            # New rows are drawn as all new weights are.
            rows = max(len(processor.tokenizer), config.qformer_config.vocab_size)
            model.resize_token_embeddings(rows, mean_resizing=False)
        return model.eval()

    def _start_from_bert(self, bert: PreTrainedModel) -> None:
        target: dict[str, torch.Tensor] = dict(self.qformer.named_parameters())
        target.update({f"embeddings.{name}": value for name, value in self.embeddings.named_parameters()})
        copy_bert_weights(bert, target, has_text=True, layernorm="layernorm")

    @staticmethod
    def build_vision_tower(config: PreTrainedConfig) -> PreTrainedModel:
        """New vision tower: BLIP-2's own, or any that `AutoModel` knows."""
        if isinstance(config, Blip2VisionConfig):
            return Blip2VisionModel._from_config(config)
        return AutoModel.from_config(config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            # As LAVIS draws them; equal queries would stay equal for ever.
            init.normal_(self.query_tokens, std=self.config.qformer_config.initializer_range)

    @property
    def image_tower(self) -> Any:
        """The vision tower, by the name that it has in all families."""
        return self.vision_model

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        self.embeddings.word_embeddings = value

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in transformers; the vocabulary is the Q-Former's."""
        embeddings = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        self.config.qformer_config.vocab_size = self.embeddings.word_embeddings.num_embeddings
        return embeddings

    # --- images and texts -----------------------------------------------------------------------------------------

    def get_image_states(
        self,
        pixel_values: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        image_states: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> tuple[torch.Tensor, ModelOutput | None]:
        """What the queries read of the images.

        Args:
            pixel_values (`torch.Tensor`, *optional*): Shape (images, 3, height, width).
            image_embeds (`torch.Tensor`, *optional*): Shape (images, image tokens, vision hidden): features of the
                vision tower, returned as they are.
            image_states (`torch.Tensor`, *optional*): The same before the tower's last layer norm, which is applied;
                see [`Blip2VisionModel.image_states`].
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`): For images of another size.
            output_hidden_states, output_attentions (`bool`, *optional*): Of the vision tower.

        Returns:
            `tuple`: Shape (images, image tokens, vision hidden), and the vision tower's output where it ran.

        Raises:
            ValueError: If images are given in no or in several ways.
        """
        given = {"pixel_values": pixel_values, "image_embeds": image_embeds, "image_states": image_states}
        names = [name for name, value in given.items() if value is not None]
        if len(names) != 1:
            raise ValueError(f"give one of {', '.join(given)}; got {' and '.join(names) or 'none'}")
        if pixel_values is not None:
            outputs = run_vision_tower(
                self.vision_model, pixel_values, interpolate_pos_encoding, output_hidden_states, output_attentions
            )
            return outputs.last_hidden_state, outputs
        if image_states is not None:
            tower: Any = self.vision_model
            return tower.post_layernorm(image_states), None
        states: Any = image_embeds
        return states, None

    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> Blip2ImageEmbeds:
        """Images in the space that they are compared with texts in.

        Args:
            pixel_values, image_embeds, interpolate_pos_encoding, output_hidden_states, output_attentions: As in
                [`get_image_states`].

        Returns:
            [`Blip2ImageEmbeds`]: ``image_embeds`` (images, queries, dimensions).

        Raises:
            ValueError: If both or neither of pixels and features are given.
        """
        states, vision_outputs = self.get_image_states(
            pixel_values,
            image_embeds,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        queries = self.query_tokens.expand(len(states), -1, -1)
        outputs = self.qformer(query_embeds=queries, encoder_hidden_states=states.to(queries.device), return_dict=True)
        return Blip2ImageEmbeds(self.project_queries(outputs.last_hidden_state), states, vision_outputs)

    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> Blip2TextEmbeds:
        """Texts in the space that they are compared with images in.

        Args:
            input_ids (`torch.LongTensor`): Shape (texts, tokens), `[CLS]` first; image placeholders in front, which
                stock transformers' processor puts there, are left out.
            attention_mask (`torch.Tensor`, *optional*): Shape (texts, tokens); by default all ones.

        Returns:
            [`Blip2TextEmbeds`]: ``text_embeds`` (texts, dimensions).
        """
        input_ids, attention_mask = self._without_placeholders(input_ids, attention_mask)
        outputs = self.qformer(
            query_embeds=self.embeddings(input_ids), query_length=0, attention_mask=attention_mask, return_dict=True
        )
        return Blip2TextEmbeds(self.project_text(outputs.last_hidden_state), outputs)

    def get_matching_logits(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_states: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Whether image and text of each pair belong together, by the matching head.

        Args:
            input_ids (`torch.LongTensor`): Shape (pairs, tokens), see [`get_text_features`].
            attention_mask (`torch.Tensor`, *optional*): Shape (pairs, tokens); by default all ones.
            pixel_values (`torch.Tensor`, *optional*): Shape (pairs, 3, height, width).
            image_states (`torch.Tensor`, *optional*):
                ``last_hidden_state`` of [`get_image_features`], in place of pixels, a row a pair.
            image_index (`torch.LongTensor`, *optional*):
                Shape (pairs,): the image of each pair, where the images are fewer than the pairs.

        Returns:
            `torch.Tensor`: Shape (pairs, 2); the second column is that they do.

        Raises:
            ValueError: If both or neither of pixels and states are given.
        """
        states, _ = self.get_image_states(pixel_values, image_states)
        return self.match(*self._without_placeholders(input_ids, attention_mask), states, image_index)[0]

    @staticmethod
    def similarity(image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        """Cosine of the best query of every image with every text.

        Args:
            image_embeds (`torch.Tensor`): Shape (images, queries, dimensions).
            text_embeds (`torch.Tensor`): Shape (texts, dimensions).

        Returns:
            `torch.Tensor`: Shape (images, texts).
        """
        # In float32 also under autocast: the temperature makes much of small differences.
        with torch.autocast(image_embeds.device.type, enabled=False):
            wide = at_least_float32(image_embeds), at_least_float32(text_embeds)
            return torch.einsum("iqd,td->iqt", *wide).amax(1)

    def project_queries(self, query_states: torch.Tensor) -> torch.Tensor:
        """Query states (images, queries, hidden) to vectors of length 1 (images, queries, dimensions)."""
        projected = self.vision_projection(as_input_of(self.vision_projection, query_states))
        return nn.functional.normalize(projected, dim=-1)

    def project_text(self, text_states: torch.Tensor) -> torch.Tensor:
        """Text states (texts, tokens, hidden), `[CLS]` first, to vectors of length 1 (texts, dimensions)."""
        projected = self.text_projection(as_input_of(self.text_projection, text_states[:, 0]))
        return nn.functional.normalize(projected, dim=-1)

    def match(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        image_states: torch.Tensor,
        image_index: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> tuple[torch.Tensor, Any]:
        """Matching logits (pairs, 2) and the Q-Former's output, of text without placeholders."""
        queries = self.query_tokens.expand(len(input_ids), -1, -1)
        text = self.embeddings(input_ids)
        outputs = self.qformer(
            query_embeds=torch.cat([queries.to(text.dtype), text], dim=1),
            query_length=queries.shape[1],
            attention_mask=bi_directional_mask(attention_mask, queries.shape[1], self.qformer.layernorm.weight.dtype),
            encoder_hidden_states=image_states.to(queries.device),
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
            encoder_index=image_index,
        )
        query_states = outputs.last_hidden_state[:, : queries.shape[1]]
        return self.itm_head(as_input_of(self.itm_head, query_states)).mean(1), outputs

    def _without_placeholders(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        placeholder, queries = self.config.image_token_id, self.config.num_query_tokens
        if placeholder is not None:
            is_placeholder = input_ids == placeholder
            if bool(is_placeholder.any()):
                if not bool(is_placeholder[:, :queries].all()) or bool(is_placeholder[:, queries:].any()):
                    raise ValueError(
                        f"input_ids hold image placeholders (id {placeholder}) elsewhere than in the first {queries} "
                        "places of every row: one image a text, and text padded on the right"
                    )
                input_ids, attention_mask = input_ids[:, queries:], attention_mask[:, queries:]
        return input_ids, attention_mask

    # --- forward --------------------------------------------------------------------------------------------------

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        use_image_text_matching_head: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        image_embeds: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> Blip2ImageTextMatchingModelOutput | tuple[Any, ...]:
        """Cosines of all images with all texts, or matching logits of pairs.

        Args:
            pixel_values (`torch.Tensor`, *optional*): Shape (images, 3, height, width).
            input_ids (`torch.LongTensor`): Shape (texts, tokens), see [`get_text_features`].
            attention_mask (`torch.Tensor`, *optional*): Shape (texts, tokens); by default all ones.
            use_image_text_matching_head (`bool`, *optional*, defaults to `False`):
                Whether to match pairs, as many texts as images, rather than to compare all with all.
            output_attentions (`bool`, *optional*): Of the vision tower; needs eager attention.
            output_hidden_states (`bool`, *optional*): Of the vision tower.
            return_dict (`bool`, *optional*): `False` for a tuple.
            image_embeds (`torch.Tensor`, *optional*): Features of the vision tower in place of pixels.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`): For images of another size.

        Returns:
            [`Blip2ImageTextMatchingModelOutput`]

        Raises:
            ValueError: If images or texts are missing, or pairs differ in number.
        """
        if input_ids is None:
            raise ValueError("input_ids are needed: this model compares images with texts")
        options: dict[str, Any] = {
            "interpolate_pos_encoding": interpolate_pos_encoding,
            "output_hidden_states": output_hidden_states,
            "output_attentions": output_attentions,
        }
        if use_image_text_matching_head:
            states, vision_outputs = self.get_image_states(pixel_values, image_embeds, **options)
            if len(states) != len(input_ids):
                raise ValueError(f"{len(states)} images and {len(input_ids)} texts do not make pairs")
            logits, text_outputs = self.match(*self._without_placeholders(input_ids, attention_mask), states)
            outputs = Blip2ImageTextMatchingModelOutput(
                logits_per_image=logits,
                logits_per_text=logits.t(),
                text_embeds=text_outputs.last_hidden_state,
                image_embeds=states,
                text_model_output=text_outputs,
                vision_model_output=vision_outputs,
            )
        else:
            features: Any = self.get_image_features(pixel_values, image_embeds, **options)
            texts: Any = self.get_text_features(input_ids, attention_mask)
            similarity = self.similarity(features.image_embeds, texts.text_embeds)
            outputs = Blip2ImageTextMatchingModelOutput(
                logits_per_image=similarity,
                logits_per_text=similarity.t(),
                text_embeds=texts.text_embeds,
                image_embeds=features.image_embeds,
                text_model_output=texts.text_outputs,
                vision_model_output=features.vision_outputs,
            )
        return outputs if value_or_default(return_dict, self.config.return_dict) else outputs.to_tuple()


__all__ = [
    "Blip2ForImageTextRetrieval",
    "Blip2ImageEmbeds",
    "Blip2ImageTextMatchingModelOutput",
    "Blip2TextEmbeds",
]
