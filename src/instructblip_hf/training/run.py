"""Runs a recipe: data and model in, a trained checkpoint with processor and evaluation loss out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from ..data.augmentation import CropAndFlip
from ..data.collators import ImageTextCollator, VisionLanguageCollator
from ..data.jsonl import RowFileDataset
from ..data.mixture import MixtureDataset
from ..data.mixture_report import markdown_table, mixture_table
from ..data.procedural import ShapesWorldDataset
from ..data.sources.datasets import open_images
from ..data.sources.llava_files import LlavaFileDataset
from ..data.streaming import StreamMixture
from ..data.templates import InstructionDataset, Instructions
from ..models.blip_2 import Blip2ForConditionalGeneration, Blip2ForPreTraining, Blip2Processor, PreTrainingOptions
from ..models.chat_templates import find_chat_template
from ..models.families import family_of
from ..models.instructblip import load_without_instruction
from ..models.vision_towers.resizing import resize_images
from . import checkpoints
from .adapters import check_base_is_unchanged
from .arguments import DataArguments, FirstStageArguments, ModelArguments, PartsArguments, ShapesWorldArguments
from .composition import compose
from .image_features import ImageFeatures
from .image_features.recipes import open_image_features, open_images_with
from .initialization import reinitialize
from .mixture import MixtureArguments, check_same_mixture, open_mixture
from .mixture_parts import open_shapes_world
from .precision import cast_frozen
from .projectors import pad_images, save_trained_projector, use_projector
from .pushing import check_push
from .quantization import keep_weights_as_loaded, quantization_config
from .recipe import Recipe
from .sharding import whole_weights
from .trainer import VisionLanguageTrainer, draws_per_step, mixture_fingerprint


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """What a run of a recipe left behind.

    Attributes:
        output_dir (`Path`): Folder with weights, configuration, processor and card.
        train_metrics (`dict[str, float]`): Trainer's, ``train_loss`` among them.
        eval_metrics (`dict[str, float]`): With ``eval_loss``; empty without evaluation data.
    """

    output_dir: Path
    train_metrics: dict[str, float]
    eval_metrics: dict[str, float]


@dataclass(frozen=True)
class RecipeRun:
    """A recipe with data, model and trainer in place, ready to go.

    Attributes:
        recipe (`Recipe`): What is run.
        trainer (`VisionLanguageTrainer`): Its `freezing_report` says what trains.
        train_examples (`int`): Number of training rows.
        output_dir (`Path`): Where the model will be.
        checkpoint (`str`, *optional*): The checkpoint that training goes on from.
    """

    recipe: Recipe
    trainer: VisionLanguageTrainer
    train_examples: int
    output_dir: Path
    checkpoint: str | None = None

    def run(self) -> TrainingResult:
        """Trains, saves model and processor, and computes the evaluation loss if there is data for it."""
        outcome = self.trainer.train(resume_from_checkpoint=self.checkpoint)
        if self.checkpoint is not None and checkpoints.step_of(Path(self.checkpoint)) == outcome.global_step:
            # Trained to the end before, so that nothing is known of the loss but what was logged then.
            outcome.metrics.pop("train_loss")
        pushes, self.trainer.args.push_to_hub = self.trainer.args.push_to_hub, False
        try:
            # Pushed once, with its card.
            self.trainer.save_model()
        finally:
            self.trainer.args.push_to_hub = pushes
        save_trained_projector(self.trainer, self.output_dir)
        self.trainer.save_state()
        self.trainer.save_metrics("train", outcome.metrics, combined=False)
        eval_metrics: dict[str, float] = {}
        if self.trainer.eval_dataset is not None:
            eval_metrics = self.trainer.evaluate()
            self.trainer.save_metrics("eval", eval_metrics, combined=False)
        self.trainer.create_model_card(
            description=self._describe_data(),
            finetuned_from=self.recipe.base_model,
            command=f"instructblip train {self.recipe.path.name}",
        )
        if pushes:
            self.trainer.push_output()
        return TrainingResult(self.output_dir, outcome.metrics, eval_metrics)

    def _describe_data(self) -> str:
        def describe(source: str | dict[str, Any]) -> str:
            if isinstance(source, str):
                return f"the rows of `{Path(source).name}`"
            if "mixture" in source:
                return _describe_mixture(MixtureArguments(**source["mixture"]))
            settings = ", ".join(f"{key}: {value}" for key, value in source["shapes_world"].items())
            return f"the shapes world ({settings})"

        unit = "examples"
        dataset = self.trainer.train_dataset
        if isinstance(dataset, MixtureDataset | StreamMixture):
            unit = "draws"
        text = f"Trained on {describe(self.recipe.data.train)}, {self.train_examples:,} {unit}."
        if self.recipe.data.evaluation is not None:
            text += f" Evaluated on {describe(self.recipe.data.evaluation)}."
        if isinstance(dataset, MixtureDataset | StreamMixture):
            text += "\n\n" + markdown_table(mixture_table(dataset.mixture, self.train_examples))
        return text


def _describe_mixture(arguments: MixtureArguments) -> str:
    return f"a mixture of {len(arguments.datasets)} datasets (balance: {arguments.balance}, form: {arguments.form})"


def prepare_run(
    recipe: Recipe,
    output_dir: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
) -> RecipeRun:
    """Opens data and model of a recipe and builds its trainer.

    Args:
        recipe (`Recipe`): Of `load_recipe`.
        output_dir (`str` or `Path`, *optional*): Where to write; the recipe's own output folder by default.
        resume (`bool`, *optional*, defaults to `False`):
            Go on from the newest checkpoint in the output folder, or start where there is none.
        callbacks (`Sequence[TrainerCallback]`, *optional*): Further callbacks for the trainer.

    Returns:
        `RecipeRun`

    Raises:
        FileExistsError: If the output folder holds something and `resume` is not set.
        OSError: If there is no such model.
        ValueError: For data, weights or a freezing policy that do not fit.
    """
    folder = Path(output_dir) if output_dir is not None else recipe.output_dir
    args = recipe.training_arguments(folder)
    check_push(args)
    with args.main_process_first(local=False):
        checkpoint = _starting_point(folder, resume, tidy=args.local_process_index == 0)
    draws = args.max_steps * draws_per_step(args)
    train_dataset = open_dataset(recipe.data.train, recipe.data, draws)
    eval_dataset = open_dataset(recipe.data.evaluation, recipe.data) if recipe.data.evaluation is not None else None
    if checkpoint is not None and isinstance(train_dataset, MixtureDataset | StreamMixture):
        check_same_mixture(checkpoint, mixture_fingerprint(train_dataset.mixture, args), draws_per_step(args))
    model, processor = model_of(recipe, args)
    features = None
    if recipe.data.image_features is not None:
        features = open_image_features(recipe, model, processor, args)
        for dataset in (train_dataset, eval_dataset):
            open_images_with(dataset, features.reader.open_image)
    trainer = VisionLanguageTrainer(
        model=model,
        args=args,
        processing_class=processor,
        freezing=recipe.freezing,
        optimization=recipe.optimization,
        data_collator=_collator_of(recipe, model, processor, args, features),
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        callbacks=list(callbacks),
        image_features=features,
        skip_bad_rows=recipe.data.skip_bad_rows,
    )
    if trainer.saves_adapter:
        check_base_is_unchanged(model, recipe.model.reinitialize)
    return RecipeRun(
        recipe, trainer, draws if isinstance(train_dataset, StreamMixture) else len(train_dataset), folder, checkpoint
    )


def _collator_of(
    recipe: Recipe, model: Any, processor: Any, args: TrainingArguments, features: ImageFeatures | None
) -> ImageTextCollator | VisionLanguageCollator:
    image_inputs = features.reader if features is not None else None
    augmentation = CropAndFlip(args.data_seed or args.seed) if recipe.data.augmentation is not None else None
    if isinstance(model, Blip2ForPreTraining):
        first_stage = recipe.first_stage or FirstStageArguments()
        if recipe.evaluation is not None:
            raise ValueError(
                "evaluation: the tasks need a language model, which BLIP-2's first stage has not: leave it out"
            )
        mixture = recipe.data.train.get("mixture") if isinstance(recipe.data.train, dict) else None
        if mixture and mixture.get("group_by_image", 1) > 1 and not first_stage.same_image_targets:
            raise ValueError(
                "data.train.mixture.group_by_image puts captions of one image into a batch, and without "
                "first_stage.same_image_targets each is wrong for the others' rows: set it, or leave groups out"
            )
        model.options = PreTrainingOptions(
            tuple(first_stage.objectives), first_stage.label_smoothing, first_stage.gather_with_gradient
        )
        return ImageTextCollator(
            processor,
            max_length=recipe.data.max_completion_length or ImageTextCollator.max_length,
            same_image_targets=first_stage.same_image_targets,
            image_inputs=image_inputs,
            augmentation=augmentation,
        )
    if recipe.first_stage is not None:
        raise ValueError(
            f"the recipe has a section first_stage, and the model is a {type(model).__name__}: it is for "
            "Blip2ForPreTraining"
        )
    return VisionLanguageCollator(
        processor,
        is_encoder_decoder=model.config.is_encoder_decoder,
        max_prompt_length=recipe.data.max_prompt_length,
        max_completion_length=recipe.data.max_completion_length,
        max_length=recipe.data.max_length,
        # Crops of an image are images of their own.
        share_images=args.n_gpu <= 1 and augmentation is None,
        image_inputs=image_inputs,
        augmentation=augmentation,
    )


def run_recipe(recipe: Recipe, output_dir: str | Path | None = None, resume: bool = False) -> TrainingResult:
    """`prepare_run` and `RecipeRun.run` in one."""
    return prepare_run(recipe, output_dir, resume).run()


def model_of(recipe: Recipe, args: TrainingArguments) -> tuple[Any, Any]:
    """Model and processor of a recipe, with weights in the dtypes that it trains with.

    Raises:
        ImportError, OSError, ValueError: As `load_model` and `cast_frozen` raise them.
    """
    compute_dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    with whole_weights(args):
        model, processor = load_model(recipe.model, compute_dtype)
    if recipe.model.frozen_dtype is not None:
        cast_frozen(model, recipe.freezing, getattr(torch, recipe.model.frozen_dtype))
    return model, processor


def load_model(arguments: ModelArguments, compute_dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Model and processor of a recipe, with fresh weights where it asks for them.

    Args:
        arguments (`ModelArguments`): The recipe's section.
        compute_dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): For weights of 4 bits.

    Raises:
        ImportError: If it asks for quantised weights and bitsandbytes is not installed.
        OSError: If there is no such checkpoint.
        ValueError: If the checkpoint has missing or unexpected weights, or lacks a component to reinitialize.
    """
    dtype = arguments.dtype if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
    if arguments.parts is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(arguments.reinitialize_seed)
            model, processor = compose(PartsArguments(**arguments.parts), dtype)
        if arguments.attn_implementation is not None:
            model.set_attn_implementation(arguments.attn_implementation)
    else:
        model, processor = _load_whole(arguments, dtype, compute_dtype)
    if arguments.image_size is not None:
        resize_images(model, arguments.image_size, processor)
    keep_weights_as_loaded(model)
    if arguments.reinitialize:
        reinitialize(model, arguments.reinitialize, seed=arguments.reinitialize_seed)
    if arguments.projector is not None:
        use_projector(model, arguments.projector)
    if arguments.pad_images:
        pad_images(model, processor)
    if arguments.chat_template is not None:
        processor.chat_template = find_chat_template(arguments.chat_template)
    return model, processor


def _load_whole(arguments: ModelArguments, dtype: Any, compute_dtype: torch.dtype) -> tuple[Any, Any]:
    options: dict[str, Any] = {}
    if arguments.revision is not None:
        options["revision"] = arguments.revision
    family, model_class = family_of(str(arguments.path), **options)
    processor = family.processor_class.from_pretrained(arguments.path, **options)
    if arguments.attn_implementation is not None:
        options["attn_implementation"] = arguments.attn_implementation
    if arguments.quantization is not None:
        options["quantization_config"] = quantization_config(arguments.quantization, compute_dtype)
    load: Any = model_class.from_pretrained
    if not arguments.qformer_instruction:
        if family.package != "instructblip":
            raise ValueError(
                f"model.qformer_instruction is false, but {arguments.path} is of {model_class.__name__}, whose Q-Former "
                "reads no instruction in any case: leave it out"
            )
        load = load_without_instruction
    model = load(arguments.path, dtype=dtype, **options)
    if isinstance(processor, Blip2Processor) and isinstance(model, Blip2ForConditionalGeneration):
        stops_at = model.generation_config.eos_token_id
        if isinstance(stops_at, int) and stops_at != processor.end_token_id:
            # Published models with OPT stop at a newline, which their processors do not say.
            processor.end_token = processor.tokenizer.decode([stops_at])
            logger.info("answers end with %r, which the model's generation stops at", processor.end_token)
    return model, processor


def open_dataset(
    source: str | dict[str, Any], arguments: DataArguments, draws: int | None = None
) -> RowFileDataset | InstructionDataset | ShapesWorldDataset | MixtureDataset | StreamMixture:
    """The rows that ``data.train`` or ``data.evaluation`` names; of a mixture for training, `draws` of them.

    Raises:
        FileNotFoundError, ValueError: As `RowFileDataset`, `LlavaFileDataset`, `ShapesWorld` and `open_mixture` raise them.
    """
    if isinstance(source, str) and source.endswith(".json"):
        examples: Any = LlavaFileDataset(source, arguments.image_root)
        return InstructionDataset(examples, Instructions(), open_images)
    if isinstance(source, str):
        return RowFileDataset(source, image_root=arguments.image_root)
    if "mixture" in source:
        mixture = MixtureArguments(**source["mixture"])
        return open_mixture(mixture, mixture.draws or draws or 0)
    return open_shapes_world(ShapesWorldArguments(**source["shapes_world"]))


def _starting_point(folder: Path, resume: bool, tidy: bool) -> str | None:
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    if not resume:
        raise FileExistsError(
            f"the output folder {folder} is not empty; go on from its newest checkpoint with --resume, "
            "or write elsewhere with --output"
        )
    if tidy:
        checkpoints.recover(folder)
    newest = checkpoints.newest_whole(folder)
    return str(newest) if newest is not None else None


__all__ = ["RecipeRun", "TrainingResult", "load_model", "open_dataset", "prepare_run", "run_recipe"]
