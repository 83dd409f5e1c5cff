"""The example of many questions, run as a user runs it on the bundled model."""

import runpy
import sys
from pathlib import Path


ROOT = Path(__file__).parents[1]


def test_many_questions(capsys, monkeypatch):
    questions = ["what color is the circle ?", "where is the circle ?", "what color is the circle ?"]
    scene = str(ROOT / "examples" / "scene.png")
    monkeypatch.setattr(sys, "argv", ["many_questions.py", scene, *questions])
    runpy.run_path(str(ROOT / "examples" / "many_questions.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1] for line in lines[:3]] == ["blue", "bottom right", "blue"]
    assert lines[3].startswith("3 questions: ")
    assert lines[4] == "the cache holds 1 image in 179,200 bytes"
