"""The benchmarks run, at a size that says nothing about speed."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import instructblip_hf


BENCHMARKS = Path(__file__).parents[1] / "examples" / "benchmarks"
SOURCES = Path(instructblip_hf.__file__).parents[1]


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


@pytest.fixture(scope="module")
def harness():
    spec = importlib.util.spec_from_file_location("benchmark_harness", BENCHMARKS / "harness.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda x: x + 0.01, r"subject, batch 2: ours differs from stock by \d"),
        (lambda x: x * float("nan"), "differs from stock by nan"),
        (lambda x: x[:, :1], "differs from stock by inf"),
    ],
)
def test_nothing_is_timed_of_a_wrong_result(harness, wrong, said):
    values = torch.randn(2, 3)
    timed = []
    case = harness.Case(
        "subject", {"batch": 2}, "batch", {"stock": lambda: values, "ours": lambda: wrong(values)}, clock=timed.append
    )
    with pytest.raises(harness.WrongResult, match=said):
        harness.measure(case, harness.Settings())
    assert not timed


def test_ways_take_turns_and_ratios_are_those_of_a_round(harness):
    values, order = torch.ones(2), []
    stock, ours = lambda: values, lambda: values.clone()
    # The machine slows down threefold from round to round; within a round one way takes twice the other's time.
    slow = iter([1, 1, 3, 3, 9, 9])

    def clock(work):
        order.append("stock" if work is stock else "ours")
        return next(slow) * (2.0 if work is stock else 1.0)

    case = harness.Case("subject", {}, "", {"stock": stock, "ours": ours}, clock=clock)
    rows = harness.measure(case, harness.Settings(rounds=3))
    assert order == ["stock", "ours", "ours", "stock", "stock", "ours"]
    assert [(row.seconds, row.ratio, row.ratio_quartiles, row.rounds) for row in rows] == [
        (6.0, 1.0, (1.0, 1.0), 3),
        (3.0, 2.0, (2.0, 2.0), 3),
    ]


def test_results_are_compared_in_float32_and_timed_in_the_precision_asked_for(harness):
    tensors, seen = {"x": torch.randn(4)}, []

    def work():
        seen.append(tensors["x"].dtype)
        return tensors["x"]

    case = harness.Case("subject", {}, "", {"stock": work}, tensors=tensors)
    harness.measure(case, harness.Settings(dtype="bfloat16", rounds=2, memory=False))
    assert seen == [torch.float32, *3 * [torch.bfloat16]]


@pytest.mark.skipif(sys.platform != "linux", reason="it reads memory from /proc")
def test_memory_is_what_lives_at_a_time(harness):
    def work():
        for _ in range(4):
            torch.zeros(8 << 20).add_(1)  # 32 MiB, four times, each after the last
        return torch.zeros(1)

    case = harness.Case("subject", {}, "", {"stock": work})
    (row,) = harness.measure(case, harness.Settings(rounds=2))
    assert 30 < row.memory_mib < 50


def run_all(folder, subjects, **environment):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "run.py", "--size", "tiny", "--rounds", "2", "--seconds", "0"]
        + ["--output", folder, "--subjects", *subjects],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(SOURCES), os.environ.get("PYTHONPATH", "")]),
            **environment,
        },
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "results.json").read_text())


def test_all_benchmarks_run_and_write_their_results(tmp_path):
    subjects = ["start_up", "loading", "qformer", "packing", "images", "questions", "generation"]
    results = run_all(tmp_path, [*subjects, "many_requests", "ranking"])
    found = {row["subject"] for row in results["rows"]}
    assert len(found) == 14
    assert all(row["seconds"] > 0 and row["difference"] <= 1e-3 for row in results["rows"])
    tables = (tmp_path / "tables.md").read_text()
    assert all(f"## {subject}\n" in tables for subject in found)
    assert results["summaries"]["packing"] in tables
    assert results["missing"]["qformer"] == {"LAVIS": "no --lavis", "stock, compiled": "no --compile"}


@pytest.mark.skipif(sys.platform != "linux", reason="it reads memory from /proc")
def test_the_benchmark_of_frozen_training_times_steps_of_equal_loss(tmp_path):
    stock, ours = run_all(tmp_path, ["frozen_training"])["rows"]
    assert (stock["variant"], ours["variant"]) == ("stock", "ours")
    assert ours["difference"] <= 1e-2  # in bfloat16; more than 1e-5 in float32 ends the run
    assert all(row["seconds"] > 0 and row["memory_mib"] > 0 and row["rounds"] == 2 for row in (stock, ours))


def test_a_folder_that_is_no_clone_of_lavis_is_refused_before_anything_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "run.py", "--output", tmp_path / "out", "--lavis", tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCES), os.environ.get("PYTHONPATH", "")])},
        check=False,
    )
    assert done.returncode != 0
    assert f"{tmp_path} is no clone of LAVIS: there is no lavis/models/eva_vit.py" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_benchmark_of_the_kernels_compares_them_before_it_times_them(tmp_path):
    results = run_all(tmp_path, ["fused"], TRITON_INTERPRET="1")
    of_triton = [row for row in results["rows"] if row["variant"] == "Triton"]
    assert len(of_triton) == 5
    assert all(0 < row["difference"] <= 1e-5 for row in of_triton)  # computed in another order than torch's
