"""A plugin for lmms-eval (EvolvingLMMs-Lab, https://github.com/EvolvingLMMs-Lab/lmms-eval): this package's models, and
InstructBLIP's protocol as tasks.

lmms-eval finds `manifests` through the entry point ``lmms_eval.models``. It has no entry point for tasks: it is given their
folder, which ``python -m instructblip_hf.evaluation.lmms_eval`` prints. docs/lmms_eval.md says how to use both. Nothing of
lmms-eval is imported before lmms-eval itself asks for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


TASKS_FOLDER = Path(__file__).parent / "tasks"
"""For lmms-eval's ``--include_path``."""


def manifests() -> list[Any]:
    """What lmms-eval registers: the model `instructblip_hf`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(model_id="instructblip_hf", simple_class_path=f"{__name__}.model.InstructBlipHf")]


__all__ = ["TASKS_FOLDER", "manifests"]
