"""Training: what trains, the trainer, and recipes.

- `FreezingPolicy`, `apply_freezing`: which components are frozen, trained or adapted with LoRA;
- `VisionLanguageTrainer`: transformers' Trainer for the models of this package;
- `load_recipe`, `run_recipe`: YAML files, checked as a whole and then run.

Names are resolved when first used, so that checking a recipe's text does not load torch.
"""

from __future__ import annotations

import importlib
from typing import Any


_PUBLIC_NAMES = {
    "DataArguments": "arguments",
    "FREEZING_PRESETS": "arguments",
    "FreezingPolicy": "arguments",
    "FreezingReport": "freezing",
    "MixtureArguments": "mixture",
    "ModelArguments": "arguments",
    "OptimizationArguments": "arguments",
    "Recipe": "recipe",
    "RecipeError": "recipe_file",
    "RecipeRun": "run",
    "TrainingResult": "run",
    "VisionLanguageTrainer": "trainer",
    "apply_freezing": "freezing",
    "cast_frozen": "precision",
    "load_recipe": "recipe",
    "prepare_run": "run",
    "read_recipe": "recipe_file",
    "reinitialize": "initialization",
    "run_recipe": "run",
    "shipped_recipes": "recipe_file",
}

__all__ = sorted(_PUBLIC_NAMES)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC_NAMES:
        return getattr(importlib.import_module(f".{_PUBLIC_NAMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")
