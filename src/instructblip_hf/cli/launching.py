"""What the commands that start themselves on several processes share."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from .errors import user_errors


def without_options(arguments: Sequence[str], *names: str) -> list[str]:
    """A command line without options that take a value, in both forms, ``--name value`` and ``--name=value``."""
    kept: list[str] = []
    is_value = False
    for argument in arguments:
        if is_value:
            is_value = False
        elif argument in names:
            is_value = True
        elif not argument.startswith(tuple(f"{name}=" for name in names)):
            kept.append(argument)
    return kept


def become_launched(config: str, processes: int | None, arguments: Sequence[str]) -> None:
    """Starts a command line on several processes with accelerate, and becomes it; see `launch_command`."""
    from ..training.launch import launch_command

    with user_errors():
        command = launch_command(config, processes, arguments)
    print(shlex.join(command), flush=True)
    os.execv(command[0], command)


def device_of_process(device: str | None) -> str | None:
    """The device that was asked for; of several processes each has an accelerator of its own, where there are any."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device

    import torch
    from accelerate import PartialState

    from ..constants import WAIT

    if device is not None and ":" in device:
        raise ValueError(f"--device is {device}, and of several processes each has a device of its own; leave it out")
    # Without an accelerator accelerate has to be told, or each process takes itself for the only one.
    on_cpu = device == "cpu" or not torch.accelerator.is_available()
    return str(PartialState(cpu=on_cpu, timeout=WAIT).device)
