"""`instructblip index`, `search` and `evaluate-retrieval`: from a folder of pictures to what is found."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from official_formats import write_dataset
from tiny_retrieval import draw_image, retrieval_encoder, save_retrieval_checkpoint


@pytest.fixture(scope="module")
def retrieval_checkpoint(tmp_path_factory):
    return save_retrieval_checkpoint(tmp_path_factory.mktemp("retrieval") / "model")


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        draw_image(Path("photos") / ("old" if number > 3 else "") / f"{number}.png", number)
    return "photos"


def expected_order(text, reranked):
    """Names by cosine, the first of them by matching logit and cosine, of the model's own forward."""
    encoder = retrieval_encoder()
    names = sorted(path.relative_to("photos").as_posix() for path in Path("photos").rglob("*.png"))
    ids = encoder.processor.tokenizer([text], return_tensors="pt")["input_ids"]
    scores = {}
    for name in names:
        inputs = {"pixel_values": encoder.pixels([f"photos/{name}"]), "input_ids": ids}
        cosine = encoder.model(**inputs).logits_per_image.item()
        logit = encoder.model(**inputs, use_image_text_matching_head=True).logits_per_image[0, 1].item()
        scores[name] = (cosine, logit)
    by_cosine = sorted(names, key=lambda name: -scores[name][0])
    first = sorted(by_cosine[:reranked], key=lambda name: -sum(scores[name]))
    return [*first, *by_cosine[reranked:]], scores


def test_text_finds_images(run, photos, retrieval_checkpoint):
    made = run("index", photos, "--model", retrieval_checkpoint, "--store", "float32")
    assert made.exit_code == 0, made.output
    assert "computed    6" in made.stdout
    assert 'instructblip search photos.index "a text"' in made.stdout
    for reranked in (0, 3, 16):
        found = run("search", "photos.index", "a red circle", "--rerank", reranked, "--json")
        assert found.exit_code == 0, found.output
        row = json.loads(found.stdout)
        assert row["query"] == "a red circle"
        names, scores = expected_order("a red circle", reranked)
        assert [hit["name"] for hit in row["hits"]] == names
        for place, hit in enumerate(row["hits"]):
            cosine, logit = scores[hit["name"]]
            assert hit["cosine"] == pytest.approx(cosine, abs=1e-4)
            assert hit["matching"] == (pytest.approx(logit, abs=1e-4) if place < reranked else None)
    table = run("search", "photos.index", "a red circle", "two stars", "-k", 2)
    assert table.exit_code == 0, table.output
    assert len(re.findall(r"^-?\d+\.\d{3} ", table.stdout, re.MULTILINE)) == 4
    assert table.stdout.startswith("a red circle\nscore")
    # What has changed, with the model that the index names.
    shutil.copy("photos/0.png", "photos/same.png")
    Path("photos/1.png").unlink()
    again = run("index", photos)
    assert "computed    0" in again.stdout
    assert "same        1" in again.stdout
    assert "removed     1" in again.stdout
    hits = json.loads(run("search", "photos.index", "a star", "--json").stdout)["hits"]
    assert [hit.get("same") for hit in hits if hit["name"] == "0.png"] == [["same.png"]]


def test_image_finds_texts(run, photos, retrieval_checkpoint):
    Path("captions.txt").write_text("a red circle\ntwo blue stars\n\nthe digit is red\n")
    made = run("index", "captions.txt", "-m", retrieval_checkpoint, "-o", "texts")
    assert made.exit_code == 0, made.output
    found = run("search", "texts", "--image", "photos/0.png", "--json", "--html", "found.html")
    assert found.exit_code == 0, found.output
    encoder = retrieval_encoder()
    scores = {}
    for text in ("a red circle", "two blue stars", "the digit is red"):
        ids = encoder.processor.tokenizer([text], return_tensors="pt")["input_ids"]
        inputs = {"pixel_values": encoder.pixels(["photos/0.png"]), "input_ids": ids}
        logits = encoder.model(**inputs, use_image_text_matching_head=True).logits_per_image
        scores[text] = encoder.model(**inputs).logits_per_image.item() + logits[0, 1].item()
    hits = json.loads(found.stdout)["hits"]
    assert [hit["name"] for hit in hits] == sorted(scores, key=lambda text: -scores[text])
    assert [hit["score"] for hit in hits] == pytest.approx(sorted(scores.values(), reverse=True), abs=2e-3)
    page = Path("found.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 1
    assert "two blue stars" in page


def test_the_page_has_pictures_and_replaces_only_itself(run, photos, retrieval_checkpoint):
    Path("photos/3.png").rename("photos/<b>.png")
    run("index", photos, "--model", retrieval_checkpoint)
    Path("other.html").write_text("mine")
    refused = run("search", "photos.index", "a star", "--html", "other.html")
    assert refused.exit_code == 2
    assert "other.html exists and was not written by this command" in refused.stderr
    for _ in range(2):
        found = run("search", "photos.index", "a <star>", "--html", "found.html")
        assert found.exit_code == 0, found.output
        assert "page: found.html" in found.stdout
    page = Path("found.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 6
    assert "&lt;b&gt;.png" in page
    assert "a &lt;star&gt;" in page
    assert "<star>" not in page


def test_bad_images_stop_or_are_named(run, photos, retrieval_checkpoint):
    Path("photos/2.png").write_bytes(b"no image")
    stopped = run("index", photos, "--model", retrieval_checkpoint)
    assert stopped.exit_code == 2
    assert "photos/2.png cannot be indexed" in stopped.stderr
    assert "--skip-bad-images" in stopped.stderr
    done = run("index", photos, "--skip-bad-images")
    assert done.exit_code == 0, done.output
    assert "left out    1 that cannot be read" in done.stderr
    assert "2.png: " in done.stderr
    hits = json.loads(run("search", "photos.index", "a star", "--json").stdout)["hits"]
    assert sorted(hit["name"] for hit in hits) == ["0.png", "1.png", "3.png", "old/4.png", "old/5.png"]


def test_mistakes_are_one_line(run, photos, retrieval_checkpoint, checkpoint, tmp_path_factory):
    other = save_retrieval_checkpoint(tmp_path_factory.mktemp("other") / "model", seed=1)
    run("index", photos, "--model", retrieval_checkpoint)
    for arguments, message in (
        (["index", photos, "-o", "new"], "a new index needs --model"),
        (
            ["index", "nothing", "-m", retrieval_checkpoint],
            "there is no folder of images and no file of texts nothing",
        ),
        (["index", photos, "-m", other], "was made with other weights or another configuration"),
        (["index", photos, "--dtype", "bfloat16"], "was made in float32, not in bfloat16"),
        (["index", photos, "-o", "new", "-m", checkpoint], "retrieval needs a Blip2ForImageTextRetrieval"),
        (["search", "photos.index", "a star", "-m", other], "was made with other weights"),
        (["search", "photos", "a star"], "there is no index in photos"),
        (["search", "photos.index"], "is an index of images, which is searched by text"),
        (["search", "photos.index", "--image", "photos/0.png"], "is an index of images, which is searched by text"),
        (["search", "photos.index", "a star", "--backend", "annoy"], "allowed are torch, faiss"),
        (["evaluate-retrieval", "--data-root", ".", "-m", other], "there is no folder flickr30k"),
        (["evaluate-retrieval", "--data-root", ".", "--dataset", "gqa"], "allowed are flickr30k, coco_caption"),
        (["evaluate-retrieval", "--data-root", "."], "needs --model"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert message in result.stderr, (arguments, result.stderr)
        assert result.stderr.count("error:") == 1
    for path in Path("photos").rglob("*.png"):
        path.unlink()
    gone = run("search", "photos.index", "a star")
    assert gone.exit_code == 2
    assert "is gone since it was indexed: run instructblip index again" in gone.stderr


@pytest.mark.parametrize("dataset", ["flickr30k", "coco_caption"])
def test_evaluation_of_official_files(run, tmp_path, retrieval_checkpoint, dataset):
    root = tmp_path / "data" / dataset
    counts = write_dataset(dataset, root)
    for number, path in enumerate(sorted(root.rglob("*.jpg"))):
        Image.new("RGB", (20, 20), (40 * number, 90, 200 - 40 * number)).save(path)
    arguments = ["--dataset", dataset, "--data-root", tmp_path / "data", "-m", retrieval_checkpoint]
    done = run("evaluate-retrieval", *arguments, "-o", tmp_path / "result.json")
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["images"], result["texts"]) == (counts["test"], 5 * counts["test"])
    assert result["txt_r10"] == 1
    assert re.search(r"^text to image +[\d.]+ +100\.0 +100\.0 +\d+$", done.stdout, re.MULTILINE)


def test_half_precision_is_kept_to(run, photos, retrieval_checkpoint):
    made = run("index", photos, "-m", retrieval_checkpoint, "--dtype", "bfloat16", "--store", "float32")
    assert made.exit_code == 0, made.output
    assert json.loads(Path("photos.index/index.json").read_text())["computed_in"] == "bfloat16"
    found = run("search", "photos.index", "a red circle", "--json")
    assert found.exit_code == 0, found.output
    _, scores = expected_order("a red circle", 0)
    for hit in json.loads(found.stdout)["hits"]:
        cosine, logit = scores[hit["name"]]
        assert hit["cosine"] == pytest.approx(cosine, abs=0.02)
        assert hit["matching"] == pytest.approx(logit, abs=0.05)
    refused = run("search", "photos.index", "a red circle", "--dtype", "float32")
    assert refused.exit_code == 2
    assert "was made in bfloat16, not in float32" in refused.stderr
