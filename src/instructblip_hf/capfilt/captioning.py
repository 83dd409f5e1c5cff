"""The captioner: several captions for each image, sampled and by beam search (BLIP, section 3.3; BLIP-2, section 3.4).

BLIP samples with p = 0.9, since beam search repeats the safe captions of its training data (its section 4.3); BLIP-2 takes
ten captions an image. Any generation model of this package can be the captioner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..models.language_models.adapter import padding_side
from ..utils.fingerprints import describe_model, fingerprint_of_processor
from .nucleus import KeyedNucleus, caption_draws


PROMPTS = {"blip-2": "a photo of"}
"""What captions begin with by family; `DEFAULT_PROMPT` for others."""
DEFAULT_PROMPT = "Describe the image."


@dataclass(frozen=True)
class CaptionOptions:
    """Which captions are made.

    Args:
        prompt (`str`, *optional*): What the model is asked, or what its captions go on from. By default "a photo of" for
            BLIP-2 and "Describe the image." for InstructBLIP. It is no part of the captions.
        sampled (`int`, *optional*, defaults to 10): Captions an image by nucleus sampling.
        beam (`int`, *optional*, defaults to 0): Captions an image by beam search, its best ones.
        num_beams (`int`, *optional*, defaults to 3): Beams; as many as `beam` at least.
        top_p (`float`, *optional*, defaults to 0.9): Of nucleus sampling.
        temperature (`float`, *optional*, defaults to 1.0): Of sampling.
        max_new_tokens (`int`, *optional*, defaults to 30): Longest caption.
        min_new_tokens (`int`, *optional*, defaults to 0): Shortest caption.
        seed (`int`, *optional*, defaults to 0): Of sampling. With it an image's captions are given.

    Raises:
        ValueError: If a number is out of its range, or no caption is asked for.
    """

    prompt: str | None = None
    sampled: int = 10
    beam: int = 0
    num_beams: int = 3
    top_p: float = 0.9
    temperature: float = 1.0
    max_new_tokens: int = 30
    min_new_tokens: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("sampled", 0),
            ("beam", 0),
            ("num_beams", 1),
            ("max_new_tokens", 1),
            ("min_new_tokens", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not self.sampled and not self.beam:
            raise ValueError("sampled and beam are both 0; a captioner must make at least one caption")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be positive")
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens is {self.min_new_tokens}, more than max_new_tokens {self.max_new_tokens}"
            )


class Captioner:
    """A model that makes captions.

    Args:
        model (`VisionLanguageModel`): A generation model of this package, in evaluation mode, on its device.
        processor (`ProcessorMixin`): Its processor.
        options (`CaptionOptions`, *optional*): Which captions.
        name (`str`, *optional*): Where the model was loaded from.

    Raises:
        ValueError: If the model has no language model.
    """

    def __init__(
        self, model: Any, processor: Any, options: CaptionOptions | None = None, name: str | None = None
    ) -> None:
        if not hasattr(model, "language_model"):
            raise ValueError(f"{type(model).__name__} has no language model, so it makes no captions")
        self.model, self.processor = model, processor
        self.options = options or CaptionOptions()
        self.name = name or str(model.config._name_or_path) or type(model).__name__
        own = self.options.prompt
        self.prompt = PROMPTS.get(model.config.model_type, DEFAULT_PROMPT) if own is None else own

    def facts(self) -> dict[str, Any]:
        """What the captions depend on, beside the images."""
        return {
            **describe_model(self.model, self.name),
            "processor": fingerprint_of_processor(self.processor),
            **asdict(self.options),
            "prompt": self.prompt,
        }

    @torch.no_grad()
    def captions(self, images: Sequence[Any], keys: Sequence[str]) -> list[list[str]]:
        """Captions of images: those of beam search, then the sampled ones.

        Args:
            images (`Sequence[PIL.Image.Image]`): Images.
            keys (`Sequence[str]`): What each is known by; sampling depends on it, on the seed and on the image.

        Returns:
            `list[list[str]]`: Captions of each image as the model gave them, some perhaps equal or empty.
        """
        options = self.options
        inputs = self.processor(
            images=[[image] for image in images],
            text=[self.processor.user_turn(self.prompt)] * len(images),
            return_tensors="pt",
            padding=True,
            padding_side=padding_side(self.model.config.is_encoder_decoder),
        ).to(self.model.device, self.model.dtype)
        captions: list[list[str]] = [[] for _ in images]
        if options.beam:
            beams = {"num_beams": max(options.num_beams, options.beam), "do_sample": False}
            self._add(captions, inputs, options.beam, beams)
        if options.sampled:
            draws = caption_draws(options.seed, keys, options.sampled, options.max_new_tokens)
            nucleus = KeyedNucleus(draws.to(self.model.device, torch.float32), options.top_p, options.temperature)
            # One token is left to sample, whatever else the checkpoint's configuration says of sampling.
            drawn = {"num_beams": 1, "do_sample": True, "logits_processor": [nucleus]}
            self._add(captions, inputs, options.sampled, drawn)
        return captions

    def _add(self, captions: list[list[str]], inputs: Any, count: int, decoding: dict[str, Any]) -> None:
        if self.options.min_new_tokens:
            decoding["min_new_tokens"] = self.options.min_new_tokens
        with torch.random.fork_rng():
            ids = self.model.generate(
                **inputs,
                return_full_text=False,
                **self.processor.generation_options(),
                num_return_sequences=count,
                max_new_tokens=self.options.max_new_tokens,
                **decoding,
            )  # [images * count, tokens]
        texts = self.processor.answers(ids)
        for image, of_image in enumerate(captions):
            of_image += [" ".join(text.split()) for text in texts[image * count : (image + 1) * count]]


__all__ = ["DEFAULT_PROMPT", "PROMPTS", "CaptionOptions", "Captioner"]
