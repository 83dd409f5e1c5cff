"""The shapes world as a map-style dataset."""

import pytest

from instructblip_hf.data.procedural import ShapesWorldDataset
from instructblip_hf.data.sources.shapes_world import ShapesWorld


def test_examples_are_the_worlds_own_and_end_where_they_should():
    world = ShapesWorld(3)
    dataset = ShapesWorldDataset(world, 5)
    assert len(dataset) == 5
    assert dataset[2]["scene"] == world.example(2)["scene"]
    assert dataset[-1]["scene"] == world.example(4)["scene"]
    assert len(list(dataset)) == 5
    with pytest.raises(IndexError, match="out of range for 5"):
        dataset[5]


def test_no_examples():
    with pytest.raises(ValueError, match="examples is 0"):
        ShapesWorldDataset(ShapesWorld(3), 0)
