"""Fixtures in the official formats for the tests of whole evaluations."""

import pytest

from instructblip_hf.evaluation.tasks import TASKS
from official_formats import write_dataset, write_image, write_json


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    """A folder with a folder of official files for every dataset of the protocol."""
    root = tmp_path_factory.mktemp("datasets")
    for dataset in {task.dataset for task in TASKS.values()}:
        write_dataset(dataset, root / dataset)
    return root


@pytest.fixture
def gqa_root(tmp_path):
    """GQA's testdev with 11 questions of different length about 3 images."""
    root = tmp_path / "data" / "gqa"
    for number, color in enumerate(("red", "blue", "green")):
        write_image(root / "images" / f"{number}.jpg", color)
    questions = {
        f"q{number}": {
            "imageId": str(number % 3),
            "question": "what color is the " + "big " * (number % 4) + "circle ?",
            "answer": ("red", "yes")[number % 2],
            "types": {"structural": ("query", "verify")[number % 2]},
        }
        for number in range(11)
    }
    write_json(root / "testdev_balanced_questions.json", questions)
    return tmp_path / "data"
