"""`instructblip train` in a process of its own that dies at a chosen moment, as if by SIGKILL or a power cut.

The process is forked from a server that has imported everything, which saves the seconds of the imports; model, trainer
and data are made anew by the command itself, so nothing but the output folder is handed from one process to the next.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path


PRELOAD = ["killable_training", "instructblip_hf.training.run", "instructblip_hf.cli.train"]


def run_killed(recipe, out, event=None, path="", count=1, writer=None, file_bytes=None, changes=()):
    """Runs ``instructblip train RECIPE --output OUT --resume`` in a child and returns its exit code.

    Args:
        event: An audit event of Python (``"open"`` for writing, ``"os.rename"``, ``"os.remove"``, ...), or ``"step"``
            for the beginning of a micro-batch; the child kills itself right before it.
        path: Part of the path that the event is about.
        count: At which of such events.
        writer: A method of the trainer that writes.
        file_bytes: In it, the kernel ends the child in the middle of a write that makes a file longer than this.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    child = context.Process(target=_train, args=(recipe, out, event, path, count, writer, file_bytes, changes))
    child.start()
    child.join(300)
    return child.exitcode


def run_processes(recipe, out, processes=2, kill=None, changes=()):
    """The same command in several processes of one training; `kill`, as above, is for the first of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    children = []
    for rank in range(processes):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        environment = {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        arguments = (recipe, out, changes, environment, kill if rank == 0 else None)
        children.append(context.Process(target=_train_one_of_several, args=arguments))
    for child in children:
        child.start()
    for child in children:
        child.join(300)
    return [child.exitcode for child in children]


def _train_one_of_several(recipe, out, changes, environment, kill):
    os.environ.update({key: str(value) for key, value in environment.items()})
    kill = {"event": None, "path": "", "count": 1, "writer": None, "file_bytes": None, **(kill or {})}
    _train(recipe, out, changes=changes, **kill)


def _train(recipe, out, event, path, count, writer, file_bytes, changes):
    import torch
    from transformers.utils import logging

    from instructblip_hf.cli.train import run_train
    from instructblip_hf.training import VisionLanguageTrainer

    logging.disable_progress_bar()

    torch.set_num_threads(1)
    left = [count]

    def hit(name, subject):
        if name == event and path in subject:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def audit(name, arguments):
        if name == event and name in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"):
            subject = " -> ".join(os.fsdecode(part) for part in arguments[:2] if isinstance(part, (str, bytes, Path)))
            if name != "open" or (len(arguments) > 2 and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)):
                hit(name, subject)

    sys.addaudithook(audit)
    if event == "step":
        _before(VisionLanguageTrainer, "training_step", lambda: hit("step", ""))
    if writer is not None:
        _before(VisionLanguageTrainer, writer, lambda: _limit_files(file_bytes))
    with open(os.devnull, "w") as nowhere:
        sys.stdout = nowhere
        run_train(str(recipe), list(changes), Path(out), True)


def _before(owner, name, act):
    method = getattr(owner, name)

    def wrapped(*arguments, **keywords):
        act()
        return method(*arguments, **keywords)

    setattr(owner, name, wrapped)


def _limit_files(size):
    import resource

    # Python ignores the signal; by default it ends a process, in the middle of the write.
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
