"""`rank`: candidates from the command line and from a file, for one image and for several."""

import json

import pytest
from transformers import pipeline


@pytest.mark.parametrize("kind", ["checkpoint", "seq2seq_checkpoint"])
def test_candidates_come_likeliest_first(run, images, kind, request):
    folder = request.getfixturevalue(kind)
    result = run("rank", "a.png", "what color ?", "--candidates", "red, green", "-c", "blue", "-m", folder)
    assert result.exit_code == 0, result.output
    ranker = pipeline("vocabulary-ranking", model=folder)
    expected = ranker("a.png", prompt="what color ?", candidates=["red", "green", "blue"])
    assert [line.split() for line in result.stdout.splitlines()] == [
        [f"{entry['score']:.1%}", entry["label"]] for entry in expected
    ]


def test_several_images_and_a_file_as_json(run, images, checkpoint, tmp_path):
    (tmp_path / "colors.txt").write_text("red\n\ngreen square, blue\nred\n")
    result = run(
        "rank", *images, "what ?", "--candidates-file", "colors.txt", "--json", "--top-k", 1, "-m", checkpoint
    )
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["image"] for record in records] == images
    assert all(len(record["ranking"]) == 1 for record in records)
    ranker = pipeline("vocabulary-ranking", model=checkpoint)
    for record in records:
        (best, _) = ranker(record["image"], prompt="what ?", candidates=["red", "green square, blue"])
        assert record["ranking"][0]["label"] == best["label"]
        assert record["ranking"][0]["score"] == pytest.approx(best["score"], rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.png", "-c", "red"], "needs an image and a question"),
        (["a.png", "what ?"], "something to choose from"),
        (["a.png", "what ?", "-c", " , "], "something to choose from"),
        (["a.png", "what ?", "--candidates-file", "none.txt"], "none.txt cannot be read"),
        (["c.png", "what ?", "-c", "red"], "no image file 'c.png'"),
    ],
)
def test_wrong_usage_is_one_line(run, images, checkpoint, arguments, message):
    result = run("rank", *arguments, "-m", checkpoint)
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.stderr.strip().splitlines()) == 1
