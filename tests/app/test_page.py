"""The page in a real browser: an image goes in, answers, a ranking and looks come out, and nothing leaves the machine.

Set ``SCREENSHOTS`` to a folder to keep pictures of the page.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import torch

from instructblip_hf import InstructBlipForConditionalGeneration, InstructBlipProcessor, bundled_checkpoint
from instructblip_hf.app.actions import Actions
from instructblip_hf.app.page import build_page, serve
from instructblip_hf.cli.chat_page import drawn_content
from tiny_llava import tiny_llava, tiny_llava_processor


pytest.importorskip("gradio", reason="the page needs gradio: pip install -e '.[browser-test]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[browser-test]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
SCENE = Path(__file__).parents[2] / "examples" / "scene.png"
SECONDS = 30


@pytest.fixture(scope="module")
def parts():
    folder = bundled_checkpoint()
    model = InstructBlipForConditionalGeneration.from_pretrained(folder).eval()
    return model, InstructBlipProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with sync_api.sync_playwright() as playwright:
        profile = tmp_path_factory.mktemp("profile")
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, args=FLAGS, viewport={"width": 1200, "height": 860}
        )
        context.set_default_timeout(SECONDS * 1000)
        yield context
        context.close()


@pytest.fixture(scope="module")
def address(parts, tmp_path_factory):
    page = build_page(Actions(*parts), drawn_content("instructblip-shapes-tiny", tmp_path_factory.mktemp("scenes")))
    yield serve(page)
    page.close()


@pytest.fixture
def page(chromium, address):
    """The page as it opens; what it asks for elsewhere is refused and noted."""
    page = chromium.new_page()
    page.elsewhere = []

    def refuse_others(route):
        if route.request.url.startswith((address, "data:", "blob:")):
            route.continue_()
        else:
            page.elsewhere.append(route.request.url)
            route.abort()

    page.route("**/*", refuse_others)
    page.goto(address)
    page.wait_for_selector("#question textarea")
    yield page
    page.close()


def keep(page, name):
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder, f"{name}.png"), full_page=True)


def upload(page, file):
    page.get_by_label("Remove Image").click()
    sync_api.expect(page.locator("#image img")).to_have_count(0, timeout=SECONDS * 1000)
    page.set_input_files("#image input[type=file]", file)
    page.wait_for_function("document.querySelector('#image img')?.naturalWidth > 0")


def ask(page, question, turns):
    page.fill("#question textarea", question)
    page.press("#question textarea", "Enter")
    answers = page.locator("#chat .bot.message")
    sync_api.expect(answers).to_have_count(turns, timeout=SECONDS * 1000)
    # Once the answer is whole, the next question can be sent.
    page.wait_for_selector("#question .submit-button")
    return answers.nth(turns - 1).inner_text().strip()


def generated(parts, messages):
    model, processor = parts
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    ids = model.generate(**inputs, return_full_text=False, max_new_tokens=256)
    return processor.batch_decode(ids, skip_special_tokens=True)[0].strip()


def test_an_uploaded_image_is_talked_about_ranked_and_looked_at(page, parts):
    upload(page, SCENE)
    first, second = "What color is the circle?", "And where is it?"
    content = [{"type": "image", "image": str(SCENE)}, {"type": "text", "text": first}]
    messages = [{"role": "user", "content": content}]
    answers = [generated(parts, messages)]
    messages += [{"role": "assistant", "content": answers[0]}, {"role": "user", "content": second}]
    answers.append(generated(parts, messages))
    assert ask(page, first, 1) == answers[0] == "blue"
    assert ask(page, second, 2) == answers[1] == "bottom right"
    keep(page, "chat")

    page.get_by_role("tab", name="Rank answers").click()
    page.fill("#rank-question textarea", first)
    page.fill("#candidates textarea", "red, green, blue")
    page.click("#rank")
    page.wait_for_selector("#ranking [data-testid=label-output-value]")
    model, processor = parts
    inputs = processor(images=str(SCENE), text=first, return_tensors="pt")
    scores = model.rank_candidates(processor.encode_candidates(["red", "green", "blue"]), **inputs).scores[0]
    shares = torch.softmax(scores, -1).tolist()
    expected = sorted(zip(["red", "green", "blue"], shares), key=lambda pair: -pair[1])
    rows = page.locator("#ranking .confidence-set").all_inner_texts()
    assert ["".join(row.split()) for row in rows] == [f"{label}{share:.0%}" for label, share in expected]
    keep(page, "rank")

    page.get_by_role("tab", name="Where it looks").click()
    page.fill("#instructions textarea", f"{first}\nWhat is at the top left?")
    page.click("#look")
    page.wait_for_selector("#looks section:nth-of-type(2)")
    pictures = page.locator("#looks img")
    sync_api.expect(pictures).to_have_count(2 * (1 + model.config.num_query_tokens))
    assert pictures.evaluate_all("all => all.every(one => one.naturalWidth > 100)")
    keep(page, "looks")
    assert page.elsewhere == []


def test_another_image_begins_anew(page):
    ask(page, "How many objects are there?", 1)
    page.locator("#examples button").nth(1).click()
    sync_api.expect(page.locator("#chat .message")).to_have_count(0, timeout=SECONDS * 1000)
    ask(page, "How many objects are there?", 1)
    page.click("#forget")
    sync_api.expect(page.locator("#chat .message")).to_have_count(0, timeout=SECONDS * 1000)


def test_what_is_wrong_is_told_and_the_page_goes_on(page):
    page.get_by_role("tab", name="Rank answers").click()
    page.fill("#candidates textarea", "blue")
    page.click("#rank")
    page.get_by_text("Enter at least two answers").wait_for()
    page.get_by_role("tab", name="Chat").click()
    page.fill("#question textarea", "circle " * 300)
    page.press("#question textarea", "Enter")
    page.get_by_text("256 at most: begin anew").wait_for()
    assert ask(page, "How many objects are there?", 1)


@pytest.fixture
def endless(parts, monkeypatch):
    """The model does not end its answers by itself."""
    model, _ = parts
    monkeypatch.setattr(model.generation_config, "eos_token_id", None)
    monkeypatch.setattr(model.config.text_config, "max_position_embeddings", 10**6)
    new_conversation = Actions.new_conversation

    def longer(actions):
        talk = new_conversation(actions)
        talk.max_new_tokens = 10**5
        return talk

    monkeypatch.setattr(Actions, "new_conversation", longer)
    return monkeypatch


def begin_answer(page):
    page.fill("#question textarea", "Describe the image.")
    page.press("#question textarea", "Enter")
    page.wait_for_function("document.querySelector('#chat .bot.message')?.innerText.length > 20")


def wait_until_nothing_is_generated():
    deadline = time.monotonic() + SECONDS
    while any(thread.name.startswith("generate") for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "the model still generates"
        time.sleep(0.05)


def test_stopping_keeps_what_was_said(page, endless):
    begin_answer(page)
    page.click("#question .stop-button")
    page.wait_for_selector("#question .submit-button")
    wait_until_nothing_is_generated()
    answer = page.locator("#chat .bot.message")
    stopped = answer.inner_text()
    endless.undo()
    ask(page, "How many objects are there?", 2)
    # An update that was on its way may have been kept and not shown.
    assert answer.nth(0).inner_text().startswith(stopped)


def test_another_image_while_an_answer_comes(page, endless):
    begin_answer(page)
    page.locator("#examples button").nth(1).click()
    page.wait_for_timeout(500)
    page.click("#question .stop-button")
    page.wait_for_selector("#question .submit-button")
    wait_until_nothing_is_generated()
    endless.undo()
    assert ask(page, "How many objects are there?", 1)


def test_what_was_said_about_another_image_is_not_read(page, parts):
    ask(page, "What color is the circle?", 1)
    upload(page, SCENE)
    content = [{"type": "image", "image": str(SCENE)}, {"type": "text", "text": "And where is it?"}]
    assert ask(page, "And where is it?", 1) == generated(parts, [{"role": "user", "content": content}])


def test_the_command_serves_it_until_ctrl_c(tmp_path):
    command = [sys.executable, "-m", "instructblip_hf.cli", "chat", str(SCENE), "--web", "--max-new-tokens", "7"]
    serving = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        # Jobs in the background of a shell inherit an interrupt that is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        line = serving.stdout.readline()
        address = re.search(r"http://127.0.0.1:\d+/", line).group()
        with urllib.request.urlopen(address, timeout=SECONDS) as page:
            assert b"instructblip-shapes-tiny" in page.read()
    finally:
        serving.send_signal(signal.SIGINT)
        _, errors = serving.communicate(timeout=SECONDS)
    assert "Traceback" not in errors


def test_a_port_that_is_taken_is_told(address):
    port = int(address.split(":")[2].strip("/"))
    with pytest.raises(OSError, match=f"no page can be served at 127.0.0.1:{port}: Address already in use"):
        serve(None, port=port)


def test_a_model_without_a_q_former_says_so(chromium, tmp_path):
    shown = build_page(Actions(tiny_llava().eval(), tiny_llava_processor()), drawn_content("llava", tmp_path))
    page = chromium.new_page()
    page.goto(serve(shown))
    page.get_by_role("tab", name="Where it looks").click()
    page.get_by_text("This model has no Q-Former").wait_for()
    assert page.locator("#look").count() == 0
    page.close()
    shown.close()
