"""Registers, spills and matrix instructions of the kernels, compiled for GPUs that need not be there.

The kernels that the Q-Former launches, in a process of their own; `.ci/run` compiles all cases.
"""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest


pytest.importorskip("triton", reason="the kernels are written in Triton")

CHECKED = (
    "forward-rows-bf16-64-dropout-sm90",
    "forward-folded-bf16-64-dropout-sm80",
    "forward-packed-bf16-64-dropout-sm90",
    "backward-rows-bf16-64-dropout-sm90",
    "backward-folded-bf16-64-dropout-sm80",
    "backward-packed-bf16-64-dropout-sm90",
    "backward-norm-bf16-768-dropout-sm80",
)


@pytest.mark.skipif(not version("triton").startswith("3.9."), reason="the limits are those of Triton 3.9's compiler")
def test_kernels_compile_within_their_limits(tmp_path):
    script = Path(__file__).with_name("compile_ahead.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, str(script), *CHECKED], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(CHECKED)
