"""The commands with a LLaVA folder: what stock transformers answers when it is asked by the folder's chat template."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from instructblip_hf.data.sources.datasets import CatalogDataset
from official_formats import write_dataset
from tiny_llava import tiny_llava, tiny_llava_processor


# Words of the tokenizer; the published templates' are unknown to it.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}question : "
    "{% for p in m['content'] %}{{ p['text'] if p['type'] == 'text' else '<image>\n' }}{% endfor %} answer :"
    "{% else %}{% generation %} {{ m['content'][0]['text'] }}{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module", params=["mlp", "linear"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    model = tiny_llava(seed=3, projector_type=request.param)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    tiny_llava_processor(chat_template=TEMPLATE).save_pretrained(folder)
    return folder


@pytest.fixture
def asked(folder):
    """Stock's model and inputs for a question."""
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder).eval()
    processor = transformers.LlavaProcessor.from_pretrained(folder)

    def ask(image, question):
        turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        text = processor.apply_chat_template(turn, add_generation_prompt=True)
        assert text == f"<bos>question : <image>\n{question} answer :"
        picture = transformers.image_utils.load_image(str(image))
        return model, processor, processor(images=picture, text=text.removeprefix("<bos>"), return_tensors="pt")

    return ask


def answer_of(asked, image, question, tokens=4, **options):
    model, processor, inputs = asked(image, question)
    inputs.pop("token_type_ids", None)
    ids = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, **options)[
        :, inputs["input_ids"].shape[1] :
    ]
    return processor.batch_decode(ids, skip_special_tokens=True)[0].strip()


def test_ask(run, images, folder, asked):
    questions = ["what color ?", "where is the red circle ?"]
    options = [option for question in questions for option in ("-q", question)]
    result = run("ask", *images, *options, "-m", folder, "--json", "--max-new-tokens", 4)
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(records) == 4
    for record in records:
        assert record["answer"] == answer_of(asked, record["images"][0], record["question"])


def test_rank(run, images, folder, asked):
    candidates = ["red", "green", "red circle"]
    result = run("rank", "a.png", "what color ?", "-c", ",".join(candidates), "-m", folder, "--json")
    assert result.exit_code == 0, result.output
    ranking = json.loads(result.stdout)["ranking"]
    model, processor, inputs = asked("a.png", "what color ?")
    prompt = inputs["input_ids"]
    expected = {}
    for candidate in candidates:
        ids = processor.tokenizer(candidate, add_special_tokens=False, return_tensors="pt")["input_ids"]
        whole = torch.cat([prompt, ids], 1)
        logits = model(input_ids=whole, pixel_values=inputs["pixel_values"]).logits[0, prompt.shape[1] - 1 : -1]
        expected[candidate] = logits.log_softmax(-1).gather(1, ids.T).sum().item()
    assert {entry["label"]: entry["log_probability"] for entry in ranking} == pytest.approx(expected, abs=1e-4)
    assert [entry["label"] for entry in ranking] == sorted(expected, key=expected.get, reverse=True)


def test_evaluate(run, folder, asked, tmp_path):
    write_dataset("gqa", tmp_path / "data" / "gqa")
    options = ["--model", folder, "--data-root", tmp_path / "data", "--output", tmp_path / "out", "--device", "cpu"]
    more = ["--decoding", "num_beams=1", "--decoding", "repetition_penalty=1", "--prompt", "{question}", "--limit", 2]
    result = run("evaluate", "--tasks", "gqa", *options, *more)
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "out" / "gqa" / "predictions.jsonl").read_text().splitlines()
    predictions = [json.loads(line) for line in lines]
    assert len(predictions) == 2
    rows = {str(row["id"]): row for row in CatalogDataset("gqa", tmp_path / "data" / "gqa", "testdev")}
    for prediction in predictions:
        row = rows[prediction["id"]]
        assert prediction["prompt"] == row["question"]
        found = answer_of(asked, row["images"][0], row["question"], tokens=10, min_new_tokens=1)
        assert prediction["prediction"] == found


def test_caption_and_pipelines(run, images, folder, asked):
    result = run("caption", "a.png", "-m", folder, "--max-new-tokens", 4)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == answer_of(asked, "a.png", "Describe the image.")
    import instructblip_hf

    pipe = transformers.pipeline("image-to-text", model=str(folder))
    assert type(pipe.model) is instructblip_hf.LlavaForConditionalGeneration
    prompt = pipe.processor.user_turn("what color ?")
    said = pipe("b.png", prompt=prompt, max_new_tokens=4)[0]["generated_text"]
    assert said == answer_of(asked, "b.png", "what color ?")
    ranked = transformers.pipeline("vocabulary-ranking", model=str(folder))
    assert ranked("b.png", prompt=prompt, candidates=["red", "blue"])[0]["label"] in ("red", "blue")
