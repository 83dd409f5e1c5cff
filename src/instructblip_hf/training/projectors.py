"""LLaVA from stage to stage: the connector that the first one leaves beside the model, and how the second takes images."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn
from transformers import LlavaImageProcessorPil


logger = logging.getLogger(__name__)

FOLDER = "projector"
"""In the output folder of a run that trained the connector alone."""

_NAME = "multi_modal_projector"


def use_projector(model: Any, folder: str) -> None:
    """Puts a saved connector in the place of a model's.

    Raises:
        FileNotFoundError, KeyError: As `load_projector` of the model.
        ValueError: If the model is no LLaVA of this package, or the connector does not fit.
    """
    if not hasattr(model, "load_projector"):
        raise ValueError(f"model.projector is a connector of LLaVA's, and the model is a {type(model).__name__}")
    model.load_projector(folder)
    logger.info("the connector is that of %s", folder)


def pad_images(model: Any, processor: Any) -> None:
    """Has LLaVA's processor pad images to squares with their mean colour, and resize them to the tower's size.

    Raises:
        ValueError: If the model is no LLaVA of this package.
    """
    if not hasattr(model, "load_projector"):
        raise ValueError(f"model.pad_images is for LLaVA, and the model is a {type(model).__name__}")
    before, size = processor.image_processor, model.config.vision_config.image_size
    processor.image_processor = LlavaImageProcessorPil(
        do_pad=True,
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=before.image_mean,
        image_std=before.image_std,
    )


def save_trained_projector(trainer: Any, folder: Path) -> None:
    """Writes the connector to ``folder / "projector"`` if it is all that trained, as in LLaVA's first stage.

    All processes call it: those of FSDP and ZeRO-3 hold a part each.
    """
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if not trains_projector_alone(model):
        return
    state = None
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.args.should_save:
        model.save_projector(folder / FOLDER, state)
        logger.info("the connector alone is in %s", folder / FOLDER)


def trains_projector_alone(model: nn.Module) -> bool:
    """Whether the connector is there and nothing else trains."""
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return hasattr(model, "save_projector") and bool(trained) and all(name.startswith(f"{_NAME}.") for name in trained)


__all__ = ["FOLDER", "pad_images", "save_trained_projector", "trains_projector_alone", "use_projector"]
