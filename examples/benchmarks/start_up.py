"""Starting: imports and commands, each a new process, by the CPU time that it uses."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from harness import Case, unlike
from options import Options


WORK = {
    "import transformers": "import transformers",
    "import torch": "import torch",
    "import instructblip_hf": "import instructblip_hf",
    "instructblip --help": "import sys; sys.argv = ['instructblip', '--help']; from instructblip_hf.cli import main; main()",
    "stock InstructBLIP's classes": "from transformers import InstructBlipForConditionalGeneration, InstructBlipProcessor",
    "our InstructBLIP's classes": "from instructblip_hf import InstructBlipForConditionalGeneration, InstructBlipProcessor",
}
QUICK = ("import instructblip_hf", "instructblip --help")


def cases(options: Options, pair: Any = None) -> Iterator[Case]:
    variants = {name: _runner(code) for name, code in WORK.items() if not options.is_quick or name in QUICK}
    yield Case("start-up", {}, "", variants, 0, unlike, clock=_seconds)


def _runner(code: str) -> Callable[[], int]:
    def run() -> int:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, env=environment, check=False)
        return done.returncode

    return run


def _seconds(work: Callable[[], Any]) -> float:
    def used() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    before = used()
    work()
    return used() - before
