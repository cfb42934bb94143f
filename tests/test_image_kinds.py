"""Images whose values or bands 8-bit RGB would cut off are refused by name and kind; others are read."""

import rc2l  # noqa: F401  first of all: makes detectron2 importable

# isort: split
import cv2
import numpy as np
import pytest

from rc2l.data.errors import DatasetError
from rc2l.data.reading import read_image, read_image_size

KINDS = {
    "gray16.png": (np.uint16, 1, "16 bits"),
    "color16.png": (np.uint16, 3, "16 bits"),
    "gray16.tif": (np.uint16, 1, "16 bits"),
    "color16.tif": (np.uint16, 3, "16 bits"),
    "float.tif": (np.float32, 1, "32 bits"),
    "signed.tif": (np.int16, 1, "16 bits"),
}


@pytest.mark.parametrize("name", KINDS)
def test_more_than_8_bits_are_refused_by_name_and_kind(tmp_path, name):
    dtype, bands, message = KINDS[name]
    path = str(tmp_path / name)
    cv2.imwrite(path, np.ones((4, 5, bands), dtype=dtype))
    for read in (read_image_size, lambda file: read_image(file, "RGB")):
        with pytest.raises(DatasetError, match=f"{name}: this image has {message}.*gdal_translate"):
            read(path)


@pytest.mark.parametrize("name, bands", [("a.png", 1), ("b.png", 4), ("c.tif", 3), ("d.jpg", 3)])
def test_8_bits_and_alpha_need_no_word(tmp_path, name, bands):
    path = str(tmp_path / name)
    cv2.imwrite(path, np.full((4, 5, bands), 200, dtype=np.uint8))
    assert read_image_size(path) == (4, 5) and (read_image(path, "RGB") == 200).all()
