"""For all tests: one thread a process, which tiny models are fastest with, and which leaves cores to other workers.
Triton's kernels are interpreted where there is no GPU, which has to be said before Triton is imported."""

import os

import torch


os.environ.setdefault("OMP_NUM_THREADS", "1")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
