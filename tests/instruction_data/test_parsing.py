"""What is accepted and what is rejected, reason by reason; questions that are the same; prompts."""

import pytest
import yaml

from instructblip_hf.instruction_data import RESPONSE_TYPES, load_prompts, parse_answer
from instructblip_hf.instruction_data.deduplication import Duplicates, question_key
from instructblip_hf.instruction_data.parsing import REASONS, Turn, source_words


GOOD = "Question:\nIs it warm?\n===\nAnswer:\nYes,\n\nvery.\n===\nQuestion: Where?\n===\nAnswer: Here.\n==="
ONE = "Question:\nWhy?\n===\nAnswer:\nBecause."


def parse(kind, text, finish_reason="stop"):
    return parse_answer(RESPONSE_TYPES[kind], text, finish_reason)


def test_answers_in_form():
    assert parse("conversation", GOOD) == [Turn("Is it warm?", "Yes,\n\nvery."), Turn("Where?", "Here.")]
    assert parse("conversation", GOOD.replace("\n", "\r\n") + "\n\n") == parse("conversation", GOOD)
    assert parse("complex_reasoning", ONE) == [Turn("Why?", "Because.")]
    assert parse("detail", " A dog.\n\nA cat. ") == [Turn("", "A dog.\n\nA cat.")]


@pytest.mark.parametrize(
    ("kind", "text", "finish_reason", "reason"),
    [
        ("detail", "", "stop", "empty"),
        ("conversation", " \n ", "stop", "empty"),
        ("conversation", GOOD, "length", "cut off"),
        ("detail", "", "length", "cut off"),
        ("detail", "A dog.", "content_filter", "not finished"),
        ("conversation", "Here is a conversation.\n" + GOOD, "stop", "structure"),
        ("conversation", "A dog and a cat.", "stop", "structure"),
        ("conversation", GOOD.replace("===\nAnswer:\nYes", "Answer:\nYes"), "stop", "structure"),
        ("conversation", GOOD.replace("Question:\nIs it warm?", "Answer:\nIs it warm?"), "stop", "structure"),
        ("conversation", GOOD.replace("Question:\nIs it warm?", "Question:"), "stop", "structure"),
        ("conversation", "**Question:** a\n===\n**Answer:** b", "stop", "structure"),
        ("detail", GOOD, "stop", "structure"),
        ("detail", "Answer: A dog.", "stop", "structure"),
        ("conversation", GOOD + "\nQuestion:\nAnd now?", "stop", "no answer"),
        ("conversation", GOOD + "\nQuestion:\nAnd now?\n===\nAnswer:\n", "stop", "no answer"),
        ("conversation", "Question:\na\n===\nQuestion:\nb\n===\nAnswer:\nc", "stop", "no answer"),
        ("conversation", ONE, "stop", "number of turns"),
        ("complex_reasoning", GOOD, "stop", "number of turns"),
        ("detail", "As the caption says, a dog.", "stop", "source"),
        ("complex_reasoning", ONE.replace("Why?", "Why is the bounding box small?"), "stop", "source"),
        ("detail", "I'm sorry, there is no image.", "stop", "refusal"),
        ("detail", "As an AI language model I see a dog.", "stop", "refusal"),
        ("conversation", GOOD.replace("warm", "<image> warm"), "stop", "image marker"),
    ],
)
def test_answers_that_are_rejected(kind, text, finish_reason, reason):
    assert reason in REASONS
    assert parse(kind, text, finish_reason) == reason


@pytest.mark.parametrize(
    "text",
    [
        "The captions mention a dog.",
        "A dog within the bounding boxes.",
        "its bbox is small",
        "at the coordinates of the dog",
        "a dog at [0.1, 0.253, 0.4, 0.5]",
        "a dog (0.12, 0.3)",
        "The given description is short.",
        "Based on the descriptions, a dog.",
        "according to the sentences there is a dog",
        "The description mentions a dog.",
        "The sentences do not say it.",
        "from the information provided",
        "One of the sentences describes a dog.",
        "between x1 and x2",
        "The annotations show a dog.",
        "Based on the image description, a dog runs.",
        "The image description mentions a dog.",
        "One description mentions a dog.",
        "Each of the descriptions says so.",
        "As described in the first sentence, a dog runs.",
        "According to the text, a dog runs.",
        "Judging from the provided details, it is late.",
        "Judging from the details that were provided, it is late.",
        "The dog's location is given by the box.",
        "The dog at 0.12, 0.3 is left.",
        "The dog is within .12, 0.3, 0.45 and 1.0.",
        "The category label for the object is dog.",
        "The labels of the objects are dog and cat.",
    ],
)
def test_the_source_is_found(text):
    assert source_words(text)


@pytest.mark.parametrize(
    "text",
    [
        "A box of donuts stands on a table in front of a boxer.",
        "In the context of a kitchen the description of a meal is a menu.",
        "There are 2.5 litres (about 0.5 gallons), said the sign with the text 'stop'.",
        "The information on the sign says that the following train is late.",
        "A sentence is written on the wall, and 3, 4 or 5 dogs are above it.",
        "It might rain; the image suggests that, from the clouds.",
        "A cardboard box stands on the table, and its location is unusual.",
        "A sign with text on it is given by the road.",
        "It costs 3.50, and 4.20 with milk.",
        "Coffee is sold at 1.50, tea at 0.90.",
        "Bottles of 0.5, 0.75 and 1.5 litres stand there; the price is $0.50, $0.75 or $1.",
        "According to the text on the sign, the shop is closed.",
        "Based on the text printed across the box, it holds books.",
        "The label on the bottle is red, and the first sentence on the page is long.",
        "She reads a description of the picture beside it.",
        "The room has many details, one of them a clock at 12.30, the other one at 10.15.",
        "Its position is marked by a box on the floor.",
    ],
)
def test_plain_language_is_no_source(text):
    assert not source_words(text)


SAME = [
    ("What color is the dog?", "what colour is the dog in the image"),
    ("How many cups are there on the table?", "How many cups are on the table in this picture?"),
    ("Can you see a dog?", "Is there a dog?"),
    ("In this picture, is there a dog?", "Is there a dog here?"),
]
DIFFERENT = [
    ("What color is the dog?", "What color is the cat?"),
    ("Is the cup left of the plate?", "Is the plate left of the cup?"),
    ("Is the cup left of the plate?", "Is the cup right of the plate?"),
    ("How many cups are there?", "Are there cups?"),
    ("Is it in the car?", "Is it on the car?"),
    ("What is this?", "What are these?"),
    ("What is this?", "What is that there?"),
    ("Is there a dog?", "Is this the dog?"),
    ("Is it a dog?", "Is there a dog?"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_same_questions(one, other):
    assert question_key(one) == question_key(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_questions(one, other):
    assert question_key(one) != question_key(other)


def test_duplicates():
    duplicates = Duplicates()
    first = [Turn("Is it warm?", "Yes."), Turn("Where?", "Here.")]
    assert duplicates.without("a", first) == first
    assert duplicates.without("b", first) == first
    assert duplicates.without("a", first) == []
    assert duplicates.without("a", [Turn("Is it warm in the image?", "No."), Turn("Who?", "Me.")]) == [
        Turn("Who?", "Me.")
    ]
    assert duplicates.without("a", [Turn("who", "You.")]) == []
    assert (duplicates.rows, duplicates.turns) == (2, 2)
    described = [Turn("", "A dog.")]
    assert [duplicates.without(image, described) for image in "cdc"] == [described, described, []]
    assert duplicates.without("c", [Turn("", "A cat.")]) == [Turn("", "A cat.")]


def test_the_packages_prompts():
    """Examples as many as published, answers that this parser takes, boxes where they belong; all our own."""
    prompts = load_prompts()
    assert {name: len(one.examples) for name, one in prompts.items()} == {
        "conversation": 2,
        "detail": 3,
        "complex_reasoning": 3,
    }
    assert len(set(prompts["detail"].questions)) == len(prompts["detail"].questions) >= 15
    for name, one in prompts.items():
        for context, answer in one.examples:
            assert len(context.captions) == 5
            assert bool(context.objects) == RESPONSE_TYPES[name].with_boxes
            assert not isinstance(parse(name, answer), str)
    drawn = {prompts["detail"].question(f"{number}.jpg", 0) for number in range(300)}
    assert drawn == set(prompts["detail"].questions)
    assert prompts["detail"].question("1.jpg", 0) == prompts["detail"].question("1.jpg", 0)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("detail", {"questions": []}, "questions"),
        ("detail", {"system": " "}, "system"),
        ("detail", {"tone": "glad"}, "has tone"),
        ("conversation", {"questions": ["Why?"]}, "questions are for descriptions"),
        ("conversation", {"examples": [{"captions": ["a"], "answer": "b"}]}, "example 1 would be rejected: structure"),
        ("conversation", {"examples": [{"captions": ["a"]}]}, "answer"),
    ],
)
def test_own_prompts(tmp_path, name, change, message):
    own = {"system": "Be brief.", "examples": [], **({"questions": ["What?"]} if name == "detail" else {})}
    file = tmp_path / f"{name}.yaml"
    file.write_text(yaml.safe_dump(own))
    prompts = load_prompts(tmp_path)
    assert prompts[name].system == "Be brief."
    others = {other: one for other, one in prompts.items() if other != name}
    assert others == {other: one for other, one in load_prompts().items() if other != name}
    file.write_text(yaml.safe_dump({**own, **change}))
    with pytest.raises(ValueError, match=message):
        load_prompts(tmp_path)


def test_a_folder_without_prompts(tmp_path):
    with pytest.raises(FileNotFoundError, match="has none of conversation.yaml"):
        load_prompts(tmp_path)
