"""Tiny checkpoints and images for the tests of the command line."""

import pytest
from PIL import Image
from typer.testing import CliRunner

from instructblip_hf.cli.app import app
from tiny_shapes import save_tiny_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return str(save_tiny_checkpoint(tmp_path_factory.mktemp("causal") / "model"))


@pytest.fixture(scope="session")
def seq2seq_checkpoint(tmp_path_factory):
    return str(save_tiny_checkpoint(tmp_path_factory.mktemp("seq2seq") / "model", "seq2seq"))


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Names of two images in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name, color in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (20, 30), color).save(name)
    return ["a.png", "b.png"]


@pytest.fixture
def run():
    def invoke(*arguments, **options):
        return CliRunner().invoke(app, [str(argument) for argument in arguments], **options)

    return invoke


@pytest.fixture
def tiny_bundle(checkpoint, monkeypatch):
    """A random tiny model in the place of every bundled one."""
    from pathlib import Path

    monkeypatch.setattr("instructblip_hf.cli.loading.bundled_checkpoint", lambda name: Path(checkpoint))
