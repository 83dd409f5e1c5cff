"""What LAVIS's weights compute, written as plain functions over LAVIS's own names.

Nothing here knows this package's models, so that a converted model can be compared with it: the vision tower of
`eva_vit.py`, the Q-Former of `Qformer.py` with any mix of queries and text, and the heads on it. Written from the
published architecture (BLIP-2, arXiv 2301.12597, section 3.1); dropout is off, everything is in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from .stored_tensors import StoredTensor


LN_VISION_EPS = 1e-5
"""Epsilon of LAVIS's `ln_vision`, torch's default; transformers' configuration has one epsilon for the whole tower, 1e-6."""
_BLOCK_EPS = 1e-6
_BERT_EPS = 1e-12


@dataclass(frozen=True)
class LavisForward:
    """Forward functions over a state dict of LAVIS's layout.

    Args:
        tensors (`Mapping[str, StoredTensor]`): The weights, by LAVIS's names; each is read when it is needed.
        vision_heads (`int`): Attention heads of the vision tower.
        qformer_heads (`int`): Attention heads of the Q-Former.
        ln_vision_eps (`float`, *optional*, defaults to 1e-5): Epsilon of `ln_vision`.
    """

    tensors: Mapping[str, StoredTensor]
    vision_heads: int
    qformer_heads: int
    ln_vision_eps: float = LN_VISION_EPS

    def weight(self, name: str) -> torch.Tensor:
        """A tensor, in float32."""
        return self.tensors[name].load().float()

    def image_states(self, pixels: torch.Tensor) -> torch.Tensor:
        """Vision tower without `ln_vision`: images (images, 3, height, width) to (images, 1 + patches, hidden)."""
        kernel = self.weight("visual_encoder.patch_embed.proj.weight")
        bias = self.weight("visual_encoder.patch_embed.proj.bias")
        patches = nn.functional.conv2d(pixels.float(), kernel, bias, stride=kernel.shape[-2:])
        patches = patches.flatten(2).transpose(1, 2)  # [images, patches, hidden]
        class_token = self.weight("visual_encoder.cls_token").expand(len(pixels), -1, -1)
        states = torch.cat([class_token, patches], dim=1) + self.weight("visual_encoder.pos_embed")
        for block in self._numbered("visual_encoder.blocks."):
            states = states + self._fused_attention(block, self._norm(states, f"{block}norm1", _BLOCK_EPS))
            inner = self._linear(self._norm(states, f"{block}norm2", _BLOCK_EPS), f"{block}mlp.fc1")
            states = states + self._linear(nn.functional.gelu(inner), f"{block}mlp.fc2")
        return states

    def image_features(self, image_states: torch.Tensor) -> torch.Tensor:
        """`ln_vision` over the tower's states."""
        return self._norm(image_states, "ln_vision", self.ln_vision_eps)

    def qformer(
        self,
        image_features: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The Q-Former over queries, text or both.

        Args:
            image_features (`torch.Tensor`, *optional*): Shape (images, tokens, hidden); with them there are queries.
            input_ids (`torch.LongTensor`, *optional*): Shape (images, text).
            attention_mask (`torch.Tensor`, *optional*): Boolean, broadcasting to (images, 1, positions, positions), true
                where a position reads another; by default all read all.

        Returns:
            `torch.Tensor`: Shape (images, queries + text, hidden).
        """
        embeddings = "Qformer.bert.embeddings"
        parts, queries = [], 0
        if image_features is not None:
            tokens = self.weight("query_tokens")
            queries = tokens.shape[1]
            parts.append(tokens.expand(len(image_features), -1, -1))
        if input_ids is not None:
            words = nn.functional.embedding(input_ids, self.weight(f"{embeddings}.word_embeddings.weight"))
            parts.append(words + self.weight(f"{embeddings}.position_embeddings.weight")[: input_ids.shape[1]])
        states = self._norm(torch.cat(parts, dim=1), f"{embeddings}.LayerNorm", _BERT_EPS)
        for layer in self._numbered("Qformer.bert.encoder.layer."):
            states = self._attention(f"{layer}attention", states, states, attention_mask)
            streams = []
            if queries:
                own = states[:, :queries]
                if image_features is not None and f"{layer}crossattention.self.query.weight" in self.tensors:
                    own = self._attention(f"{layer}crossattention", own, image_features)
                streams.append(self._feed_forward(layer, "_query", own))
            if states.shape[1] > queries:
                streams.append(self._feed_forward(layer, "", states[:, queries:]))
            states = torch.cat(streams, dim=1)
        return states

    def project(self, states: torch.Tensor, name: str) -> torch.Tensor:
        """One of LAVIS's heads: `llm_proj`, `t5_proj`, `opt_proj`, `vision_proj`, `text_proj` or `itm_head`."""
        return self._linear(states, name)

    def language_head(self, states: torch.Tensor) -> torch.Tensor:
        """Logits of the first stage's language-model head (`Qformer.cls`)."""
        head = "Qformer.cls.predictions"
        states = nn.functional.gelu(self._linear(states, f"{head}.transform.dense"))
        states = self._norm(states, f"{head}.transform.LayerNorm", _BERT_EPS)
        words, bias = f"{head}.decoder.weight", f"{head}.decoder.bias"
        words = words if words in self.tensors else "Qformer.bert.embeddings.word_embeddings.weight"
        bias = bias if bias in self.tensors else f"{head}.bias"
        return nn.functional.linear(states, self.weight(words), self.weight(bias))

    # --- pieces ---------------------------------------------------------------------------------------------------

    def _numbered(self, prefix: str) -> Iterator[str]:
        numbers = {int(name[len(prefix) :].split(".")[0]) for name in self.tensors if name.startswith(prefix)}
        return (f"{prefix}{number}." for number in sorted(numbers))

    def _norm(self, states: torch.Tensor, name: str, eps: float) -> torch.Tensor:
        weight, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return nn.functional.layer_norm(states, states.shape[-1:], weight, bias, eps)

    def _linear(self, states: torch.Tensor, name: str) -> torch.Tensor:
        bias = self.weight(f"{name}.bias") if f"{name}.bias" in self.tensors else None
        return nn.functional.linear(states, self.weight(f"{name}.weight"), bias)

    def _fused_attention(self, block: str, states: torch.Tensor) -> torch.Tensor:
        bias = None
        if f"{block}attn.q_bias" in self.tensors:
            query_bias, value_bias = self.weight(f"{block}attn.q_bias"), self.weight(f"{block}attn.v_bias")
            bias = torch.cat([query_bias, torch.zeros_like(query_bias), value_bias])
        fused = nn.functional.linear(states, self.weight(f"{block}attn.qkv.weight"), bias)
        query, key, value = fused.chunk(3, dim=-1)
        return self._linear(_attend(query, key, value, self.vision_heads), f"{block}attn.proj")

    def _attention(
        self, name: str, states: torch.Tensor, source: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        query = self._linear(states, f"{name}.self.query")
        key, value = self._linear(source, f"{name}.self.key"), self._linear(source, f"{name}.self.value")
        attended = _attend(query, key, value, self.qformer_heads, mask)
        return self._norm(
            self._linear(attended, f"{name}.output.dense") + states, f"{name}.output.LayerNorm", _BERT_EPS
        )

    def _feed_forward(self, layer: str, stream: str, states: torch.Tensor) -> torch.Tensor:
        inner = nn.functional.gelu(self._linear(states, f"{layer}intermediate{stream}.dense"))
        output = f"{layer}output{stream}"
        return self._norm(self._linear(inner, f"{output}.dense") + states, f"{output}.LayerNorm", _BERT_EPS)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention written out, of states (batch, tokens, heads * size)."""
    # [batch, heads, tokens, size]
    query, key, value = (states.unflatten(-1, (heads, -1)).transpose(1, 2) for states in (query, key, value))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


__all__ = ["LN_VISION_EPS", "LavisForward"]
