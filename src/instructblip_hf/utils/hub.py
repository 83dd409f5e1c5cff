"""Everything of a model in one folder, and that folder to the Hub in one commit."""

from __future__ import annotations

import tempfile
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, ModelCard

from .model_card import model_card
from .remote_code import export_remote_code


if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin


def save_for_hub(
    folder: str | PathLike[str],
    model: PreTrainedModel,
    processor: ProcessorMixin | None = None,
    *,
    card: ModelCard | None = None,
    include_code: bool = False,
    **save_kwargs: Any,
) -> None:
    """Save weights as safetensors, configuration, processor and model card, and the code where asked for.

    Args:
        folder (`str` or `os.PathLike`): Folder, made if it does not exist.
        model (`PreTrainedModel`): The model.
        processor (`ProcessorMixin`, *optional*): Its processor.
        card (`huggingface_hub.ModelCard`, *optional*): By default [`model_card`] of the model.
        include_code (`bool`, *optional*, defaults to `False`):
            Also write the package's code, for ``trust_remote_code=True`` (see [`export_remote_code`]).
        save_kwargs: For ``model.save_pretrained``, ``max_shard_size`` for instance.
    """
    folder = Path(folder)
    model.save_pretrained(folder, **save_kwargs)
    if processor is not None:
        processor.save_pretrained(folder)
    if include_code:
        export_remote_code(folder)
    (card or model_card(model, include_code=include_code)).save(folder / "README.md")


def push_to_hub(
    repo_id: str,
    model: PreTrainedModel,
    processor: ProcessorMixin | None = None,
    *,
    card: ModelCard | None = None,
    include_code: bool = False,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload model",
    **save_kwargs: Any,
) -> str:
    """Push what [`save_for_hub`] saves, in one commit.

    ``model.push_to_hub`` and ``processor.push_to_hub`` work as everywhere in transformers; this adds the card from
    the configuration, and the code.

    Args:
        repo_id (`str`): ``user/name``; made if it does not exist.
        model (`PreTrainedModel`): The model.
        processor (`ProcessorMixin`, *optional*): Its processor.
        card (`huggingface_hub.ModelCard`, *optional*): By default [`model_card`] of the model, with this ``repo_id``.
        include_code (`bool`, *optional*, defaults to `False`): Also push the package's code.
        private (`bool`, *optional*): For a new repository; by default the account's setting.
        token (`str` or `bool`, *optional*): By default the one that was logged in with.
        revision (`str`, *optional*): Branch, made if it does not exist; by default ``main``.
        commit_message (`str`, *optional*, defaults to `"Upload model"`): Message of the commit.
        save_kwargs: For ``model.save_pretrained``.

    Returns:
        `str`: URL of the commit.

    Raises:
        huggingface_hub.errors.HfHubHTTPError: If the Hub refuses; nothing is pushed then.
    """
    # Refused rights show before anything is written, not after.
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    card = card or model_card(model, location=repo_id, include_code=include_code)
    with tempfile.TemporaryDirectory() as folder:
        save_for_hub(folder, model, processor, card=card, include_code=include_code, **save_kwargs)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message
        )
    return commit.commit_url


__all__ = ["push_to_hub", "save_for_hub"]
