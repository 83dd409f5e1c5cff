"""Loads the model that a command is to use, with a plain word about what the default one can do."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoints import BUNDLED_CHECKPOINTS, bundled_checkpoint


PUBLISHED_EXAMPLE = "Salesforce/instructblip-flan-t5-xl"
KNOWS = "coloured shapes and digits in 56x56 drawings, nothing else"

BUNDLED_NOTICE = (
    f"note: this is the bundled tiny model, which knows {KNOWS}. For photographs name a published one, "
    f"like --model {PUBLISHED_EXAMPLE}"
)


@dataclass
class LoadedModel:
    """A model with its processor, ready to answer.

    Attributes:
        name (`str`): As the user named it.
        model (`PreTrainedModel`): Of one of the families, in evaluation mode, on its device.
        processor (`ProcessorMixin`): Its processor.
    """

    name: str
    model: Any
    processor: Any
    _recent: Any = None

    def recent_images(self) -> Any:
        """What encodes the images that are asked about, each once; a `RecentImages`."""
        if self._recent is None:
            from ..models.recent_images import RecentImages

            self._recent = RecentImages(self.model, self.processor)
        return self._recent


def load_generating(
    name: str | None, device: str | None = None, dtype: str | None = None, cache_implementation: str | None = None
) -> LoadedModel:
    """`load` for commands that let a model answer.

    Args:
        name, device, dtype: As in `load`.
        cache_implementation (`str`, *optional*): Of the model's ``generation_config``, so that whatever answers has it.

    Raises:
        ValueError: If it has no language model, or the cache is none for its device; and as `load`.
    """
    loaded = load(name, device, dtype)
    if not hasattr(loaded.model, "language_model"):
        raise ValueError(
            f"--model: {loaded.name} is a {type(loaded.model).__name__}, which compares images and texts and has no "
            "language model to answer with; use it with instructblip index and instructblip search"
        )
    if cache_implementation is not None:
        place = loaded.model.device.type
        if cache_implementation.startswith("offloaded") and place == "cpu":
            raise ValueError(
                f"--cache-implementation: {cache_implementation} is for an accelerator, whose cache it keeps in the memory of "
                "the CPU, and the model is on the CPU; allowed there are dynamic and static"
            )
        loaded.model.generation_config.cache_implementation = cache_implementation
    return loaded


def load(name: str | None, device: str | None = None, dtype: str | None = None) -> LoadedModel:
    """Loads a model by folder, Hub id or bundled name; the bundled tiny one, with a notice on stderr, for `None`.

    A folder or repository with an adapter is opened on the model that the adapter names.

    Args:
        name (`str`, *optional*): What to load.
        device (`str`, *optional*): Where to, by default an accelerator if there is one.
        dtype (`str`, *optional*): By default bfloat16 on an accelerator and float32 on a CPU.

    Raises:
        OSError: If there is no such model.
        ValueError: If its weights do not fit, or device or dtype is unknown.
    """
    if name is None:
        name = BUNDLED_CHECKPOINTS[0]
        print(BUNDLED_NOTICE, file=sys.stderr)
    folder = Path(name).expanduser()
    options: dict[str, Any] = {}
    if folder.is_dir():
        path = str(folder)
    elif name in BUNDLED_CHECKPOINTS:
        path = str(bundled_checkpoint(name))
    elif name.count("/") == 1 and not name.startswith((".", "/", "~")):
        path = name
        options = reach_hub(name)
    else:
        raise ValueError(
            f"--model: there is no folder {name!r}, no bundled checkpoint of that name "
            f"({', '.join(BUNDLED_CHECKPOINTS)}), and it is no Hub id, which looks like {PUBLISHED_EXAMPLE}"
        )

    import torch
    from transformers.utils import find_adapter_config_file, logging

    from ..models.families import FAMILIES, family_of

    if device is None:
        accelerator = torch.accelerator.current_accelerator()
        device = accelerator.type if accelerator is not None and torch.accelerator.is_available() else "cpu"
    if dtype is None:
        dtype = "float32" if device.partition(":")[0] == "cpu" else "bfloat16"
    check_dtype(dtype)
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"--device: {device!r} is no device that this torch knows") from error
    if name in BUNDLED_CHECKPOINTS or not sys.stderr.isatty():
        logging.disable_progress_bar()
    if find_adapter_config_file(path, **options) is not None:
        from ..training.adapters import load_adapter

        model = load_adapter(path, dtype=getattr(torch, dtype), **options).get_base_model()
    else:
        _, model_class = family_of(path, **options)
        model = model_class.from_pretrained(path, dtype=getattr(torch, dtype), **options)
    processor = FAMILIES[model.config.model_type].processor_class.from_pretrained(path, **options)
    return LoadedModel(name, model.to(target).eval(), processor)


def check_dtype(dtype: str) -> None:
    """Raises a `ValueError` for a name that is no dtype of weights."""
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"--dtype: {dtype!r} is none of float32, bfloat16, float16")


def reach_hub(repo_id: str) -> dict[str, Any]:
    """Options for loading from the Hub: from the cache alone where the Hub does not answer.

    One question decides, in place of several retries for each of a model's files.

    Raises:
        OSError: If the Hub does not answer for it and it is not in the cache.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.utils import httpx  # its HTTP client, httpx or httpx2 by version

    try:
        HfApi().model_info(repo_id, timeout=10)
    except (OSError, httpx.HTTPError) as error:
        if isinstance(try_to_load_from_cache(repo_id, "config.json"), str):
            return {"local_files_only": True}
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OSError(
            f"there is no folder {repo_id!r}, it has not been downloaded before, and the Hub does not answer for it: "
            f"{reason}"
        ) from error
    return {}
