"""``python -m instructblip_hf.evaluation.lmms_eval``: the folder of the tasks, for lmms-eval's ``--include_path``."""

import sys

from . import TASKS_FOLDER


sys.stdout.write(f"{TASKS_FOLDER}\n")
