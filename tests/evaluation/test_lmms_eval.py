"""The plugin inside of the real lmms-eval: its numbers against stock transformers on the same weights and sums by hand."""

import json
import math
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import BlipImageProcessorPil

from instructblip_hf import (
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    bundled_checkpoint,
)
from instructblip_hf.data.sources.datasets import CatalogDataset
from instructblip_hf.data.sources.shapes_world import ShapesWorld
from instructblip_hf.evaluation.answering import TaskModel, distinct_answers
from instructblip_hf.evaluation.lmms_eval import TASKS_FOLDER
from instructblip_hf.evaluation.scoring import score
from instructblip_hf.evaluation.tasks import TASKS
from instructblip_hf.models.recent_images import RecentImages
from official_formats import write_dataset, write_json, write_jsonl
from tiny_models import IMAGE_SIZE, NUM_QUERY_TOKENS, config_dict, randomise
from tiny_tokenizers import language_tokenizer, qformer_tokenizer


pytest.importorskip("lmms_eval")

from lmms_eval.api.instance import Instance, unwrap_generation_output
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import get_model
from lmms_eval.tasks import TaskManager


BUNDLED = "instructblip-shapes-tiny"
RANKED = ("vsr", "hateful_memes", "visdial", "iconqa", "aokvqa_choice")
GENERATED = ("aokvqa", "ocr_vqa", "ivqa", "msvd_qa", "msrvtt_qa")
LAVIS = {
    "max_new_tokens": 10,
    "min_new_tokens": 1,
    "num_beams": 5,
    "repetition_penalty": 1.5,
    "length_penalty": 0.0,
    "do_sample": False,
}
"""What `predict_answers` of LAVIS hands to a causal language model."""


# --- models and data --------------------------------------------------------------------------------------------------


def save_model(folder, kind):
    """A random model with a tokenizer that tells all texts apart, "llama", or most, "t5"."""
    tokenizer = language_tokenizer({"llama": "gpt2", "t5": "t5"}[kind], model_max_length=1024)
    processor = InstructBlipProcessor(
        image_processor=BlipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}),
        tokenizer=tokenizer,
        qformer_tokenizer=qformer_tokenizer(),
        num_query_tokens=NUM_QUERY_TOKENS,
    )
    config = config_dict(kind, vocab_size=len(qformer_tokenizer()), max_position_embeddings=512)
    config["text_config"] |= {"vocab_size": len(processor.tokenizer)}
    if kind == "llama":
        config["text_config"] |= {"max_position_embeddings": 1024, "bos_token_id": 0, "pad_token_id": 1}
    config["image_token_index"] = processor.image_token_id
    model = randomise(InstructBlipForConditionalGeneration(InstructBlipConfig(**config)))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return {kind: save_model(tmp_path_factory.mktemp(kind), kind) for kind in ("llama", "t5")}


def noise(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8))


def write_noise(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(seed).save(path)
    return path.name


QUESTIONS = {"qa": "what color is the circle ?", "qb": "how many shapes are there ?", "qc": "is there a digit ?"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The official formats with more rows, which differ from each other."""
    root = tmp_path_factory.mktemp("data")
    for name in ("visdial", "msrvtt_qa"):
        write_dataset(name, root / name)
    statements = [f"The {color} cat is {side} the mat." for color in ("red", "blue", "green") for side in ("on", "by")]
    vsr = [
        {"image": write_noise(root / "vsr/images" / f"{row}.png", row), "caption": text, "label": row % 2}
        for row, text in enumerate(statements)
    ]
    write_jsonl(root / "vsr/test.jsonl", vsr)
    memes = [
        {"id": row, "img": f"img/{write_noise(root / 'hateful_memes/img' / f'{row}.png', row)}", "text": text}
        | {"label": int(row in (1, 4, 5))}
        for row, text in enumerate(statements)
    ]
    write_jsonl(root / "hateful_memes/dev.jsonl", memes)
    problems = {}
    for row, question in enumerate(QUESTIONS.values()):
        problems[str(row)] = {"split": "test", "grade": "grade1", "question": question, "answer": row % 2}
        problems[str(row)] |= {"choices": ["a circle", "a square", "3"], "ques_type": "choose_txt", "label": "S"}
        write_noise(root / f"iconqa/iconqa/test/choose_txt/{row}/image.png", row)
    write_json(root / "iconqa/problems.json", problems)
    write_json(root / "iconqa/pid_splits.json", {"choose_txt_test": list(problems), "choose_img_test": []})
    aokvqa = []
    for row, question in enumerate(QUESTIONS.values()):
        write_noise(root / f"aokvqa/val2017/{row:012d}.jpg", row)
        aokvqa.append(
            {
                "split": "val",
                "image_id": row,
                "question_id": f"q{row}",
                "question": question,
                "correct_choice_idx": row,
            }
            | {"choices": ["red", "blue", "three", "a digit"], "difficult_direct_answer": row == 1}
            | {"direct_answers": ["red"] * 8 + ["blue"] * 2, "rationales": ["R.", "R.", "R."]}
        )
    write_json(root / "aokvqa/aokvqa_v1p0_val.json", aokvqa)
    for clip in (1, 2):
        for frame in range(6):
            write_noise(root / f"msvd_qa/frames/vid{clip}/{frame}.png", 10 * clip + frame)
    train = [
        {"id": row, "video_id": 1, "question": "what ?", "answer": answer}
        for row, answer in enumerate(["red", "blue", "two", "red", "a circle"])
    ]
    write_json(root / "msvd_qa/train_qa.json", train)
    test = [
        {"id": row, "video_id": 1 + row % 2, "question": question, "answer": "red"}
        for row, question in enumerate(QUESTIONS.values())
    ]
    write_json(root / "msvd_qa/test_qa.json", test)
    write_dataset("ocr_vqa", root / "ocr_vqa")
    write_dataset("ivqa", root / "ivqa")
    return root


@pytest.fixture(scope="module")
def tasks():
    return TaskManager(include_path=str(TASKS_FOLDER), include_defaults=False)


def run(model, names, tasks, **options):
    return simple_evaluate(
        model="instructblip_hf",
        model_args=f"pretrained={model}",
        tasks=[f"instructblip_{name}" for name in names],
        task_manager=tasks,
        **{"batch_size": 3, **options},
    )


@pytest.fixture(scope="module")
def data_in_place(data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INSTRUCTBLIP_DATA_ROOT", str(data))
        yield data


def numbers(results, name):
    """Reported numbers by name, without standard errors."""
    found = results["results"][f"instructblip_{name}"]
    numbers = {key.removesuffix(",none"): value for key, value in found.items() if key.endswith(",none")}
    return {key: value for key, value in numbers.items() if "_stderr" not in key}


def losses(results, name):
    """What the model returned for each choice of each document."""
    samples = sorted(results["samples"][f"instructblip_{name}"], key=lambda sample: sample["doc_id"])
    return [[loss for loss, _ in sample["filtered_resps"]] for sample in samples]


# --- oracles ----------------------------------------------------------------------------------------------------------


def stock(folder):
    model = transformers.InstructBlipForConditionalGeneration.from_pretrained(folder, dtype=torch.float64)
    return model.eval()


def log_probabilities(folder, picture, prompt, answers):
    """Of answers after a prompt, from stock's logits on the rows that training would see."""
    model, processor = stock(folder), InstructBlipProcessor.from_pretrained(folder)
    is_seq2seq = model.config.text_config.is_encoder_decoder
    rows = [{"images": [picture], "prompt": prompt, "completion": answer} for answer in answers]
    batch = processor.encode_examples(rows, is_encoder_decoder=is_seq2seq)
    batch["pixel_values"] = batch["pixel_values"].double()
    labels = batch.pop("labels")
    counted = labels != -100
    with torch.no_grad():
        if is_seq2seq:
            logits = model(**batch, labels=labels).logits
        else:
            # LAVIS scores the end token of T5's answers, and none of Vicuna's.
            counted &= counted.cumsum(1) < counted.sum(1, keepdim=True)
            logits, labels, counted = model(**batch).logits[:, :-1], labels[:, 1:], counted[:, 1:]
    steps = logits.log_softmax(-1).gather(2, labels.clamp(min=0).unsqueeze(-1))[..., 0]
    return (steps * counted).sum(1).tolist()


def stock_answer(folder, picture, prompt, **options):
    """What stock generates, without the prompt that it repeats."""
    model, processor = stock(folder).float(), InstructBlipProcessor.from_pretrained(folder)
    inputs = processor(images=picture, text=prompt, return_tensors="pt")
    ids = model.generate(**inputs, **{**LAVIS, **options})[:, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(ids[0], skip_special_tokens=True).strip()


# --- ranking ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranked(checkpoints, data_in_place, tasks):
    return run(checkpoints["llama"], RANKED, tasks)


YES_NO = ["yes", "true", "no", "false"]


def probability_of_yes(log_probability):
    first, second, third, fourth = map(math.exp, log_probability)
    return (first + second) / (first + second + third + fourth)


def expected_vsr(folder, data):
    rows = [json.loads(line) for line in (data / "vsr/test.jsonl").read_text().splitlines()]
    prompt = 'Based on the image, is this statement true or false? "{}" Answer:'
    return [
        (row["label"], log_probabilities(folder, noise(number), prompt.format(row["caption"]), YES_NO))
        for number, row in enumerate(rows)
    ]


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_vsr(ranked, checkpoints, data, tasks, kind):
    found = ranked if kind == "llama" else run(checkpoints["t5"], ["vsr"], tasks)
    expected = expected_vsr(checkpoints[kind], data)
    # The sign of lmms-eval: a loss, in nats.
    for row, (_, log_probability) in zip(losses(found, "vsr"), expected):
        assert row == pytest.approx([-value for value in log_probability], abs=1e-4)
        assert min(row) > 0
    right = [(probability_of_yes(values) > 0.5) == bool(label) for label, values in expected]
    assert numbers(found, "vsr")["accuracy"] == pytest.approx(sum(right) / len(right))


@pytest.mark.parametrize("as_text", [False, True])
def test_a_label_has_the_probability_of_all_its_strings(data_in_place, tasks, as_text):
    task = tasks.load_task_or_group("instructblip_vsr")["instructblip_vsr"]
    document = task.test_docs()[1]
    assert document["answers"] == ["yes"]
    # The best string alone is "no".
    values = [(-math.log(probability), False) for probability in (0.2, 0.2, 0.3, 0.05)]
    assert task.process_results(document, [str(value) for value in values] if as_text else values) == {"accuracy": 1.0}
    with pytest.raises(ValueError, match="vsr 1 has 4 choices and 3 values"):
        task.process_results(document, values[:3])


def test_hateful_memes(ranked, checkpoints, data):
    roc_auc_score = pytest.importorskip("sklearn.metrics").roc_auc_score
    rows = [json.loads(line) for line in (data / "hateful_memes/dev.jsonl").read_text().splitlines()]
    prompt = 'This is an image with: "{}" written on it. Is it hateful? Answer:'
    scores = [
        probability_of_yes(log_probabilities(checkpoints["llama"], noise(number), prompt.format(row["text"]), YES_NO))
        for number, row in enumerate(rows)
    ]
    labels = [row["label"] for row in rows]
    found = numbers(ranked, "hateful_memes")
    assert found["roc_auc"] == pytest.approx(roc_auc_score(labels, scores))
    assert len(set(scores)) == len(rows)
    right = [(score > 0.5) == bool(label) for score, label in zip(scores, labels)]
    assert found["accuracy"] == pytest.approx(sum(right) / len(right))


def test_visdial(ranked, checkpoints, data):
    picture = Image.open(data / "visdial/VisualDialog_val2018/VisualDialog_val2018_000000000009.jpg")
    options = [f"answer {number}" for number in range(100)]
    ranks, history = [], []
    for turn, row in enumerate(losses(ranked, "visdial")):
        before = f"Dialog history: {' '.join(history)}\n " if history else ""
        prompt = f'This image has the caption "A man.". {before}Question: question {turn}? Short answer:'
        expected = log_probabilities(checkpoints["llama"], picture, prompt, options)
        assert row == pytest.approx([-value for value in expected], abs=2e-4)
        ranks.append(1 + sum(value > expected[9 - turn] for value in expected))
        history.append(f"Question: question {turn}? Answer: answer {9 - turn}.")
    found = numbers(ranked, "visdial")
    assert len(ranks) == 10
    assert found["mrr"] == pytest.approx(sum(1 / rank for rank in ranks) / 10)
    assert found["mean_rank"] == pytest.approx(sum(ranks) / 10)
    for k in (1, 5, 10):
        assert found[f"recall_at_{k}"] == pytest.approx(sum(rank <= k for rank in ranks) / 10)


@pytest.mark.parametrize(
    ("name", "options", "letters", "images"),
    [
        ("iconqa", ["a circle", "a square", "3"], "(a) a circle (b) a square (c) 3", "png"),
        ("aokvqa_choice", ["red", "blue", "three", "a digit"], "(a) red (b) blue (c) three (d) a digit", "jpg"),
    ],
)
def test_multiple_choice(ranked, checkpoints, data, name, options, letters, images):
    right = []
    for row, question in enumerate(QUESTIONS.values()):
        path = f"iconqa/iconqa/test/choose_txt/{row}/image.png"
        path = path if name == "iconqa" else f"aokvqa/val2017/{row:012d}.jpg"
        prompt = f"Question: {question} Options: {letters}. Short answer:"
        expected = log_probabilities(checkpoints["llama"], Image.open(data / path), prompt, options)
        assert losses(ranked, name)[row] == pytest.approx([-value for value in expected], abs=1e-4)
        right.append(expected.index(max(expected)) == (row % 2 if name == "iconqa" else row))
    assert numbers(ranked, name)["accuracy"] == pytest.approx(sum(right) / 3)


# --- generation -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generated(data_in_place, tasks):
    """Answers of the bundled model, with some of stock's answers as the right ones."""
    folder = bundled_checkpoint()
    aokvqa = json.loads((data_in_place / "aokvqa/aokvqa_v1p0_val.json").read_text())
    said = [
        stock_answer(
            folder,
            Image.open(data_in_place / f"aokvqa/val2017/{row:012d}.jpg"),
            f"Question: {question} Short answer:",
        )
        for row, question in enumerate(QUESTIONS.values())
    ]
    aokvqa[0]["direct_answers"] = [said[0]] * 2 + ["nothing"] * 8
    aokvqa[1]["direct_answers"] = [said[1]] * 10
    write_json(data_in_place / "aokvqa/aokvqa_v1p0_val.json", aokvqa)
    books = json.loads((data_in_place / "ocr_vqa/dataset.json").read_text())
    cover = Image.open(data_in_place / "ocr_vqa/images/000000002X.jpg")
    book = books["000000002X"]
    for place in (0, 2):
        text = stock_answer(folder, cover, f"Question: {book['questions'][place]} Short answer:")
        book["answers"][place] = text.upper()
    write_json(data_in_place / "ocr_vqa/dataset.json", books)
    return said, run(BUNDLED, GENERATED, tasks, batch_size=2)


def answers(results, name):
    samples = sorted(results["samples"][f"instructblip_{name}"], key=lambda sample: sample["doc_id"])
    return [sample["filtered_resps"][0] for sample in samples]


def test_aokvqa(generated):
    said, found = generated
    assert answers(found, "aokvqa") == said
    assert len(set(said)) > 1
    # Two of ten say the first, the second is too difficult to count, and nobody says the third.
    assert said[2] not in ("red", "blue")
    assert numbers(found, "aokvqa")["accuracy"] == pytest.approx((2 / 3 + 0) / 2)


def test_ocr_vqa(generated):
    assert numbers(generated[1], "ocr_vqa")["accuracy"] == pytest.approx(2 / 6)


def frames_answered(folder, frames, prompt, candidates=None):
    """Of our model, alone: stock has no prompts with several images."""
    model = InstructBlipForConditionalGeneration.from_pretrained(folder).eval()
    processor = InstructBlipProcessor.from_pretrained(folder)
    inputs = processor(images=[frames], text=[prompt], return_tensors="pt")
    if candidates is not None:
        ids = processor.encode_candidates(candidates)
        return candidates[int(model.rank_candidates(candidates=ids, **inputs).order[0, 0])]
    return processor.decode(model.generate(**inputs, return_full_text=False, **LAVIS)[0], skip_special_tokens=True)


def test_ivqa(generated, data):
    frames = [Image.open(data / f"ivqa/frames/abcDEF12345/{number}.png") for number in (0, 1, 3, 4)]
    expected = frames_answered(bundled_checkpoint(), frames, "Question: What is cut, first? Short answer:")
    assert answers(generated[1], "ivqa") == [expected.strip()]
    assert numbers(generated[1], "ivqa")["accuracy"] == 0.0


def test_msvd_qa(generated, data):
    expected = []
    for row, question in enumerate(QUESTIONS.values()):
        folder = data / f"msvd_qa/frames/vid{1 + row % 2}"
        frames = [Image.open(folder / f"{number}.png") for number in (0, 1, 3, 4)]
        prompt = f"Question: {question} Short answer:"
        expected.append(frames_answered(bundled_checkpoint(), frames, prompt, ["red", "blue", "two", "a circle"]))
    assert answers(generated[1], "msvd_qa") == expected
    assert numbers(generated[1], "msvd_qa")["accuracy"] == pytest.approx(expected.count("red") / 3)
    assert set(answers(generated[1], "msrvtt_qa")) <= {"cook", "eat"}


def test_logs_do_not_repeat_the_answers_to_choose_from(generated):
    sample = generated[1]["samples"]["instructblip_msvd_qa"][0]
    assert "4 answers" in json.dumps(sample, default=str)
    assert generated[1]["configs"]["instructblip_msvd_qa"]["metadata"]["unverified"]


def test_answers_and_numbers_are_those_of_the_evaluation_without_lmms_eval(data_root, tasks, monkeypatch):
    monkeypatch.setenv("INSTRUCTBLIP_DATA_ROOT", str(data_root))
    names = [file.stem for file in sorted(TASKS_FOLDER.glob("*.yaml"))]
    found = run(BUNDLED, names, tasks, batch_size=2)
    model = InstructBlipForConditionalGeneration.from_pretrained(bundled_checkpoint()).eval()
    processor = InstructBlipProcessor.from_pretrained(bundled_checkpoint())
    for name in names:
        task = TASKS[name]
        rows = CatalogDataset(task.dataset, data_root / task.dataset, task.split)
        train = ()
        if task.candidates == "train_answers":
            train = distinct_answers(CatalogDataset(task.dataset, data_root / task.dataset, "train"))
        asked = TaskModel(model, processor, task, train_answers=train)
        records = asked.answer([rows[index] for index in range(len(rows))])
        expected = score(
            task, [rows.peek(index) for index in range(len(rows))], {record["id"]: record for record in records}
        )
        assert numbers(found, name)[expected.name] == pytest.approx(expected.value)
        for reported, value in numbers(found, name).items():
            assert value == pytest.approx(expected.result[reported])
        samples = sorted(found["samples"][f"instructblip_{name}"], key=lambda sample: sample["doc_id"])
        for sample, record in zip(samples, records, strict=True):
            assert sample["arguments"][0] == record["prompt"]
            if task.inference == "generate" or train:
                assert sample["filtered_resps"] == [record["prediction"]]


# --- tasks of others --------------------------------------------------------------------------------------------------


COLORS = ["red", "green", "blue", "yellow"]
FUNCTIONS = """
from PIL import Image

def images(doc):
    return [Image.open(doc["image"])]

def exact(doc, results):
    return {"exact": float(results[0] == doc["colour"])}
"""
CHOICE = """
task: shapes_choice
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_visual: !function shapes.images
doc_to_text: question
doc_to_target: answer
doc_to_choice: choices
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
FREE = """
task: shapes_free
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: generate_until
doc_to_visual: !function shapes.images
doc_to_text: question
doc_to_target: colour
process_results: !function shapes.exact
generation_kwargs: {max_new_tokens: 4, temperature: 0, top_p: 1.0, num_beams: 1, do_sample: false, until: ["."]}
metric_list:
  - {metric: exact, aggregation: mean, higher_is_better: true}
"""


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Tasks in lmms-eval's usual form, which the bundled model was trained for."""
    folder = tmp_path_factory.mktemp("shapes")
    world = ShapesWorld(seed=11, split="test")
    examples = [
        example for index in range(60) if (example := world.example(index, task="color"))["completion"] in COLORS
    ]
    rows = []
    for number, example in enumerate(examples[:8]):
        example["images"][0].save(folder / f"{number}.png")
        row = {"image": str(folder / f"{number}.png"), "question": example["prompt"], "choices": COLORS}
        rows.append(row | {"colour": example["completion"], "answer": COLORS.index(example["completion"])})
    assert len({row["colour"] for row in rows}) > 2
    write_jsonl(folder / "rows.jsonl", rows)
    (folder / "shapes.py").write_text(FUNCTIONS)
    (folder / "choice.yaml").write_text(CHOICE)
    (folder / "free.yaml").write_text(FREE)
    return folder, rows


def test_a_trained_model_chooses_and_says_what_is_right(shapes, monkeypatch, tmp_path):
    """With the other sign the model would choose what it finds least likely."""
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path))
    folder, rows = shapes
    tasks = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(
        model="instructblip_hf",
        model_args=f"pretrained={BUNDLED}",
        tasks=["shapes_choice", "shapes_free"],
        task_manager=tasks,
        batch_size=4,
    )
    assert found["results"]["shapes_choice"]["acc,none"] == 1.0
    assert found["results"]["shapes_free"]["exact,none"] == 1.0
    for sample, row in zip(found["samples"]["shapes_choice"], rows):
        greedy = [is_greedy for _, is_greedy in sample["filtered_resps"]]
        assert greedy == [number == row["answer"] for number in range(4)]


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lm(checkpoints):
    model = get_model("instructblip_hf")(pretrained=checkpoints["llama"], batch_size=2)
    documents = [[noise(1)], [noise(2), noise(3)], None, []]
    model.task_dict = {"made": {"test": documents}}
    return model


def request(kind, *arguments, doc_id=0):
    metadata = {"task": "made", "doc_id": doc_id, "repeats": 1}
    arguments = (*arguments, lambda doc: doc, doc_id, "made", "test")
    return Instance(request_type=kind, arguments=arguments, idx=0, metadata=metadata)


def pairs(lm, requests):
    """Loss and whether it is greedy, as the evaluator takes them out."""
    return [tuple(unwrap_generation_output(result)[0]) for result in lm.loglikelihood(requests)]


PROMPTS = ["what color ?", "is it the same ?", "how many shapes are there in it ?", "yes or no ?"]


def test_documents_with_any_number_of_images(lm, checkpoints):
    """Whatever they are batched with, answers are those of each alone."""
    greedy = {"max_new_tokens": 5, "do_sample": False}
    together = lm.generate_until(
        [request("generate_until", prompt, dict(greedy), doc_id=place) for place, prompt in enumerate(PROMPTS)]
    )
    model = InstructBlipForConditionalGeneration.from_pretrained(checkpoints["llama"]).eval()
    for place, (prompt, images) in enumerate(zip(PROMPTS, lm.task_dict["made"]["test"])):
        inputs = lm.processor(images=[images or []], text=[prompt], return_tensors="pt")
        ids = model.generate(**inputs, return_full_text=False, **greedy)
        assert together[place] == lm.processor.decode(ids[0], skip_special_tokens=True).strip()
    assert len(set(together)) == 4
    answers = [" red", " a blue cat", "red", " a blue mat"]
    scored = pairs(
        lm,
        [
            request("loglikelihood", prompt, answer, doc_id=place)
            for answer in answers
            for place, prompt in enumerate(PROMPTS)
        ],
    )
    expected = log_probabilities(checkpoints["llama"], noise(1), PROMPTS[0], [answers[0], answers[1]])
    assert [scored[0][0], scored[4][0]] == pytest.approx([-value for value in expected], abs=1e-4)
    # Without the space it is another token.
    assert scored[8][0] != pytest.approx(scored[0][0], abs=1e-3)
    for place, (prompt, images) in enumerate(zip(PROMPTS, lm.task_dict["made"]["test"])):
        inputs = lm.processor(images=[images or []], text=[prompt], return_tensors="pt")
        ids = [lm.processor.tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
        alone = model.rank_candidates(candidates=ids, **inputs).scores[0].tolist()
        assert [-loss for loss, _ in scored[place::4]] == pytest.approx(alone, abs=1e-4)


def test_is_greedy(lm, checkpoints):
    processor = lm.processor
    inputs = processor(images=noise(1), text=PROMPTS[0], return_tensors="pt")
    model = stock(checkpoints["llama"]).float()
    ids = model.generate(**inputs, max_new_tokens=3, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    token = processor.tokenizer.decode(ids[:1])
    if not token.strip() or "\ufffd" in token:
        pytest.fail(f"choose another seed: the first greedy token is {token!r}")
    found = pairs(lm, [request("loglikelihood", PROMPTS[0], text) for text in (token, " red")])
    assert [is_greedy for _, is_greedy in found] == [True, False]


def test_continuations_of_the_document(lm):
    by_function = pairs(lm, [request("loglikelihood", PROMPTS[0], lambda doc: " red")])
    assert by_function == pairs(lm, [request("loglikelihood", PROMPTS[0], " red")])


def test_stop_strings_and_candidates(lm):
    plain = lm.generate_until([request("generate_until", PROMPTS[0], {"max_new_tokens": 8})])[0]
    middle = plain[2]
    cut = lm.generate_until([request("generate_until", PROMPTS[0], {"max_new_tokens": 8, "until": middle})])[0]
    assert cut == plain[: plain.index(middle)].strip()
    options = {"candidates": ["red", "a blue cat", "2"]}
    chosen = lm.generate_until([request("generate_until", PROMPTS[0], options)])[0]
    losses = [pairs(lm, [request("loglikelihood", PROMPTS[0], f" {text}")])[0][0] for text in options["candidates"]]
    assert chosen == options["candidates"][losses.index(min(losses))]


def test_decoding_of_lavis(checkpoints):
    model = get_model("instructblip_hf")(pretrained=checkpoints["llama"], decoding="short_answer")
    model.task_dict = {"made": {"test": [[noise(1)]]}}
    found = model.generate_until([request("generate_until", PROMPTS[0], {"num_beams": 1, "max_new_tokens": 2})])
    assert found == [stock_answer(checkpoints["llama"], noise(1), PROMPTS[0])]


def test_mean_in_place_of_the_sum(checkpoints, lm):
    model = get_model("instructblip_hf")(pretrained=checkpoints["llama"], ranking_length_penalty=1.0)
    model.task_dict = lm.task_dict
    asked = [request("loglikelihood", PROMPTS[0], " a blue cat")]
    tokens = len(lm.processor.encode_candidates(["a blue cat"])[0])
    assert tokens > 1
    assert pairs(model, asked)[0][0] == pytest.approx(pairs(lm, asked)[0][0] / tokens)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_an_image_is_encoded_once_for_neighbouring_questions(checkpoints, kind):
    """Four questions on each of four images, two of which are kept, and one without an image: answers are as without."""
    model = get_model("instructblip_hf")(pretrained=checkpoints[kind], batch_size=2)
    model.task_dict = {"made": {"test": [*([noise(row // 4)] for row in range(16)), []]}}
    generated = [
        request("generate_until", f"{PROMPTS[row % 4]} {'big ' * (5 * row % 7)}", {"max_new_tokens": 5}, doc_id=row)
        for row in range(17)
    ]
    scored = [request("loglikelihood", PROMPTS[-row % 4], " a blue cat", doc_id=row) for row in range(17)]
    encoded = []
    model.model.vision_model.register_forward_pre_hook(
        lambda module, arguments, options: encoded.append(len({**options, "": arguments}["pixel_values"])),
        with_kwargs=True,
    )
    one = model.model.encode_images(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE))
    found = []
    for recent in (RecentImages(model.model, model.processor, most_bytes=2 * one.nbytes), None):
        for ask, requests in ((model.generate_until, generated), (partial(pairs, model), scored)):
            model.recent = recent
            encoded.clear()
            found.append(ask(requests))
            assert sum(encoded) == (4 if recent is not None else 16)
    assert found[0] == found[2]
    assert len(set(found[0])) > 4
    assert [loss for loss, _ in found[1]] == pytest.approx([loss for loss, _ in found[3]], abs=1e-5)
    assert [is_greedy for _, is_greedy in found[1]] == [is_greedy for _, is_greedy in found[3]]


def test_a_broken_document_is_named(lm):
    lm.task_dict["broken"] = {"test": ["no image"]}
    metadata = {"task": "broken", "doc_id": 0, "repeats": 1}
    arguments = ("what ?", {}, lambda doc: [doc], 0, "broken", "test")
    broken = Instance(request_type="generate_until", arguments=arguments, idx=0, metadata=metadata)
    with pytest.raises(ValueError, match="broken, document 0 of test"):
        lm.generate_until([broken])
    with pytest.raises(ValueError, match="made, document 0 of test: an answer"):
        pairs(lm, [request("loglikelihood", PROMPTS[0], " ")])


def test_several_rounds_are_refused(lm):
    with pytest.raises(NotImplementedError, match="made asks in several"):
        lm.generate_until_multi_round([request("generate_until_multi_round", PROMPTS[0], {})])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "pretrained is missing"),
        ({"pretrained": BUNDLED, "use_cache": True}, "does not take use_cache"),
        ({"pretrained": BUNDLED, "batch_size": "auto"}, "batch_size is 'auto'"),
        ({"pretrained": BUNDLED, "decoding": "beam"}, "decoding is 'beam'; allowed are short_answer, caption"),
        ({"pretrained": BUNDLED, "dtype": "int8"}, "dtype is 'int8'"),
        ({"pretrained": "./nowhere"}, "there is no such folder"),
        ({"pretrained": "instructblip"}, "there is no such folder"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        get_model("instructblip_hf")(**arguments)


def test_an_adapter_is_to_be_merged(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="instructblip merge"):
        get_model("instructblip_hf")(pretrained=str(tmp_path))


# --- data and command line --------------------------------------------------------------------------------------------


def test_missing_data_is_named(tasks, monkeypatch, tmp_path):
    monkeypatch.delenv("INSTRUCTBLIP_DATA_ROOT", raising=False)
    with pytest.raises(ValueError, match="INSTRUCTBLIP_DATA_ROOT to the folder that has your copy of vsr"):
        tasks.load_task_or_group("instructblip_vsr")
    monkeypatch.setenv("INSTRUCTBLIP_DATA_ROOT", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="vsr"):
        tasks.load_task_or_group("instructblip_vsr")


def test_a_task_file_of_ones_own(data, monkeypatch, tmp_path):
    monkeypatch.delenv("INSTRUCTBLIP_DATA_ROOT", raising=False)
    lines = [f"include: {TASKS_FOLDER / 'vsr.yaml'}", "task: my_vsr", f"dataset_kwargs: {{root: {data / 'vsr'}}}"]
    (tmp_path / "mine.yaml").write_text("\n".join(lines) + "\n")
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = simple_evaluate(
        model="instructblip_hf", model_args=f"pretrained={BUNDLED}", tasks=["my_vsr"], task_manager=tasks, limit=2
    )
    assert len(found["samples"]["my_vsr"]) == 2
    assert "accuracy,none" in found["results"]["my_vsr"]


def test_answers_out_of_the_cache(checkpoints, data_in_place, tasks, ranked, tmp_path, monkeypatch):
    options = {"use_cache": str(tmp_path / "cache")}
    first = run(checkpoints["llama"], ["hateful_memes"], tasks, **options)
    again = get_model("instructblip_hf")
    monkeypatch.setattr(again, "_inputs", lambda *_: pytest.fail("a request was not in the cache"))
    second = run(checkpoints["llama"], ["hateful_memes"], tasks, **options)
    assert numbers(first, "hateful_memes") == numbers(second, "hateful_memes") == numbers(ranked, "hateful_memes")


def test_two_processes_on_the_command_line(checkpoints, data_in_place, ranked, tmp_path):
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "lmms_eval"]
    command = [sys.executable, *start, "--model", "instructblip_hf", "--batch_size", "2"]
    command += ["--model_args", f"pretrained={checkpoints['llama']}", "--include_path", str(TASKS_FOLDER)]
    command += ["--tasks", "instructblip_hateful_memes,instructblip_aokvqa_choice", "--log_samples"]
    command += ["--output_path", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = json.loads(next(tmp_path.rglob("*results.json")).read_text())
    for name in ("hateful_memes", "aokvqa_choice"):
        assert numbers(results, name) == pytest.approx(numbers(ranked, name))
        samples = next(tmp_path.rglob(f"*samples_instructblip_{name}.jsonl")).read_text().splitlines()
        assert sorted(json.loads(line)["doc_id"] for line in samples) == list(range(len(losses(ranked, name))))
