"""The miniature study of the papers' claims runs from end to end, at a size that says nothing; its statistics."""

from __future__ import annotations

import importlib
import json
import re
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from instructblip_hf.data.sources.shapes_world import sample_scene


pytest.importorskip("matplotlib")

EXAMPLE = Path(__file__).parents[1] / "examples" / "papers_claims"
HELD_IN = ("caption", "relation", "count", "color", "where", "choice", "question", "digit", "size")
HELD_OUT = ("shape", "at", "exist", "color_at", "exist_shape", "choice_shape", "relation_color")
MODELS = ("instruct", "no_instruction", "uniform", "size", "plain", "identifier")


@pytest.fixture(scope="module")
def example():
    """Imports a module of the example by name."""
    threads, before = torch.get_num_threads(), set(sys.modules)
    sys.path.insert(0, str(EXAMPLE))
    yield importlib.import_module
    sys.path.remove(str(EXAMPLE))
    torch.set_num_threads(threads)
    # What the scripts are called must not stay in the way of other modules.
    for name in set(sys.modules) - before:
        if name == "study" or name.startswith("claim_"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def study(example, tmp_path_factory):
    """Starts the quick study, again and again in the same folder."""
    folder = tmp_path_factory.mktemp("claims")

    def start(*arguments: str) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["study", "--output", str(folder), *arguments])
            example("study").main()
        return folder

    start("--quick")
    return start


def records(folder: Path) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in (folder / "results").glob("*.json")}


def mean_of(runs: dict[str, dict], pattern: str, tasks: tuple[str, ...], column: str = "instruction") -> str:
    """Mean and deviation over the two seeds, as the report writes them."""
    values = [
        statistics.fmean(runs[pattern.format(seed)]["accuracy"][column][task] for task in tasks) for seed in (0, 1)
    ]
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"


def row_of(report: str, start: str, section: str = "") -> list[str]:
    line = next(line for line in report[report.index(section) :].splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_report_is_complete_and_its_numbers_are_those_of_the_runs(study):
    folder = study("--quick")
    runs, report = records(folder), (folder / "report.md").read_text()
    assert len(runs) == 2 * (1 + len(MODELS) + 2 * 3)
    assert re.findall(r"^## (\d)\. ", report, re.MULTILINE) == list("12345")
    verdicts = re.findall(r"\d\] \| ([a-z ]+) \|$", report, re.MULTILINE)
    assert len(verdicts) == 4 + 6 + 13 + 4 + 3
    assert set(verdicts) <= {"agrees", "not shown", "contradicted"}
    for name in ("papers_claims.png", "papers_claims_balance.png"):
        assert 5_000 < (folder / name).stat().st_size < 100_000

    header, *cells = zip(row_of(report, "", "## Accuracy by task"), row_of(report, "held-out tasks", "## Accuracy by"))
    assert header == ("", "held-out tasks")
    expected = [mean_of(runs, "seed{}-blip2", HELD_OUT)]
    expected += [mean_of(runs, f"seed{{}}-tuning-{model}", HELD_OUT) for model in MODELS]
    assert [cell for _, cell in cells] == expected
    row = row_of(report, "held-in, identifiers, asked so")
    assert row[2] == mean_of(runs, "seed{}-tuning-instruct", HELD_IN)
    assert row[3] == mean_of(runs, "seed{}-tuning-identifier", HELD_IN, "identifier")
    row = row_of(report, "color_at")
    assert row[2] == mean_of(runs, "seed{}-finetuning-instruct-color_at", ("color_at",))
    assert row[3] == mean_of(runs, "seed{}-finetuning-blip2-color_at", ("color_at",))


def test_a_second_start_does_no_run_again_and_reports_what_the_files_say(study):
    folder = study("--quick")
    before = {path: path.stat().st_mtime_ns for path in (folder / "results").iterdir()}
    changed = folder / "results" / "seed1-tuning-uniform.json"
    original = changed.read_text()
    record = json.loads(original)
    record["accuracy"]["instruction"] = dict.fromkeys(record["accuracy"]["instruction"], 0.5)
    changed.write_text(json.dumps(record))
    lost = folder / "results" / "seed0-finetuning-blip2-at.json"
    lost.unlink()
    try:
        study("--quick")
        report = (folder / "report.md").read_text()
        assert row_of(report, "held-in tasks, against uniform")[3] == mean_of(
            records(folder), "seed{}-tuning-uniform", HELD_IN
        )
        assert lost.is_file()
        untouched = set(before) - {changed, lost}
        assert {path: path.stat().st_mtime_ns for path in untouched} == {path: before[path] for path in untouched}
    finally:
        changed.write_text(original)


def test_results_of_two_designs_do_not_mix(study):
    with pytest.raises(ValueError, match=r"results of another design \(scenes was 150, now 8000"):
        study()


def test_arms_differ_in_what_they_say_and_in_nothing_else(study):
    runs = records(study("--quick"))
    draws = {model: runs[f"seed0-tuning-{model}"]["draws"] for model in MODELS}
    same = ("instruct", "no_instruction", "plain", "identifier")
    assert all(draws[model] == draws["instruct"] for model in same)
    assert draws["size"]["caption"] > draws["instruct"]["caption"] > draws["uniform"]["caption"]
    assert len({sum(drawn.values()) for drawn in draws.values()}) == 1
    assert set(runs["seed0-tuning-plain"]["accuracy"]) == {"instruction", "templates", "plain"}


def test_forms_ask_the_same_questions(example):
    rows = example("claim_rows")
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(60)]
    for task in rows.ALL_TASKS:
        questions = rows.draw_questions(task, scenes, 5, [0, 1])
        plain, named, worded = (rows.TaskRows(questions, form, 0) for form in ("plain", "identifier", "instruction"))
        for row in range(5):
            assert named.at(row, 0)["prompt"] == f"{rows.IDENTIFIERS[task]} {plain.at(row, 0)['prompt']}".strip()
            assert plain.at(row, 0) == plain.at(row, 1)
            assert worded.at(row, 3) == worded.at(row, 3)
            assert {worded.at(row, 0)[key] == plain.at(row, 0)[key] for key in ("images", "completion")} == {True}
        assert len({worded.at(0, epoch)["prompt"] for epoch in range(20)}) > 3
    assert rows.TaskRows(rows.draw_questions("caption", scenes, 1, [0, 1]), "plain", 0).at(0, 0)["prompt"] == ""
    repeated = rows.draw_questions("caption", scenes, 130, [0, 1])
    assert len({question.scene_index for question in repeated[:60]}) == 60


def test_intervals_are_students(example):
    stats = pytest.importorskip("scipy.stats")
    claims = example("claim_statistics")
    rng = np.random.default_rng(0)
    for count in range(2, claims.MAX_SEEDS + 1):
        values = rng.normal(size=count)
        expected = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
        assert claims.Estimate(tuple(values)).interval == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("values", "better", "alike"),
    [
        ((0.1, 0.11, 0.12), "agrees", "contradicted"),
        ((-0.1, -0.11, -0.12), "contradicted", "contradicted"),
        ((0.01, -0.01, 0.0), "not shown", "agrees"),
        ((0.1, -0.1, 0.05), "not shown", "not shown"),
        ((0.02, 0.021, 0.019), "agrees", "agrees"),
    ],
)
def test_verdicts(example, values, better, alike):
    claims = example("claim_statistics")
    difference = claims.Estimate(values)
    assert claims.is_better(difference) == better
    assert claims.is_alike(difference) == alike
