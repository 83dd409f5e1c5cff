"""Files of answers to ScienceQA: how they are read, scored, and joined with GPT-4's; and LLaVA's tasks."""

import json
import random
from pathlib import Path

import pytest

from instructblip_hf.data.sources.datasets import CatalogDataset
from instructblip_hf.evaluation.answering import TaskModel
from instructblip_hf.evaluation.prompts import prompt_of
from instructblip_hf.evaluation.runner import EvaluationOptions, evaluate
from instructblip_hf.evaluation.scienceqa import read_answers, score_answers, score_with_gpt4
from instructblip_hf.evaluation.tasks import LLAVA_TASKS, eval_task
from tiny_shapes import tiny_model, tiny_processor


def problem(name, right, options=3, image=False, hint="", subject="natural science", grade="grade2"):
    return {
        "id": name,
        "dataset": "scienceqa",
        "images": ["x.png"] if image else [],
        "question": "Which?",
        "options": list("vwxyz")[:options],
        "correct_option": right,
        "context": hint,
        "metadata": {"subject": subject, "grade": grade, "topic": "physics"},
    }


def says(letter):
    return f"So. The answer is {letter}."


PROBLEMS = [
    problem("1", 0),
    problem("2", 1, image=True),
    problem("3", 2, hint="Look.", grade="grade9"),
    problem("4", 1, options=2, subject="social science"),
    problem("5", 0, subject="language science"),
]


def written(folder, name, text):
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def as_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_files_of_three_kinds_are_read_alike(tmp_path):
    texts = {"1": "A", "2": "line\nline"}
    llava = [{"question_id": one, "prompt": "q", "text": text, "metadata": {}} for one, text in texts.items()]
    ours = [{"id": one, "prompt": "q", "prediction": text} for one, text in texts.items()]
    result = {"acc": 1.0, "results": {"1": 0, "2": -1}, "outputs": texts}
    for name, text in (("a", as_lines(llava)), ("b", as_lines(ours)), ("c", json.dumps(result, indent=2))):
        assert read_answers(written(tmp_path, name, text)) == texts
    assert read_answers(written(tmp_path, "d", as_lines(llava[:1]))) == {"1": "A"}


def test_separators_in_an_answer_end_no_line(tmp_path):
    texts = {"1": "a\u2028b\u0085c\x1dd", "2": "e"}
    lines = [json.dumps({"question_id": one, "text": text}, ensure_ascii=False) for one, text in texts.items()]
    assert read_answers(written(tmp_path, "a", "\n".join(lines))) == texts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a has no answers"),
        ('{"question_id": "1", "text": "A"}\n{"question_id": "1", "text": "B"}', "a:2 answers 1 a second time"),
        ('{"question_id": "1", "text": "A"}\n{"question_id": "2"}', "a:2 is no answer"),
        ('{"question_id": "1", "text": "A"}\nnothing', "a:2 is no JSON"),
        ('{"results": {"1": 0}}', 'a has no object "outputs"'),
        ('{"outputs": {"1": 0}}', 'a has no object "outputs"'),
        ("[1, 2]", "a:1 is no answer"),
    ],
)
def test_what_is_no_file_of_answers_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_answers(written(tmp_path, "a", text))


def test_a_file_is_scored_and_what_is_missing_is_wrong():
    answers = {"1": "A", "2": says("B"), "3": "nothing", "4": "C", "99": "A"}
    found = score_answers(PROBLEMS, answers)
    assert found["accuracy"] == 2 / 5
    assert (found["failed"], found["unanswered"], found["not_an_option"]) == (2, 1, 1)
    assert found["by"]["subject"]["language science"] == {"accuracy": 0.0, "count": 1}
    assert found["by"]["context"]["image"] == {"accuracy": 1.0, "count": 1}
    with pytest.raises(ValueError, match="to none of the 5 problems, such as 1"):
        score_answers(PROBLEMS, {"99": "A"})


def test_complement_and_judge_where_nothing_is_left_to_chance():
    ours = {"1": says("A"), "2": says("B"), "3": says("A"), "4": says("B"), "5": says("B")}
    gpt4 = {"1": says("B"), "2": "No image.", "3": says("C"), "4": says("A"), "5": "No."}
    judge = {"1": says("A"), "2": "Hm.", "3": says("C"), "4": says("A")}
    found = score_with_gpt4(PROBLEMS, ours, gpt4, judge)
    assert found["model"].choices == {"1": 0, "2": 1, "3": 0, "4": 1, "5": 1}
    assert found["complement"].choices == {"1": 1, "2": 1, "3": 2, "4": 0, "5": 1}
    assert found["judge"].choices == {"1": 0, "2": 1, "3": 2, "4": 0, "5": 1}
    accuracies = {name: found[name].result["accuracy"] for name in ("model", "complement", "judge")}
    assert accuracies == {"model": 3 / 5, "complement": 2 / 5, "judge": 3 / 5}
    assert found["judge"].result["by"]["grade"]["7-12"] == {"accuracy": 1.0, "count": 1}
    assert found["upper_bound"] == 4 / 5
    assert (found["gpt4_failed"], found["judge_missing"]) == (2, 1)
    assert found["complement"].drawn == found["judge"].drawn == found["model"].drawn == 0
    assert found["gpt4"].drawn == 2


def test_chance_is_seeded_counted_and_asked_in_llavas_order():
    ours = {one["id"]: "A" for one in PROBLEMS}  # no sentence: chance chooses
    gpt4 = {"1": says("E"), "2": "", "3": says("B"), "4": says("C"), "5": ""}  # E and C are no options of 1 and 4
    found = score_with_gpt4(PROBLEMS, ours, gpt4, {}, seed=3)
    chance = random.Random(3)
    complement, judge = {}, {}
    for one in PROBLEMS:
        count = len(one["options"])
        mine = chance.choice(range(count))
        theirs = 1 if one["id"] == "3" else chance.choice(range(count))
        chance.choice(range(count))  # for the judge, who says nothing
        complement[one["id"]] = mine if gpt4[one["id"]] == "" else theirs
        judge[one["id"]] = mine
    assert found["complement"].choices == complement
    assert found["judge"].choices == judge
    assert (found["model"].drawn, found["gpt4"].drawn, found["complement"].drawn) == (5, 4, 4)
    assert score_with_gpt4(PROBLEMS, ours, gpt4, {}, seed=3)["complement"].choices == complement
    others = [score_with_gpt4(PROBLEMS, ours, gpt4, {}, seed=seed)["complement"].choices for seed in range(4, 9)]
    assert any(choices != complement for choices in others)


@pytest.mark.parametrize("which", ["ours", "gpt4"])
def test_an_ensemble_needs_all_answers(which):
    answers = {"ours": {one["id"]: says("A") for one in PROBLEMS}}
    answers["gpt4"] = dict(answers["ours"])
    del answers[which]["4"]
    with pytest.raises(ValueError, match="answers lack '4'"):
        score_with_gpt4(PROBLEMS, answers["ours"], answers["gpt4"])


# --- the tasks


def test_what_llavas_tasks_ask(data_root):
    rows = CatalogDataset("scienceqa", data_root / "scienceqa", "test")
    first, second = rows.peek(0), rows.peek(1)
    asked = {name: prompt_of(eval_task(name), first) for name in LLAVA_TASKS}
    assert asked == {
        "scienceqa_llava": "Which of these?\nContext: Look at the bar.\nOptions: (A) iron (B) wood",
        "scienceqa_llava_1_5": "Context: Look at the bar.\nQuestion: Which of these?\nOptions: (A) iron (B) wood\n"
        "Answer with the option's letter from the given choices directly.",
    }
    assert prompt_of(eval_task("scienceqa_llava"), second).splitlines()[1] == "Context: N/A"


def test_a_task_generates_to_its_end_and_reads_the_letter(data_root, tmp_path):
    model, processor = tiny_model().eval(), tiny_processor()
    task = eval_task("scienceqa_llava")
    rows = CatalogDataset("scienceqa", data_root / "scienceqa", "test")
    records = TaskModel(model, processor, task).answer([rows[0], rows[1]])
    for index, record in enumerate(records):
        images = [Path(data_root, "scienceqa", "test", "5", "image.png")] if index == 0 else []
        inputs = processor(images=[images], text=[record["prompt"]], return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=1024, do_sample=False, num_beams=1, return_full_text=False)
        assert record["prediction"] == processor.batch_decode(ids, skip_special_tokens=True)[0].strip()
    results = evaluate(
        model, processor, {"scienceqa_llava": task}, data_root, tmp_path, options=EvaluationOptions(progress=False)
    )
    result = results["tasks"]["scienceqa_llava"]["result"]
    assert (result["count"], result["failed"], result["accuracy"]) == (2, 2, 0.0)
    answers = read_answers(tmp_path / "scienceqa_llava" / "predictions.jsonl")
    examples = [rows.peek(0), rows.peek(1)]
    assert score_answers(examples, answers)["failed"] == 2
