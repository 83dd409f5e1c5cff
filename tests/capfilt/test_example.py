"""The example on the shapes world: which captions it makes wrong, what it counts, and what the bundled models make of it."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest


SCRIPT = Path(__file__).parents[2] / "examples" / "blip_2" / "capfilt.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("capfilt_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_wrong_captions_are_other_captions(example):
    captions = ["a", "b", "a", "c", "a", "d"] * 50
    wrong = example.swapped(captions, 1 / 3, 0)
    assert len(wrong) == 100
    assert all(caption != captions[number] and caption in captions for number, caption in wrong.items())
    assert example.swapped(captions, 1 / 3, 1) != wrong


def test_shares(example, tmp_path):
    def row(wrong, kept, *captions):
        candidates = [{"source": "web", "kept": kept}, {"source": "synthetic", "kept": True}]
        return {"wrong": wrong, "right": "a ring, a cross", "caption": list(captions), "candidates": candidates}

    kept = [
        row(False, True, "a ring, a cross"),
        row(False, True, "a cross, a ring", "a ring"),
        row(True, True, "a dog"),
    ]
    kept += [row(False, True, "a ring, a cross"), row(False, False, "a cross, a ring")]
    dropped = [row(True, False)] * 3
    for name, rows in (("annotation.jsonl", kept), ("dropped.jsonl", dropped)):
        (tmp_path / name).write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert example.shares(tmp_path) == {
        "right captions kept": 0.75,
        "wrong captions dropped": 0.75,
        "right before": 0.5,
        "right after": 4 / 6,
    }


def test_right_captions_are_kept_and_wrong_ones_dropped(example, tmp_path, monkeypatch, capsys):
    arguments = ["capfilt.py", "--images", "150", "--output", str(tmp_path / "out"), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", arguments)
    example.main()
    rows = (tmp_path / "out" / "pictures" / "annotation.jsonl").read_text().splitlines()
    assert [json.loads(row)["wrong"] for row in rows].count(True) == 50
    shares = example.shares(tmp_path / "out" / "result")
    assert shares["right captions kept"] >= 0.9
    assert shares["wrong captions dropped"] >= 0.9
    assert shares["right after"] >= 0.9 > 0.7 > shares["right before"]
    shown = dict(line.rsplit(None, 1) for line in capsys.readouterr().out.splitlines()[:4])
    assert shown == {name: f"{share:.3f}" for name, share in shares.items()}
