"""The benchmarks run, at a size that says nothing about speed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import instructblip_hf


BENCHMARKS = Path(__file__).parents[1] / "examples" / "benchmarks"
SOURCES = Path(instructblip_hf.__file__).parents[1]


@pytest.mark.skipif(sys.platform != "linux", reason="it reads memory from /proc")
def test_the_benchmark_of_frozen_training_finds_equal_losses_and_prints_its_table():
    path = os.pathsep.join([str(SOURCES), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "frozen_training.py", "--size", "tiny", "--steps", "1"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    exact, rounded = (float(found) for found in re.findall(r"relative difference (\S+)", done.stdout))
    assert exact <= 1e-5
    assert rounded <= 1e-2
    number = r"\d+(\.\d+)?"
    for side in (r"stock \(sdpa\)", r"ours \(sdpa, features, labels, lengths, activations\)"):
        assert re.search(rf"^\| {side}( \| {number}){{6}} \|$", done.stdout, re.MULTILINE)


def test_the_benchmark_of_retrieval_finds_what_scoring_everything_finds(tmp_path):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "retrieval.py", "--images", "1500", "--queries", "2", "--repeats", "1"]
        + ["--sides", "codes", "float32", "--folder", tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCES), os.environ.get("PYTHONPATH", "")])},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        len(re.findall(r"^\| (?:spread|crowded) \| (?:codes|float32) \| .* \| [\d.]+ \|$", done.stdout, re.MULTILINE))
        == 4
    )
    assert not list(tmp_path.iterdir())
