"""`chat`: piped and at a terminal, where Ctrl-C stops an answer and the talk goes on."""

import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

from instructblip_hf import InstructBlipForConditionalGeneration, InstructBlipProcessor
from instructblip_hf.cli import chat
from tiny_blip_2 import save_stages
from tiny_llava import save_tiny_llava


def expected(folder, turns, tokens=3):
    """Answers to a conversation's questions by hand; each turn is a question and the image shown with it, or `None`."""
    model = InstructBlipForConditionalGeneration.from_pretrained(folder).eval()
    processor = InstructBlipProcessor.from_pretrained(folder)
    messages, answers = [], []
    for question, image in turns:
        parts = [{"type": "image", "image": image}] if image else []
        messages.append({"role": "user", "content": [*parts, {"type": "text", "text": question}]})
        inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
        ids = model.generate(**inputs, return_full_text=False, max_new_tokens=tokens)
        answers.append(processor.batch_decode(ids, skip_special_tokens=True)[0].strip())
        messages.append({"role": "assistant", "content": answers[-1]})
    return answers


@pytest.mark.parametrize("kind", ["checkpoint", "seq2seq_checkpoint"])
def test_piped_questions_are_one_conversation(run, images, kind, request):
    folder = request.getfixturevalue(kind)
    lines = ["what color is it ?", "", "where is it ?", "/add b.png", "and this ?", "/forget", "what ?"]
    lines += ["/image b.png", "what ?", "/help", "/quit", "never"]
    result = run("chat", "a.png", "-m", folder, "--max-new-tokens", 3, input="\n".join(lines))
    assert result.exit_code == 0, result.output
    one = [("what color is it ?", "a.png"), ("where is it ?", None), ("and this ?", "b.png")]
    answers = expected(folder, one)
    lines = result.stdout.splitlines()
    assert lines[:3] == answers
    assert lines[4:] == expected(folder, [("what ?", "b.png")])
    assert "/forget" in result.stderr


@pytest.mark.parametrize("kind", ["checkpoint", "seq2seq_checkpoint"])
def test_a_cache_of_fixed_size(run, images, kind, request, monkeypatch):
    folder, given = request.getfixturevalue(kind), []
    generate = InstructBlipForConditionalGeneration.generate

    def noting(self, **options):
        given.append(self.generation_config.cache_implementation)
        return generate(self, **options)

    monkeypatch.setattr(InstructBlipForConditionalGeneration, "generate", noting)
    arguments = ("chat", "a.png", "-m", folder, "--max-new-tokens", 3)
    outputs = [
        run(*arguments, *more, input="what ?\nwhere ?").stdout for more in ((), ("--cache-implementation", "static"))
    ]
    assert outputs[0] == outputs[1]
    assert len(outputs[0].splitlines()) == 2
    assert given == [None] * 2 + ["static"] * 2


def test_the_bundled_model_leans_on_earlier_turns(run):
    scene = os.path.join(os.path.dirname(__file__), "../../examples/scene.png")
    result = run("chat", scene, input="what color is the circle?\nand where is it?\n")
    assert result.stdout.splitlines() == ["blue", "bottom right"]
    assert "bundled tiny model" in result.stderr


@pytest.mark.parametrize("family", ["blip-2", "llava"])
def test_other_families_talk_too(run, images, tmp_path, family):
    folder = save_stages(tmp_path)["second_stage"] if family == "blip-2" else save_tiny_llava(tmp_path / "llava")
    result = run("chat", "a.png", "-m", folder, "--max-new-tokens", 3, input="what ?\nand ?\n")
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "lines", "message"),
    [
        (["none.png"], "", "there is no image file 'none.png'"),
        (["a.png"], "/image none.png\nwhat ?", "there is no image file 'none.png'"),
        (["a.png"], "/image\nwhat ?", "/image needs an image"),
        (["a.png"], "/dance\nwhat ?", "'/dance' is no command; see /help"),
        (["a.png"], "/forget me\nwhat ?", "'/forget me' is no command; see /help"),
        (["a.png"], "what <image> ?\nwhat ?", "1 image parts that hold no image"),
        (["a.png"], "what " * 300 + "\nwhat ?", "begin anew"),
        (["a.png", "--top-p", "0"], "", "top_p must be above 0"),
        (["a.png", "--cache-implementation", "paged"], "", "'paged' is none of dynamic, offloaded, static"),
        (["a.png", "-m", "blip2-shapes-tiny"], "", "which compares images and texts"),
    ],
)
def test_what_is_wrong_ends_a_piped_talk_with_one_line(run, images, checkpoint, arguments, lines, message):
    model = [] if "-m" in arguments else ["-m", checkpoint]
    result = run("chat", *arguments, *model, "--max-new-tokens", 2, input=lines)
    assert result.exit_code == 2, result.output
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert message in error
    assert result.stdout == ""


def test_a_page_without_gradio_names_the_extra(run, images, checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = run("chat", "a.png", "--web", "-m", checkpoint)
    assert result.exit_code == 2
    assert "pip install 'instructblip-hf[app]'" in result.stderr


class Terminal:
    """`instructblip chat` at a terminal of its own."""

    def __init__(self, *arguments):
        self.screen, end = pty.openpty()
        command = [sys.executable, "-m", "instructblip_hf.cli", "chat", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdin=end, stdout=end, stderr=end, start_new_session=True, close_fds=True, env=self.environment()
        )
        os.close(end)
        self.seen = ""

    @staticmethod
    def environment():
        return {**os.environ, "TERM": "dumb"}

    def until(self, text, seconds=60):
        """What appears up to a text, that included."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.screen], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not appear: {self.seen!r}"
            self.seen += os.read(self.screen, 4096).decode()
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def say(self, line):
        os.write(self.screen, f"{line}\n".encode())
        self.until("\n")  # the terminal's echo


@pytest.fixture
def endless_checkpoint(tmp_path):
    """A model that does not end its answers by itself."""
    from tiny_shapes import save_tiny_checkpoint

    folder = save_tiny_checkpoint(tmp_path / "endless")
    model = InstructBlipForConditionalGeneration.from_pretrained(folder)
    model.config.text_config.max_position_embeddings = 10**6
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    return folder


def test_ctrl_c_stops_an_answer_and_the_talk_goes_on(images, endless_checkpoint):
    terminal = Terminal("a.png", "-m", endless_checkpoint, "--max-new-tokens", 900_000)
    try:
        terminal.until("> ")
        terminal.say("/dance")
        terminal.until("error: '/dance' is no command; see /help\r\n> ")
        terminal.say("what ?")
        terminal.until(" ")  # the answer has begun
        os.killpg(terminal.process.pid, signal.SIGINT)
        terminal.until(" ...\r\n> ")
        terminal.say("/quit")
        assert terminal.process.wait(timeout=60) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.screen)


def test_an_answer_that_is_tidied_up_while_it_grows_is_written_once_more(capsys):
    class Talk:
        def ask(self, question):
            yield from ("it is 'a", "it is 'a ' b", "it is'a'b")

    chat._answer(Talk(), "what ?", interactive=True)
    assert capsys.readouterr().out == "it is 'a ' b\nit is'a'b\n"
