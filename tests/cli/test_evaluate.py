"""`evaluate`: tasks by name and group, options, the table, errors in one line."""

import json
import subprocess
import sys

import pytest

import instructblip_hf.cli.launching as launching
from instructblip_hf import InstructBlipForConditionalGeneration
from instructblip_hf.cli.evaluate import task_names
from instructblip_hf.evaluation.published import ZERO_SHOT
from instructblip_hf.evaluation.tasks import LLAVA_TASKS, TASKS
from official_formats import write_dataset


@pytest.fixture
def data(tmp_path):
    for name in ("gqa", "scienceqa", "vizwiz"):
        write_dataset(name, tmp_path / "data" / name)
    return tmp_path / "data"


def arguments(checkpoint, data, tmp_path, tasks="gqa,scienceqa", *more):
    options = ["--model", checkpoint, "--data-root", data, "--output", tmp_path / "out", "--device", "cpu"]
    return ["evaluate", "--tasks", tasks, *options, "--decoding", "num_beams=1", *more]


def test_the_table_is_shown_and_written(run, checkpoint, data, tmp_path):
    result = run(*arguments(checkpoint, data, tmp_path, "gqa,scienceqa,vizwiz"))
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["model"]["name"] == checkpoint
    for name, one in results["tasks"].items():
        (line,) = [line for line in result.stdout.splitlines() if line.startswith(f"| {name} |")]
        assert ("value" in one) == (name != "vizwiz")
        if "value" in one:
            assert f"| {100 * one['value']:.1f} |" in line
        assert line in (tmp_path / "out" / "results.md").read_text()
    assert "| NAT | SOC | LAN |" in result.stdout
    assert results["tasks"]["gqa"]["decoding"]["num_beams"] == 1
    assert (tmp_path / "out" / "vizwiz" / "submission.json").is_file()


def test_options_reach_the_run(run, checkpoint, data, tmp_path):
    elsewhere = tmp_path / "gqa-of-mine"
    (data / "gqa").rename(elsewhere)
    (elsewhere / "images").rename(tmp_path / "pictures")
    more = ["--root", f"gqa={elsewhere}", "--image-root", f"gqa={tmp_path / 'pictures'}", "--limit", 1]
    more += ["--prompt", "{question} ?", "--seed", 3, "--compare-with", "BLIP-2 Vicuna-7B", "--batch-size", 2]
    result = run(*arguments(checkpoint, data, tmp_path, "gqa", *more, "--decoding", "length_penalty=1.5"))
    assert result.exit_code == 0, result.output
    one = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]["gqa"]
    assert (one["rows"], one["prompt"]) == (1, "{question} ?")
    assert (one["run"]["seed"], one["run"]["batch_size"]) == (3, 2)
    assert one["decoding"]["length_penalty"] == [1.5, 1.5]


GREEDY = ("repetition_penalty=1", "min_new_tokens=0", "max_new_tokens=4")


@pytest.mark.parametrize(
    "options",
    [("--continuous-batching", "--batching-window", 3, "--batch-size", 2), ("--cache-implementation", "static")],
)
def test_ways_to_generate_change_no_answer(run, checkpoint, data, tmp_path, options, monkeypatch):
    given = []

    def noting(original):
        def called(self, *arguments, **options):
            cache = self.generation_config.cache_implementation
            given.append((original.__name__, cache, options.get("rows_at_once")))
            return original(self, *arguments, **options)

        return called

    for name in ("generate", "generate_batch"):
        original = getattr(InstructBlipForConditionalGeneration, name)
        monkeypatch.setattr(InstructBlipForConditionalGeneration, name, noting(original))
    greedy = [one for setting in GREEDY for one in ("--decoding", setting)]
    files = []
    for place, more in enumerate(((), options)):
        result = run(*arguments(checkpoint, data, tmp_path / str(place), "gqa", *greedy, *more))
        assert result.exit_code == 0, result.output
        files.append((tmp_path / str(place) / "out" / "gqa" / "predictions.jsonl").read_bytes())
    assert files[0] == files[1]
    assert given[0] == ("generate", None, None)
    assert given[-1] == (("generate_batch", None, 2) if len(options) > 2 else ("generate", "static", None))


def test_groups_of_tasks():
    held_out = {name for row in ZERO_SHOT.values() for name in row}
    assert set(task_names("held-out")) == held_out
    assert set(task_names("all")) == set(task_names("held-out,held-in")) > held_out
    assert not [name for name in task_names("all") if "_test" in name]
    assert task_names(" gqa, vsr,gqa") == ["gqa", "vsr"]
    assert task_names("vqav2_test") == ["vqav2_test"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--tasks", "vqa"], "there is no task 'vqa'; there are nocaps"),
        (["--tasks", ","], "--tasks is empty"),
        (["--root", "gqa"], "--root: 'gqa' is not of the form KEY=VALUE"),
        (["--decoding", "num_beams=many"], "num_beams is 'many'; it must be a number"),
        (["--decoding", "beams=2"], "decoding has 'beams'; allowed are max_new_tokens"),
        (["--cache-implementation", "paged"], "--cache-implementation: 'paged' is none of dynamic, offloaded, static"),
        (["--cache-implementation", "static", "--continuous-batching"], "has a cache of its own"),
        (["--continuous-batching"], "takes repetition_penalty=1.0, min_new_tokens=0; the decoding of gqa has"),
        (["--continuous-batching", "--tasks", "scienceqa"], "the task of scienceqa ranks its candidates"),
        (["--compare-with", "GPT"], "has no model 'GPT'; it has BLIP-2"),
        (["--tasks", "vsr"], "with the files of vsr"),
    ],
)
def test_errors_are_one_line(run, checkpoint, data, tmp_path, change, message):
    result = run(*arguments(checkpoint, data, tmp_path, "gqa", *change))
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_row_that_fails(run, checkpoint, data, tmp_path):
    next((data / "gqa" / "images").iterdir()).write_bytes(b"")
    result = run(*arguments(checkpoint, data, tmp_path, "gqa"))
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert "gqa 0001" in line


def test_what_is_needed_is_said(run):
    result = run("evaluate", "--tasks", "gqa")
    assert result.exit_code == 2
    assert "needs --tasks, --data-root and --output" in result.stderr


def test_the_list_of_tasks_needs_no_torch():
    code = (
        "import sys; from instructblip_hf.cli.app import app\n"
        "try: app(['evaluate', '--list'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = [line.split()[0] for line in done.stdout.splitlines()[1:]]
    assert names == [*TASKS, *LLAVA_TASKS]


def test_processes_start_the_same_command(run, monkeypatch):
    commands = []
    monkeypatch.setattr(launching.os, "execv", lambda program, command: commands.append(command))
    line = ["evaluate", "--tasks", "gqa", "--processes", "2", "--limit", "5"]
    monkeypatch.setattr(sys, "argv", ["instructblip", *line])
    result = run(*line)
    assert result.exit_code == 0, result.output
    (command,) = commands
    assert command[command.index("--num_processes") + 1] == "2"
    assert command[command.index("instructblip_hf.cli") + 1 :] == ["evaluate", "--tasks", "gqa", "--limit", "5"]
