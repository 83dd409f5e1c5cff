"""LAVIS's model in the Trainer of stock transformers, for batches of this package's collator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchEncoding
from transformers.modeling_outputs import CausalLMOutputWithPast


class InTrainer(nn.Module):
    """``Blip2VicunaInstruct.forward`` on tokens, frozen but for the Q-Former, its queries and the projection.

    LAVIS tokenises in its forward pass; here its tokenisers hand out the parts of a batch that is there.

    Args:
        model (`Blip2VicunaInstruct`): Of `lavis_models.Lavis.instruct`.
        image_token (`int`): The placeholder, which LAVIS does not have.
    """

    def __init__(self, model: Any, image_token: int) -> None:
        super().__init__()
        self.model, self.image_token = model, image_token
        for part in (model.visual_encoder, model.ln_vision, model.llm_model):
            part.requires_grad_(False)

    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        qformer_input_ids: torch.Tensor,
        qformer_attention_mask: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        is_prompt = (attention_mask != 0) & (labels == -100) & (input_ids != self.image_token)
        prompts = [ids[here] for ids, here in zip(input_ids, is_prompt, strict=True)]
        # LAVIS takes off the first token of an answer, its tokeniser's <s>.
        answers = [torch.cat([ids[:1], ids[here]]) for ids, here in zip(input_ids, labels != -100, strict=True)]
        self.model.tokenizer = _Parts(
            [BatchEncoding({"input_ids": qformer_input_ids, "attention_mask": qformer_attention_mask})]
        )
        self.model.llm_tokenizer = _Parts([_padded(prompts), _padded(answers)])
        text = [""] * len(input_ids)
        pixels = pixel_values.to(self.model.query_tokens.dtype)
        loss = self.model({"image": pixels, "text_input": text, "text_output": text})["loss"]
        if num_items_in_batch is not None:  # the mean of the whole step, as Trainer asks of every model that can
            loss = loss * (labels != -100).sum() / num_items_in_batch
        return CausalLMOutputWithPast(loss=loss)


class _Parts:
    """A tokeniser that hands out one batch after the other."""

    eos_token, pad_token_id = "", 0

    def __init__(self, parts: Sequence[BatchEncoding]) -> None:
        self.parts = iter(parts)

    def __call__(self, text: Any, **options: Any) -> BatchEncoding:
        return next(self.parts)


def _padded(rows: Sequence[torch.Tensor]) -> BatchEncoding:
    return BatchEncoding(
        {
            "input_ids": pad_sequence(list(rows), batch_first=True, padding_value=_Parts.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
        }
    )
