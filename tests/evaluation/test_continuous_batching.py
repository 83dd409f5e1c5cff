"""Evaluations by continuous batching: the files of the plain run, windows, going on, and what is refused."""

import json

import pytest

from instructblip_hf.data.sources.datasets import CatalogDataset
from instructblip_hf.evaluation.answering import TaskModel
from instructblip_hf.evaluation.errors import EvaluationError
from instructblip_hf.evaluation.runner import EvaluationOptions, evaluate
from instructblip_hf.evaluation.tasks import TASKS, Decoding
from tiny_shapes import tiny_model, tiny_processor


GREEDY = {"num_beams": 1, "repetition_penalty": 1.0, "min_new_tokens": 0, "max_new_tokens": 6}
TOGETHER = {"continuous_batching": True, "batching_window": 2}


@pytest.fixture
def model():
    """Whose answers are of different lengths."""
    model = tiny_model().eval()
    model.generation_config.eos_token_id = list(range(2, 20))
    return model


def run(data_root, output, model, tasks=("gqa",), **options):
    settings = EvaluationOptions(**{"progress": False, "decoding": GREEDY, "batch_size": 2, **options})
    return evaluate(model, tiny_processor(), tasks, data_root, output, options=settings)


def predictions(folder, name="gqa"):
    return (folder / name / "predictions.jsonl").read_bytes()


def test_the_files_are_those_of_the_plain_run(gqa_root, data_root, tmp_path, model):
    run(gqa_root, tmp_path / "plain", model)
    results = run(gqa_root, tmp_path / "together", model, **TOGETHER)
    assert predictions(tmp_path / "together") == predictions(tmp_path / "plain")
    assert results["tasks"]["gqa"]["run"]["continuous_batching"] is True
    texts = [json.loads(line)["prediction"] for line in predictions(tmp_path / "plain").splitlines()]
    assert len({len(text.split()) for text in texts}) > 1
    # A row with four frames, and no other.
    run(data_root, tmp_path / "plain", model, ["ivqa"])
    run(data_root, tmp_path / "together", model, ["ivqa"], **TOGETHER)
    assert predictions(tmp_path / "together", "ivqa") == predictions(tmp_path / "plain", "ivqa")


def test_windows_of_batches_are_handed_over_and_written_together(gqa_root, tmp_path, model, monkeypatch):
    """Eleven rows in windows of four: three calls, each of at most two rows at once; an image is encoded once for all."""
    calls, encoded = [], []
    generate_batch, encode = model.generate_batch, model.encode_images
    part = tmp_path / "gqa" / "parts" / "00000.jsonl"

    def counting(requests, rows_at_once, **options):
        written = len(part.read_text().splitlines()) if part.exists() else 0
        calls.append((len(requests), rows_at_once, written))
        return generate_batch(requests=requests, rows_at_once=rows_at_once, **options)

    monkeypatch.setattr(model, "generate_batch", counting)
    monkeypatch.setattr(model, "encode_images", lambda *arguments: encoded.append(1) or encode(*arguments))
    run(gqa_root, tmp_path, model, **TOGETHER)
    assert calls == [(4, 2, 0), (4, 2, 4), (3, 2, 8)]
    assert len(encoded) == 3


def test_a_stopped_run_goes_on_with_whole_windows(gqa_root, tmp_path, model, monkeypatch):
    run(gqa_root, tmp_path / "whole", model, **TOGETHER)
    answer, asked = TaskModel.answer, []

    def stopping(self, examples):
        asked.append([example["id"] for example in examples])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return answer(self, examples)

    monkeypatch.setattr(TaskModel, "answer", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(gqa_root, tmp_path / "cut", model, **TOGETHER)
    # As a kill in the middle of writing would leave it.
    part = tmp_path / "cut" / "gqa" / "parts" / "00000.jsonl"
    lines = part.read_text().splitlines(keepends=True)
    assert len(lines) == 4
    part.write_text("".join(lines[:3]) + lines[3][:10])
    run(gqa_root, tmp_path / "cut", model, **TOGETHER)
    assert asked[2:] == [[f"q{row}" for row in rows] for rows in (range(4), range(4, 8), range(8, 11))]
    assert predictions(tmp_path / "cut") == predictions(tmp_path / "whole")
    # Without it the same folder goes on too: the answers are the same.
    (tmp_path / "cut" / "gqa" / "predictions.jsonl").write_text("".join(lines))
    assert run(gqa_root, tmp_path / "cut", model)["tasks"]["gqa"]["answers_before"] == 4
    assert predictions(tmp_path / "cut") == predictions(tmp_path / "whole")


def test_a_row_that_fails_is_named_and_windows_before_it_are_kept(gqa_root, tmp_path, model):
    (gqa_root / "gqa" / "images" / "2.jpg").write_bytes(b"not a picture")
    with pytest.raises(EvaluationError, match=r"gqa: .*q2.*goes on from there"):
        run(gqa_root, tmp_path, model, batch_size=1, **TOGETHER)
    found = (tmp_path / "gqa" / "parts" / "00000.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in found] == ["q0", "q1"]


def test_a_cache_of_fixed_size_changes_no_answer(gqa_root, tmp_path, model, monkeypatch):
    run(gqa_root, tmp_path / "plain", model)
    monkeypatch.setattr(model.generation_config, "cache_implementation", "static")
    for place, options in (("static", {}), ("together", TOGETHER)):
        results = run(gqa_root, tmp_path / place, model, **options)
        assert predictions(tmp_path / place) == predictions(tmp_path / "plain")
        assert results["tasks"]["gqa"]["run"]["cache_implementation"] == (None if options else "static")


def test_what_it_cannot_answer_is_refused_before_anything_is_asked(gqa_root, data_root, tmp_path, model, monkeypatch):
    with pytest.raises(
        ValueError,
        match=r"takes num_beams=1, repetition_penalty=1\.0, min_new_tokens=0; the decoding of gqa has num_beams=5, "
        r"repetition_penalty=1\.5, min_new_tokens=1: change it",
    ):
        run(gqa_root, tmp_path, model, decoding=None, **TOGETHER)
    with pytest.raises(
        ValueError, match="the task of vsr ranks its candidates; continuous batching is for tasks that"
    ):
        run(data_root, tmp_path, model, ["gqa", "vsr"], **TOGETHER)
    with pytest.raises(ValueError, match="transformers' continuous batching is for causal language models"):
        run(gqa_root, tmp_path, tiny_model("seq2seq").eval(), **TOGETHER)
    processor = tiny_processor()
    monkeypatch.setattr(type(processor), "stop_strings", ["###"])
    with pytest.raises(ValueError, match="ends answers with the text '###', which continuous batching does not look"):
        TaskModel(model, processor, TASKS["gqa"], Decoding(**GREEDY), rows_at_once=2)
    assert not list(tmp_path.glob("*/predictions.jsonl"))
    assert not (tmp_path / "gqa").exists()


def test_a_window_has_a_batch():
    with pytest.raises(ValueError, match="batching_window is 0; it must be at least 1"):
        EvaluationOptions(batching_window=0)


def test_answers_are_those_of_single_calls(gqa_root, model):
    rows = CatalogDataset("gqa", gqa_root / "gqa", "testdev")
    examples = [rows[index] for index in range(len(rows))]
    processor = tiny_processor()
    records = TaskModel(model, processor, TASKS["gqa"], Decoding(**GREEDY), rows_at_once=3).answer(examples)
    for example, record in zip(examples, records, strict=True):
        inputs = processor(images=example["images"], text=record["prompt"], return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=6, do_sample=False, return_full_text=False)
        assert record["prediction"] == processor.batch_decode(ids, skip_special_tokens=True)[0].strip()
