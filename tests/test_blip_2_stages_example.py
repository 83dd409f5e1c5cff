"""The example that goes through all stages, at a size that says nothing; a stopped run goes on with what is missing."""

import json
import sys
from importlib import util
from pathlib import Path

import pytest


EXAMPLE = Path(__file__).parents[1] / "examples" / "blip_2" / "stages.py"


@pytest.fixture(scope="module")
def stages():
    spec = util.spec_from_file_location("blip_2_stages", EXAMPLE)
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(stages, folder, monkeypatch):
    arguments = ["--output", str(folder), "--steps", "2", "2", "2", "--batch-size", "4", "--scenes", "4"]
    monkeypatch.setattr(sys, "argv", ["stages", *arguments])
    stages.main()
    return json.loads((folder / "results.json").read_text())


def test_all_stages_and_again(stages, tmp_path, monkeypatch, capsys):
    results = run(stages, tmp_path, monkeypatch)
    assert list(results) == ["first_stage", "second_stage", "instruction_tuning"]
    assert {"loss_itc", "loss_itm", "loss_itg", "eval_loss_itc"} <= results["first_stage"]["curves"].keys()
    assert 0 <= results["first_stage"]["image_to_text"]["R@1"] <= 1
    assert len(results["second_stage"]["examples"]) == 4
    assert set(results["instruction_tuning"]["accuracy"]) == set(stages.QUESTIONS)
    assert (tmp_path / "stages.png").stat().st_size > 10_000
    said = capsys.readouterr().out
    assert "left behind: qformer, feed-forward layers of text" in said
    del results["instruction_tuning"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    again = run(stages, tmp_path, monkeypatch)
    assert again["first_stage"] == results["first_stage"]
    assert "instruction_tuning" in again
    assert "first_stage:" not in capsys.readouterr().out
