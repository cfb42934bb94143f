"""Coloured label maps and panels."""

import numpy as np
import pytest
from PIL import Image

from rc2l.visualization import colorize, save_panel

COLORS = [(0, 0, 0), (200, 10, 20), (10, 220, 30)]
NAMES = ["background", "cat", "dog"]


def test_colorize_maps_labels_and_ignore():
    label_map = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    colored = colorize(label_map, COLORS, ignore_color=(1, 2, 3))
    assert colored.dtype == np.uint8
    assert colored.tolist() == [[[0, 0, 0], [200, 10, 20]], [[10, 220, 30], [1, 2, 3]]]
    assert colorize(label_map.astype(np.int64), COLORS)[1, 1].tolist() == [224, 224, 224]


def test_colorize_of_ignored_pixels_only():
    assert (colorize(np.full((2, 2), 255), COLORS) == 224).all()


def test_colorize_names_labels_out_of_range():
    with pytest.raises(ValueError, match=r"labels \[3, 9\]; allowed are 0 to 2 and 255"):
        colorize(np.array([[3, 9], [0, 255]]), COLORS)


def test_panel_shows_every_pixel_of_small_images(tmp_path):
    label_map = np.random.Generator(np.random.PCG64(0)).integers(0, 3, (16, 16))
    path = tmp_path / "new" / "panel.png"
    save_panel(path, [[colorize(label_map, COLORS)] * 2] * 3, ["input", "truth"], NAMES, COLORS)
    panel = np.array(Image.open(path).convert("RGB"))
    scale = 14  # 224 / 16
    colored = colorize(label_map, COLORS)
    enlarged = colored.repeat(scale, 0).repeat(scale, 1)
    views = np.lib.stride_tricks.sliding_window_view(panel, (224, 224), axis=(0, 1))
    alike = np.logical_and.reduce(
        [
            (views[:, :, :, i * scale, j * scale] == colored[i, j]).all(-1)
            for i in range(0, 16, 3)
            for j in range(0, 16, 3)
        ]
    )
    found = [(y, x) for y, x in np.argwhere(alike) if (panel[y : y + 224, x : x + 224] == enlarged).all()]
    assert len(found) == 6
    assert len({x for _, x in found}) == 2 and len({y for y, _ in found}) == 3


def test_panel_has_a_legend_of_class_colors(tmp_path):
    path = tmp_path / "panel.png"
    save_panel(path, [[np.full((8, 8, 3), 255, np.uint8)]], ["white"], NAMES, COLORS)
    panel = np.array(Image.open(path).convert("RGB")).reshape(-1, 3)
    for color in (*COLORS, (224, 224, 224)):
        assert (panel == color).all(-1).sum() > 30


def test_panel_of_large_and_unequal_images_stays_small(tmp_path):
    path = tmp_path / "panel.png"
    images = [np.zeros((1024, 2048, 3), np.uint8), np.zeros((500, 300, 3), np.uint8)]
    save_panel(path, [images], ["a", "b"], NAMES, COLORS)
    width, height = Image.open(path).size
    assert width < 1000 and height < 400


def test_panel_refuses_rows_that_do_not_fit(tmp_path):
    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match=r"\[2, 1\] images for 2 column titles"):
        save_panel(tmp_path / "panel.png", [[image, image], [image]], ["a", "b"], NAMES, COLORS)
    with pytest.raises(ValueError, match="3 class names and 2 class colours"):
        save_panel(tmp_path / "panel.png", [[image]], ["a"], NAMES, COLORS[:2])
