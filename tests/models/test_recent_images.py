"""Images that are asked about again are found encoded, by whoever asks, with the answers of a model that starts afresh."""

import copy
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from instructblip_hf import ImageToTextPipeline, VocabularyRankingPipeline
from instructblip_hf.app.actions import Actions
from instructblip_hf.app.conversation import Conversation
from instructblip_hf.cli.answering import Question, answer
from instructblip_hf.cli.loading import LoadedModel
from instructblip_hf.evaluation.answering import TaskModel
from instructblip_hf.evaluation.runner import EvaluationOptions, evaluate
from instructblip_hf.evaluation.tasks import TASKS
from instructblip_hf.models.recent_images import RecentImages
from tiny_llava import tiny_llava, tiny_llava_processor
from tiny_shapes import tiny_model, tiny_processor


COLORS = ("red", "blue", "green", "white")
RED, BLUE, GREEN, WHITE = (Image.new("RGB", (30, 20), color) for color in COLORS)


def counting(model):
    """A list that gets the number of images of every run of the vision tower."""
    seen = []
    model.image_tower.register_forward_hook(lambda module, args, output: seen.append(len(output.last_hidden_state)))
    return seen


def answer_of(model, processor, images, text, **options):
    """By the plain path."""
    inputs = processor(images=images, text=text, return_tensors="pt")
    ids = model.generate(**inputs, return_full_text=False, **options)
    return processor.answers(ids)[0]


@pytest.fixture(params=["instructblip", "llava"])
def model_and_processor(request):
    if request.param == "llava":
        return tiny_llava().eval(), tiny_llava_processor()
    return tiny_model("causal").eval(), tiny_processor()


def plain(model, processor, images, texts):
    return processor(images=images, text=texts, padding=True, padding_side="left", return_tensors="pt")


def test_answers_are_those_of_images_encoded_afresh(model_and_processor):
    model, processor = model_and_processor
    recent = RecentImages(model, processor)
    batches = [
        ([[RED], [BLUE], [RED.copy()]], ["what color is it ?", "where is it ?", "is it red ?"]),
        ([[BLUE, GREEN], []], ["what color ?", "what is red ?"]),
    ]
    for images, texts in batches:
        texts = [processor.user_turn(text, len(own)) for text, own in zip(texts, images)]
        expected = model.generate(**plain(model, processor, images, texts), max_new_tokens=4)
        inputs = processor(
            images=images, text=texts, padding=True, padding_side="left", return_tensors="pt", image_inputs=recent
        )
        assert "pixel_values" not in inputs
        assert torch.equal(model.generate(**inputs, max_new_tokens=4), expected)
    assert len(recent) == 3
    seen = counting(model)
    index = recent([[GREEN], [RED, GREEN]])["image_index"]
    assert (seen, index.tolist()) == ([], [0, 1, 0])


def test_what_was_asked_about_longest_ago_is_forgotten_first():
    model = tiny_model("causal").eval()
    one = RecentImages(model, tiny_processor())([[RED]])["image_cache"].nbytes
    recent = RecentImages(model, tiny_processor(), most_bytes=2 * one)
    seen = counting(model)
    for image in (RED, BLUE, RED, GREEN):
        recent([[image]])
    assert (len(recent), recent.nbytes) == (2, 2 * one)
    recent([[RED], [GREEN]])
    assert seen == [1, 1, 1]
    recent([[BLUE]])
    assert seen == [1, 1, 1, 1]
    # A batch that is larger than the room is there as a whole, and not kept.
    assert len(recent([[RED], [BLUE], [WHITE]])["image_cache"]) == 3
    assert len(recent) == 0


def test_changed_weights_forget_everything():
    model = tiny_model("causal").eval()
    recent = RecentImages(model, tiny_processor())
    before = recent([[RED]])["image_cache"].image_embeds
    with torch.no_grad():
        for weight in model.image_tower.parameters():
            weight.mul_(1.5)
    after = recent([[RED]])["image_cache"].image_embeds
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, RecentImages(model, tiny_processor())([[RED]])["image_cache"].image_embeds)


def scale_connector(model):
    with torch.no_grad():
        for name in model.image_side[1:]:
            for weight in getattr(model, name).parameters():
                weight.mul_(1.2)


CHANGES = {
    "connector": scale_connector,
    "precision": lambda model: model.to(torch.bfloat16),
    "mode": lambda model: model.train(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_kept_before_a_change_is_never_joined_to_what_comes_after(model_and_processor, change):
    model, processor = model_and_processor
    recent = RecentImages(model, processor)
    recent([[RED]])
    CHANGES[change](model)
    together = recent([[RED], [BLUE]])["image_cache"]
    afresh = RecentImages(model, processor)([[RED], [BLUE]])["image_cache"]
    for ours, expected in zip(together._tensors(), afresh._tensors(), strict=True):
        torch.testing.assert_close(ours, expected)


def test_images_encoded_in_inference_mode_may_be_trained_on(model_and_processor):
    model, processor = model_and_processor
    recent = RecentImages(model, processor)
    with torch.inference_mode():
        recent([[RED]])
    inputs = processor(
        images=[[RED]], text=[processor.user_turn("what ?", 1)], return_tensors="pt", image_inputs=recent
    )
    model(**inputs).logits.sum().backward()


def test_copies_begin_without_images(model_and_processor):
    """As pipelines are copied to workers that read data."""
    recent = RecentImages(*model_and_processor, most_bytes=2**20, images_at_once=3)
    recent([[RED]])
    assert len(recent) == 1
    other = copy.deepcopy(recent)
    assert len(other) == 0
    assert (other.most_bytes, other.images_at_once) == (2**20, 3)
    mine, theirs = recent([[RED]])["image_cache"], other([[RED]])["image_cache"]
    torch.testing.assert_close(theirs.image_embeds, mine.image_embeds)
    with pytest.raises(ValueError, match="was made by another model"):
        theirs.check(recent.model)


def test_several_threads_at_once(model_and_processor, monkeypatch):
    """While one thread encodes an image, another forgets the one that stands beside it."""
    model, processor = model_and_processor
    images = [Image.new("RGB", (30, 20), (shade, 0, 0)) for shade in range(0, 250, 50)]
    expected = [RecentImages(model, processor)([[image]])["image_cache"] for image in images]
    recent = RecentImages(model, processor, most_bytes=2 * expected[0].nbytes)
    encode = recent._encode
    monkeypatch.setattr(recent, "_encode", lambda pixels: (encode(pixels), time.sleep(0.002))[0])

    def ask(start):
        for first in range(start, start + 5):
            pair = [first % 5, (first + 1) % 5]
            cache = recent([[images[place]] for place in pair])["image_cache"]
            for row, place in enumerate(pair):
                torch.testing.assert_close(cache.image_embeds[row], expected[place].image_embeds[0])
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(8)))


def test_as_many_images_at_once_whatever_is_new():
    model = tiny_model("causal").eval()
    seen = counting(model)
    recent = RecentImages(model, tiny_processor(), images_at_once=2)
    whole = recent([[RED], [BLUE], [GREEN]])["image_cache"]
    again = RecentImages(model, tiny_processor(), images_at_once=2)
    again([[GREEN]])
    assert seen == [2, 2, 2]
    late = again([[RED], [BLUE], [GREEN]])["image_cache"]
    for first, second in zip(whole._tensors(), late._tensors(), strict=True):
        assert torch.equal(first, second)


def test_a_broken_image_and_wrong_options_are_named(tmp_path):
    model = tiny_model("causal").eval()
    with pytest.raises(ValueError, match="image 1 of sample 1: "):
        RecentImages(model, tiny_processor())([[RED], [RED, tmp_path / "missing.png"]])
    for options in ({"most_bytes": -1}, {"images_at_once": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} is "):
            RecentImages(model, tiny_processor(), **options)


# --- who uses it --------------------------------------------------------------------------------------------------------


def test_options_that_nobody_would_read_are_refused(model_and_processor):
    model, processor = model_and_processor
    options = {"text": [processor.user_turn("what ?", 1)], "image_inputs": RecentImages(model, processor)}
    with pytest.raises(ValueError, match="do_normalize: image_inputs takes the image processor's place"):
        processor(images=[[RED]], do_normalize=False, return_tensors="pt", **options)
    processor(images=[[RED]], return_tensors="pt", text_kwargs={"padding": True}, **options)


def test_a_conversation_encodes_its_images_once(model_and_processor):
    model, processor = model_and_processor
    seen = counting(model)
    talk = Conversation(model, processor, max_new_tokens=3)
    talk.show(RED)
    for question in ("what is it ?", "what color ?"):
        list(talk.ask(question))
    talk.add(BLUE)
    list(talk.ask("and this ?"))
    talk.forget()
    list(talk.ask("where ?"))
    assert seen == [1, 1]


def test_the_page_encodes_an_image_once(tmp_path):
    model = tiny_model("causal").eval()
    seen = counting(model)
    RED.save(tmp_path / "red.png")
    image = str(tmp_path / "red.png")
    actions = Actions(model, tiny_processor(), max_new_tokens=3)
    *_, turns = actions.answer("what is it ?", image, [])
    *_, turns = actions.answer("what color ?", image, turns)
    list(actions.answer("where is it ?", image, []))
    actions.rank("what color ?", "red, blue", image)
    assert seen == [1]


def test_many_questions_on_the_command_line():
    model = tiny_model("causal").eval()
    seen = counting(model)
    loaded = LoadedModel("tiny", model, tiny_processor())
    asked = [Question(text, [image], [""]) for image in (RED, BLUE) for text in ("what ?", "where ?", "what color ?")]
    texts = [text for _, text in answer(loaded, asked, batch_size=2, max_new_tokens=3)]
    list(answer(loaded, asked[:1], max_new_tokens=1))  # as the next question at the terminal
    assert seen == [1, 1]
    for question, text in zip(asked, texts, strict=True):
        assert text == answer_of(model, loaded.processor, question.images, question.text, max_new_tokens=3)


def test_pipelines_encode_an_image_once():
    model, processor = tiny_model("causal").eval(), tiny_processor()
    prompts = ("what color is it ?", "where is it ?", "what color is it ?")
    describe = ImageToTextPipeline(model=model, processor=processor)
    seen, asked = counting(model), {}
    for prompt in prompts:
        texts = describe([RED, BLUE, RED], prompt=prompt, max_new_tokens=4, batch_size=2)
        asked[prompt] = [own[0]["generated_text"] for own in texts]
    assert sum(seen) == 2
    for prompt, texts in asked.items():
        assert texts == [answer_of(model, processor, image, prompt, max_new_tokens=4) for image in (RED, BLUE, RED)]


def test_ranking_encodes_an_image_once():
    model, processor = tiny_model("causal").eval(), tiny_processor()
    prompts = ("what color is it ?", "where is it ?", "what color is it ?")
    items = [{"image": image, "prompt": prompt} for image in (RED, BLUE) for prompt in prompts]
    candidates = processor.encode_candidates(["red", "blue"], False, add_prefix_space=True)
    for batch_size in (1, 4):
        seen = counting(model)
        rank = VocabularyRankingPipeline(model=model, processor=processor)
        ranked = rank(items, candidates=["red", "blue"], batch_size=batch_size)
        assert sum(seen) == 2
        for item, entries in zip(items, ranked, strict=True):
            inputs = processor(images=item["image"], text=item["prompt"], return_tensors="pt")
            scores = model.rank_candidates(candidates, **inputs).scores[0]
            best = int(scores.argmax())
            assert entries[0]["label"] == ["red", "blue"][best]
            assert entries[0]["log_probability"] == pytest.approx(float(scores[best]), abs=1e-5)


def gqa(folder, images=3, each=4):
    """GQA's files with several questions an image, some of them apart."""
    root = folder / "data" / "gqa"
    (root / "images").mkdir(parents=True)
    for place, color in zip(range(images), COLORS):
        Image.new("RGB", (20, 20), color).save(root / "images" / f"{place}.jpg")
    rows = {
        f"q{number}": {
            "imageId": str(number // each if number % each else (number // each + 1) % images),
            "question": f"what color is the {'circle' if number % 2 else 'square'} ?",
            "answer": "red",
            "isBalanced": True,
            "types": {"structural": "query", "semantic": "attr", "detailed": "color"},
        }
        for number in range(images * each)
    }
    (root / "testdev_balanced_questions.json").write_text(json.dumps(rows))
    return folder / "data"


def test_an_evaluation_encodes_images_once_with_the_same_files(tmp_path, monkeypatch):
    data = gqa(tmp_path)
    model, processor = tiny_model("causal").eval(), tiny_processor()
    options = EvaluationOptions(progress=False, batch_size=3, decoding={"num_beams": 2, "max_new_tokens": 3})
    seen = counting(model)
    evaluate(model, processor, ["gqa"], data, tmp_path / "out", options=options)
    assert seen == [1, 1, 1]
    whole = (tmp_path / "out" / "gqa" / "predictions.jsonl").read_text()

    # Without anything kept, a batch at a time.
    records = [json.loads(line) for line in whole.splitlines()]
    root = data / "gqa"
    rows = json.loads((root / "testdev_balanced_questions.json").read_text())
    task = TaskModel(model, processor, TASKS["gqa"])
    for record in records:
        image = Image.open(root / "images" / f"{rows[record['id']]['imageId']}.jpg")
        inputs = processor(images=image, text=record["prompt"], return_tensors="pt")
        ids = model.generate(**inputs, return_full_text=False, **{**task.options, "num_beams": 2, "max_new_tokens": 3})
        assert processor.answers(ids) == [record["prediction"]]

    # Stopped after two batches and gone on with: the same bytes.
    calls, ask = [], TaskModel.answer

    def stop(self, examples):
        calls.append(len(examples))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return ask(self, examples)

    with monkeypatch.context() as patch:
        patch.setattr(TaskModel, "answer", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, processor, ["gqa"], data, tmp_path / "stopped", options=options)
    evaluate(model, processor, ["gqa"], data, tmp_path / "stopped", options=options)
    assert (tmp_path / "stopped" / "gqa" / "predictions.jsonl").read_text() == whole
