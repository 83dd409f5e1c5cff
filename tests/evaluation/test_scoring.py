"""From answers to numbers: each metric gets what it needs of rows and answers. Values are worked out by hand."""

import math

import pytest

from instructblip_hf.data.sources.datasets import CatalogDataset
from instructblip_hf.evaluation.scoring import score
from instructblip_hf.evaluation.servers import submission
from instructblip_hf.evaluation.tasks import LLAVA_TASKS, METRICS, TASKS


def row(name, answers=(), **slots):
    return {"id": name, "dataset": "made", "category": "image_qa", "images": ["a.jpg"], "answers": [*answers], **slots}


def text(prediction):
    return {"prediction": prediction}


def ranked(scores, options):
    best = max(range(len(scores)), key=scores.__getitem__)
    return {"prediction": options[best], "choice": best, "scores": scores}


def value(task, rows, answers):
    return score(TASKS[task], rows, {example["id"]: record for example, record in zip(rows, answers)})


def test_vqa():
    kinds = [{"answer_type": "number"}, {"answer_type": "other"}]
    rows = [
        row("a", ["two"] * 5 + ["2"] * 2 + ["3"] * 3, metadata=kinds[0]),
        row("b", ["dog"] * 2 + ["cat"] * 8, metadata=kinds[1]),
    ]
    found = value("okvqa", rows, [text("2"), text("the dog")])
    # With 2 of 10: each of 2 annotators leaves 1 of 3, each of 8 leaves 2 of 3.
    assert found.value == pytest.approx((1 + (2 / 3 * 8 + 1 / 3 * 2) / 10) / 2)
    assert found.result["by"]["answer_type"]["number"] == {"accuracy": 1.0, "count": 1}
    # LAVIS leaves the annotators' "two" as it is: 2 and its 2 annotators alone.
    assert found.result["accuracy_lavis"] == pytest.approx((2 / 3 * 8 + 1 / 3 * 2) / 10)


def test_gqa_by_type():
    rows = [
        row("a", ["yes"], metadata={"types": {"structural": "verify"}}),
        row("b", ["dog"], metadata={"types": {"structural": "query"}}),
    ]
    found = value("gqa", rows, [text("Yes."), text("cat")])
    assert (found.value, found.result["accuracy_as_written"]) == (0.5, 0.0)
    assert found.result["by"]["answer_type"] == {
        "binary": {"accuracy": 1.0, "count": 1},
        "open": {"accuracy": 0.0, "count": 1},
    }
    without = [row("a", ["yes"])]
    assert "answer_type" not in value("gqa", without, [text("yes")]).result.get("by", {})


def test_choices():
    rows = [
        row("a", ["2"], options=["2", "3"], correct_option=1),
        row("b", ["x"], options=["x", "y"], correct_option=0),
    ]
    answers = [ranked([-1.0, -2.0], ["2", "3"]), ranked([-1.0, -2.0], ["x", "y"])]
    assert value("iconqa", rows, answers).value == 0.5
    assert value("aokvqa_choice", rows, answers).value == 0.5
    with pytest.raises(ValueError, match="made a does not say which option is right"):
        value("iconqa", [row("a", options=["2"])], answers[:1])


def test_scienceqa_by_subject_context_and_grade():
    facts = {"subject": "natural science", "grade": "grade3", "topic": "physics"}
    other = {"subject": "language science", "grade": "grade11", "topic": "verbs"}
    rows = [
        row("a", options=["x", "y"], correct_option=0, context="Look.", metadata=facts),
        row("b", options=["x", "y"], correct_option=1, metadata=other),
    ]
    found = value("scienceqa", rows, [ranked([-1.0, -2.0], ["x", "y"])] * 2)
    assert found.value == 0.5
    by = found.result["by"]
    assert by["subject"]["natural science"]["accuracy"] == 1.0
    assert by["context"] == {"text": {"accuracy": 1.0, "count": 1}, "image": {"accuracy": 0.5, "count": 2}}
    assert by["grade"]["7-12"] == {"accuracy": 0.0, "count": 1}


def test_direct_answers_leave_difficult_ones_out():
    rows = [
        row("a", ["bus"] * 3 + ["van"] * 7),
        row("b", ["bus"] * 10, metadata={"difficult_direct_answer": True}),
        row("c", ["red"] * 1 + ["pink"] * 9),
    ]
    found = value("aokvqa", rows, [text("bus"), text("van"), text("red")])
    assert found.value == pytest.approx((1 + 1 / 3) / 2)
    assert found.result["excluded"] == 1


def test_auc_orders_rows_by_yes_against_no():
    rows = [row(name, [answer]) for name, answer in zip("abcd", ("yes", "no", "yes", "no"))]
    # Log-probabilities of yes and no; only their difference counts: 2, 1, -1, -3.
    scores = [[-10.0, -12.0], [-1.0, -2.0], [-3.0, -2.0], [-5.0, -2.0]]
    answers = [ranked(one, ["yes", "no"]) for one in scores]
    found = value("hateful_memes", rows, answers)
    assert found.value == 0.75
    assert found.result["accuracy"] == 0.5
    assert value("vsr", rows, answers).value == 0.5


def test_mrr():
    options = ["a", "b", "c"]
    rows = [row("a", options=options, correct_option=1), row("b", options=options, correct_option=2)]
    answers = [ranked([-1.0, -2.0, -3.0], options), ranked([-3.0, -2.0, -1.0], options)]
    found = value("visdial", rows, answers)
    assert found.value == pytest.approx((1 / 2 + 1) / 2)
    assert found.result["recall_at_1"] == 0.5


def test_single_answers_and_five_annotators():
    rows = [row("a", ["cook"]), row("b", ["eat"])]
    assert value("msvd_qa", rows, [text("cook"), text("run")]).value == 0.5
    five = [row("a", ["tomato", "tomato", "tomatoes", "red", "onion"])]
    assert value("ivqa", five, [text("Tomato")]).value == 1.0
    assert value("ivqa", five, [text("red")]).value == 0.5
    books = [row("a", ["Ann Author"], metadata={"genre": "Travel"}), row("b", ["No"], metadata={"genre": "Law"})]
    found = value("ocr_vqa", books, [text("ann author"), text("yes")])
    assert (found.value, found.result["by"]["genre"]["Law"]["accuracy"]) == (0.5, 0.0)


def test_captions():
    # Each image's caption is one of its references; other images' references make its words rare.
    captions = ["a red circle on the left", "two dogs run over green grass", "an old house in the snow"]
    rows = [row(str(number), [caption, caption]) for number, caption in enumerate(captions)]
    found = value("nocaps", rows, [text(caption) for caption in captions])
    assert found.value == pytest.approx(10.0)  # CIDEr-D's greatest value
    assert found.result["rouge_l"] == pytest.approx(1.0)
    assert math.isclose(found.result["bleu_4"], 1.0, abs_tol=1e-6)


def test_rows_and_answers_belong_together():
    with pytest.raises(ValueError, match="without a prediction: 'b'"):
        score(TASKS["msvd_qa"], [row("a", ["x"]), row("b", ["x"])], {"a": text("x")})
    with pytest.raises(ValueError, match="not in the split: 'b'"):
        score(TASKS["msvd_qa"], [row("a", ["x"])], {"a": text("x"), "b": text("x")})


def test_every_metric_is_used():
    assert {task.metric for task in (*TASKS.values(), *LLAVA_TASKS.values())} == set(METRICS)


SUBMISSIONS = {
    "vqav2_test_dev": [{"question_id": 10, "answer": "red"}, {"question_id": 20, "answer": "red"}],
    "vizwiz": [{"image": "VizWiz_test_00000000.jpg", "answer": "red"}],
    "textvqa_test": [{"question_id": 7, "answer": "red"}],
    "nocaps_test": [{"image_id": 0, "caption": "red"}, {"image_id": 1, "caption": "red"}],
}


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_files_for_servers(name, data_root):
    task = TASKS[name]
    rows = CatalogDataset(task.dataset, data_root / task.dataset, task.split)
    examples = [rows.peek(index) for index in range(len(rows))]
    answers = {example["id"]: text("red") for example in examples}
    assert submission(task, examples, answers) == SUBMISSIONS[name]


def test_what_a_server_does_not_take():
    with pytest.raises(ValueError, match="server is None; known are VQA"):
        submission(TASKS["gqa"], [], {})
    with pytest.raises(ValueError, match="made a-1: the server wants ids that are numbers"):
        submission(TASKS["vqav2_test"], [row("a-1")], {"a-1": text("x")})
