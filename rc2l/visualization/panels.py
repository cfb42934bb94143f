"""Grids of images and coloured label maps with a legend."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rc2l.structures.label_map import IGNORE

Color = Sequence[int]

IGNORE_COLOR = (224, 224, 224)
# Pixels of the picture.
_CELL = 224
_GAP = 8
_TITLE_HEIGHT = 32
_LEGEND_ROW_HEIGHT = 26
_DPI = 100
_FONT_SIZE = 11


def colorize(
    label_map: np.ndarray,
    colors: Sequence[Color],
    ignore_color: Color = IGNORE_COLOR,
    ignore_label: int = IGNORE,
) -> np.ndarray:
    """Replace labels by colours.

    Args:
        label_map: (H, W) integers in [0, K), or ``ignore_label``.
        colors: K RGB colours, 0 to 255.
        ignore_color: RGB colour of ``ignore_label``.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: a label is neither a class nor ``ignore_label``.
    """
    label_map = np.asarray(label_map)
    ignored = label_map == ignore_label
    labels = np.where(ignored, len(colors), label_map)
    if not ignored.all() and (label_map[~ignored].min() < 0 or label_map[~ignored].max() >= len(colors)):
        wrong = [label for label in np.unique(label_map[~ignored]).tolist() if not 0 <= label < len(colors)]
        raise ValueError(
            f"label map has labels {wrong}; allowed are 0 to {len(colors) - 1} and {ignore_label} (ignore)"
        )
    return np.array([*colors, ignore_color], dtype=np.uint8)[labels]


def save_panel(
    path: str | Path,
    rows: Sequence[Sequence[np.ndarray]],
    column_titles: Sequence[str],
    class_names: Sequence[str],
    class_colors: Sequence[Color],
    ignore_color: Color = IGNORE_COLOR,
) -> None:
    """Write a grid of images as one PNG, with titles above the columns and a legend of classes below.

    Small images are magnified by a whole factor without interpolation, so that label maps keep their pixels.

    Args:
        path: PNG file; its folder is made if missing.
        rows: rows of (H, W, 3) uint8 images, one for each column; images may differ in size.
        column_titles: one for each column.
        class_names: K names for the legend.
        class_colors: K RGB colours, 0 to 255.
        ignore_color: RGB colour of "ignored" in the legend.

    Raises:
        ValueError: no row, a row of another length than the titles, or names and colours of different number.
    """
    # Imported where pictures are drawn: matplotlib takes a second, which every start would pay.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    if not rows or any(len(row) != len(column_titles) for row in rows):
        raise ValueError(
            f"panel has rows of {[len(row) for row in rows]} images for {len(column_titles)} column titles"
        )
    if len(class_names) != len(class_colors):
        raise ValueError(f"panel has {len(class_names)} class names and {len(class_colors)} class colours")

    columns = len(column_titles)
    largest_height, largest_width = (max(image.shape[axis] for row in rows for image in row) for axis in (0, 1))
    largest = max(largest_height, largest_width)
    scale = math.ceil(_CELL / largest) if largest < _CELL else 1
    # Beyond twice the usual cell, a large image is shown smaller.
    scale = min(scale, 2 * _CELL / largest)
    cell_height, cell_width = round(largest_height * scale), round(largest_width * scale)

    width = columns * (cell_width + _GAP) + _GAP
    entry_width = 60 + 9 * max(len(name) for name in (*class_names, "ignored"))
    legend_columns = max(1, min(len(class_names) + 1, width // entry_width))
    legend_height = _LEGEND_ROW_HEIGHT * math.ceil((len(class_names) + 1) / legend_columns) + _GAP
    height = _TITLE_HEIGHT + len(rows) * (cell_height + _GAP) + legend_height

    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    for row_number, row in enumerate(rows):
        bottom = height - _TITLE_HEIGHT - (row_number + 1) * cell_height - row_number * _GAP
        for column, image in enumerate(row):
            left = _GAP + column * (cell_width + _GAP)
            axes = figure.add_axes((left / width, bottom / height, cell_width / width, cell_height / height))
            axes.imshow(image, interpolation="nearest" if scale >= 1 else "antialiased")
            axes.set_axis_off()
            if row_number == 0:
                axes.set_title(column_titles[column], fontsize=_FONT_SIZE, pad=6)
    entries = [*zip(class_names, class_colors, strict=True), ("ignored", ignore_color)]
    figure.legend(
        handles=[Patch(facecolor=np.array(color) / 255, edgecolor="gray", label=name) for name, color in entries],
        loc="lower center",
        ncol=legend_columns,
        frameon=False,
        fontsize=_FONT_SIZE,
        borderpad=0.2,
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
