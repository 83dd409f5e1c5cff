"""`VocabularyRankingPipeline`: candidate answers in the order of their likelihood (InstructBLIP, section 2.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers.pipelines.base import Pipeline

from ..models.ranking import label_scores
from ..models.recent_images import RecentImages
from ..utils.images import load_image
from ..utils.same_images import image_key
from .image_to_text import encoded_once, own_processor


@dataclass
class Candidates:
    """Answers to choose from, and the labels that they stand for.

    Attributes:
        texts (`list[str]`): What is scored.
        labels (`list[str]`): What is reported.
        label_of (`list[int]`): The place in `labels` of each text.
    """

    texts: list[str]
    labels: list[str]
    label_of: list[int]
    _ids: dict[bool, list[list[int]]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, candidates: Any) -> Candidates:
        """From a list of texts, each its own label, or from ``{label: [texts]}``.

        Raises:
            ValueError: If there is nothing to choose from, or something is no text.
        """
        groups = candidates if isinstance(candidates, Mapping) else None
        if groups is None:
            if isinstance(candidates, str) or not isinstance(candidates, Sequence):
                raise ValueError(
                    f"candidates must be a list of texts, or a dict of lists by label; got {candidates!r}"
                )
            groups = {}
            for text in candidates:
                if text in groups:
                    raise ValueError(f"the candidate {text!r} is given twice")
                groups[text] = [text]
        texts, label_of = [], []
        for place, (label, group) in enumerate(groups.items()):
            if isinstance(group, str) or not group:
                raise ValueError(f"the label {label!r} needs a list of texts that stand for it; got {group!r}")
            texts += group
            label_of += [place] * len(group)
        if not texts:
            raise ValueError("candidates is empty; there must be at least one")
        return cls(texts, list(groups), label_of)

    def ids(self, processor: Any, is_encoder_decoder: bool, add_prefix_space: bool) -> list[list[int]]:
        """Token ids of the texts, encoded once."""
        if add_prefix_space not in self._ids:
            self._ids[add_prefix_space] = processor.encode_candidates(
                self.texts, is_encoder_decoder, add_prefix_space=add_prefix_space
            )
        return self._ids[add_prefix_space]


class VocabularyRankingPipeline(Pipeline):
    """Which of some answers fits an image and a prompt, and how likely each is.

    Args:
        model (`VisionLanguageModel`): A model of this package.
        processor (`ProcessorMixin`): Its processor.
        recent ([`RecentImages`], *optional*): Keeps images encoded for the next prompt about them; by default one of the
            pipeline's own.
        kwargs: ``device``, ``batch_size`` and ``num_workers`` as for every pipeline, and what a call takes.

    Raises:
        ValueError: If the model cannot rank, or has no processor.

    Example:

    ```python
    >>> import instructblip_hf
    >>> from transformers import pipeline
    >>> ranker = pipeline("vocabulary-ranking", model=str(instructblip_hf.bundled_checkpoint()))
    >>> ranker("scene.png", prompt="what color is the circle ?", candidates=["red", "green", "blue"])
    ```
    """

    model: Any
    processor: Any

    _load_processor = None
    _load_image_processor = False  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_video_processor = False  # type: ignore[assignment]
    _load_tokenizer = False  # type: ignore[assignment]

    def __init__(self, *args: Any, recent: RecentImages | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not hasattr(self.model, "rank_candidates"):
            raise ValueError(
                f"vocabulary-ranking needs a model of instructblip_hf, got {type(self.model).__name__}: open it with "
                "instructblip_hf.AutoModelForVision2Seq"
            )
        self.processor = own_processor(self.processor, self.model)
        self.tokenizer = self.processor.tokenizer  # batches are padded as it says
        self.recent = recent if recent is not None else RecentImages(self.model, self.processor)

    def _sanitize_parameters(  # type: ignore[override]
        self,
        prompt: str | None = None,
        candidates: Any = None,
        top_k: int | None = None,
        length_penalty: float | None = None,
        reduction: str | None = None,
        chunk_size: int | None = None,
        timeout: float | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k is {top_k}; it must be at least 1")
        if candidates is not None:
            candidates = Candidates.of(candidates)
        return (
            _given(prompt=prompt, candidates=candidates, timeout=timeout),
            _given(length_penalty=length_penalty, chunk_size=chunk_size),
            _given(top_k=top_k, reduction=reduction),
        )

    def __call__(self, inputs: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Rank candidate answers about images.

        Args:
            inputs (`str`, `PIL.Image.Image`, `dict`, list, generator or dataset; also as ``images=``):
                An image as URL, path, base64, data URI or PIL image; or ``{"image": ...}`` with a ``prompt`` and
                ``candidates`` of its own; or many of them.
            prompt (`str`, *optional*): For images without one of their own; by default empty.
            candidates (`list[str]` or `dict[str, list[str]]`):
                For images without ones of their own: answers, or for each label the answers that stand for it, like
                ``{"true": ["yes", "true"], "false": ["no", "false"]}``.
            top_k (`int`, *optional*): How many of the best are returned; by default all.
            length_penalty (`float`, *optional*, defaults to 0.0): As in ``model.rank_candidates``.
            reduction (`str`, *optional*, defaults to `"sum"`):
                A label's probability is the `"sum"` of its answers', or that of the best, `"max"`.
            chunk_size (`int`, *optional*, defaults to 256): As in ``model.rank_candidates``.
            timeout (`float`, *optional*): Seconds to wait for an image from the web; by default no limit.
            batch_size (`int`, *optional*, defaults to 1): Images to run at once.
            num_workers (`int`, *optional*, defaults to 0): Processes that load and prepare images.

        Returns:
            `list[dict]`: Best first, ``{"score", "label", "log_probability"}``: the probability among the candidates,
            and the log-probability as the model's answer, in nats. For many images a list (or iterator) of them.

        Raises:
            ValueError: If there is no image, no candidate, or an image cannot be read.
        """
        if "images" in kwargs:
            inputs = kwargs.pop("images")
        if inputs is None:
            raise ValueError("inputs (or images=) is missing: vocabulary-ranking needs at least one image")
        if isinstance(inputs, list) and not inputs:
            return []
        return super().__call__(inputs, **kwargs)

    def preprocess(  # type: ignore[override]
        self, item: Any, prompt: str = "", candidates: Candidates | None = None, timeout: float | None = None
    ) -> dict[str, Any]:
        if isinstance(item, Mapping):
            unknown = sorted({*item} - {"image", "prompt", "candidates"})
            if unknown or "image" not in item:
                raise ValueError(
                    f"an input has {sorted(item)}; it must have image, and may have prompt and candidates"
                )
            prompt = item.get("prompt", prompt)
            candidates = Candidates.of(item["candidates"]) if "candidates" in item else candidates
            item = item["image"]
        if candidates is None:
            raise ValueError("candidates is missing: give them in the call, or with each image")
        if not isinstance(prompt, str):
            raise ValueError(f"prompt must be one string, got {type(prompt).__name__}")
        image = load_image(item, timeout=timeout)
        inputs = self.processor(images=image, text=prompt, return_tensors="pt")
        # As training joins prompt and answer.
        needs_space = bool(prompt) and not prompt[-1].isspace()
        candidates.ids(self.processor, self.model.config.is_encoder_decoder, needs_space)
        return {
            **inputs.to(self.dtype),
            "candidates": candidates,
            "needs_space": needs_space,
            "image_key": image_key(image),
        }

    def _forward(self, model_inputs: dict[str, Any], **options: Any) -> dict[str, Any]:  # type: ignore[override]
        inputs = dict(model_inputs)
        candidates, needs_space = inputs.pop("candidates"), inputs.pop("needs_space")
        inputs.update(encoded_once(self.recent, inputs.pop("image_key"), inputs.pop("pixel_values")))
        is_batch = isinstance(candidates, list)
        groups = list(zip(candidates, needs_space)) if is_batch else [(candidates, needs_space)]
        encoder_decoder = self.model.config.is_encoder_decoder
        ids = [group.ids(self.processor, encoder_decoder, space) for group, space in groups]
        is_shared = all(row == ids[0] for row in ids[1:])
        scores = self.model.rank_candidates(candidates=ids[0] if is_shared else ids, **inputs, **options).scores
        return {"scores": scores, "candidates": candidates}

    def postprocess(  # type: ignore[override]
        self, model_outputs: dict[str, Any], top_k: int | None = None, reduction: str = "sum"
    ) -> list[dict[str, Any]]:
        candidates = model_outputs["candidates"]
        scores = model_outputs["scores"][:, : len(candidates.texts)]  # [1, texts]
        by_label = label_scores(scores, candidates.label_of, reduction)[0]  # [labels]
        probabilities = by_label.softmax(0)
        order = by_label.argsort(descending=True, stable=True).tolist()
        return [
            {
                "score": probabilities[place].item(),
                "label": candidates.labels[place],
                "log_probability": by_label[place].item(),
            }
            for place in order[:top_k]
        ]


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


__all__ = ["Candidates", "VocabularyRankingPipeline"]
