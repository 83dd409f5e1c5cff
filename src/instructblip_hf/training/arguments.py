"""What a recipe can say, section by section, as dataclasses. Importing this loads neither torch nor transformers.

The section ``training`` is `transformers.TrainingArguments`.
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ..data.sources.shapes_world import ShapesWorld


_HEADS = ("embeddings", "vision_projection", "text_projection", "itm_head", "temp", "cls")

COMPONENTS = (
    *("vision_model", "query_tokens", "qformer", "language_projection", "language_model"),
    *("vision_tower", "multi_modal_projector"),
    *_HEADS,
)
"""Top-level components of the models in this package, in the order data flows through them, LLaVA's own, and those of
BLIP-2's first stage."""

PROJECTORS = ("mlp", "linear", "qformer")
"""What LLaVA's connector may be."""

DTYPES = ("float32", "bfloat16", "float16", "auto")

AUGMENTATIONS = ("crop_and_flip",)
"""What ``data.augmentation`` may do to images."""

FEATURE_DTYPES = ("float32", "bfloat16", "float16")

QUANTIZATIONS = ("nf4", "int8")
"""How ``model.quantization`` may load the language model."""

SAVES = ("merged", "adapter")
"""What ``freezing.save`` may leave behind."""


WORDS = ("frozen", "train", "lora")
"""What a policy can say about a component."""

_CONNECTOR = {"query_tokens": "train", "qformer": "train", "language_projection": "train"}
# The released code keeps the last layer norm outside of the frozen tower.
_FROZEN_TOWER = {"vision_model": "frozen", "vision_model.post_layernorm": "train"}
_INSTRUCTBLIP = {**_FROZEN_TOWER, **_CONNECTOR, "language_model": "frozen"}
_BLIP2_STAGE1 = {"query_tokens": "train", "qformer": "train", **dict.fromkeys(_HEADS, "train")}

FREEZING_PRESETS: Mapping[str, Mapping[str, str]] = types.MappingProxyType(
    {
        "instructblip": _INSTRUCTBLIP,
        "instructblip-strict": {"vision_model": "frozen", **_CONNECTOR, "language_model": "frozen"},
        "finetuning": _INSTRUCTBLIP,
        "blip2-stage1": {**_FROZEN_TOWER, **_BLIP2_STAGE1},
        "blip2-stage2": _INSTRUCTBLIP,
        "blip2-finetuning": {"vision_model": "train", **_CONNECTOR, "language_model": "frozen"},
        "blip2-retrieval-finetuning": {"vision_model": "train", **_BLIP2_STAGE1},
        "llava-stage1": {"vision_tower": "frozen", "multi_modal_projector": "train", "language_model": "frozen"},
        "llava-stage2": {"vision_tower": "frozen", "multi_modal_projector": "train", "language_model": "train"},
        "all": {"": "train"},
    }
)
"""Policies by name, for the module trees of published checkpoints: InstructBLIP's and BLIP-2's (``vision_model``,
``query_tokens``, ``qformer``, ``language_projection``, ``language_model``), that of BLIP-2's first stage, which has heads
in place of a language model, and LLaVA's. ``instructblip-strict`` leaves the vision tower untouched as a whole, which is
what training on image features that were computed beforehand needs; ``finetuning`` on one dataset trains what
instruction tuning trains (Dai et al. 2023, section 3.5)."""


@dataclass(frozen=True)
class FreezingPolicy:
    """What trains, as it is written in a recipe.

    Args:
        preset (`str`, *optional*, defaults to `"instructblip"`):
            One of `FREEZING_PRESETS`, the ground that `components` changes; `None` starts from everything frozen.
        components (`Mapping[str, str]`, *optional*):
            A word of `WORDS` for each dotted component name.
        lora_rank (`int`, *optional*, defaults to 16): Rank of the LoRA update.
        lora_alpha (`int`, *optional*, defaults to 32): The update is scaled by `lora_alpha / lora_rank`.
        lora_dropout (`float`, *optional*, defaults to 0.05): Dropout before the LoRA update.
        lora_target_modules (`list[str]`, *optional*):
            Last parts of the names of the linear layers that get an update. All linear layers inside the components
            marked ``lora`` when not given.
        frozen_dropout (`list[str]`, *optional*):
            Frozen components that stay in training mode, so that their dropout is on, by dotted name. None by
            default; ``language_model`` is what LAVIS does, whose frozen T5 drops out 0.1 in training.
        save (`str`, *optional*):
            What a LoRA run leaves behind, one of `SAVES`: a whole model with the updates added to its weights, or an
            adapter in PEFT's format with all that trained. By default ``merged``, and ``adapter`` where the language
            model is quantised. Checkpoints on the way hold the same weights as the adapter, or those of the whole model.

    Raises:
        ValueError: For an unknown preset or word, or a LoRA setting out of range.
    """

    preset: str | None = field(
        default="instructblip",
        metadata={"help": "Named policy to start from; null starts from everything frozen."},
    )
    components: dict[str, str] = field(
        default_factory=dict, metadata={"help": "frozen, train or lora for each dotted component name."}
    )
    lora_rank: int = field(default=16, metadata={"help": "Rank of the LoRA update."})
    lora_alpha: int = field(default=32, metadata={"help": "The LoRA update is scaled by lora_alpha / lora_rank."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before the LoRA update."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Linear layers with an update; all of the lora components if not given."}
    )
    frozen_dropout: list[str] = field(
        default_factory=list, metadata={"help": "Frozen components whose dropout stays on in training."}
    )
    save: str | None = field(
        default=None,
        metadata={"help": "merged or adapter: what a LoRA run leaves behind; fitting the model by default."},
    )

    def __post_init__(self) -> None:
        if self.save is not None and self.save not in SAVES:
            raise ValueError(f"save is {self.save!r}; allowed are: {', '.join(SAVES)}")
        if self.save == "adapter" and not self.has_lora:
            raise ValueError("save is 'adapter', but no component is marked lora; a PEFT adapter needs one")
        if self.preset is not None and self.preset not in FREEZING_PRESETS:
            raise ValueError(f"preset is {self.preset!r}; there are: {', '.join(FREEZING_PRESETS)}")
        for name, word in self.components.items():
            if word not in WORDS:
                raise ValueError(f"component {name!r} is marked {word!r}; allowed are: {', '.join(WORDS)}")
        if self.lora_rank < 1:
            raise ValueError(f"lora_rank is {self.lora_rank}; it must be at least 1")
        if self.lora_alpha < 1:
            raise ValueError(f"lora_alpha is {self.lora_alpha}; it must be at least 1")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout is {self.lora_dropout}; it must be at least 0 and below 1")

    @property
    def has_lora(self) -> bool:
        """Whether a component gets LoRA updates."""
        return "lora" in self.components.values()

    def saves_adapter(self, is_quantized: bool) -> bool:
        """Whether what trained is saved as an adapter.

        Raises:
            ValueError: If `save` is ``merged`` and the weights to be added to are quantised.
        """
        if self.save == "merged" and is_quantized and self.has_lora:
            raise ValueError(
                "save is 'merged', but updates cannot be added to quantised weights: leave save out, and merge the "
                "adapter with the unquantised model afterwards (instructblip merge)"
            )
        return self.has_lora and (self.save == "adapter" or is_quantized)

    @classmethod
    def of(cls, value: str | Mapping[str, str] | FreezingPolicy) -> FreezingPolicy:
        """A policy from a preset's name, from a mapping component -> word (the rest is frozen), or as it is."""
        if isinstance(value, FreezingPolicy):
            return value
        if isinstance(value, str):
            return cls(preset=value)
        if isinstance(value, Mapping):
            return cls(preset=None, components=dict(value))
        raise TypeError(
            f"a freezing policy is a preset's name, a mapping component -> word or a FreezingPolicy, "
            f"not {type(value).__name__}"
        )


@dataclass(frozen=True)
class OptimizationArguments:
    """Which learning rates differ from ``training.learning_rate``. All follow the same schedule, in proportion.

    Args:
        learning_rates (`dict[str, float]`, *optional*):
            Learning rate for each regular expression, searched for in the names of parameters that train; of those
            that match the first counts.
        layer_decay (`float`, *optional*):
            Factor on the learning rate from one block of the vision tower to the one below, as BLIP-2's finetuning
            has it; 0.9 or 0.95 is common. Needs a vision tower that trains.

    Raises:
        ValueError: For a pattern that is no regular expression, or a number out of range.
    """

    learning_rates: dict[str, float] = field(
        default_factory=dict, metadata={"help": "Learning rate for each regular expression on parameter names."}
    )
    layer_decay: float | None = field(
        default=None, metadata={"help": "Factor on the learning rate from one vision block to the one below."}
    )

    def __post_init__(self) -> None:
        for pattern, rate in self.learning_rates.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"learning_rates has {pattern!r}, which is no regular expression: {error}") from error
            if not rate > 0:
                raise ValueError(
                    f"learning_rates has {rate} for {pattern!r}; it must be above 0 (what is not to train is frozen)"
                )
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is {self.layer_decay}; it must be above 0 and at most 1")


@dataclass(frozen=True)
class EvaluationArguments:
    """Tasks of the protocol that are run at every evaluation of a training, see ``docs/evaluation.md``.

    Args:
        tasks (`list[str]`): Their names.
        root (`str`): Folder with a folder of official files for each dataset.
        limit (`int`, *optional*): Only the first rows of each split.
        batch_size (`int`, *optional*, defaults to 8): Rows answered at once.

    Raises:
        ValueError: For no task, or a number below 1.
    """

    tasks: list[str] = field(metadata={"help": "Names of tasks of the protocol."})
    root: str = field(metadata={"help": "Folder with a folder of official files for each dataset."})
    limit: int | None = field(default=None, metadata={"help": "Only the first rows of each split."})
    batch_size: int = field(default=8, metadata={"help": "Rows answered at once."})

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("tasks is empty; there must be at least one")
        for name in ("limit", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")


@dataclass(frozen=True)
class PartsArguments:
    """What a stage of training begins with, where it is not a whole model.

    Each part is a folder (relative to the recipe) or a Hub id, and which are given says what is made of them:
    ``vision`` and ``bert`` begin BLIP-2's first stage, ``first_stage`` and ``text`` its second, ``first_stage`` and
    ``second_stage`` instruction tuning, or finetuning with the question in the Q-Former, ``vision`` and ``text`` LLaVA.

    Args:
        vision (`str`, *optional*): A vision tower, or a model that has one.
        bert (`str`, *optional*): A BERT with its language-model head and its tokenizer.
        first_stage (`str`, *optional*): A model of BLIP-2's first stage.
        second_stage (`str`, *optional*): A model of its second stage.
        text (`str`, *optional*): A language model with its tokenizer; for LLaVA also a model that has one.
        num_query_tokens (`int`, *optional*, defaults to 32): Queries of a first stage, or of LLaVA's Q-Former.
        end_token (`str`, *optional*):
            What ends captions in a second stage, one token of the language model; its end token by default.
        projector_type (`str`, *optional*, defaults to `"mlp"`): LLaVA's connector, one of `PROJECTORS`; it is new.
        vision_feature_layer (`int`, *optional*, defaults to -2): Which states of the tower LLaVA reads; -1 is the last.

    Raises:
        ValueError: For another choice of parts, or an option that does not belong to it.
    """

    vision: str | None = field(default=None, metadata={"help": "A vision tower, or a model that has one."})
    bert: str | None = field(default=None, metadata={"help": "A BERT with its head and tokenizer."})
    first_stage: str | None = field(default=None, metadata={"help": "A model of BLIP-2's first stage."})
    second_stage: str | None = field(default=None, metadata={"help": "A model of BLIP-2's second stage."})
    text: str | None = field(default=None, metadata={"help": "A language model with its tokenizer."})
    num_query_tokens: int = field(default=32, metadata={"help": "Queries of a first stage."})
    end_token: str | None = field(default=None, metadata={"help": "What ends captions in a second stage."})
    vision_feature_layer: int = field(default=-2, metadata={"help": "Which states of the tower LLaVA reads."})
    projector_type: str = field(default="mlp", metadata={"help": f"LLaVA's connector: {', '.join(PROJECTORS)}."})

    def __post_init__(self) -> None:
        if self.names not in PART_CHOICES:
            allowed = ", ".join(" with ".join(choice) for choice in PART_CHOICES)
            raise ValueError(f"parts are {', '.join(self.names) or 'none'}; allowed are: {allowed}")
        if self.num_query_tokens < 1:
            raise ValueError(f"num_query_tokens is {self.num_query_tokens}; it must be at least 1")
        if self.end_token is not None and "text" not in self.names:
            raise ValueError("end_token is given without text: it is a token of the language model")
        if self.is_llava and self.end_token is not None:
            raise ValueError(
                "end_token is for BLIP-2's second stage; with LLaVA the chat template says what ends an answer"
            )
        if self.projector_type not in PROJECTORS:
            raise ValueError(f"projector_type is {self.projector_type!r}; allowed are: {', '.join(PROJECTORS)}")
        for name, default in (("projector_type", "mlp"), ("vision_feature_layer", -2)):
            if not self.is_llava and getattr(self, name) != default:
                raise ValueError(f"{name} is LLaVA's, which is made of vision and text")

    @property
    def names(self) -> tuple[str, ...]:
        """The parts that are given."""
        return tuple(name for name in PART_NAMES if getattr(self, name) is not None)

    @property
    def is_llava(self) -> bool:
        """Whether a LLaVA is made of them."""
        return self.names == ("vision", "text")


PART_NAMES = ("vision", "bert", "first_stage", "second_stage", "text")
PART_CHOICES = (("vision", "bert"), ("first_stage", "text"), ("first_stage", "second_stage"), ("vision", "text"))


@dataclass(frozen=True)
class FirstStageArguments:
    """What BLIP-2's first stage computes, see `instructblip_hf.models.blip_2.PreTrainingOptions`.

    Args:
        objectives (`list[str]`, *optional*): Some of ``itc``, ``itm`` and ``itg``; all by default.
        label_smoothing (`float`, *optional*, defaults to 0.1): Of ITC and ITG.
        gather_with_gradient (`bool`, *optional*, defaults to `True`):
            `False` compares with the rows of other processes as constants, as LAVIS does.
        same_image_targets (`bool`, *optional*, defaults to `False`):
            Whether captions of the same image are right for all its rows, as in LAVIS's retrieval finetuning.
    """

    objectives: list[str] = field(
        default_factory=lambda: ["itc", "itm", "itg"], metadata={"help": "Some of itc, itm and itg."}
    )
    label_smoothing: float = field(default=0.1, metadata={"help": "Of ITC and ITG."})
    gather_with_gradient: bool = field(
        default=True, metadata={"help": "Whether the rows of other processes have a gradient."}
    )
    same_image_targets: bool = field(
        default=False, metadata={"help": "Whether captions of an image are right for all its rows."}
    )


@dataclass(frozen=True)
class ModelArguments:
    """Where a recipe starts from.

    Args:
        path (`str`, *optional*):
            A folder (relative to the recipe), the name of a bundled checkpoint, or a Hub id.
        parts (`dict[str, Any]`, *optional*): In place of a path, what the model is made of: see [`PartsArguments`].
        image_size (`int`, *optional*):
            Side of the images in pixels, where it is another than the model's; the vision tower's positions are
            resampled once, when it is loaded.
        reinitialize (`list[str]`, *optional*): Components that get fresh weights after loading, by dotted name.
        reinitialize_seed (`int`, *optional*, defaults to 0): Seed of those weights, and of what is new beside parts.
        dtype (`str`, *optional*, defaults to `"float32"`): One of `DTYPES`; weights are loaded in it.
        frozen_dtype (`str`, *optional*):
            ``"float32"``, ``"bfloat16"`` or ``"float16"``, for the weights that do not train; like `dtype` by default.
        attn_implementation (`str`, *optional*): Attention of all parts, transformers' default if not given.
        revision (`str`, *optional*): Branch, tag or commit of a Hub repository.
        qformer_instruction (`bool`, *optional*, defaults to `True`):
            Whether the Q-Former reads the instruction. `False` is the paper's ablation: the Q-Former's weights for
            text are left out of a checkpoint that has them.
        quantization (`str`, *optional*):
            One of `QUANTIZATIONS`: the language model is loaded in 4 or 8 bits (QLoRA) and needs LoRA to train.
        projector (`str`, *optional*):
            Folder of a connector that LLaVA's first stage wrote (relative to the recipe), in place of the model's.
        chat_template (`str`, *optional*):
            Name of one of `instructblip_hf.models.chat_templates.CHAT_TEMPLATES` or a Jinja template, in place of the
            processor's; saved with the model.
        pad_images (`bool`, *optional*, defaults to `False`):
            Whether LLaVA's images are padded to squares with the mean colour, as in LLaVA 1.5, rather than cropped.

    Raises:
        ValueError: If there is neither a path nor parts, or both, or a component, dtype or template is unknown.
    """

    path: str | None = field(default=None, metadata={"help": "Folder, name of a bundled checkpoint, or Hub id."})
    parts: dict[str, Any] | None = field(default=None, metadata={"help": "What the model is made of."})
    image_size: int | None = field(default=None, metadata={"help": "Side of the images in pixels."})
    reinitialize: list[str] = field(
        default_factory=list, metadata={"help": "Components that get fresh weights after loading."}
    )
    reinitialize_seed: int = field(default=0, metadata={"help": "Seed of the fresh weights."})
    dtype: str = field(default="float32", metadata={"help": f"One of {', '.join(DTYPES)}."})
    frozen_dtype: str | None = field(
        default=None,
        metadata={"help": "Of weights that do not train: float32, bfloat16 or float16; like dtype if null."},
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "Attention of all parts."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub repository."})
    qformer_instruction: bool = field(default=True, metadata={"help": "Whether the Q-Former reads the instruction."})
    quantization: str | None = field(
        default=None, metadata={"help": f"Bits of the language model, {' or '.join(QUANTIZATIONS)}; for LoRA on top."}
    )

    projector: str | None = field(default=None, metadata={"help": "Folder of a connector of LLaVA's first stage."})
    chat_template: str | None = field(default=None, metadata={"help": "Name of a chat template, or a template."})
    pad_images: bool = field(default=False, metadata={"help": "Whether LLaVA's images are padded to squares."})

    def __post_init__(self) -> None:
        if self.chat_template is not None:
            from ..models.chat_templates import find_chat_template

            find_chat_template(self.chat_template)
        if self.parts is None and not self.path:
            raise ValueError("path is empty; give a folder, a bundled checkpoint's name or a Hub id, or parts")
        if self.parts is not None:
            if self.path:
                raise ValueError("path and parts are both given; the one is a whole model, the other what makes one")
            for name in ("quantization", "revision"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} belongs to path, and the model is made of parts")
            if not self.qformer_instruction:
                raise ValueError("qformer_instruction belongs to path, and the model is made of parts")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}; it must be at least 1")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; allowed are: {', '.join(DTYPES)}")
        if self.quantization is not None and self.quantization not in QUANTIZATIONS:
            raise ValueError(f"quantization is {self.quantization!r}; allowed are: {', '.join(QUANTIZATIONS)}")
        if self.frozen_dtype not in (None, *FEATURE_DTYPES):
            raise ValueError(f"frozen_dtype is {self.frozen_dtype!r}; allowed are: {', '.join(FEATURE_DTYPES)}")
        for name in self.reinitialize:
            if name.partition(".")[0] not in COMPONENTS:
                raise ValueError(f"reinitialize names {name!r}; the components are: {', '.join(COMPONENTS)}")

    @property
    def sources(self) -> list[str]:
        """Folders and Hub ids that the model is loaded from."""
        if self.path:
            return [self.path]
        parts = PartsArguments(**(self.parts or {}))
        return [getattr(parts, name) for name in parts.names]


@dataclass(frozen=True)
class DataArguments:
    """What a recipe trains and evaluates on.

    Args:
        train (`str` or `dict`):
            A ``.jsonl``, ``.csv`` or LLaVA's ``.json`` file (relative to the recipe), ``{mixture: {...}}`` with the arguments of
            `MixtureArguments`, or ``{shapes_world: {...}}`` with those of `ShapesWorldArguments`.
        evaluation (`str` or `dict`, *optional*): The same, for the evaluation loss.
        image_root (`str`, *optional*):
            Folder that image paths in files are relative to, and may not leave. Defaults to each file's folder.
        max_prompt_length (`int`, *optional*): Most tokens before the last answer, placeholders included.
        max_completion_length (`int`, *optional*): Most tokens of the last answer, end token included.
        max_length (`int`, *optional*):
            Most tokens of a whole row, which is cut at its end; for LLaVA, whose rows are tokenised as a whole.
        image_features (`str`, *optional*):
            Folder for features of the frozen vision tower, computed once an image. Relative to where the command runs.
        image_features_dtype (`str`, *optional*):
            ``"float32"``, ``"bfloat16"`` or ``"float16"``, to keep features in. Defaults to what they are computed in.
        skip_bad_rows (`int`, *optional*, defaults to 0):
            How many rows for training that cannot be read may be left out, over all datasets; one more is an error.
        augmentation (`str`, *optional*):
            ``"crop_and_flip"``: images for training are cropped and mirrored at random, anew in every draw of a mixture.

    Raises:
        ValueError: If a length is below 1, a number of rows below 0, or a dtype is unknown or has no folder.
    """

    train: str | dict[str, Any] = field(metadata={"help": "File of rows, or a procedural source."})
    evaluation: str | dict[str, Any] | None = field(
        default=None, metadata={"help": "File of rows, or a procedural source, for the evaluation loss."}
    )
    image_root: str | None = field(default=None, metadata={"help": "Folder that image paths are relative to."})
    max_prompt_length: int | None = field(default=None, metadata={"help": "Most tokens before the last answer."})
    max_completion_length: int | None = field(default=None, metadata={"help": "Most tokens of the last answer."})
    max_length: int | None = field(default=None, metadata={"help": "Most tokens of a whole row, for LLaVA."})
    image_features: str | None = field(default=None, metadata={"help": "Folder for features of the vision tower."})
    image_features_dtype: str | None = field(default=None, metadata={"help": "float32, bfloat16 or float16."})
    skip_bad_rows: int = field(default=0, metadata={"help": "How many unreadable rows may be left out in training."})

    augmentation: str | None = field(default=None, metadata={"help": "crop_and_flip: random crops and flips."})

    def __post_init__(self) -> None:
        if self.augmentation not in (None, *AUGMENTATIONS):
            raise ValueError(f"augmentation is {self.augmentation!r}; allowed are: {', '.join(AUGMENTATIONS)}")
        if self.augmentation is not None and self.image_features is not None:
            raise ValueError(
                "augmentation makes a new image of every draw, and image_features keeps those of one: leave out one"
            )
        if self.image_features_dtype not in (None, *FEATURE_DTYPES):
            raise ValueError(
                f"image_features_dtype is {self.image_features_dtype!r}; allowed are: {', '.join(FEATURE_DTYPES)}"
            )
        if self.image_features_dtype is not None and self.image_features is None:
            raise ValueError("image_features_dtype is set, but image_features names no folder")
        if self.image_features == "":
            raise ValueError("image_features is empty; give a folder")
        if self.skip_bad_rows < 0:
            raise ValueError(f"skip_bad_rows is {self.skip_bad_rows}; it must be at least 0")
        for name in ("max_prompt_length", "max_completion_length", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")


@dataclass(frozen=True)
class ShapesWorldArguments:
    """A set of questions about procedural scenes of coloured shapes and digits, see `ShapesWorld`.

    Args:
        examples (`int`): Number of questions, each about a scene of its own.
        seed (`int`, *optional*, defaults to 0): Seed of scenes and questions.
        split (`str`, *optional*, defaults to `"train"`): ``"train"`` or ``"test"``.
        handwritten (`bool`, *optional*, defaults to `False`): Handwritten digits in place of drawn ones.
        tasks (`list[str]`, *optional*): Task types, all that are not held out if not given.
        templates (`str`, *optional*, defaults to `"seen"`): Wordings, ``"seen"`` or ``"held_out"``.

    Raises:
        ValueError: If `examples` is below 1.
    """

    examples: int = field(metadata={"help": "Number of questions."})
    seed: int = field(default=0, metadata={"help": "Seed of scenes and questions."})
    split: str = field(default="train", metadata={"help": "train or test."})
    handwritten: bool = field(default=False, metadata={"help": "Handwritten digits in place of drawn ones."})
    tasks: list[str] | None = field(default=None, metadata={"help": "Task types; all if not given."})
    templates: str = field(default="seen", metadata={"help": "Wordings: seen or held_out."})

    def __post_init__(self) -> None:
        if self.examples < 1:
            raise ValueError(f"examples is {self.examples}; it must be at least 1")

    def world(self) -> ShapesWorld:
        """The world that the examples are taken from.

        Raises:
            ValueError: If `split`, `tasks` or `templates` name something that the world does not have.
            ImportError: If `handwritten` is set and scikit-learn is not installed.
        """
        from ..data.sources.shapes_world import ShapesWorld

        return ShapesWorld(
            seed=self.seed,
            split=self.split,
            handwritten=self.handwritten,
            tasks=self.tasks,
            templates=self.templates,
        )


def adapter_problems(model: ModelArguments, freezing: FreezingPolicy) -> list[str]:
    """What is wrong between the sections ``model`` and ``freezing`` where LoRA, adapters and quantisation meet."""
    is_quantized = model.quantization is not None
    if is_quantized and not freezing.has_lora:
        return ["model.quantization: quantised weights cannot train themselves; mark language_model lora in freezing"]
    try:
        saves_adapter = freezing.saves_adapter(is_quantized)
    except ValueError as error:
        return [f"freezing: {error}"]
    for name in ("parts", "image_size"):
        if saves_adapter and getattr(model, name) is not None:
            return [
                f"model.{name}: an adapter belongs to a checkpoint as it is; train with freezing.save: merged, or save the "
                "changed model first"
            ]
    if saves_adapter and not model.qformer_instruction:
        return [
            "model.qformer_instruction: an adapter belongs to the checkpoint as it is, and this one is changed as it is "
            "loaded; train with freezing.save: merged and without quantization, or save the changed model first"
        ]
    return []
