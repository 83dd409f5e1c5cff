"""The example finds what the command finds."""

import re
import runpy
import sys
from pathlib import Path

from tiny_retrieval import save_retrieval_checkpoint


EXAMPLE = Path(__file__).parents[2] / "examples" / "search_images.py"


def test_the_example_indexes_and_finds(photos, tmp_path, monkeypatch, capsys):
    model = save_retrieval_checkpoint(tmp_path / "model")
    arguments = [str(EXAMPLE), str(photos), "a red circle", "--model", str(model), "-k", "3"]
    monkeypatch.setattr(sys, "argv", arguments)
    (photos / "bad.jpg").write_bytes(b"no image")
    for counts in ("7 images computed, 0 there already", "0 images computed, 7 there already"):
        runpy.run_path(str(EXAMPLE), run_name="__main__")
        printed = capsys.readouterr().out
        assert f"{counts}, 1 cannot be read" in printed
        scores = [float(score) for score in re.findall(r"^ +(-?\d+\.\d{3})  \S+\.png$", printed, re.MULTILINE)]
        assert len(scores) == 3
        assert scores == sorted(scores, reverse=True)
