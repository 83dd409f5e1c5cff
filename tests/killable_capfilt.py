"""CapFilt in processes of their own, one of which may die at a chosen moment as if by SIGKILL.

The processes are forked from a server that has imported everything; models and source are made anew in each, so nothing
but the output folder is handed from one run to the next.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path


PRELOAD = ["killable_capfilt", "tiny_capfilt", "instructblip_hf.capfilt.run"]


def run_capfilt(sources, out, processes=1, kill=None, **options):
    """Runs CapFilt and returns the exit codes.

    Args:
        kill: An audit event of Python (``"os.rename"``, ``"shutil.rmtree"``, ...), part of the path that it is about,
            and at which of such events the first process kills itself, right before it.
        options: For `CapFiltOptions`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    children = []
    for rank in range(processes):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        environment = {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if processes > 1 else {}
        arguments = (sources, out, environment, kill if rank == 0 else None, options)
        children.append(context.Process(target=_run, args=arguments))
    for child in children:
        child.start()
    for child in children:
        child.join(200)
    return [child.exitcode for child in children]


def _run(sources, out, environment, kill, options):
    os.environ.update({key: str(value) for key, value in environment.items()})

    import torch
    from transformers.utils import logging

    from instructblip_hf.capfilt import capfilt, open_source
    from instructblip_hf.cli.launching import device_of_process
    from tiny_capfilt import caption_filter, captioner, work

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    # As the command does, without --device where there is no accelerator.
    device_of_process("cpu" if torch.accelerator.is_available() else None)
    if kill is not None:
        _die_at(*kill)
    capfilt(open_source(sources), out, caption_filter(min_itm=0.4), captioner(), work(**options))


def _die_at(event, path, count):
    left = [count]

    def audit(name, arguments):
        if name == event:
            subject = " -> ".join(os.fsdecode(part) for part in arguments[:2] if isinstance(part, (str, bytes, Path)))
            if path in subject:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)
