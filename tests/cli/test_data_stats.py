"""`data stats`: the mixture of a recipe as a table and a picture, from one's own copies or the catalog's sizes."""

import json

import pytest
from PIL import Image

from instructblip_hf.data.catalog import DATASETS
from instructblip_hf.data.mixture import Mixture
from instructblip_hf.data.mixture_report import markdown_table, mixture_table
from official_formats import write_dataset


@pytest.fixture
def recipe(tmp_path, monkeypatch, checkpoint):
    monkeypatch.chdir(tmp_path)
    write_dataset("okvqa", tmp_path / "okvqa")
    write_dataset("vqav2", tmp_path / "vqav2")
    path = tmp_path / "mix.yaml"
    path.write_text(
        f"model: {{path: {checkpoint}}}\n"
        "data: {train: {mixture: {root: ., datasets: {okvqa: {factor: 3}, vqav2: {}}}}}\n"
        "training: {max_steps: 5, per_device_train_batch_size: 4, gradient_accumulation_steps: 3}\n"
    )
    return path


def test_table_of_the_copies(run, recipe):
    result = run("data", "stats", recipe, "--markdown")
    assert result.exit_code == 0, result.output
    sizes = {name: write_dataset(name, recipe.parent / name)["train"] for name in ("okvqa", "vqav2")}
    expected = mixture_table(Mixture(sizes, factors={"okvqa": 3.0}), 5 * 4 * 3)
    assert result.stdout == markdown_table(expected) + "\n"
    lines = run("data", "stats", recipe, "--draws", 7000).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["dataset", "okvqa", "vqav2", "sum"]
    assert len({len(line) for line in lines[1:3]}) == 1
    assert lines[-1].endswith("7,000")


def test_picture(run, recipe):
    result = run("data", "stats", recipe, "--plot", "m.png", "--set", "data.train.mixture.balance=uniform")
    assert result.exit_code == 0, result.output
    assert "picture in m.png" in result.stdout
    with Image.open("m.png") as image:
        assert image.width > 500


@pytest.mark.parametrize("name", ["instructblip_flant5_xl", "instructblip_vicuna_13b"])
def test_published_sizes_of_a_shipped_recipe(run, name):
    result = run("data", "stats", name, "--published", "--draws", 60_000 * 192)
    assert result.exit_code == 0, result.output
    cells = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}
    assert [*cells][1:-1] == [key for key, spec in DATASETS.items() if spec.role == "held-in"]
    assert cells["web_capfilt"] == ["13,873,136", "84.3%", "45.7%", "1", "45.7%", "5,259,950", "0.379"]


def test_what_cannot_be_shown(run, recipe):
    own = {"mine": {"file": "rows.jsonl"}}
    for arguments, message in (
        (["--set", "data.train={shapes_world: {examples: 3}}"], "trains on no mixture"),
        (["--set", "data.train.mixture.root=gone"], "there is no folder"),
        (["--published", "--set", f"data.train.mixture.datasets={json.dumps(own)}"], "mine is not of the catalog"),
        (["--plot", "m.xyz"], "xyz"),
    ):
        result = run("data", "stats", recipe, *arguments)
        assert result.exit_code == 2, result.output
        assert message in result.stderr
        assert result.stderr.count("error: ") == 1
