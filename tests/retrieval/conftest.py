"""Encoders of two models, and a folder of images."""

import pytest

from tiny_retrieval import draw_image, retrieval_encoder


@pytest.fixture
def encoder():
    return retrieval_encoder()


@pytest.fixture
def other_encoder():
    return retrieval_encoder(1)


@pytest.fixture
def photos(tmp_path):
    """Seven images, in two folders."""
    for number in range(7):
        draw_image(tmp_path / "photos" / ("old" if number > 4 else "") / f"{number}.png", number)
    return tmp_path / "photos"
