"""`ask` and `caption`: images and questions in every combination, and what is wrong with them in one line."""

import json

import pytest

from instructblip_hf import InstructBlipForConditionalGeneration, InstructBlipProcessor
from instructblip_hf.cli import ask
from tiny_blip_2 import save_stages


def expected(checkpoint, image, question, tokens=3):
    """The answer by hand: one image, one question, no padding."""
    model = InstructBlipForConditionalGeneration.from_pretrained(checkpoint).eval()
    processor = InstructBlipProcessor.from_pretrained(checkpoint)
    inputs = processor(images=image, text=question, return_tensors="pt")
    ids = model.generate(**inputs, return_full_text=False, max_new_tokens=tokens)
    return processor.batch_decode(ids, skip_special_tokens=True)[0].strip()


@pytest.mark.parametrize("kind", ["checkpoint", "seq2seq_checkpoint"])
def test_one_image_one_question_gives_the_answer_alone(run, images, kind, request):
    folder = request.getfixturevalue(kind)
    result = run("ask", "a.png", "what color is it ?", "-m", folder, "--max-new-tokens", 3)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == expected(folder, "a.png", "what color is it ?")


def test_each_question_about_each_image_as_json(run, images, checkpoint):
    result = run(
        *("ask", "a.png", "b.png", "-q", "what color ?", "-q", "where is the red circle ? what shape ?"),
        *("-m", checkpoint, "--json", "--max-new-tokens", 3),
    )
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(record["images"], record["question"]) for record in records] == [
        ([image], question)
        for image in images
        for question in ("what color ?", "where is the red circle ? what shape ?")
    ]
    for record in records:
        assert record["answer"] == expected(checkpoint, record["images"][0], record["question"])
        assert record["model"] == checkpoint


def test_images_together_are_one_prompt(run, images, checkpoint):
    result = run("ask", *images, "which ?", "--together", "--json", "-m", checkpoint, "--max-new-tokens", 2)
    assert result.exit_code == 0, result.output
    (record,) = [json.loads(line) for line in result.stdout.splitlines()]
    assert record["images"] == images


def test_questions_from_the_terminal(run, images, checkpoint):
    arguments = ("ask", "a.png", "-m", checkpoint, "--max-new-tokens", 2)
    result = run(*arguments, input="what ?\n\nwhere ?\n/quit\nnever\n")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [expected(checkpoint, "a.png", q, 2) for q in ("what ?", "where ?")]
    assert run(*arguments, input="").exit_code == 0


def test_caption(run, images, checkpoint):
    result = run("caption", *images, "-m", checkpoint, "--max-new-tokens", 2)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines == [f"{image}: {expected(checkpoint, image, 'Describe the image.', 2)}" for image in images]


@pytest.mark.parametrize("kind", ["checkpoint", "seq2seq_checkpoint"])
@pytest.mark.parametrize(
    "command", [("ask", "a.png", "-q", "what color is it ?", "-q", "where ?"), ("caption", "a.png")]
)
def test_a_cache_of_fixed_size(run, images, kind, command, request, monkeypatch):
    given = []
    arguments = (*command, "-m", request.getfixturevalue(kind), "--max-new-tokens", 3, "--num-beams", 2)
    plain = run(*arguments)
    generate = InstructBlipForConditionalGeneration.generate

    def noting(self, **options):
        given.append(self.generation_config.cache_implementation)
        return generate(self, **options)

    monkeypatch.setattr(InstructBlipForConditionalGeneration, "generate", noting)
    result = run(*arguments, "--cache-implementation", "static")
    assert (plain.exit_code, result.exit_code) == (0, 0), result.output
    assert result.stdout == plain.stdout
    assert given == ["static"]


def test_the_default_model_says_what_it_is(run, images, tiny_bundle):
    result = run("ask", "a.png", "what ?", "--max-new-tokens", 1)
    assert result.exit_code == 0, result.output
    assert "bundled tiny model" in result.stderr
    assert "Salesforce/instructblip-flan-t5-xl" in result.stderr
    assert "note" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.png", "what ?"], "there is no image file 'none.png'"),
        (["a.png", "b.jpeg"], "there is no image file 'b.jpeg'"),
        (["a.png", "what ?", "-m", "no-such-folder"], "there is no folder 'no-such-folder'"),
        (["a.png", "what ?", "-m", "./x/y"], "there is no folder './x/y'"),
        (["broken.png", "what ?"], "broken.png"),
        (["a.png", "-q", " "], "a question is empty"),
        (["a.png", "what ?", "-m", "empty"], "empty"),
        (["a.png", "what ?", "-m", "{checkpoint}", "--device", "abacus"], "--device: 'abacus'"),
        (["a.png", "what ?", "-m", "{checkpoint}", "--dtype", "int4"], "--dtype: 'int4'"),
        (["a.png", "what ?", "-m", "{checkpoint}", "--cache-implementation", "paged"], "'paged' is none of dynamic"),
        (
            ["a.png", "what ?", "-m", "{checkpoint}", "--device", "cpu", "--cache-implementation", "offloaded"],
            "--cache-implementation: offloaded is for an accelerator",
        ),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(run, images, checkpoint, tmp_path, arguments, message):
    (tmp_path / "broken.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    result = run("ask", *(argument.format(checkpoint=checkpoint) for argument in arguments))
    assert result.exit_code == 2, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_a_hub_id_without_a_hub(run, images, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = run("ask", "a.png", "what ?", "-m", "nobody/nothing")
    assert result.exit_code == 2
    assert "'nobody/nothing'" in result.stderr
    assert "the Hub does not answer" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "questions", "result"),
    [
        (["a.png", "what ?"], [], (["a.png"], ["what ?"])),
        (["a.png", "b.png"], [], (["a.png", "b.png"], [])),
        (["a.png"], [], (["a.png"], [])),
        (["a.png", "https://example.org/b"], [], (["a.png", "https://example.org/b"], [])),
        (["a.png", "left.png"], [], (["a.png", "left.png"], [])),
        (["a.png", "is it in left.png"], [], (["a.png"], ["is it in left.png"])),
        (["a.png", "what ?"], ["why ?"], (["a.png", "what ?"], ["why ?"])),
        (["a.png", "x" * 5000], [], (["a.png"], ["x" * 5000])),
    ],
)
def test_which_argument_is_the_question(images, arguments, questions, result):
    assert ask.split_arguments(arguments, questions) == result


@pytest.mark.parametrize(
    "command", [["ask", "a.png", "what ?"], ["caption", "a.png"], ["rank", "a.png", "what ?", "-c", "a,b"]]
)
def test_a_model_without_a_language_model_is_refused(run, images, command):
    result = run(*command, "-m", "blip2-shapes-tiny")
    assert result.exit_code == 2, result.output
    assert "is a Blip2ForPreTraining, which compares images and texts" in result.stderr
    assert "instructblip index" in result.stderr


def test_a_second_stage_answers_and_ranks(run, images, tmp_path):
    folder = save_stages(tmp_path)["second_stage"]
    assert run("ask", "a.png", "what ?", "-m", folder).exit_code == 0
    assert run("caption", "a.png", "-m", folder).exit_code == 0
    result = run("rank", "a.png", "what ?", "-c", "red,blue", "-m", folder)
    assert result.exit_code == 0, result.output
    assert {line.split()[1] for line in result.stdout.splitlines()} == {"red", "blue"}
