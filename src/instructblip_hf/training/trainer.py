"""`VisionLanguageTrainer`: transformers' Trainer with what a frozen vision tower and language model need.

It adds a collator, a freezing policy and the optimiser groups of the InstructBLIP recipe, and leaves the training
loop, evaluation, checkpoints, distributed running and reporting to `transformers.Trainer`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, ProcessorMixin, TrainerCallback, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_callback import ExportableState

from ..data.collators import ImageTextCollator, VisionLanguageCollator
from ..data.length_groups import LengthGroupedSampler
from ..data.mixture import Mixture, MixtureDataset, MixtureSampler
from ..data.streaming import StreamMixture
from ..models.blip_2 import Blip2ForPreTraining
from ..models.language_models.label_losses import check_logits_at_labels
from ..models.modeling_base import VisionLanguageModel
from ..utils.model_card import model_card
from .adapter_trainer import AdapterTrainer
from .adapters import base_of
from .arguments import OptimizationArguments
from .dataset_losses import DATASET_INDEX, DatasetLosses, NamingCollator, losses_of_labels, without_augmentation
from .embedding_gradients import keep_dense, sparse_gradients, trained_embeddings
from .errors import SavingError
from .freezing import FreezingPolicy, FreezingReport, apply_freezing
from .guards import GuardedTrainer
from .image_features import ImageFeatures
from .lora import has_lora, merged_state_dict
from .mixture import check_same_mixture, trained_steps
from .objective_losses import ObjectiveLosses
from .optimization import Rate, learning_rates, rates_to_log, split_groups
from .quantization import is_quantized
from .recomputation import activations_recomputed
from .sharding import autocast_of, check_whole, gather_in_own_dtypes, share_tied_copies, share_tied_embeddings
from .streams import POSITION, StreamPositions, stream_loader


logger = logging.getLogger(__name__)


def draws_per_step(args: TrainingArguments) -> int:
    """Rows of an optimiser step, over all processes."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def mixture_fingerprint(mixture: Mixture, args: TrainingArguments) -> str:
    """What a checkpoint must have been trained with for its training to go on with the next row."""
    if mixture.group_by_length <= 1:
        return mixture.fingerprint()
    # In windows of several steps, which rows a step has depends on how they are dealt out.
    return f"{mixture.fingerprint()}-{args.train_batch_size * args.world_size}"


class MixtureState(TrainerCallback, ExportableState):
    """Has checkpoints say which mixture they were trained on, in the file that Trainer writes its own state into.

    Args:
        fingerprint (`str`): Of the mixture.
        draws_per_step (`int`): Rows of an optimiser step, over all processes.
    """

    def __init__(self, fingerprint: str, draws_per_step: int) -> None:
        self.fingerprint, self.draws_per_step = fingerprint, draws_per_step

    def state(self) -> dict[str, Any]:
        """What stands in ``trainer_state.json``, as Trainer wants it."""
        return {
            "args": {"fingerprint": self.fingerprint, "draws_per_step": self.draws_per_step},
            "attributes": {},
        }


class EndOfAnswers(TrainerCallback):
    """Has generation stop at the processor's own end token alone, which Trainer puts the tokenizer's beside.

    Args:
        end_token_id (`int`): What ends an answer.
    """

    def __init__(self, end_token_id: int) -> None:
        self.end_token_id = end_token_id

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """After Trainer has aligned the model's special tokens with the tokenizer's."""
        model.generation_config.eos_token_id = self.end_token_id


class VisionLanguageTrainer(GuardedTrainer, AdapterTrainer):
    """Trains a vision-language model of this package on rows of images, prompts and completions.

    Rows are dicts in TRL's form, ``{"images": [...], "prompt": ..., "completion": ...}`` or ``{"images": [...],
    "messages": [...]}``. The loss is the mean over all label tokens of an optimiser step, so splitting a batch by
    gradient accumulation does not change it.

    Args:
        model (`PreTrainedModel`): The model; its `requires_grad` flags are set after `freezing`.
        args (`TrainingArguments`, *optional*): Of transformers. `remove_unused_columns` is set to `False`.
        processing_class (`ProcessorMixin`): The model's processor, saved with every checkpoint.
        freezing (`str`, `Mapping[str, str]` or `FreezingPolicy`, *optional*, defaults to `"instructblip"`):
            What trains, see `apply_freezing`. `None` keeps the model as it was handed in.
        optimization (`OptimizationArguments`, *optional*):
            Learning rates by regular expression and layer-wise decay; `args.learning_rate` for all by default.
        data_collator (`Callable`, *optional*):
            Defaults to a `VisionLanguageCollator` over `processing_class`, for BLIP-2's first stage to an
            `ImageTextCollator`.
        train_dataset, eval_dataset (*optional*):
            Rows as above: anything with `__len__` and `__getitem__`, or an `IterableDataset` of torch or `datasets`;
            `eval_dataset` also as a dict of named sets. A `MixtureDataset` to train on is read in the order of its
            draws, and a resumed run goes on with the next draw; logs have losses by dataset. A `StreamMixture` as well.
        image_features (`ImageFeatures`, *optional*):
            Kept features of the vision tower, which must be frozen. Its reader is the collator's ``image_inputs``.
        logits_at_labels (`bool`, *optional*, defaults to `True`):
            Whether training and evaluation loss compute logits where there are labels alone, in chunks. Full logits are
            formed all the same where something reads them: predictions, metrics, label smoothing, a loss function of
            one's own; under `torch_compile`; and, with a warning, for language models that need them. Models other than
            this package's always form them.
        recompute_activations (`bool`, *optional*, defaults to `True`):
            Whether outputs of activation functions are computed again in the backward pass in place of being kept, see
            `activations_recomputed`. Not under `torch_compile`, which decides that itself.
        skip_bad_rows (`int`, *optional*, defaults to 0):
            How many unreadable rows of map-style training data may be left out, see `BadRows`.
        kwargs: Anything else that `transformers.Trainer` takes.

    Attributes:
        freezing_report (`FreezingReport` or `None`): The table of what trains.
        saves_adapter (`bool`): Whether what trains is saved as an adapter rather than within the whole model.

    Raises:
        ValueError: If the freezing policy or the learning rates do not fit the model, or neither a processor nor a
            collator is given.
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        args: TrainingArguments | None = None,
        processing_class: ProcessorMixin | None = None,
        freezing: str | Mapping[str, str] | FreezingPolicy | None = "instructblip",
        data_collator: Callable[[list[Any]], Any] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        optimization: OptimizationArguments | None = None,
        image_features: ImageFeatures | None = None,
        logits_at_labels: bool = True,
        recompute_activations: bool = True,
        **kwargs: Any,
    ) -> None:
        if args is None:
            args = TrainingArguments()
        check_whole(model)
        if data_collator is None:
            if processing_class is None:
                raise ValueError("processing_class is missing: give the model's processor, or a data_collator")
            image_inputs = image_features.reader if image_features is not None else None
            if isinstance(model, Blip2ForPreTraining):
                data_collator = ImageTextCollator(processing_class, image_inputs=image_inputs)
            else:
                data_collator = VisionLanguageCollator(
                    processing_class,
                    is_encoder_decoder=bool(getattr(model.config, "is_encoder_decoder", False)),
                    # Other models know no image_index, and torch's DataParallel would split it without its images.
                    share_images=isinstance(model, VisionLanguageModel) and args.n_gpu <= 1,
                    image_inputs=image_inputs,
                )
        mixtures = [data for data in (train_dataset, eval_dataset) if isinstance(data, MixtureDataset | StreamMixture)]
        names = list(dict.fromkeys(name for data in mixtures for name in data.mixture.names))
        if names:
            data_collator = NamingCollator(data_collator, names)
        self._dataset_losses = {mode: DatasetLosses(names) for mode in ("loss", "eval_loss") if names}
        self._objective_losses = {"loss": ObjectiveLosses(), "eval_loss": ObjectiveLosses()}
        self.freezing_report: FreezingReport | None = None
        self.saves_adapter = False
        if freezing is not None:
            policy = FreezingPolicy.of(freezing)
            self.saves_adapter = policy.saves_adapter(is_quantized(model))
            if self.saves_adapter:
                logger.info("what trains is saved as an adapter to %s", base_of(model))
            with torch.random.fork_rng(devices=[]):
                # LoRA starts from random numbers, and Trainer sets the seed only later.
                torch.manual_seed(args.seed)
                self.freezing_report = apply_freezing(model, policy)
            logger.info("what trains:\n%s", self.freezing_report)
        self.image_features = image_features
        if image_features is not None:
            report = self.freezing_report
            image_features.tower.check_frozen(report.frozen_dropout if report is not None else ())
        # Rows hold images and text under names that no forward() has, and only the collator can read them.
        args.remove_unused_columns = False
        if args.ddp_find_unused_parameters is None:
            # What a foreign tower computes beside its features gets no gradient (CLIP's pooled output). Trainer turns
            # the search for such weights off under activation checkpointing, which only reentrant one needs.
            # By its old name, which newer versions of transformers keep in step with the new one.
            checkpointing: Any = args.gradient_checkpointing_kwargs or {}
            args.ddp_find_unused_parameters = not checkpointing.get("use_reentrant", False)
        if args.label_names is None:
            args.label_names = ["labels"]
        self.optimization = optimization or OptimizationArguments()
        self._group_rates: list[Rate] = []
        self._rates_of_last_step: dict[str, float] = {}
        learning_rates(model, self.optimization, args.learning_rate)  # what does not fit is told before training
        config: Any = model.config
        configured_use_cache = config.__dict__.get("use_cache")
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self._steps_to_skip = 0
        self._predicting = False
        self._recompute_activations = recompute_activations and not args.torch_compile
        self._logits_at_labels = (
            logits_at_labels
            and isinstance(model, VisionLanguageModel)
            and self.label_smoother is None
            and self.compute_loss_func is None
            and not args.torch_compile
        )
        if self._logits_at_labels:
            # Before the model is wrapped for several processes, which all would have to take part.
            try:
                check_logits_at_labels(model.language_model, bool(config.is_encoder_decoder))
            except ValueError as error:
                logger.warning("full logits are formed in training: %s", error)
                self._logits_at_labels = False
        # On accelerators filling memory costs nothing, and what gathers gradients of several processes wants them dense.
        is_one_cpu = args.device.type == "cpu" and args.world_size == 1 and not args.torch_compile
        self._sparse_embeddings = trained_embeddings(model) if is_one_cpu else []
        keep_dense(self._sparse_embeddings)
        self._stream_positions = StreamPositions(args)
        if isinstance(train_dataset, MixtureDataset | StreamMixture):
            self.add_callback(MixtureState(mixture_fingerprint(train_dataset.mixture, args), draws_per_step(args)))
        processor: Any = processing_class
        if getattr(processor, "end_token", None) is not None:
            self.add_callback(EndOfAnswers(processor.end_token_id))
        if self.is_fsdp_enabled:
            share_tied_embeddings(model)
            gather_in_own_dtypes(self.accelerator.state.fsdp_plugin)
        # Trainer writes its own use_cache into the configuration, which would be published with the weights.
        if configured_use_cache is None:
            config.__dict__.pop("use_cache", None)
        else:
            config.use_cache = configured_use_cache

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trainer's training, which refuses to go on from a checkpoint of another mixture.

        Raises:
            ValueError: If the checkpoint was trained on another mixture, or with other numbers of rows a step.
        """
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _begin(self, checkpoint: str | None) -> None:
        if checkpoint is not None and isinstance(self.train_dataset, MixtureDataset | StreamMixture):
            fingerprint = mixture_fingerprint(self.train_dataset.mixture, self.args)
            check_same_mixture(checkpoint, fingerprint, draws_per_step(self.args))
        # Where Trainer is told not to skip what came before, data begin anew.
        resumed = checkpoint if not self.args.ignore_data_skip else None
        if isinstance(self.train_dataset, StreamMixture):
            self.train_dataset.stand_in_for(self._stream_positions.load(resumed))
        self._steps_to_skip = trained_steps(resumed) if resumed is not None else 0
        super()._begin(checkpoint)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        train_dataset = self.train_dataset if train_dataset is None else train_dataset
        if not isinstance(train_dataset, MixtureDataset):
            return super()._get_train_sampler(train_dataset)
        if train_dataset.mixture.group_by_length:
            rows = draws_per_step(self.args)
            return LengthGroupedSampler(
                train_dataset,
                self.args.max_steps * rows if self.args.max_steps > 0 else len(train_dataset) // rows * rows,
                self.args.train_batch_size,
                self.args.gradient_accumulation_steps,
                self.args.world_size,
                self._steps_to_skip,
            )
        if self.args.max_steps <= 0:
            return MixtureSampler(len(train_dataset))
        # All draws of the training in one epoch, so that Trainer, when it resumes, skips to the very next one.
        return MixtureSampler(self.args.max_steps * draws_per_step(self.args))

    def _prepare_inputs(self, inputs: Any) -> Any:
        inputs = super()._prepare_inputs(inputs)
        if self.image_features is None:
            return inputs
        is_sharded = self.is_fsdp_enabled or is_deepspeed_zero3_enabled()
        try:
            return self.image_features.complete(inputs, is_sharded, share_images=self.args.n_gpu <= 1)
        except OSError as error:
            raise SavingError(error.strerror or str(error)) from error

    def get_train_dataloader(self) -> DataLoader:
        """Trainer's loader; of a stream one that accelerate does not divide between processes a second time."""
        if not isinstance(self.train_dataset, StreamMixture):
            return super().get_train_dataloader()
        return stream_loader(self.train_dataset, self.args, self.data_collator, self.accelerator.device)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Trainer's loop; the parts of a loss that is a sum are metrics beside it, such as ``eval_loss_itm``."""
        parts = self._objective_losses["eval_loss"]
        parts.clear()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        output.metrics.update(
            {f"{metric_key_prefix}_{name}": value for name, value in parts.take(self.accelerator).items()}
        )
        return output

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Trainer's loader; images that are changed at random in training are as they are here."""
        collator = self.data_collator
        self.data_collator = without_augmentation(collator)
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = collator

    def _save_rng_state(self, output_dir: str) -> None:
        # Here, because it is what every process writes of its own into a checkpoint.
        super()._save_rng_state(output_dir)
        if isinstance(self.train_dataset, StreamMixture):
            self._stream_positions.save(output_dir)

    def compute_loss_context_manager(self) -> ExitStack:
        """Trainer's, with autocast where accelerate leaves it out."""
        stack: ExitStack = super().compute_loss_context_manager()
        stack.enter_context(autocast_of(self.accelerator))
        return stack

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Trainer's loss, computed with frozen modules in evaluation mode; of a mixture it is noted by dataset too."""
        if model.training and self.freezing_report is not None:
            self.freezing_report.hold_frozen_modules_in_eval()
        if POSITION in inputs:
            self._stream_positions.note(inputs.pop(POSITION))
        datasets, labels = inputs.pop(DATASET_INDEX, None), inputs.get("labels")
        if self._logits_at_labels and labels is not None and (model.training or not self._predicting):
            inputs = {**inputs, "logits_at_labels": True}
        if not model.training:
            # Trainer divides by the tokens of all processes, and then leaves out rows that fill up the last batches.
            num_items_in_batch = None
        with ExitStack() as stack:
            if model.training and self._recompute_activations:
                stack.enter_context(activations_recomputed(model))
            stack.enter_context(sparse_gradients(self._sparse_embeddings if model.training else ()))
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        rows = len(labels) if labels is not None else 1
        self._objective_losses["loss" if model.training else "eval_loss"].add(outputs, rows)
        # A first stage without the generation objective has no logits, and no losses of labels.
        has_labels = not isinstance(outputs, Mapping) or {"logits", "label_losses"} & outputs.keys()
        if datasets is not None and labels is not None and has_labels:
            config: Any = self.accelerator.unwrap_model(model).config
            is_encoder_decoder = bool(getattr(config, "is_encoder_decoder", False))
            label_losses = outputs.get("label_losses") if isinstance(outputs, Mapping) else None
            if label_losses is None:
                logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs[1]
                label_losses = losses_of_labels(logits, labels, is_encoder_decoder)
            losses = self._dataset_losses["loss" if model.training else "eval_loss"]
            losses.add(label_losses, labels, datasets, is_encoder_decoder)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> Any:
        """Trainer's step of evaluation and prediction; with full logits where it is to return them."""
        self._predicting = not prediction_loss_only
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        finally:
            self._predicting = False

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's logs; also the parts of a loss that is a sum, such as ``loss_itc``, and with a mixture ``loss/NAME`` and
        ``eval_loss/NAME`` of each dataset that was drawn."""
        if "loss" in logs:
            logs = {**logs, **self._objective_losses["loss"].take(self.accelerator)}
        for key, losses in self._dataset_losses.items():
            if key in logs:
                logs = {**logs, **{f"{key}/{name}": value for name, value in losses.take(self.accelerator).items()}}
        if "learning_rate" in logs:
            logs = {**logs, **self._rates_of_last_step}
        super().log(logs, start_time)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's optimiser, its groups split by learning rate where `optimization` gives several.

        Raises:
            ValueError: If an optimiser was handed in, whose learning rates are its own.
        """
        if self.optimization == OptimizationArguments():
            return super().create_optimizer(model)
        if self.optimizer is not None:
            if not self._group_rates:
                raise ValueError("optimization and an optimiser handed in both set learning rates: give one of them")
            return self.optimizer
        optimizer = super().create_optimizer(model)
        trained: Any = self.model if model is None else model
        rates = learning_rates(trained, self.optimization, self.args.learning_rate)
        self._group_rates = split_groups(optimizer, trained, rates)
        return optimizer

    def _get_learning_rate(self) -> float:
        # Trainer asks between the optimiser's step and the scheduler's.
        if self._group_rates:
            optimizer: Any = self.optimizer
            self._rates_of_last_step = rates_to_log(optimizer.param_groups, self._group_rates)
        return super()._get_learning_rate()

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names with weight decay: no biases and norms, whatever a tower calls them, nor any other vector."""
        vectors = {name for name, parameter in model.named_parameters() if parameter.ndim < 2}
        return [name for name in super().get_decay_parameter_names(model) if name not in vectors]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves model and processor. LoRA updates are merged into the weights, so any `from_pretrained` opens it.

        Checkpoints written during training keep LoRA layers apart, for training to resume from. Where the freezing
        policy saves adapters, both hold an adapter in place of the whole model, see `save_adapter`.
        """
        model: Any = self.model
        # Trainer's push_to_hub saves the trained model by an internal call as well, to no other folder.
        is_checkpoint = _internal_call and output_dir is not None
        if is_checkpoint or self.saves_adapter or not has_lora(model):
            super().save_model(output_dir, _internal_call=_internal_call)
            return
        folder = output_dir if output_dir is not None else self.args.output_dir
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            # All processes hand in their parts; the first one gets the whole.
            gathered = self.accelerator.get_state_dict(self.model_wrapped)
            self._save(folder, state_dict=merged_state_dict(self.accelerator.unwrap_model(model), gathered))
        elif self.args.should_save:
            self._save(folder, state_dict=merged_state_dict(model))
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        if (self.is_fsdp_enabled or self.is_deepspeed_enabled) and state_dict is not None:
            share_tied_copies(self.accelerator.unwrap_model(self.model), state_dict)
        super()._save(output_dir, state_dict)

    def _model_bytes(self) -> int:
        if not self.saves_adapter:
            return super()._model_bytes()
        model: Any = self.model
        return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)

    def create_model_card(
        self,
        language: str | None = "en",
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
        *,
        description: str | None = None,
        command: str | None = None,
    ) -> None:
        """Writes ``README.md`` into the output folder: parts, what trained, settings, losses.

        Args:
            language, license, tags, model_name, finetuned_from, dataset: As in `transformers.Trainer`.
            tasks, dataset_tags, dataset_args: Taken for Trainer's sake; this card has no place for them.
            description (`str`, *optional*): Markdown under the summary: data and limits.
            command (`str`, *optional*): The command that made the model.
        """
        if not self.is_world_process_zero():
            return
        folder = Path(str(self.args.output_dir))
        card = model_card(
            self.accelerator.unwrap_model(self.model),
            self.state,
            self.args,
            location=self.hub_model_id or folder.name,
            name=model_name,
            description=description,
            license=license,
            base_model=finetuned_from,
            datasets=[dataset] if isinstance(dataset, str) else dataset,
            language=language,
            command=command,
            what_trains=str(self.freezing_report) if self.freezing_report is not None else None,
            left_out=self.bad_rows.summary(),
            adapter=self.saves_adapter,
        )
        data: Any = card.data
        data.tags += [tags] if isinstance(tags, str) else tags or []
        card.save(folder / "README.md")
