"""The protocol's tasks on rows in the official formats: what is asked, and what is chosen from."""

import pytest

from instructblip_hf.data.catalog import DATASETS
from instructblip_hf.data.sources.datasets import CatalogDataset
from instructblip_hf.evaluation.prompts import candidates_of, history_text, options_text, prompt_of
from instructblip_hf.evaluation.published import FINETUNED, ZERO_SHOT
from instructblip_hf.evaluation.tasks import TASKS, EvalTask, eval_task


PROMPTS = {
    "aokvqa": "Question: What is the man by the bags awaiting? Short answer:",
    "aokvqa_choice": "Question: What is the man by the bags awaiting? "
    "Options: (a) skateboarder (b) train (c) delivery (d) cab. Short answer:",
    "coco_caption": "A short image caption.",
    "flickr30k": "A short image description: ",
    "gqa": "Question: Is it red? Short answer:",
    "hateful_memes": 'This is an image with: "its their character not their color" written on it. Is it hateful? Answer:',
    "iconqa": "Question: How many? Options: (a) 2 (b) 3. Short answer:",
    "ivqa": "Question: What is cut, first? Short answer:",
    "msrvtt_qa": "Question: what is a man doing? Short answer:",
    "msvd_qa": "Question: what is a man doing? Short answer:",
    "nocaps": "A short image description: ",
    "ocr_vqa": "Question: Who wrote this book? Short answer:",
    "okvqa": "Question: What is in 1? Short answer:",
    "scienceqa": "Context: Look at the bar. Question: Which of these? Options: (a) iron (b) wood. Answer:",
    "textcaps": "A short image description: ",
    "textvqa": "OCR tokens: stop, 5. Question: What does it say? Short answer:",
    "visdial": 'This image has the caption "A man.". Question: question 0? Short answer:',
    "vizwiz": "Question: What is this? Short answer:",
    "vqav2": "Question: What is in 1? Short answer:",
    "vsr": 'Based on the image, is this statement true or false? "The teddy bear is in front of the person." Answer:',
}
"""Of the first rows, written out after lavis.md's table of appendix E."""


def examples(data_root, task):
    dataset = CatalogDataset(task.dataset, data_root / task.dataset, task.split)
    return [dataset.peek(index) for index in range(len(dataset))]


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if name in PROMPTS])
def test_prompts(name, data_root):
    rows = examples(data_root, TASKS[name])
    found = [prompt_of(TASKS[name], row) for row in rows]
    if name == "textcaps":
        assert [prompt.endswith("A short image description: ") for prompt in found] == [True] * len(rows)
    else:
        assert found[0] == PROMPTS[name]


def test_every_public_task_is_written_out():
    assert {name for name in TASKS if "_test" not in name} == set(PROMPTS)


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.inference == "rank"])
def test_the_right_answer_is_a_candidate(name, data_root):
    task, train = TASKS[name], []
    if task.candidates == "train_answers":
        rows = CatalogDataset(task.dataset, data_root / task.dataset, "train")
        train = [answer for index in range(len(rows)) for answer in rows.peek(index)["answers"]]
    for row in examples(data_root, task):
        candidates = candidates_of(task, row, train)
        if task.candidates == "options":
            assert candidates[row["correct_option"]] == row["options"][row["correct_option"]]
        elif task.candidates == "labels":
            assert row["answers"][0] in task.labels
            assert candidates == ["yes", "true", "no", "false"]
        else:
            assert set(train) <= set(candidates)


def test_contexts_as_published(data_root):
    visdial = examples(data_root, TASKS["visdial"])
    assert prompt_of(TASKS["visdial"], visdial[2]) == (
        'This image has the caption "A man.". Dialog history: Question: question 0? Answer: answer 9. '
        "Question: question 1? Answer: answer 8.\n Question: question 2? Short answer:"
    )
    assert len(candidates_of(TASKS["visdial"], visdial[2])) == 100
    (science,) = examples(data_root, TASKS["scienceqa"])
    science.pop("context")
    assert prompt_of(TASKS["scienceqa"], science) == "Question: Which of these? Options: (a) iron (b) wood. Answer:"
    (text,) = examples(data_root, TASKS["textvqa"])
    many = {**text, "ocr_tokens": [str(number) for number in range(50)]}
    assert "28, 29. Question" in prompt_of(TASKS["textvqa"], many)
    assert prompt_of(TASKS["textvqa"], {**text, "ocr_tokens": []}).startswith("Question:")


def test_options_and_history():
    assert options_text(["red", "blue"]) == "(a) red (b) blue"
    assert history_text([]) == ""
    assert history_text([{"question": "is it red?", "answer": "no."}]) == "Question: is it red? Answer: no."
    with pytest.raises(ValueError, match="27 options"):
        options_text(["x"] * 27)


def test_braces_in_a_question_are_text(data_root):
    (row,) = examples(data_root, TASKS["vizwiz"])
    assert prompt_of(TASKS["vizwiz"], {**row, "question": "is {this} it?"}) == "Question: is {this} it? Short answer:"


def test_what_is_missing_is_told(data_root):
    (row,) = examples(data_root, TASKS["vizwiz"])
    with pytest.raises(ValueError, match=r"vizwiz VizWiz_test_00000000\.jpg has no question"):
        prompt_of(TASKS["vizwiz"], {**row, "question": " "})
    with pytest.raises(ValueError, match="has nothing to choose from"):
        candidates_of(TASKS["scienceqa"], row)
    with pytest.raises(ValueError, match="it has no candidates"):
        candidates_of(TASKS["vizwiz"], row)
    with pytest.raises(KeyError, match="no task 'vqa'; there are nocaps"):
        eval_task("vqa")
    for wrong in ({"inference": "rank"}, {"candidates": "options"}, {"inference": "rank", "candidates": "labels"}):
        with pytest.raises(ValueError, match="exactly where"):
            EvalTask("gqa", "testdev", "", "exact_match", "", **wrong)
    with pytest.raises(ValueError, match="metric is 'f1'"):
        EvalTask("gqa", "testdev", "", "f1", "")


def test_the_protocol_covers_the_paper():
    held_out = {name for name, spec in DATASETS.items() if spec.role == "held-out"}
    zero_shot = {name for row in ZERO_SHOT.values() for name in row}
    assert zero_shot == held_out
    assert zero_shot | {name for row in FINETUNED.values() for name in row} <= set(TASKS)
    evaluated = {spec_name for spec_name, spec in DATASETS.items() if spec.evaluated_on is not None}
    assert {task.dataset for task in TASKS.values()} == evaluated
    for name in evaluated:
        assert TASKS[name].split == DATASETS[name].evaluated_on
    ranked = {name for name, task in TASKS.items() if task.inference == "rank"} - {"vsr"}
    assert ranked == {"scienceqa", "iconqa", "aokvqa_choice", "hateful_memes", "visdial", "msvd_qa", "msrvtt_qa"}
    for task in TASKS.values():
        assert DATASETS[task.dataset].splits[task.split].labelled == (task.server is None)


def test_decoding_of_both_kinds_of_language_models():
    assert TASKS["gqa"].decoding.options(False)["length_penalty"] == 0.0
    assert TASKS["gqa"].decoding.options(True)["length_penalty"] == -1.0
    assert TASKS["nocaps"].decoding.options(True)["max_new_tokens"] == 30
