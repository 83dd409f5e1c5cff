"""What retrieval asks of a BLIP-2 model: features of images and texts, and how well pairs of them match.

Captions are worded as in LAVIS, where these models were trained (`blip_caption` of its text processors): lower case, some
punctuation left out, at most 50 words; then at most 35 tokens. Features are compared in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..utils.caption_text import clean_caption
from ..utils.fingerprints import describe_model, fingerprint_of_processor
from ..utils.images import load_image


MAX_TEXT_TOKENS = 35


class RetrievalEncoder:
    """A model with its processor.

    Args:
        model (`Blip2ForImageTextRetrieval`): In evaluation mode, on its device; or another model with its methods
            `get_image_features`, `get_text_features` and `get_matching_logits`.
        processor (`Blip2Processor`): Its processor.
        name (`str`, *optional*): Where the model was loaded from.
    """

    def __init__(self, model: Any, processor: Any, name: str | None = None) -> None:
        missing = [
            method
            for method in ("get_image_features", "get_text_features", "get_matching_logits")
            if not hasattr(model, method)
        ]
        if missing:
            raise ValueError(
                f"{type(model).__name__} has no {missing[0]}: retrieval needs a Blip2ForImageTextRetrieval, "
                "like Salesforce/blip2-itm-vit-g"
            )
        self.model, self.processor = model, processor
        self.name = name or str(model.config._name_or_path) or type(model).__name__

    def facts(self) -> dict[str, str]:
        """What features depend on beside image and text, for `Facts`."""
        about = describe_model(self.model, self.name)
        return {
            "model": self.name,
            "fingerprint": about["fingerprint"],
            "computed_in": about["dtype"],
            "processor": fingerprint_of_processor(self.processor),
        }

    def pixels(self, images: Sequence[Any]) -> torch.Tensor:
        """Images, of whatever `load_image` takes, as the model reads them: shape (images, 3, height, width)."""
        opened = [load_image(image) for image in images]
        values: torch.Tensor = self.processor.image_processor(opened, return_tensors="pt")["pixel_values"]
        return values

    @torch.no_grad()
    def encode_images(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and states of images.

        Args:
            pixel_values (`torch.Tensor`): Of `pixels`.

        Returns:
            Features of shape (images, queries, size), float32 of length 1, on the CPU, and states for `match`, which
            stay on the model's device.
        """
        output = self.model.get_image_features(pixel_values=pixel_values.to(self.model.device, self.model.dtype))
        return _unit(output.image_embeds), output.last_hidden_state

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Features of texts: shape (texts, size), float32 of length 1, on the CPU."""
        tokens = self._tokens(texts)
        return _unit(self.model.get_text_features(**tokens).text_embeds)

    @torch.no_grad()
    def match(
        self, states: torch.Tensor, texts: Sequence[str], image_index: torch.Tensor | None = None
    ) -> torch.Tensor:
        """How well images and texts match, pair by pair: the matching head's logit for a match.

        Args:
            states (`torch.Tensor`): A row a pair, or an image where there is an `image_index`; of `encode_images`.
            texts (`Sequence[str]`): A text a pair.
            image_index (`torch.LongTensor`, *optional*): Shape (pairs,): the row of `states` of each pair.

        Returns:
            `torch.Tensor`: Shape (pairs,), float32, on the CPU.
        """
        return self._matching_logits(states, texts, image_index)[:, 1]

    @torch.no_grad()
    def match_probability(
        self, states: torch.Tensor, texts: Sequence[str], image_index: torch.Tensor | None = None
    ) -> torch.Tensor:
        """How probable the matching head finds it that images and texts belong together; all as for `match`."""
        return self._matching_logits(states, texts, image_index).softmax(-1)[:, 1]

    def _matching_logits(
        self, states: torch.Tensor, texts: Sequence[str], image_index: torch.Tensor | None
    ) -> torch.Tensor:
        if image_index is not None:
            image_index = image_index.to(states.device)
        logits: torch.Tensor = self.model.get_matching_logits(
            image_states=states, image_index=image_index, **self._tokens(texts)
        )  # [pairs, 2]
        return logits.float().cpu()

    def _tokens(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        cleaned = [clean_caption(text) for text in texts]
        tokens = self.processor.tokenizer(
            cleaned,
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=MAX_TEXT_TOKENS,
            return_tensors="pt",
        )
        return {name: tokens[name].to(self.model.device) for name in ("input_ids", "attention_mask")}


def _unit(features: torch.Tensor) -> torch.Tensor:
    # In half precision their length is 1 to three digits only.
    return torch.nn.functional.normalize(features.float(), dim=-1).cpu()


__all__ = ["MAX_TEXT_TOKENS", "RetrievalEncoder", "clean_caption"]
