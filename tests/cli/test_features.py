"""`instructblip features`: what it says before, what it does, and what it refuses."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def recipe(tmp_path, monkeypatch, checkpoint):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "world.yaml"
    path.write_text(
        f"model: {{path: {checkpoint}}}\nfreezing: instructblip\ndata: {{train: {{shapes_world: {{examples: 5}}}}}}\n"
        "training: {max_steps: 1, per_device_train_batch_size: 5, use_cpu: true, disable_tqdm: true, report_to: none, "
        "save_strategy: 'no'}\n"
    )
    return path


def test_counts_computes_and_trains(run, recipe):
    said = run("features", recipe, "--output", "kept", "--dry-run")
    assert said.exit_code == 0, said.output
    assert "images      5 in 5 rows, 0 of them are there" in said.stdout
    assert "17 x 24 float32" in said.stdout
    assert "to compute  5, which need" in said.stdout
    assert not Path("kept").exists()
    done = run("features", recipe, "--output", "kept")
    assert done.exit_code == 0, done.output
    assert "computed    5" in done.stdout
    files = list(Path("kept").rglob("*.safetensors"))
    assert len(files) == 5
    assert f"{files[0].stat().st_size:,} bytes" in done.stdout
    again = run("features", recipe, "--set", "data.image_features=kept", "--check")
    assert "5 of them are there" in again.stdout
    assert "computed    0" in again.stdout
    assert run("train", recipe, "--set", "data.image_features=kept").exit_code == 0
    assert len(list(Path("kept").rglob("*.safetensors"))) == 5


def test_a_disk_without_room_is_refused_unless_forced(run, recipe, monkeypatch):
    usage = shutil.disk_usage(recipe.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    refused = run("features", recipe, "--output", "kept")
    assert refused.exit_code == 2
    assert "do not fit on the disk of kept, which has 1.0 kB left" in refused.stderr
    assert not Path("kept").exists()
    assert run("features", recipe, "--output", "kept", "--force").exit_code == 0
    assert len(list(Path("kept").rglob("*.safetensors"))) == 5


def test_what_is_wrong_is_one_line(run, recipe):
    Path("photos").mkdir()
    Path("photos/a.jpg").touch()
    for arguments, message in (
        ([], "names no folder for features"),
        (["--output", "photos"], "photos is not a folder of image features: it holds a.jpg"),
        (["--output", "kept", "--set", "freezing.components={vision_model: train}"], "trains: leave out"),
    ):
        result = run("features", recipe, *arguments)
        assert result.exit_code == 2, result.output
        assert message in result.stderr
        assert result.stderr.count("error: ") == 1
