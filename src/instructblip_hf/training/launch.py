"""Starting a training on several processes: the shipped accelerate configurations, and the command that uses one.

Importing this loads neither torch nor transformers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path


LAUNCH_CONFIGS = Path(__file__).parents[1] / "recipes" / "accelerate"
"""Folder of the shipped configurations of accelerate, one a way to train on several processes."""


def launch_configs() -> list[str]:
    """Names of the shipped configurations: ``ddp``, ``fsdp2``, ``zero2``, ``zero3``."""
    return sorted(path.stem for path in LAUNCH_CONFIGS.glob("*.yaml"))


def launch_command(config: str | Path, processes: int | None, arguments: Sequence[str]) -> list[str]:
    """The command that runs ``instructblip`` with `arguments` on several processes of this machine.

    Args:
        config (`str` or `Path`): One of `launch_configs`, or a file of accelerate's.
        processes (`int`, *optional*): How many; one for each accelerator by default.
        arguments (`Sequence[str]`): Of the command line, without ``--launch``.

    Raises:
        ValueError: If there is no such configuration, no number of processes can be told, or the configuration
            shards weights and there is no accelerator to shard them over.
        ImportError: If the configuration needs DeepSpeed and it is not installed.
    """
    path = LAUNCH_CONFIGS / f"{config}.yaml" if str(config) in launch_configs() else Path(config)
    if not path.is_file():
        raise ValueError(f"--launch is {config}; it takes {', '.join(launch_configs())} or a file of accelerate's")
    if processes is not None and processes < 1:
        raise ValueError(f"--processes is {processes}; it must be at least 1")
    kind = _distributed_type(path)
    if kind == "DEEPSPEED":
        _check_deepspeed(path.stem)
    available = _accelerators()
    if processes is None and not available:
        raise ValueError("this machine has no accelerator to count processes by: give --processes")
    if kind == "FSDP" and not available:
        raise ValueError(f"--launch is {path.stem}, which accelerate does on GPUs alone; on a CPU there is ddp")
    count = processes if processes is not None else available
    start = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(path)]
    return [*start, "--num_processes", str(count), "-m", "instructblip_hf.cli", *arguments]


def _distributed_type(path: Path) -> str:
    import yaml

    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or "distributed_type" not in content:
        raise ValueError(f"{path} is no configuration of accelerate: it has no distributed_type")
    return str(content["distributed_type"])


def _check_deepspeed(name: str) -> None:
    from importlib.util import find_spec

    if find_spec("deepspeed") is None:
        raise ImportError(f"--launch is {name}, which needs DeepSpeed: pip install deepspeed, or take fsdp2")


def _accelerators() -> int:
    import torch

    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


__all__ = ["LAUNCH_CONFIGS", "launch_command", "launch_configs"]
