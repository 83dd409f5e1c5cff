"""Where images stand in the first turn, and ScienceQA in LLaVA's form.

`test_first_is_what_llavas_trainer_makes_of_it` compares with what LLaVA's ``preprocess_multimodal`` computes for a turn: the
marker taken out, white space around the words taken off, and the marker with a line break put in front. The texts of
`TestScienceQA` were written by LLaVA's ``scripts/convert_sqa_to_llava.py`` (c121f043) of the same three problems.
"""

from collections import Counter

import pytest

from instructblip_hf.data.image_order import IMAGE_ORDERS, order_images
from instructblip_hf.data.mixture import Mixture, MixtureDataset
from instructblip_hf.data.sources.multiple_choice import scienceqa_examples
from instructblip_hf.data.streaming import IndexedSource, StreamMixture
from instructblip_hf.data.templates import Instructions
from instructblip_hf.models.chat_templates import CHAT_TEMPLATES


IMAGE = {"type": "image"}
WORDS = {"type": "text", "text": "What?"}
ANSWER = {"role": "assistant", "content": "a cat"}


def row(content, images=1, **more):
    return {"images": ["a.png"] * images, "messages": [{"role": "user", "content": content}, ANSWER], **more}


def content(found):
    return found["messages"][0]["content"]


@pytest.mark.parametrize(
    "given",
    [
        "<image>\nWhat?",
        "What?\n<image>",
        "What?",
        [IMAGE, WORDS],
        [WORDS, IMAGE],
        [{"type": "text", "text": "What?\n"}, IMAGE],
    ],
)
def test_first_and_last(given):
    before = row(given)
    assert order_images(before, "published") == before
    assert content(order_images(before, "first")) == [IMAGE, WORDS]
    found = [content(order_images(before, "random", seed=1, draw=draw)) for draw in range(60)]
    assert [WORDS, IMAGE] in found
    assert [IMAGE, WORDS] in found
    assert all(own in ([WORDS, IMAGE], [IMAGE, WORDS]) for own in found)
    assert before == row(given), "a row of a dataset is not changed"
    assert order_images(before, "first")["messages"][1] == ANSWER


@pytest.mark.parametrize("value", ["<image>\nWhat is it?", "What is it?\n<image>", " What <image> is it? \n"])
def test_first_is_what_llavas_trainer_makes_of_it(value):
    from transformers.utils.chat_template_utils import render_jinja_template

    turn = order_images(row(value), "first")["messages"][:1]
    texts, _ = render_jinja_template(conversations=[turn], chat_template=CHAT_TEMPLATES["v1"], eos_token="</s>")
    llavas = "<image>\n" + value.replace("<image>", "").strip()
    assert texts[0].endswith(f"USER: {llavas.strip()} ")


@pytest.mark.parametrize("order", IMAGE_ORDERS)
@pytest.mark.parametrize(
    "unchanged",
    [
        row("What?", images=0),
        row([IMAGE]),
        row("<image>"),
        {"images": [], "prompt": "What?", "completion": "a cat"},
        {"images": ["a.png"], "prompt": "", "completion": "a cat"},
        {
            "images": ["a.png"],
            "messages": [
                {"role": "user", "content": "Hello"},
                ANSWER,
                {"role": "user", "content": [IMAGE, WORDS]},
                ANSWER,
            ],
        },
        {"images": ["a.png"], "messages": [{"role": "system", "content": "Be brief."}]},
    ],
)
def test_rows_that_have_nothing_to_move(order, unchanged):
    for draw in range(8):
        assert order_images(unchanged, order, draw=draw) == unchanged


def test_several_images_and_prompts_of_text():
    sources = [{"type": "image", "image": name} for name in "ab"]
    several = row([sources[0], WORDS, sources[1]], images=2)
    assert content(order_images(several, "first")) == [*sources, WORDS]
    text = {"image": "a.png", "prompt": "What?\n<image>", "completion": "a cat"}
    assert order_images(text, "first")["prompt"] == "What?"
    found = {order_images(text, "random", draw=draw)["prompt"] for draw in range(60)}
    assert found == {"What?", "What?\n<image>"}
    turns = {"images": ["a.png"], "prompt": [{"role": "user", "content": "What?\n<image>"}], "completion": [ANSWER]}
    assert order_images(turns, "first")["prompt"][0]["content"] == [IMAGE, WORDS]


class TestInAMixture:
    def rows(self, order, seed=0, stream=False):
        data = {"a": [row("What?\n<image>") for _ in range(50)]}
        mixture = Mixture({"a": 50}, seed=seed, image_order=order)
        if stream:
            drawn = iter(StreamMixture({"a": IndexedSource(data["a"])}, mixture))
            return [next(drawn) for _ in range(400)]
        return list(MixtureDataset(data, mixture, 400))

    @pytest.mark.parametrize("stream", [False, True])
    def test_the_side_is_drawn_for_each_draw(self, stream):
        sides = ["".join(part["type"][0] for part in content(own)) for own in self.rows("random", stream=stream)]
        counts = Counter(sides)
        assert set(counts) == {"it", "ti"}
        assert 150 < counts["it"] < 250, "binomial: 200 with a deviation of 10"
        assert sides == ["".join(p["type"][0] for p in content(own)) for own in self.rows("random", stream=stream)]
        assert sides != ["".join(p["type"][0] for p in content(own)) for own in self.rows("random", 1, stream)]
        assert all(content(own) == [IMAGE, WORDS] for own in self.rows("first", stream=stream))
        assert all(content(own) == "What?\n<image>" for own in self.rows("published", stream=stream))

    def test_an_order_that_is_not_there(self):
        with pytest.raises(ValueError, match="image_order is 'last'; allowed are published, first, random"):
            Mixture({"a": 1}, image_order="last")

    def test_it_is_part_of_the_sequence(self):
        prints = {Mixture({"a": 5}, image_order=order).fingerprint() for order in IMAGE_ORDERS}
        assert len(prints) == 3
        assert Mixture({"a": 5}).fingerprint() in prints


class TestScienceQA:
    PROBLEMS = (
        {
            "id": "1", "question": "Which is  closest?", "choices": ["ash", "birch"], "answer": 1, "hint": "",
            "lecture": "Trees.\nBirch is one.", "solution": "Look  at it.", "image": "image.png",
        },
        {
            "id": "2", "question": "What does Question: mean?", "choices": ["a", "b", "c"], "answer": 0,
            "hint": " Read the text. ", "lecture": "", "solution": "", "image": None,
        },
        {
            "id": "3", "question": "Pick Answer: now", "choices": ["(A) x", "Answer: y"], "answer": 1, "hint": "Hint",
            "lecture": "", "solution": "Because Answer: y\nis right.", "image": "image.png",
        },
    )  # fmt: skip
    LLAVAS = (
        (
            "Which is closest?\nContext: N/A\nOptions: (A) ash (B) birch\n<image>",
            "Trees.\nBirch is one. Look at it. The answer is B.",
        ),
        ("What does mean?\nContext: Read the text.\nOptions: (A) a (B) b (C) c", " The answer is A."),
        (
            "Pick Answer: now\nContext: Hint\nOptions: (A) (A) x (B) Answer: y\n<image>",
            "Because y\nis right. The answer is B.",
        ),
    )

    @pytest.mark.parametrize("number", range(3))
    def test_texts_are_llavas(self, number):
        (example,) = scienceqa_examples(self.PROBLEMS[number])
        found = Instructions(form="llava_scienceqa").row(example)
        assert (found["prompt"], found["completion"]) == self.LLAVAS[number]

    def test_without_the_lecture(self):
        (example,) = scienceqa_examples(self.PROBLEMS[0])
        found = Instructions(form="llava_scienceqa", without=("lecture",)).row(example)
        assert found["completion"] == "Look at it. The answer is B."

    def test_rows_of_another_kind(self):
        example = {"id": "1", "dataset": "x", "category": "image_captioning", "images": ["a"], "answers": ["b"]}
        with pytest.raises(ValueError, match="x 1: form llava_scienceqa is for questions with options"):
            Instructions(form="llava_scienceqa").row(example)
