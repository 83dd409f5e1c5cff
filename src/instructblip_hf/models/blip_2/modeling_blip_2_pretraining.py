"""BLIP-2's first stage: representation learning with a frozen vision tower (arXiv 2301.12597, section 3.2).

Three objectives share the Q-Former and differ in who may look at whom: image-text contrastive learning (ITC, queries
and text apart), image-text matching (ITM, all together) and image-grounded text generation (ITG, queries first, text
left to right). ITC and ITG take one pass of the Q-Former together, ITM another over pairs and hard negatives.
transformers has the parts that inference needs; this model adds the temperature and the language-model head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.utils import ModelOutput

from ...constants import IGNORE_INDEX
from ..connectors.shared_images import check_image_index
from ..model_part import value_or_default
from ..process_groups import GlobalBatch
from .attention_masks import contrastive_and_generative_mask, uni_modal_mask
from .configuration_blip_2 import Blip2Config, Blip2QFormerConfig
from .modeling_blip_2_retrieval import Blip2ForImageTextRetrieval
from .pretraining_losses import (
    at_least_float32,
    contrastive_sum,
    contrastive_targets,
    generation_sum,
    sample_negatives,
)


OBJECTIVES = ("itc", "itm", "itg")
"""Contrastive learning, matching and generation."""

INITIAL_TEMPERATURE = 0.07


@dataclass(frozen=True)
class PreTrainingOptions:
    """What the first stage computes; not part of the architecture.

    Args:
        objectives (`tuple[str, ...]`, *optional*, defaults to `OBJECTIVES`): Which of them. The loss is their sum.
        label_smoothing (`float`, *optional*, defaults to 0.1): Of ITC and ITG.
        gather_with_gradient (`bool`, *optional*, defaults to `True`):
            Whether the contrastive loss has a gradient through both sides of every comparison, also those of other
            processes, and means are over the batch of all processes: training on many processes is then that on one
            with the whole batch. `False` is LAVIS's way: a process's rows are compared with constants, and means are
            over its own rows.

    Raises:
        ValueError: For an unknown objective, none, or a smoothing out of range.
    """

    objectives: tuple[str, ...] = OBJECTIVES
    label_smoothing: float = 0.1
    gather_with_gradient: bool = True

    def __post_init__(self) -> None:
        unknown = [name for name in self.objectives if name not in OBJECTIVES]
        if unknown or not self.objectives:
            raise ValueError(f"objectives are {list(self.objectives)}; allowed are some of: {', '.join(OBJECTIVES)}")
        if "itm" in self.objectives and "itc" not in self.objectives:
            raise ValueError("objective itm needs itc, whose similarities its hard negatives are drawn by")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it must be at least 0 and less than 1")


@dataclass
class Blip2ForPreTrainingOutput(ModelOutput):
    """Output of [`Blip2ForPreTraining`].

    Args:
        loss (`torch.Tensor`): Sum of the losses below.
        loss_itc (`torch.Tensor`, *optional*): Contrastive loss, the mean of both directions.
        loss_itm (`torch.Tensor`, *optional*): Matching loss.
        loss_itg (`torch.Tensor`, *optional*): Generation loss, in nats a token.
        logits_per_image (`torch.Tensor`, *optional*): Shape (rows, texts of all processes), scaled similarities.
        logits_per_text (`torch.Tensor`, *optional*): Shape (rows, images of all processes).
        itm_logits (`torch.Tensor`, *optional*):
            Shape (pairs, 2): rows, then texts with a negative image, then images with a negative text.
        itm_labels (`torch.LongTensor`, *optional*): Shape (pairs,).
        logits (`torch.Tensor`, *optional*): Shape (rows, tokens, vocabulary), of the text to generate.
        image_embeds (`torch.Tensor`): Shape (rows, queries, dimensions), of length 1.
        text_embeds (`torch.Tensor`): Shape (rows, dimensions), of length 1.
    """

    loss: torch.Tensor | None = None
    loss_itc: torch.Tensor | None = None
    loss_itm: torch.Tensor | None = None
    loss_itg: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    itm_logits: torch.Tensor | None = None
    itm_labels: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None


class _Transform(nn.Module):
    def __init__(self, config: Blip2QFormerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.activation(self.dense(states)))


class _Predictions(nn.Module):
    def __init__(self, config: Blip2QFormerConfig) -> None:
        super().__init__()
        self.transform = _Transform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.transform(states))


class Blip2LanguageModelHead(nn.Module):
    """BERT's head over words, by BERT's names: states (batch, tokens, hidden) to logits (batch, tokens, vocabulary)."""

    def __init__(self, config: Blip2QFormerConfig) -> None:
        super().__init__()
        self.predictions = _Predictions(config)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.predictions(states)


class Blip2ForPreTraining(Blip2ForImageTextRetrieval):
    """The Q-Former of the first stage with all its heads and losses.

    Everything of [`Blip2ForImageTextRetrieval`] works here as well, and that class opens what this one saves.

    Attributes:
        options ([`PreTrainingOptions`]): What ``forward`` computes.

    Example:

    ```python
    >>> from instructblip_hf import Blip2ForPreTraining
    >>> model = Blip2ForPreTraining.from_vision_bert_pretrained("path/to/vision_tower", "bert-base-uncased")
    ```
    """

    # All of its checkpoint has a home here.
    _keys_to_ignore_on_load_unexpected: list[str] = []
    _keep_in_fp32_modules = ["query_tokens", "qformer", "temp"]
    _tied_weights_keys = {
        "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    def __init__(self, config: Blip2Config, vision_model: PreTrainedModel | None = None, qformer: Any = None) -> None:
        if getattr(config, "tie_word_embeddings", None) is None:
            config.tie_word_embeddings = True  # as BERT's are
        super().__init__(config, vision_model, qformer)
        self.options = PreTrainingOptions()

    def _add_heads(self, config: Blip2Config) -> None:
        self.temp = nn.Parameter(torch.full([], INITIAL_TEMPERATURE))
        self.cls = Blip2LanguageModelHead(config.qformer_config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            self.temp.fill_(INITIAL_TEMPERATURE)
        elif isinstance(module, _Predictions):
            module.bias.zero_()

    def _start_from_bert(self, bert: PreTrainedModel) -> None:
        super()._start_from_bert(bert)
        head: Any = getattr(bert, "cls", None)
        if head is None:
            raise ValueError(
                f"{type(bert).__name__} has no language-model head, which the first stage starts from: give "
                "BertForMaskedLM or BertForPreTraining"
            )
        weights = head.predictions.state_dict()
        self.cls.predictions.transform.load_state_dict(
            {
                name.removeprefix("transform."): value
                for name, value in weights.items()
                if name.startswith("transform.")
            }
        )
        with torch.no_grad():
            self.cls.predictions.bias[: len(weights["bias"])].copy_(weights["bias"])
        self.tie_weights()

    def get_output_embeddings(self) -> nn.Module:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        self.cls.predictions.decoder = new_embeddings
        self.cls.predictions.bias = new_embeddings.bias

    def forward(  # type: ignore[override]
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        image_states: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        return_dict: bool | None = None,
        negative_images: torch.Tensor | None = None,
        negative_texts: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
    ) -> Blip2ForPreTrainingOutput | tuple[Any, ...]:
        """Losses of a batch of images, each with its caption; in a process group, of the batches of all processes.

        Args:
            pixel_values (`torch.Tensor`, *optional*): Shape (rows, 3, height, width).
            input_ids (`torch.LongTensor`): Shape (rows, tokens), captions, `[CLS]` first, padded on the right.
            attention_mask (`torch.Tensor`, *optional*): Shape (rows, tokens); by default all ones.
            decoder_input_ids (`torch.LongTensor`, *optional*):
                Same shape: the captions to generate, with `[DEC]` in the place of `[CLS]`. Needed for ITG.
            labels (`torch.LongTensor`, *optional*):
                Same shape, -100 where nothing is to be generated; by default ``decoder_input_ids`` but for padding.
            image_ids (`torch.LongTensor`, *optional*):
                Shape (rows,). Rows of the same number show the same image: their captions are all right for it, none is
                a negative of another. By default every row has an image of its own.
            image_embeds, image_states (`torch.Tensor`, *optional*): In place of pixels, see [`get_image_states`].
            interpolate_pos_encoding (`bool`, *optional*, defaults to `False`): For images of another size.
            return_dict (`bool`, *optional*): `False` for a tuple.
            negative_images (`torch.LongTensor`, *optional*):
                Shape (rows,): for each text the row, among those of all processes, of its negative image, -1 for none.
                By default drawn by similarity, anew at each call.
            negative_texts (`torch.LongTensor`, *optional*): Shape (rows,): the same for each image.
            image_index (`torch.LongTensor`, *optional*):
                Shape (rows,): the image of each row, where rows share images that are given once. Without ``image_ids``
                it says which rows of this process show the same image.

        Returns:
            [`Blip2ForPreTrainingOutput`]

        Raises:
            ValueError: If images or captions are missing or differ in number, or ``decoder_input_ids`` are missing.
        """
        if input_ids is None:
            raise ValueError("input_ids are needed: the captions of the images")
        if "itg" in self.options.objectives and decoder_input_ids is None:
            raise ValueError(
                "decoder_input_ids are needed for the objective itg: the captions that begin with [DEC] "
                "(processor.encode_captions makes them)"
            )
        states, _ = self.get_image_states(pixel_values, image_embeds, image_states, interpolate_pos_encoding)
        if image_index is not None:
            states = states[check_image_index(image_index, len(states))]
        if len(states) != len(input_ids):
            raise ValueError(f"{len(states)} images and {len(input_ids)} captions do not make pairs")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        batch = GlobalBatch.of(len(input_ids), input_ids.device)
        if image_ids is None and image_index is not None:
            # Of other processes' images nothing is known.
            image_ids = image_index.to(input_ids.device) + batch.start
        image_vectors, text_vectors, generated = self._read_apart(states, input_ids, attention_mask, decoder_input_ids)
        outputs: Any = Blip2ForPreTrainingOutput(image_embeds=image_vectors, text_embeds=text_vectors)
        if "itc" in self.options.objectives:
            is_positive = self._positives(image_ids, batch, input_ids.device)
            self._contrast(outputs, is_positive, batch)
            if "itm" in self.options.objectives:
                if negative_images is None:
                    negative_images = sample_negatives(outputs.logits_per_text, is_positive)
                if negative_texts is None:
                    negative_texts = sample_negatives(outputs.logits_per_image, is_positive)
                self._match(outputs, states, input_ids, attention_mask, negative_images, negative_texts, batch)
        if generated is not None:
            if labels is None:
                labels = decoder_input_ids.masked_fill(attention_mask == 0, IGNORE_INDEX)  # type: ignore[union-attr]
            outputs.logits = self.cls(generated.to(self.cls.predictions.bias.dtype))
            total, count = generation_sum(outputs.logits, labels, self.options.label_smoothing)
            outputs.loss_itg = self._mean(total, count, batch)
        outputs.loss = sum(loss for loss in (outputs.loss_itc, outputs.loss_itm, outputs.loss_itg) if loss is not None)
        return outputs if value_or_default(return_dict, self.config.return_dict) else outputs.to_tuple()

    def _read_apart(
        self,
        states: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        decoder_input_ids: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """ITC and ITG in one pass: vectors of images and of texts, and states of the text to generate."""
        queries = self.query_tokens.expand(len(input_ids), -1, -1)
        count, length = queries.shape[1], input_ids.shape[1]
        compared = self.embeddings(input_ids)
        pieces = [queries.to(compared.dtype), compared]
        generates = "itg" in self.options.objectives
        if generates:
            pieces.append(self.embeddings(decoder_input_ids))
        make_mask = contrastive_and_generative_mask if generates else uni_modal_mask
        outputs = self.qformer(
            query_embeds=torch.cat(pieces, dim=1),  # [rows, queries + text (+ text), hidden]
            query_length=count,
            attention_mask=make_mask(attention_mask, count, self.qformer.layernorm.weight.dtype),
            encoder_hidden_states=states.to(queries.device),
            return_dict=True,
        )
        read = outputs.last_hidden_state
        generated = read[:, count + length :] if generates else None
        return self.project_queries(read[:, :count]), self.project_text(read[:, count:]), generated

    def _positives(self, image_ids: torch.Tensor | None, batch: GlobalBatch, device: torch.device) -> torch.Tensor:
        """Which of all images and texts belong to each row, shape (rows, all)."""
        if image_ids is None:
            return batch.own_rows(device)[:, None] == torch.arange(batch.total, device=device)[None, :]
        return image_ids[:, None] == batch.gather(image_ids)[None, :]

    def _contrast(self, outputs: Any, is_positive: torch.Tensor, batch: GlobalBatch) -> None:
        with_gradient = self.options.gather_with_gradient
        all_images = batch.gather(outputs.image_embeds, with_gradient)
        all_texts = batch.gather(outputs.text_embeds, with_gradient)
        outputs.logits_per_image = self.similarity(outputs.image_embeds, all_texts) / self.temp
        outputs.logits_per_text = self.similarity(all_images, outputs.text_embeds).t() / self.temp
        targets = contrastive_targets(is_positive, self.options.label_smoothing)
        total = contrastive_sum(outputs.logits_per_image, targets) + contrastive_sum(outputs.logits_per_text, targets)
        outputs.loss_itc = self._mean(total / 2, len(is_positive), batch)

    def _match(
        self,
        outputs: Any,
        states: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        negative_images: torch.Tensor,
        negative_texts: torch.Tensor,
        batch: GlobalBatch,
    ) -> None:
        # Tokens of padding are never looked at, whatever they are.
        all_ids = batch.gather(batch.pad_to_longest(input_ids, 0))
        all_masks = batch.gather(batch.pad_to_longest(attention_mask, 0))
        own = batch.own_rows(input_ids.device)
        for_texts, for_images = negative_images >= 0, negative_texts >= 0
        images = torch.cat([own, negative_images[for_texts], own[for_images]])
        texts = torch.cat([own, own[for_texts], negative_texts[for_images]])
        if len(batch.sizes) == 1:
            pool = states
        else:
            # Vision towers' states are large; those of other processes that nothing asks for are let go.
            gathered = batch.gather(states, with_gradient=states.requires_grad)
            used, images = images.unique(return_inverse=True)
            pool = gathered[used]
        outputs.itm_logits, _ = self.match(all_ids[texts], all_masks[texts], pool, images)
        outputs.itm_labels = torch.zeros_like(texts)
        outputs.itm_labels[: len(own)] = 1
        total = nn.functional.cross_entropy(at_least_float32(outputs.itm_logits), outputs.itm_labels, reduction="sum")
        outputs.loss_itm = self._mean(total, len(texts), batch)

    def _mean(self, total: torch.Tensor, count: torch.Tensor | int, batch: GlobalBatch) -> torch.Tensor:
        if self.options.gather_with_gradient:
            return batch.mean(total, count)
        return total / count


__all__ = [
    "INITIAL_TEMPERATURE",
    "OBJECTIVES",
    "Blip2ForPreTraining",
    "Blip2ForPreTrainingOutput",
    "Blip2LanguageModelHead",
    "PreTrainingOptions",
]
