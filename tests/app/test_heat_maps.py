"""Pictures of attention: warm where it is, in the image's shape."""

import numpy as np
from PIL import Image

from instructblip_hf.app.heat_maps import heat_map, strip


def test_the_warmest_place_is_where_the_attention_is():
    attention = np.zeros((4, 8))
    attention[1, 6] = 0.3
    picture = heat_map(attention, Image.new("RGB", (80, 40), "black"), side=320)
    assert picture.size == (320, 160)
    brightness = np.asarray(picture).sum(-1)
    row, column = np.unravel_index(brightness.argmax(), brightness.shape)
    assert (row // 40, column // 40) == (1, 6)


def test_no_attention_anywhere_is_no_crash():
    assert heat_map(np.zeros((2, 2)), Image.new("RGB", (300, 300))).size == (336, 336)


def test_strip_holds_all_pictures():
    pictures = [Image.new("RGB", (50, 40), color) for color in ("red", "blue")]
    page = strip(pictures, ["a caption of many words that does not fit below so small a picture", ""])
    assert page.getpixel((20, 20)) == (255, 0, 0)
    assert page.getpixel((12 + 50 + 12 + 5, 20)) == (0, 0, 255)
