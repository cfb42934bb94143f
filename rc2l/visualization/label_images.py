"""Label maps as image files: class ids that viewers show in the colours of the classes."""

from collections.abc import Sequence

import numpy as np
from detectron2.data.catalog import Metadata
from PIL import Image

from rc2l.data.datasets.voc import palette
from rc2l.structures.label_map import IGNORE
from rc2l.visualization.panels import IGNORE_COLOR, Color


def colors_of(metadata: Metadata) -> list[Color]:
    """RGB colours of a dataset's classes; those of VOC where it has none of its own."""
    return list(metadata.get("stuff_colors") or palette(len(metadata.stuff_classes)))


def class_colors(metadata: Metadata, num_classes: int) -> tuple[list[Color], list[str]]:
    """Colours and names of K classes, whether or not the dataset has them: VOC's colours, and ids for names."""
    names = list(metadata.get("stuff_classes") or map(str, range(num_classes)))
    return list(metadata.get("stuff_colors") or palette(num_classes)), names


def palette_image(label_map: np.ndarray, colors: Sequence[Color]) -> Image.Image:
    """A palette image whose indices are the labels.

    Args:
        label_map: (H, W) uint8, class ids or 255.
        colors: RGB, 0 to 255, of each class.
    """
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(colors)] = np.array(colors, dtype=np.uint8).reshape(-1, 3)
    table[IGNORE] = IGNORE_COLOR
    image = Image.fromarray(label_map)
    image.putpalette(table.tobytes())  # turns a grey image into one of indices
    return image
