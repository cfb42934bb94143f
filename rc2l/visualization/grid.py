"""Small pictures of images, label maps, confidence and errors, and grids of them: what a run draws while it trains.

Drawn by Pillow in some milliseconds; :mod:`rc2l.visualization.panels` makes the larger ones of the documentation.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rc2l.structures.label_map import IGNORE
from rc2l.visualization.panels import IGNORE_COLOR, Color

#: Longest edge of a cell, in pixels.
EDGE = 200
_GAP, _FONT_SIZE = 6, 12
_LINE = _FONT_SIZE + 6
_WRONG = (230, 30, 30)
#: Shown where there is nothing, such as the hidden label of an image that has none.
EMPTY = np.full((1, 1, 3), 255, dtype=np.uint8)


def shrink(image: np.ndarray, edge: int = EDGE) -> np.ndarray:
    """An image (H, W, 3) or label map (H, W), uint8, whose longer edge is at most ``edge``; label maps keep labels."""
    height, width = image.shape[:2]
    scale = edge / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    # Of labels, the pixels in the middle of what becomes one: cv2's own choice is their corner.
    if image.ndim == 2:
        rows = ((np.arange(size[1]) + 0.5) * height / size[1]).astype(int)
        columns = ((np.arange(size[0]) + 0.5) * width / size[0]).astype(int)
        return image[rows[:, None], columns]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def as_picture(image: Tensor, image_format: str, size: Sequence[int] | None = None) -> np.ndarray:
    """An image tensor (3, h, w) of 0..255, channels as ``image_format`` says, as (H, W, 3) uint8 RGB of a ``size``."""
    picture = image.byte().cpu().numpy().transpose(1, 2, 0)
    picture = np.ascontiguousarray(picture[..., ::-1] if image_format == "BGR" else picture)
    if size is None or tuple(size) == picture.shape[:2]:
        return picture
    return cv2.resize(picture, (size[1], size[0]), interpolation=cv2.INTER_AREA)


def error_map(image: np.ndarray, pred: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The image in grey, red where the prediction is wrong; what is ignored in either is light grey.

    Shape:
        image (H, W, 3) uint8 RGB; pred, target (H, W) class ids or 255. Result (H, W, 3) uint8.
    """
    picture = np.repeat(image.mean(axis=2, keepdims=True) * 0.5, 3, axis=2)
    wrong = pred != target
    picture[wrong] = 0.35 * picture[wrong] + 0.65 * np.array(_WRONG)
    picture[(target == IGNORE) | (pred == IGNORE)] = IGNORE_COLOR
    return picture.astype(np.uint8)


def confidence_map(confidence: np.ndarray) -> np.ndarray:
    """(H, W) of 0 to 1 -> (H, W, 3) uint8 RGB, from dark blue (0) to yellow (1)."""
    levels = (np.clip(np.nan_to_num(confidence), 0, 1) * 255).astype(np.uint8)
    return cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS)[..., ::-1]


def picture_grid(
    rows: Sequence[Sequence[np.ndarray]],
    column_titles: Sequence[str],
    captions: Sequence[str] = (),
    legend: Sequence[tuple[str, Color]] = (),
    edge: int = EDGE,
) -> np.ndarray:
    """Images in rows and columns, each fitted into a cell, with titles, a caption above each row, and a legend.

    Images below half of the cell are magnified by a whole factor, so that label maps keep their pixels.

    Args:
        rows: of (H, W, 3) uint8 RGB, one image for each column.
        column_titles: above the columns.
        captions: above the rows, cut off where they are too long; none: no line for them.
        legend: names and colours.
        edge: longer edge of a cell in pixels.

    Returns:
        (height, width, 3) uint8.
    """
    cells = [[_fit(image, edge) for image in row] for row in rows]
    widths = [max(row[column].shape[1] for row in cells) for column in range(len(column_titles))]
    widths = [max(width, _text_width(title)) for width, title in zip(widths, column_titles, strict=True)]
    heights = [max(cell.shape[0] for cell in row) for row in cells]
    caption_height = _LINE if captions else 0
    width = sum(widths) + _GAP * (len(widths) + 1)
    entries = _legend_lines(legend, width - 2 * _GAP)
    height = _LINE + sum(heights) + (caption_height + _GAP) * len(rows) + _LINE * len(entries) + _GAP
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    lefts = [_GAP + sum(widths[:column]) + _GAP * column for column in range(len(widths))]
    for left, title in zip(lefts, column_titles, strict=True):
        draw.text((left, 3), title, fill="black", font=_font())
    top = _LINE
    for number, row in enumerate(cells):
        if captions:
            draw.text((_GAP, top + 2), _cut(captions[number], width - 2 * _GAP), fill="black", font=_font())
            top += caption_height
        for left, cell in zip(lefts, row, strict=True):
            page.paste(Image.fromarray(np.ascontiguousarray(cell)), (left, top))
        top += heights[number] + _GAP
    for line in entries:
        left = _GAP
        for name, color, entry_width in line:
            draw.rectangle((left, top + 3, left + 11, top + 14), fill=tuple(map(int, color)), outline="gray")
            draw.text((left + 16, top + 2), name, fill="black", font=_font())
            left += entry_width
        top += _LINE
    return np.asarray(page)


def legend_of(
    label_maps: Sequence[np.ndarray], class_names: Sequence[str], colors: Sequence[Color]
) -> list[tuple[str, Color]]:
    """Names and colours of the classes that some label maps (H, W) hold."""
    present = sorted(set().union(*(np.unique(each).tolist() for each in label_maps)))
    entries = [(class_names[label], colors[label]) for label in present if label < len(class_names)]
    return entries + ([("ignored", IGNORE_COLOR)] if IGNORE in present else [])


def save_picture(picture: np.ndarray, path: Path) -> None:
    """Write (height, width, 3) uint8 as JPEG or PNG, as the suffix says; its folder is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, **({"quality": 88} if path.suffix == ".jpg" else {}))


def _fit(image: np.ndarray, edge: int) -> np.ndarray:
    image = shrink(image, edge)
    factor = edge // max(image.shape[:2]) if image.shape[:2] != (1, 1) else 1
    return image.repeat(factor, 0).repeat(factor, 1) if factor > 1 else image


def _legend_lines(legend: Sequence[tuple[str, Color]], width: int) -> list[list[tuple[str, Color, int]]]:
    lines, used = [], width
    for name, color in legend:
        name = _cut(name, width - 32)
        entry_width = 32 + _text_width(name)
        if used + entry_width > width:
            lines.append([])
            used = 0
        lines[-1].append((name, color, entry_width))
        used += entry_width
    return lines


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that matplotlib ships, for its letters beyond Latin; matplotlib itself is slow to import."""
    path = Path(find_spec("matplotlib").origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"
    return ImageFont.truetype(str(path), _FONT_SIZE) if path.is_file() else ImageFont.load_default()


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _text_width(text: str) -> int:
    return int(_font().getlength(_one_line(text))) + 2


def _cut(text: str, width: int) -> str:
    text = _one_line(text)[:300]
    if _text_width(text) <= width:
        return text
    fitting = bisect_right(range(len(text)), width, key=lambda length: _text_width(text[:length] + "…"))
    return text[: max(fitting - 1, 0)] + "…"
