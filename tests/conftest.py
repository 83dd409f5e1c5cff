"""For all tests: one thread a process, which tiny models are fastest with, and which leaves cores to other workers."""

import os


os.environ.setdefault("OMP_NUM_THREADS", "1")
