"""Whole evaluations: every task of the protocol on fixtures, resuming, several processes, rows that fail."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

from instructblip_hf.cli.app import app
from instructblip_hf.data.catalog import DATASETS
from instructblip_hf.data.sources.datasets import CatalogDataset, open_images
from instructblip_hf.evaluation.answering import TaskModel
from instructblip_hf.evaluation.errors import EvaluationError
from instructblip_hf.evaluation.metrics import exact_match, roc_auc
from instructblip_hf.evaluation.runner import EvaluationOptions, evaluate
from instructblip_hf.evaluation.tasks import TASKS, Decoding, EvalTask
from tiny_shapes import save_tiny_checkpoint, tiny_model, tiny_processor


QUIET = {"progress": False}
SHORT = {"num_beams": 2, "max_new_tokens": 3, "min_new_tokens": 1}


def model_of(kind="causal", seed=0):
    return tiny_model(kind, seed=seed).eval()


def read_records(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def run(data_root, output, tasks=("gqa",), model=None, **options):
    settings = EvaluationOptions(**{**QUIET, "decoding": SHORT, **options})
    return evaluate(model or model_of(), tiny_processor(), tasks, data_root, output, options=settings)


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_every_task_of_the_protocol(kind, data_root, tmp_path):
    model = model_of(kind)
    results = run(data_root, tmp_path, TASKS, model, batch_size=3)
    assert set(results["tasks"]) == set(TASKS)
    for name, task in TASKS.items():
        one = results["tasks"][name]
        records = read_records(tmp_path / name)
        rows = CatalogDataset(task.dataset, data_root / task.dataset, task.split)
        assert [record["id"] for record in records] == [str(rows.peek(index)["id"]) for index in range(len(rows))]
        assert one["rows"] == one["rows_of_split"] == len(rows)
        labelled = DATASETS[task.dataset].splits[task.split].labelled
        assert ("value" in one) == labelled
        assert (tmp_path / name / "submission.json").is_file() == (task.server is not None)
        if task.inference == "rank":
            assert all(record["choice"] >= 0 for record in records)
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
    table = (tmp_path / "results.md").read_text()
    assert all(f"| {name} |" in table for name in TASKS)
    assert results == json.loads((tmp_path / "results.json").read_text())


@pytest.mark.parametrize("name", ["gqa", "nocaps", "scienceqa", "visdial", "hateful_memes", "msvd_qa", "iconqa"])
@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_answers_are_those_of_single_calls(kind, name, data_root):
    """In batches as alone: prompt, images (four frames of videos), decoding or candidates written out here."""
    model, processor, task = model_of(kind), tiny_processor(), TASKS[name]
    rows = CatalogDataset(task.dataset, data_root / task.dataset, task.split)
    examples = [rows[index] for index in range(len(rows))]
    train = ["eat", "cook", "red circle"] if name == "msvd_qa" else []
    records = TaskModel(model, processor, task, train_answers=train).answer(examples)
    assert len(records) == len(examples)
    for example, record in zip(examples, records):
        inputs = processor(images=[open_images(example)], text=[record["prompt"]], return_tensors="pt")
        if task.inference == "generate":
            long = name == "nocaps"
            ids = model.generate(
                **inputs,
                num_beams=5,
                max_new_tokens=30 if long else 10,
                min_new_tokens=8 if long else 1,
                repetition_penalty=1.15 if long else 1.5,
                length_penalty=0.0 if long or kind == "causal" else -1.0,
                do_sample=False,
                return_full_text=False,
            )
            assert record["prediction"] == processor.batch_decode(ids, skip_special_tokens=True)[0].strip()
            continue
        texts = ["yes", "true", "no", "false"] if task.candidates == "labels" else train or example["options"]
        encoded = processor.encode_candidates(texts, kind == "seq2seq")
        scores = model.rank_candidates(candidates=encoded, **inputs).scores[0]
        if task.candidates == "labels":
            scores = torch.stack([scores[:2].logsumexp(0), scores[2:].logsumexp(0)])
            texts = ["yes", "no"]
        assert record["prediction"] == texts[record["choice"]]
        assert scores[record["choice"]] == pytest.approx(float(scores.max()), abs=1e-4)
        if "scores" in record:
            assert record["scores"] == pytest.approx(scores.tolist(), abs=1e-4)
        else:
            assert name == "msvd_qa"


def test_values_are_those_of_the_answers(gqa_root, data_root, tmp_path):
    results = run(gqa_root, tmp_path / "a")
    records = read_records(tmp_path / "a" / "gqa")
    right = [("red", "yes")[number % 2] for number in range(11)]
    assert (
        results["tasks"]["gqa"]["value"]
        == exact_match([record["prediction"] for record in records], [[text] for text in right], "vqa")["accuracy"]
    )
    results = run(data_root, tmp_path / "b", ["hateful_memes"])
    records = read_records(tmp_path / "b" / "hateful_memes")
    rows = CatalogDataset("hateful_memes", data_root / "hateful_memes", "dev")
    labels = [rows.peek(index)["metadata"]["label"] for index in range(len(rows))]
    odds = [torch.tensor(record["scores"]).softmax(0)[0].item() for record in records]
    assert results["tasks"]["hateful_memes"]["value"] == roc_auc(odds, labels)["roc_auc"]


def test_a_stopped_run_goes_on_where_it_was(gqa_root, tmp_path, monkeypatch):
    whole = run(gqa_root, tmp_path / "whole", batch_size=2)
    answered = []
    answer = TaskModel.answer

    def stopping(self, examples):
        if len(answered) == 6:
            raise KeyboardInterrupt
        answered.extend(example["id"] for example in examples)
        return answer(self, examples)

    monkeypatch.setattr(TaskModel, "answer", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(gqa_root, tmp_path / "cut", batch_size=2)
    part = tmp_path / "cut" / "gqa" / "parts" / "00000.jsonl"
    with part.open("ab") as stream:
        stream.write(b'{"id": "q6", "prompt": "Quest')  # as a kill leaves it
    answered.clear()
    answered.append("")  # never again 6
    resumed = run(gqa_root, tmp_path / "cut", batch_size=2)
    assert answered[1:] == [f"q{number}" for number in range(6, 11)]
    assert resumed["tasks"]["gqa"]["answers_before"] == 6
    files = [(tmp_path / name / "gqa" / "predictions.jsonl").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]
    assert not part.parent.exists()
    assert resumed["tasks"]["gqa"]["result"] == whole["tasks"]["gqa"]["result"]
    answered[1:] = []
    run(gqa_root, tmp_path / "cut", batch_size=2)
    assert answered == [""]


def test_a_damaged_line_is_told(gqa_root, tmp_path):
    run(gqa_root, tmp_path, limit=4)
    file = tmp_path / "gqa" / "predictions.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], '{"id": ', *lines[2:]]) + "\n")
    with pytest.raises(EvaluationError, match=r"predictions\.jsonl:2 is no answer"):
        run(gqa_root, tmp_path)


def test_a_limit_is_marked_and_can_be_lifted(gqa_root, tmp_path):
    first = run(gqa_root, tmp_path, limit=3)["tasks"]["gqa"]
    assert (first["rows"], first["rows_of_split"]) == (3, 11)
    assert "published" not in first
    assert "the first of 11 rows" in (tmp_path / "results.md").read_text()
    second = run(gqa_root, tmp_path, batch_size=3)["tasks"]["gqa"]
    assert (second["rows"], second["answers_before"]) == (11, 3)
    assert second["published"]["model"] == "InstructBLIP Vicuna-7B"
    assert second["published"]["difference"] == pytest.approx(100 * second["value"] - 49.2)
    whole = tmp_path / "whole"
    run(gqa_root, whole, batch_size=3)
    assert read_records(whole / "gqa") == read_records(tmp_path / "gqa")


def test_a_row_that_fails_is_an_error_with_its_id(gqa_root, tmp_path):
    image = gqa_root / "gqa" / "images" / "2.jpg"
    good = image.read_bytes()
    image.write_bytes(b"not a picture")
    with pytest.raises(EvaluationError, match=r"gqa: .*q2.*goes on from there"):
        run(gqa_root, tmp_path / "out", batch_size=1)
    found = (tmp_path / "out" / "gqa" / "parts" / "00000.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in found] == ["q0", "q1"]
    assert not (tmp_path / "out" / "results.json").exists()
    image.unlink()
    with pytest.raises(EvaluationError, match=r"gqa: .*q2.*goes on from there"):
        run(gqa_root, tmp_path / "out", batch_size=1)
    image.write_bytes(good)
    assert run(gqa_root, tmp_path / "out", batch_size=1)["tasks"]["gqa"]["answers_before"] == 2


def test_a_row_that_the_model_cannot_take_is_named(gqa_root, tmp_path, monkeypatch):
    answer = TaskModel._generate

    def broken(self, inputs):
        if len(inputs["input_ids"]) > 1 or broken.alone == 3:
            broken.alone += len(inputs["input_ids"]) == 1
            raise ValueError("too long")
        broken.alone += 1
        return answer(self, inputs)

    broken.alone = 0
    monkeypatch.setattr(TaskModel, "_generate", broken)
    # The batch fails, and of its rows alone the fourth.
    with pytest.raises(EvaluationError, match=r"gqa: gqa q3: too long\. The answers before it"):
        run(gqa_root, tmp_path, batch_size=8)
    monkeypatch.setattr(TaskModel, "_generate", lambda self, inputs: torch.empty(2)[5])
    with pytest.raises(EvaluationError, match=r"gqa: gqa q0, q1: IndexError: index 5 is out of bounds"):
        run(gqa_root, tmp_path, batch_size=2)


@pytest.mark.parametrize("name", ["scienceqa", "vsr"])
def test_nan_is_no_answer(name, data_root, tmp_path):
    model = model_of()
    model.language_model.lm_head.weight.data[:] = torch.nan
    with pytest.raises(EvaluationError, match=f"{name}: .*predicts NaN"):
        run(data_root, tmp_path, [name], model)
    assert not (tmp_path / name / "predictions.jsonl").exists()


def test_other_rows_of_the_same_ids_are_refused(gqa_root, tmp_path):
    run(gqa_root, tmp_path)
    file = gqa_root / "gqa" / "testdev_balanced_questions.json"
    rows = json.loads(file.read_text())
    rows["q3"]["answer"] = "blue"  # changes the score alone
    file.write_text(json.dumps(rows))
    assert run(gqa_root, tmp_path)["tasks"]["gqa"]["answers_before"] == 11
    rows["q3"]["question"] = "what is left ?"
    file.write_text(json.dumps(rows))
    with pytest.raises(EvaluationError, match="made otherwise: rows was"):
        run(gqa_root, tmp_path)


def test_malformed_rows_may_be_left_out(gqa_root, tmp_path):
    file = gqa_root / "gqa" / "testdev_balanced_questions.json"
    rows = json.loads(file.read_text())
    rows["q3"]["answer"] = " "
    file.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="has no answer"):
        run(gqa_root, tmp_path)
    one = run(gqa_root, tmp_path, max_bad_rows=1)["tasks"]["gqa"]
    assert (one["rows"], one["bad_rows"]) == (10, 1)
    assert "1 malformed rows left out" in (tmp_path / "results.md").read_text()


def test_everything_is_opened_before_anything_is_answered(data_root, tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("gqa", "msvd_qa"):
        shutil.copytree(data_root / name, tmp_path / "data" / name)
    (tmp_path / "data" / "msvd_qa" / "train_qa.json").unlink()
    with pytest.raises(FileNotFoundError, match="train_qa"):
        run(tmp_path / "data", tmp_path / "out", ["gqa", "msvd_qa"])
    assert not (tmp_path / "out").exists()


def test_a_metric_that_cannot_run_is_told_before(data_root, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")  # no Java
    monkeypatch.setitem(sys.modules, "nltk.tokenize", None)
    with pytest.raises(ImportError, match=r"instructblip-hf\[eval\]"):
        run(data_root, tmp_path / "out", ["nocaps"])
    assert not (tmp_path / "out").exists()


def test_answers_of_another_model_or_prompt_are_refused(gqa_root, tmp_path):
    run(gqa_root, tmp_path)
    before = (tmp_path / "gqa" / "predictions.jsonl").read_bytes()
    with pytest.raises(EvaluationError, match="fingerprint"):
        run(gqa_root, tmp_path, model=model_of(seed=1))
    with pytest.raises(EvaluationError, match="bfloat16"):
        run(gqa_root, tmp_path, model=model_of().to(torch.bfloat16))
    with pytest.raises(EvaluationError, match=r"prompt was 'Question: \{question\} Short answer:', is '\{question\}'"):
        run(gqa_root, tmp_path, prompt="{question}")
    with pytest.raises(EvaluationError, match="decoding was"):
        run(gqa_root, tmp_path, decoding={**SHORT, "num_beams": 1})
    assert (tmp_path / "gqa" / "predictions.jsonl").read_bytes() == before


def test_one_changed_weight_is_another_model(gqa_root, tmp_path):
    model = model_of()
    run(gqa_root, tmp_path, model=model)
    with torch.no_grad():
        model.language_projection.bias[0] += 1e-3
    with pytest.raises(EvaluationError, match="fingerprint"):
        run(gqa_root, tmp_path, model=model)


def test_a_task_of_ones_own_and_another_prompt(gqa_root, tmp_path):
    task = EvalTask("gqa", "testdev", "{question}", "gqa_accuracy", "here", decoding=Decoding(max_new_tokens=2))
    results = run(gqa_root, tmp_path / "own", {"colors": task}, decoding=None)
    assert results["tasks"]["colors"]["rows"] == 11
    assert results["tasks"]["colors"]["changed"] == []
    changed = run(gqa_root, tmp_path / "changed", prompt="{question}")["tasks"]["gqa"]
    assert changed["changed"] == ["prompt", "decoding"]
    assert "published" not in changed
    assert read_records(tmp_path / "changed" / "gqa")[1]["prompt"] == "what color is the big circle ?"
    with pytest.raises(EvaluationError, match=r"gqa q0 has no hint, which the prompt needs"):
        run(gqa_root, tmp_path / "wrong", prompt="{hint}")


def test_wrong_options_are_told(gqa_root, tmp_path):
    for wrong, message in (
        ({"batch_size": 0}, "batch_size is 0"),
        ({"limit": 0}, "limit is 0"),
        ({"decoding": {"beams": 3}}, "'beams'; allowed are max_new_tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            EvaluationOptions(**wrong)
    with pytest.raises(KeyError, match="no task 'vqa'"):
        run(gqa_root, tmp_path, ["vqa"])
    with pytest.raises(ValueError, match="tasks is empty"):
        run(gqa_root, tmp_path, [])
    with pytest.raises(FileNotFoundError, match="files of vsr"):
        run(gqa_root, tmp_path, ["gqa", "vsr"])
    with pytest.raises(ValueError, match="at least 8 and at most 3 tokens"):
        run(gqa_root, tmp_path, ["gqa", "nocaps"], decoding={"max_new_tokens": 3})
    with pytest.raises(KeyError, match="no model 'GPT'"):
        run(gqa_root, tmp_path, compare_with="GPT")
    assert not (tmp_path / "gqa").exists()


COMMAND = ["evaluate", "--tasks", "gqa", "--batch-size", "2", "--decoding", "max_new_tokens=3"]


def command(checkpoint, data_root, output, *more):
    options = ["--model", str(checkpoint), "--data-root", str(data_root), "--output", str(output), "--device", "cpu"]
    return ["instructblip_hf.cli", *COMMAND, *options, *more]


def test_two_processes_give_the_answers_of_one(gqa_root, tmp_path):
    checkpoint = save_tiny_checkpoint(tmp_path / "model")
    one, two = tmp_path / "one", tmp_path / "two"
    assert CliRunner().invoke(app, command(checkpoint, gqa_root, one)[1:]).exit_code == 0
    arguments = [sys.executable, "-m", *command(checkpoint, gqa_root, two, "--processes", "2")]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("| gqa |") == 1
    files = [(folder / "gqa" / "predictions.jsonl").read_bytes() for folder in (one, two)]
    assert files[0] == files[1]
    whole = [json.loads((folder / "results.json").read_text()) for folder in (one, two)]
    assert whole[0]["model"] == whole[1]["model"]
    results = [one["tasks"]["gqa"] for one in whole]
    assert results[1]["run"]["processes"] == 2
    assert results[0]["result"] == results[1]["result"]


def test_a_killed_process_loses_nothing(gqa_root, tmp_path):
    checkpoint = save_tiny_checkpoint(tmp_path / "model")
    output = tmp_path / "out"
    part = output / "gqa" / "parts" / "00000.jsonl"
    arguments = [sys.executable, "-m", *command(checkpoint, gqa_root, output, "--batch-size", "1")]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (part.is_file() and part.read_bytes().count(b"\n") >= 2):
        time.sleep(0.002)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    again = command(checkpoint, gqa_root, output, "--batch-size", "1")
    assert CliRunner().invoke(app, again[1:]).exit_code == 0
    one = json.loads((output / "results.json").read_text())["tasks"]["gqa"]
    assert one["rows"] == 11
    assert one["answers_before"] >= 2
    assert [record["id"] for record in read_records(output / "gqa")] == [f"q{number}" for number in range(11)]
