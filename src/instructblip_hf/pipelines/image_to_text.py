"""`ImageToTextPipeline`: the ``"image-to-text"`` task of transformers 4 for transformers 5, InstructBLIP included.

What the task took in 4.57 it takes here: images as URL, path, base64, data URI or PIL image, alone, in lists,
generators and datasets. One difference is deliberate: ``generated_text`` is the completion alone, also for models
whose ``generate`` returns the prompt in front of it, and white space at its ends is dropped.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig
from transformers.pipelines.base import Pipeline

from ..models.instructblip.processing_instructblip import InstructBlipProcessor
from ..models.modeling_base import VisionLanguageModel
from ..models.recent_images import RecentImages
from ..utils.images import load_image
from ..utils.same_images import image_key


_MAX_NEW_TOKENS = 256


class ImageToTextPipeline(Pipeline):
    """Text for an image, or for an image and a prompt.

    Works with InstructBLIP, BLIP-2 and LLaVA of this package, and with stock transformers' InstructBLIP, BLIP, BLIP-2,
    LLaVA, GIT, Pix2Struct and vision-encoder-decoder models. A prompt goes to the model as it stands, so a chat model's
    needs its turns: ``processor.user_turn(question)`` writes them (or use the ``image-text-to-text`` pipeline with
    messages).

    Args:
        model (`PreTrainedModel`): The model.
        processor (`ProcessorMixin`, *optional*): Its processor; needed for InstructBLIP, BLIP-2 and LLaVA.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): For models without a processor.
        image_processor (`BaseImageProcessor`, *optional*): For models without a processor.
        kwargs: ``device``, ``batch_size`` and ``num_workers`` as for every pipeline, and what a call takes.

    Raises:
        ValueError: If there is nothing to prepare images with, or InstructBLIP has no processor.

    Example:

    ```python
    >>> import instructblip_hf
    >>> from transformers import pipeline
    >>> pipe = pipeline("image-to-text", model=str(instructblip_hf.bundled_checkpoint()))
    >>> pipe("scene.png", prompt="what color is the circle ?", max_new_tokens=8)  # [{"generated_text": ...}]
    ```
    """

    model: Any
    processor: Any
    tokenizer: Any
    image_processor: Any

    _load_processor = None
    _load_image_processor = None
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_video_processor = False  # type: ignore[assignment]
    _load_tokenizer = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        model_type = self.model.config.model_type
        self.processor = own_processor(self.processor, self.model)
        if self.processor is not None:
            self.tokenizer = getattr(self.processor, "tokenizer", self.tokenizer)
            self.image_processor = getattr(self.processor, "image_processor", self.image_processor)
        if self.image_processor is None or self.tokenizer is None:
            raise ValueError(
                f"image-to-text with a {model_type} model needs processor=, or tokenizer= and image_processor=; none "
                f"was given or could be loaded from {self.model.name_or_path!r}"
            )
        is_ours = isinstance(self.model, VisionLanguageModel)
        self.recent = RecentImages(self.model, self.processor) if is_ours else None

    def _sanitize_parameters(
        self,
        max_new_tokens: int | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        prompt: str | None = None,
        timeout: float | None = None,
        **generation_parameters: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        known = {*vars(GenerationConfig()), "generation_config"}
        unknown = sorted(name for name in generation_parameters if name not in known or name.startswith("_"))
        if unknown:
            raise TypeError(
                f"image-to-text got unexpected {', '.join(unknown)}; allowed are images, prompt, max_new_tokens, "
                "generate_kwargs, timeout, batch_size, num_workers and parameters of GenerationConfig"
            )
        forward = {**generation_parameters, **(generate_kwargs or {})}
        if max_new_tokens is not None:
            if "max_new_tokens" in forward:
                raise ValueError(
                    "max_new_tokens is given twice, as an argument and in generate_kwargs; give it in one place"
                )
            forward["max_new_tokens"] = max_new_tokens
        preprocess: dict[str, Any] = {}
        if prompt is not None:
            if not isinstance(prompt, str):
                raise ValueError(f"prompt must be one string, for all images of the call, got {type(prompt).__name__}")
            preprocess["prompt"] = prompt
        if timeout is not None:
            preprocess["timeout"] = timeout
        return preprocess, forward, {}

    def __call__(self, inputs: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Describe images, or answer a prompt about them.

        Args:
            inputs (`str`, `PIL.Image.Image`, list, generator or dataset; also as ``images=``):
                An image as URL, path, base64, data URI or PIL image, or many of them. Lists come back as a list,
                generators and datasets (``KeyDataset``, any ``torch.utils.data.Dataset``) as an iterator. A model of this
                package does not encode an image again for a call that soon follows.
            prompt (`str`, *optional*): One prompt for all images.
            max_new_tokens (`int`, *optional*, defaults to 256):
                Longest completion, in tokens; the model's own generation configuration comes before the default.
            generate_kwargs (`dict`, *optional*): For ``generate``.
            timeout (`float`, *optional*): Seconds to wait for an image from the web; by default no limit.
            batch_size (`int`, *optional*, defaults to 1): Images to run at once.
            num_workers (`int`, *optional*, defaults to 0): Processes that load and prepare images.

        Returns:
            `list[dict]`: ``[{"generated_text": str}]`` with one entry a returned sequence; for many images a list
            (or iterator) of such lists.

        Raises:
            ValueError: If there is no image, an image cannot be read, ``prompt`` is not one string, the model takes
                no prompt, or ``max_new_tokens`` is given twice.
            TypeError: If an argument is unknown.
        """
        if "images" in kwargs:
            inputs = kwargs.pop("images")
        if inputs is None:
            raise ValueError("inputs (or images=) is missing: image-to-text needs at least one image")
        if isinstance(inputs, list) and not inputs:
            return []
        return super().__call__(inputs, **kwargs)

    def preprocess(  # type: ignore[override]
        self, image: Any, prompt: str | None = None, timeout: float | None = None
    ) -> Any:
        image = load_image(image, timeout=timeout)
        model_type = self.model.config.model_type
        if model_type == "vision-encoder-decoder" and prompt is not None:
            raise ValueError("prompt was given, but a vision-encoder-decoder model describes images without one")
        if model_type == "pix2struct":
            header = {} if prompt is None else {"header_text": prompt}
            model_inputs = self.image_processor(images=image, return_tensors="pt", **header)
        elif model_type == "git" or self.processor is None:
            model_inputs = self.image_processor(images=image, return_tensors="pt")
            if prompt is not None:
                model_inputs.update(self._prompt_alone(prompt))
        else:
            if prompt is None and model_type == "instructblip":
                prompt = ""  # the Q-Former reads an instruction in any case, as LAVIS's default prompt
            text = {} if prompt is None else {"text": prompt}
            model_inputs = self.processor(images=image, return_tensors="pt", **text)
        if self.recent is not None:
            model_inputs["image_key"] = image_key(image)
        return model_inputs.to(self.dtype)

    def _prompt_alone(self, prompt: str) -> dict[str, torch.Tensor]:
        if self.model.config.model_type != "git":
            return dict(self.tokenizer(prompt, return_tensors="pt"))
        # GIT continues [CLS] and the prompt; the tokenizer would end it with [SEP].
        ids = [self.tokenizer.cls_token_id, *self.tokenizer(prompt, add_special_tokens=False).input_ids]
        return {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}

    def _forward(self, model_inputs: Any, **generate_kwargs: Any) -> dict[str, torch.Tensor]:  # type: ignore[override]
        prompt_ids = model_inputs.get("input_ids")
        rows = len(prompt_ids if prompt_ids is not None else model_inputs["pixel_values"])
        if self.recent is not None:
            model_inputs = dict(model_inputs)
            kept = encoded_once(self.recent, model_inputs.pop("image_key"), model_inputs.pop("pixel_values"))
            model_inputs.update(kept)
        outputs = self.model.generate(**model_inputs, **self._generation_arguments(generate_kwargs))
        sequences = outputs if isinstance(outputs, torch.Tensor) else outputs.sequences
        if prompt_ids is not None:
            sequences = sequences[:, self._prompt_length(sequences, prompt_ids) :]
        # [images, sequences an image, tokens], so that a batch can be taken apart by image
        return {"sequences": sequences.reshape(rows, -1, sequences.shape[-1])}

    def _generation_arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        """Add the task's defaults to what the call, its configuration and the model's configuration leave open."""
        given = dict(given)
        config = given.pop("generation_config", None)
        settled = {**self.model.generation_config.to_diff_dict()}
        if config is not None:
            settled.update(config.to_diff_dict())
        settled.update(given)
        defaults: dict[str, Any] = {}
        if settled.get("max_new_tokens") is None and settled.get("max_length") is None:
            defaults["max_new_tokens"] = _MAX_NEW_TOKENS
        if settled.get("pad_token_id") is None and self.tokenizer.pad_token_id is not None:
            defaults["pad_token_id"] = self.tokenizer.pad_token_id
        if config is None:
            return {**defaults, **given}
        # generate() deprecates a configuration together with single parameters.
        config = copy.deepcopy(config)
        not_in_config = config.update(**defaults, **given)
        return {"generation_config": config, **not_in_config}

    def _prompt_length(self, sequences: torch.Tensor, prompt_ids: torch.Tensor) -> int:
        """Tokens at the start of every sequence that repeat the prompt; 0 for sequence-to-sequence models."""
        first, length = 0, prompt_ids.shape[1]
        if self.model.config.model_type == "blip":
            first, length = 1, length - 1  # BLIP puts its own first token and leaves out [SEP]
        repeated = prompt_ids.repeat_interleave(len(sequences) // len(prompt_ids), dim=0).to(sequences.device)
        is_repeated = torch.equal(sequences[:, first:length], repeated[:, first:length])
        return length if is_repeated else 0

    def postprocess(self, model_outputs: dict[str, torch.Tensor]) -> list[dict[str, str]]:  # type: ignore[override]
        sequences = model_outputs["sequences"].flatten(0, 1)
        decode = (self.processor if self.processor is not None else self.tokenizer).decode
        return [{"generated_text": decode(ids, skip_special_tokens=True).strip()} for ids in sequences]

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Save model and processor, ready for ``pipeline("image-to-text", model=save_directory)``.

        Args:
            save_directory (`str` or `os.PathLike`): Folder, made if it does not exist.
            kwargs: For the model's and the processor's ``save_pretrained``.
        """
        super().save_pretrained(save_directory, **kwargs)
        if self.processor is not None:
            self.processor.save_pretrained(save_directory, **kwargs)


def encoded_once(recent: RecentImages, keys: str | list[str], pixel_values: torch.Tensor) -> dict[str, Any]:
    """Inputs of the model for the images of a batch, of which only those are encoded that are not there."""
    occurrences = [keys] if isinstance(keys, str) else list(keys)
    places = {key: place for place, key in reversed(list(enumerate(occurrences)))}
    distinct = list(dict.fromkeys(occurrences))
    index = [places[key] for key in distinct]
    inputs = recent.inputs(occurrences, distinct, lambda wanted: pixel_values[[index[place] for place in wanted]])
    return {**inputs, "image_index": inputs["image_index"].to(pixel_values.device)}


def own_processor(processor: Any, model: Any) -> Any:
    """Our processor over the components of stock's, which `AutoProcessor` finds in folders of InstructBLIP and LLaVA.

    Of other models, stock's LLaVA among them, it is the one that is given.
    """
    if hasattr(model, "adopt_processor"):
        return model.adopt_processor(processor)
    if model.config.model_type != "instructblip":
        return processor
    if processor is None:
        raise ValueError(
            "InstructBLIP needs processor=: none was given or could be loaded; "
            "InstructBlipProcessor.from_pretrained(folder) says why"
        )
    qformer_tokenizer = processor.qformer_tokenizer
    if qformer_tokenizer.cls_token is None and model.name_or_path:
        # Where transformers finds no Q-Former tokenizer it takes the language model's, with no more than a warning;
        # early 5.x does so for a model that has been downloaded before.
        qformer_tokenizer = AutoTokenizer.from_pretrained(
            model.name_or_path, subfolder="qformer_tokenizer", revision=getattr(model.config, "_commit_hash", None)
        )
    if isinstance(processor, InstructBlipProcessor) and qformer_tokenizer is processor.qformer_tokenizer:
        return processor
    return InstructBlipProcessor(
        image_processor=processor.image_processor,
        tokenizer=processor.tokenizer,
        qformer_tokenizer=qformer_tokenizer,
        num_query_tokens=processor.num_query_tokens or model.config.num_query_tokens,
        chat_template=processor.chat_template,
        max_qformer_length=getattr(processor, "max_qformer_length", None),
    )


__all__ = ["ImageToTextPipeline", "encoded_once", "own_processor"]
