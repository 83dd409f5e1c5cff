"""The demo with a random tiny model: what it prints, writes and refuses to overwrite, and how it trains."""

import html.parser
import re
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from instructblip_hf.cli import demo, demo_report, demo_training
from instructblip_hf.cli.demo_report import Outcome, accuracies, text_table
from instructblip_hf.data.sources.shapes_world import TASKS, ShapesWorld


@pytest.fixture
def small(monkeypatch, tiny_bundle, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "QUESTIONS_PER_CELL", 2)
    monkeypatch.setattr(demo_training, "QUESTIONS_PER_TASK", 2)
    monkeypatch.setattr(demo_training, "SCENES", 30)
    monkeypatch.setattr(demo_training, "BATCH_SIZE", 8)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def test_the_bundled_model_is_really_trained(run, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "QUESTIONS_PER_CELL", 8)
    threads = torch.get_num_threads()
    result = run("demo", "--seed", 11, "--out", tmp_path / "demo")
    torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    seen, held_out = re.search(r"^all +(\d\.\d\d) +(\d\.\d\d)$", result.stdout, re.MULTILINE).groups()
    # A guess is right about a quarter of the time.
    assert float(seen) > 0.8
    assert float(held_out) > 0.75


class Page(html.parser.HTMLParser):
    """Collects image sources and checks that tags close."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.sources.append(dict(attributes)["src"])
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_demo_prints_accuracies_and_writes_page_and_picture(run, small):
    result = run("demo", "--seed", 4)
    assert result.exit_code == 0, result.output
    for task in (*TASKS, "all"):
        assert re.search(rf"^{task} +\d\.\d\d +\d\.\d\d$", result.stdout, re.MULTILINE), task
    assert "56x56 drawings, nothing else" in result.stdout
    assert "--model Salesforce/instructblip-flan-t5-xl" in result.stdout
    text = (small / "instructblip-demo" / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert len(page.sources) == 4 * len(TASKS)
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not re.search(r"(src|href)=\"http", text), "the page is complete in itself"
    with Image.open(small / "instructblip-demo" / "contact-sheet.png") as sheet:
        assert sheet.width > 1000
    assert run("demo", "--seed", 4).exit_code == 0, "its own files it may write again"


@pytest.mark.parametrize("name", ["index.html", "contact-sheet.png"])
def test_demo_does_not_overwrite_what_is_not_its_own(run, small, name):
    folder = small / "mine"
    folder.mkdir()
    if name.endswith("html"):
        (folder / name).write_text("<html>my homepage</html>")
    else:
        Image.new("RGB", (4, 4)).save(folder / name)
    before = (folder / name).read_bytes()
    result = run("demo", "--out", folder)
    assert result.exit_code == 2
    assert name in result.stderr
    assert "was not written by this demo" in result.stderr
    assert (folder / name).read_bytes() == before


def test_demo_into_a_file(run, small):
    (small / "file").write_text("x")
    result = run("demo", "--out", "file")
    assert result.exit_code == 2
    assert "is a file" in result.stderr


def test_training_demo(run, small):
    result = run("demo", "--train", "--minutes", 0.05, "--seed", 1)
    assert result.exit_code == 0, result.output
    assert re.search(r"^all +\d\.\d\d +\d\.\d\d$", result.stdout, re.MULTILINE)
    assert re.search(r"^\d+ steps of 8 questions about 30 scenes", result.stdout, re.MULTILINE)
    assert "{'loss'" not in result.stdout
    assert (small / "instructblip-demo" / "index.html").exists()


def test_training_demo_trains_the_connector_alone_on_cached_features(small):
    loaded = demo.load_bundled("instructblip-shapes-tiny-pretrained")
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    trainer, bank = demo_training.build_trainer(loaded, seed=1, seconds=1.0)
    trainer.train()
    assert trainer.state.global_step >= 1
    after = loaded.model.state_dict()
    for name, tensor in before.items():
        if name.startswith(("vision_model.", "language_model.")):
            assert torch.equal(after[name], tensor), name
    assert not torch.equal(after["query_tokens"], before["query_tokens"])


def test_features_in_place_of_pixels_mean_the_same(small):
    loaded = demo.load_bundled("instructblip-shapes-tiny-pretrained")
    row = ShapesWorld(0).example(0)
    pixels = loaded.processor.encode_examples([row])
    with torch.no_grad():
        features = loaded.model.vision_model(pixels["pixel_values"]).last_hidden_state
        batch = demo_training.FeatureCollator(loaded.processor, features)([{**row, "scene_index": 0}])
        assert set(batch) - {"image_embeds"} == set(pixels) - {"pixel_values"}
        torch.testing.assert_close(loaded.model(**batch).loss, loaded.model(**pixels).loss)


def test_balanced_loss_weighs_answers_by_the_root_of_their_length():
    torch.manual_seed(0)
    logits = torch.randn(2, 6, 7)
    labels = torch.full((2, 6), -100)
    labels[0, 2:6] = torch.tensor([1, 2, 3, 4])
    labels[1, 3] = 5
    probabilities = logits.log_softmax(-1)
    long = -sum(probabilities[0, position - 1, labels[0, position]] for position in range(2, 6)) / 4
    short = -probabilities[1, 2, 5]
    loss = demo_training.balanced_loss(SimpleNamespace(logits=logits), labels)
    torch.testing.assert_close(loss, (2 * long + short) / 2)


def test_clock_schedule_warms_up_and_ends_at_zero(monkeypatch):
    clock = demo_training.Clock(100.0)
    now = [0.0]
    monkeypatch.setattr(clock, "elapsed", lambda: now[0])
    factors = []
    for now[0] in (0.0, 5.0, 10.0, 55.0, 100.0, 101.0):
        factors.append(clock.learning_rate_factor(0))
    assert 0 < factors[0] < 0.05
    assert factors[0] < factors[1] < factors[2]
    assert factors[2] > factors[3] > factors[4] == pytest.approx(0)
    assert factors[5] == pytest.approx(0)


def outcome(task, group, right):
    return Outcome(task, group, Image.new("RGB", (56, 56)), "1 < 2 & 3 ?", "<b>", "</div>", right)


def test_accuracies_are_means_over_tasks_not_over_questions():
    outcomes = [outcome("a", "g", True)] * 3 + [outcome("b", "g", False)] + [outcome("a", "h", True)]
    shares = accuracies(outcomes)
    assert shares["all"] == {"g": 0.5, "h": 1.0}
    assert shares["b"] == {"g": 0.0}
    assert text_table(shares).splitlines()[2].split() == ["b", "0.00", "-"]


def test_the_page_escapes_what_models_say(tmp_path):
    outcomes = [outcome("a", "g", False)]
    page, _ = demo_report.write_report(tmp_path, "T & t", ["n < m"], outcomes, accuracies(outcomes))
    text = page.read_text(encoding="utf-8")
    assert Page(text).open == []
    assert "&lt;b&gt;" in text
    assert "<b><" not in text
    assert "T &amp; t" in text


def test_drawn_rows_are_balanced_unseen_and_the_same_for_a_seed():
    rows = demo.draw_rows(7, 4)
    assert [row["task"] for row in rows] == [task for task in TASKS for _ in range(4)]
    again = demo.draw_rows(7, 4)
    assert [row["scene"] for row in rows] == [row["scene"] for row in again]
    assert [row["scene"] for row in rows] != [row["scene"] for row in demo.draw_rows(8, 4)]
