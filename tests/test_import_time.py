"""Importing the package loads no torch and stays close to the price of importing transformers."""

import json
import statistics
import subprocess
import sys
import time


def modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    return set(json.loads(output))


def test_import_loads_neither_torch_nor_transformers():
    loaded = modules_after("import instructblip_hf")
    heavy = {"torch", "transformers", "numpy", "PIL", "tokenizers", "huggingface_hub"}
    assert not loaded & heavy
    assert not {name for name in loaded if name.startswith("instructblip_hf.models")}


def test_import_adds_no_module_of_transformers_to_an_imported_transformers():
    before = modules_after("import transformers")
    for code in ("import transformers, instructblip_hf", "import instructblip_hf, transformers"):
        added = modules_after(code) - before
        assert "torch" not in added
        assert not {name for name in added if name.partition(".")[0] == "transformers"}


def seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def test_import_costs_little_over_transformers():
    alone, both = [], []
    for _ in range(5):  # interleaved, so that a busy machine slows both
        alone.append(seconds("import transformers"))
        both.append(seconds("import transformers, instructblip_hf"))
    assert statistics.median(both) - statistics.median(alone) < 0.3
