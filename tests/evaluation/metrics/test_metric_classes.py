"""The evaluate.Metric classes: equal to their functions, in batches and over two processes, offline, rows by id."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from instructblip_hf.evaluation import metrics


VQA = (["dog", "2", ""], [["dog", "dog", "cat"], ["two", "2", "3"], ["a", "b", "b"]])
CASES = {
    "VqaAccuracy": (*VQA, {"variant": "lavis"}, lambda p, r: metrics.vqa_accuracy(p, r, variant="lavis")),
    "ExactMatch": (*VQA, {"normalizer": "vqa"}, lambda p, r: metrics.exact_match(p, r, "vqa")),
    "GqaAccuracy": (
        ["yes", "cat"],
        [{"answer": "yes", "structural_type": "verify"}, {"answer": "dog", "structural_type": "query"}],
        {},
        lambda p, r: metrics.gqa_accuracy(p, ["yes", "dog"], ["verify", "query"]),
    ),
    "OcrVqaAccuracy": (
        ["Law", "no"],
        [{"answer": "law", "genre": "Law"}, {"answer": "yes", "genre": "Art"}],
        {},
        lambda p, r: metrics.ocr_vqa_accuracy(p, ["law", "yes"], ["Law", "Art"]),
    ),
    "AokvqaDirectAnswer": (
        ["bus", "car"],
        [{"direct_answers": ["bus"] * 2, "difficult": False}, {"direct_answers": ["car"] * 3, "difficult": True}],
        {},
        lambda p, r: metrics.aokvqa_direct_answer(p, [["bus"] * 2, ["car"] * 3], [False, True]),
    ),
    "AokvqaMultipleChoice": (
        ["bus", "car"],
        [{"choices": ["bus", "car"], "correct": 0}, {"choices": ["bus", "car"], "correct": 0}],
        {"strict": True},
        lambda p, r: metrics.aokvqa_multiple_choice(p, [["bus", "car"]] * 2, [0, 0]),
    ),
    "IvqaAccuracy": (["pan", "é"], [["pan"] * 5, ["é"] + ["e"] * 4], {}, lambda p, r: metrics.ivqa_accuracy(p, r)),
    "ScienceqaAccuracy": (
        [1, -1],
        [
            {
                "answer": 1,
                "subject": "natural science",
                "grade": "grade3",
                "topic": "biology",
                "has_text": True,
                "has_image": image,
            }
            for image in (True, False)
        ],
        {},
        lambda p, r: metrics.scienceqa_accuracy(
            p,
            [1, 1],
            ["natural science"] * 2,
            ["grade3"] * 2,
            [True, True],
            [True, False],
            ["biology"] * 2,
        ),
    ),
    "RocAuc": ([0.1, 0.7, 0.7], [0, 1, 0], {}, lambda p, r: metrics.roc_auc(p, r)),
    "RetrievalRecall": (
        [[0.5, 2.0], [1.0, 0.0, 3.0]],
        [{"direction": "text_to_image", "targets": [1]}, {"direction": "image_to_text", "targets": [0, 1]}],
        {},
        lambda p, r: metrics.retrieval_recall(p, ["text_to_image", "image_to_text"], [[1], [0, 1]]),
    ),
    "RankingScores": (
        [[0.1, 0.2, 0.3], [1.0, 1.0]],
        [[0], [1, 0]],
        {"ks": [1, 2]},
        lambda p, r: metrics.ranking_scores(p, r, ks=[1, 2]),
    ),
    "Ndcg": ([[0.1, 0.2, 0.3]], [[0.5, 0.0, 1.0]], {"ties": "order"}, lambda p, r: metrics.ndcg(p, r, ties="order")),
    "CaptionScores": (
        ["a dog", "a cat"],
        [["the dog", "a dog runs"], ["a cat sits"]],
        {"tokenizer": "treebank"},
        lambda p, r: metrics.caption_scores(p, r, tokenizer="treebank"),
    ),
}


def test_every_class_has_a_case():
    assert set(CASES) == {name for name in metrics.__all__ if name[0].isupper()}


@pytest.mark.parametrize("name", CASES)
def test_a_class_gives_what_its_function_gives(name, tmp_path):
    predictions, references, options, function = CASES[name]
    ids = [f"q{row}" for row in range(len(predictions))]
    metric = getattr(metrics, name)(cache_dir=str(tmp_path))
    for row in reversed(range(len(predictions))):  # batches of one, in another order than the split's
        metric.add_batch(ids=ids[row : row + 1], predictions=predictions[row : row + 1], references=[references[row]])
    result = metric.compute(expected_ids=ids, **options)
    assert result == function(predictions, references)
    assert not list(tmp_path.rglob("*.arrow"))


def test_a_metric_can_be_used_again_and_grouped_by_id(tmp_path):
    metric = metrics.VqaAccuracy(cache_dir=str(tmp_path))
    rows = {"ids": ["b", "a"], "predictions": ["dog", "cat"], "references": [["dog"] * 10] * 2}
    kinds = {"kind": {"a": "animal", "b": "pet", "c": "not asked"}}
    for _ in range(2):
        result = metric.compute(**rows, groups=kinds)
        assert result["by"]["kind"] == {
            "animal": {"accuracy": 0.0, "count": 1},
            "pet": {"accuracy": 1.0, "count": 1},
        }
    with pytest.raises(ValueError, match=r"groups\['kind'\] has no group for the ids 'b'"):
        metric.compute(**rows, groups={"kind": {"a": "animal"}})


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "a", "b"], "ids given more than once: 'a'; without a prediction: 'c'"),
        (["a", "b", "x"], "ids without a prediction: 'c'; not in the split: 'x'"),
        (["é", "b", "c"], "ids without a prediction: 'a'; not in the split: 'é'"),
    ],
)
def test_doubled_missing_and_unknown_ids_are_named(ids, message, tmp_path):
    metric = metrics.ExactMatch(cache_dir=str(tmp_path))
    metric.add_batch(ids=ids, predictions=["x"] * 3, references=[["x"]] * 3)
    with pytest.raises(ValueError, match=re.escape(message)):
        metric.compute(expected_ids=["a", "b", "c"])


def test_many_ids_are_counted():
    metric = metrics.ExactMatch(keep_in_memory=True)
    with pytest.raises(ValueError, match="'0', '1', '2', '3', '4' and 95 more"):
        metric.compute(
            ids=["100"], predictions=["x"], references=[["x"]], expected_ids=[str(name) for name in range(101)]
        )


def test_nothing_to_score_and_rows_of_another_kind(tmp_path):
    metric = metrics.RocAuc(cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match="no rows"):
        metric.compute(ids=[], predictions=[], references=[])
    with pytest.raises(ValueError, match="Mismatch|expected format"):
        metrics.ExactMatch(cache_dir=str(tmp_path)).add_batch(ids=["a"], predictions=["x", "y"], references=[["x"]])
    with pytest.raises(ValueError, match="inputs are missing.*ids"):
        metrics.ExactMatch(cache_dir=str(tmp_path)).compute(predictions=["x"], references=[["x"]])


PROCESS = """
import json, socket, sys, instructblip_hf
def refuse(*args, **kwargs):
    raise RuntimeError("a metric reached for the network")
socket.socket.connect = socket.create_connection = refuse
# evaluate imports them if they are there, for what is not used here; that takes seconds.
unneeded = dict.fromkeys(("transformers", "scipy", "sklearn"))
sys.modules.update(unneeded)
import evaluate
for name in unneeded:
    del sys.modules[name]
from instructblip_hf.evaluation.metrics import VqaAccuracy
rank, folder, rows = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
for run in range(2):
    metric = VqaAccuracy(num_process=2, process_id=rank, experiment_id=f"run-{run}", cache_dir=folder)
    # In the second run all rows are the first process's.
    mine = rows[rank::2] if run == 0 else rows if rank == 0 else []
    metric.add_batch(ids=[r[0] for r in mine], predictions=[r[1] for r in mine], references=[r[2] for r in mine])
    print(json.dumps(metric.compute(**({"expected_ids": [r[0] for r in rows]} if rank == 0 else {}))), flush=True)
"""


def test_two_processes_give_what_one_gives(tmp_path):
    answers = ["dog", "cat", "the dog", "2", "two", "é"]
    rows = [[f"q{row}", answers[row % 6], [answers[(row * step) % 5] for step in range(1, 11)]] for row in range(37)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), str(tmp_path), json.dumps(rows)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    expected = metrics.vqa_accuracy([row[1] for row in rows], [row[2] for row in rows])
    assert 0 < expected["accuracy"] < 1
    assert [json.loads(line) for line in outputs[0]] == [expected, expected]
    assert outputs[1] == ["null", "null"]


def test_functions_do_without_evaluate_and_the_package_without_evaluation():
    script = """
import sys
sys.modules["evaluate"] = None
import instructblip_hf
assert not [name for name in sys.modules if name.startswith("instructblip_hf.evaluation")]
from instructblip_hf.evaluation.metrics import vqa_accuracy
assert vqa_accuracy(["a"], [["a", "a"]])["count"] == 1
assert not {"torch", "transformers", "datasets", "nltk"} & set(sys.modules)
try:
    from instructblip_hf.evaluation.metrics import VqaAccuracy
except ImportError as error:
    assert "instructblip-hf[eval]" in str(error), error
else:
    raise SystemExit("VqaAccuracy without evaluate")
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_page_s_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) >= 2
    scope = {}
    for block in blocks:
        exec(compile(block, "docs/metrics.md", "exec"), scope)


def test_the_page_names_every_metric():
    page = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert [name for name in metrics.__all__ if name[0].isupper() and f"`{name}`" not in page] == []
