"""The models that are timed: stock transformers' and this package's on the same tensors, of random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers

from instructblip_hf import InstructBlipConfig, InstructBlipForConditionalGeneration


QUERIES, IMAGE_TOKEN = 32, 5


@dataclass(frozen=True)
class Size:
    """Layers of ViT-g, width and layers of a LLaMA, width of the rest if not the true one."""

    vision_layers: int
    text_width: int
    text_layers: int
    width: int | None = None


SIZES = {
    "tiny": Size(2, 64, 2, 64),
    "mid": Size(4, 768, 12),
    "deep": Size(39, 512, 4),
    "7b": Size(39, 4096, 32),
}
"""`mid`: 4 layers of ViT-g and a LLaMA of 134M; `deep`: all 39 and one of 46M; `7b`: Vicuna-7B's shape; `tiny`: for a test."""


def configuration(size: Size, image_token: int = IMAGE_TOKEN) -> dict[str, Any]:
    """Vision tower and Q-Former of true widths (the Q-Former whole, 186M) but for `tiny`; no dropout."""
    vision: dict[str, Any] = {"num_hidden_layers": size.vision_layers, "initializer_range": 0.02}
    qformer: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    if size.width:
        shape = {"hidden_size": size.width, "num_attention_heads": 4, "intermediate_size": 2 * size.width}
        vision |= shape
        qformer |= {**shape, "num_hidden_layers": 4, "encoder_hidden_size": size.width, "vocab_size": 1000}
    return {
        "vision_config": vision,
        "qformer_config": qformer,
        "text_config": {
            "model_type": "llama",
            "vocab_size": 1000 if size.width else 32000,
            "hidden_size": size.text_width,
            "intermediate_size": 11008 if size.text_width == 4096 else size.text_width * 8 // 3,
            "num_hidden_layers": size.text_layers,
            "num_attention_heads": size.text_width // (128 if size.text_width == 4096 else 64),
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        "num_query_tokens": QUERIES,
        "image_token_index": image_token,
    }


@dataclass
class Pair:
    """Both models; they hold the same parameters, so that casting one casts both."""

    stock: Any
    ours: Any

    @property
    def modules(self) -> tuple[torch.nn.Module, ...]:
        return (self.stock, self.ours)


def build(size: Size, device: str) -> Pair:
    """Both models in evaluation mode."""
    torch.manual_seed(0)
    config = configuration(size)
    with torch.device(device):
        stock = transformers.InstructBlipForConditionalGeneration(transformers.InstructBlipConfig(**config))
    with torch.device("meta"):
        ours = InstructBlipForConditionalGeneration(InstructBlipConfig(**configuration(size)))
    share(stock, ours)
    with torch.no_grad():
        stock.query_tokens.normal_(std=0.02)
    return Pair(stock.eval(), ours.eval())


def share(stock: torch.nn.Module, ours: torch.nn.Module) -> None:
    """Puts the parameters and buffers of one model into the other.

    Raises:
        KeyError: If they have others by name.
    """
    theirs = {**dict(stock.named_parameters(remove_duplicate=False)), **dict(stock.named_buffers())}
    for name, module in ours.named_modules():
        for kind in (module._parameters, module._buffers):
            for own in kind:
                if kind[own] is not None:
                    kind[own] = theirs[f"{name}.{own}" if name else own]


def image_tensor(images: int, device: str, size: int = 224) -> torch.Tensor:
    """Pixels of drawn images, shape (images, 3, size, size)."""
    generator = torch.Generator().manual_seed(images)
    return torch.randn(images, 3, size, size, generator=generator).to(device)


def text_tensors(
    rows: int, tokens: int, device: str, name: str = "input_ids", vocabulary: int = 1000
) -> dict[str, torch.Tensor]:
    """Token ids and mask of rows of a length."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(10, vocabulary, (rows, tokens), generator=generator).to(device)
    prefix = name.removesuffix("input_ids")
    return {name: ids, f"{prefix}attention_mask": torch.ones_like(ids)}


def ragged_text(rows: int, mean: float, most: int, device: str) -> dict[str, torch.Tensor]:
    """Token ids and mask of rows of 4 to ``most`` tokens, padded to the longest."""
    generator = torch.Generator().manual_seed(2)
    lengths = (4 - (mean - 4) * torch.rand(rows, generator=generator).log()).round().clamp(max=most).int()
    lengths[0] = most
    ids = torch.randint(10, 1000, (rows, most), generator=generator)
    mask = (torch.arange(most) < lengths.unsqueeze(1)).long()
    return {"input_ids": (ids * mask).to(device), "attention_mask": mask.to(device)}


def prompt(rows: int, tokens: int, device: str) -> dict[str, torch.Tensor]:
    """A prompt of an image's placeholders and ``tokens`` of text, and the same text for the Q-Former."""
    text = text_tensors(rows, tokens, device)
    placeholders = torch.full((rows, QUERIES), IMAGE_TOKEN, device=device)
    ids = torch.cat([placeholders, text["input_ids"]], dim=1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "qformer_input_ids": text["input_ids"],
        "qformer_attention_mask": text["attention_mask"],
    }
