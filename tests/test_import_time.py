"""Importing the package loads no torch and stays close to the price of importing transformers."""

import json
import statistics
import subprocess
import sys
import time

import pytest


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


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["plan", "--help"], ["train", "--list"], ["data", "list"]]
)
def test_commands_that_need_no_model_load_no_torch(arguments):
    loaded = modules_after(
        "import contextlib, io, sys\n"
        "from instructblip_hf.cli import main\n"
        f"sys.argv = ['instructblip', *{arguments!r}]\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    main()"
    )
    assert "instructblip_hf.cli.app" in loaded
    assert not loaded & {"torch", "transformers", "numpy", "PIL", "huggingface_hub"}


def test_telling_of_errors_loads_no_torch():
    """Asking a chat model elsewhere, for judging and generating data, is done without torch."""
    loaded = modules_after("from instructblip_hf.cli.errors import stopping_errors\nwith stopping_errors():\n    pass")
    assert "instructblip_hf.evaluation.errors" in loaded
    assert not loaded & {"torch", "transformers", "numpy"}


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
