"""Trainer's model and checkpoints as adapters: what trains, and not the frozen weights around it.

The weights in a checkpoint of `lora_vicuna_7b` are then 1.4 GB in place of 17, and those of a quantised model can be loaded
at all. Folders are written and found as any other checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME

from .adapters import is_adapter, load_trained_weights, save_adapter
from .quantization import trainable_when_quantized


class AdapterTrainer(Trainer):
    """A Trainer that writes and reads adapters where `saves_adapter` is set.

    Attributes:
        saves_adapter (`bool`): Whether what trains is saved as an adapter rather than within the whole model.
    """

    saves_adapter: bool = False

    def __init__(self, model: nn.Module, **kwargs: Any) -> None:
        with trainable_when_quantized(model):
            super().__init__(model=model, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        if not self.saves_adapter:
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            folder = Path(output_dir if output_dir is not None else str(self.args.output_dir))
            save_adapter(self._bare_model(), folder, state_dict)
            processor: Any = self.processing_class
            if processor is not None:
                processor.save_pretrained(folder)
            torch.save(self.args, folder / TRAINING_ARGS_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # FSDP has files of its own beside the adapter.
        if self.saves_adapter and is_adapter(resume_from_checkpoint) and not self.is_fsdp_enabled:
            load_trained_weights(self._bare_model(), resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self.saves_adapter and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            load_trained_weights(self._bare_model(), str(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()

    def _bare_model(self) -> nn.Module:
        model: Any = self.accelerator.unwrap_model(self.model)
        return model


__all__ = ["AdapterTrainer"]
