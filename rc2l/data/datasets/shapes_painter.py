"""Paints one image of the embedded dataset `shapes` and its label map.

Everything random comes from the generator that is passed in. Waves are polynomials and pixel coverage is counted in
integers, so that an image does not depend on the machine's vector instructions.
"""

import colorsys
import math
from collections.abc import Sequence

import cv2
import numpy as np

from rc2l.structures.label_map import IGNORE

#: Class names by label id. Neighbours in this list (and its two ends, less background) look alike: circle and ellipse,
#: square and rectangle, star and plus, ring and circle; their hues are neighbours too.
CLASSES = ("background", "circle", "ellipse", "square", "rectangle", "triangle", "star", "plus", "ring")

_TEXTURES = ("plain", "stripes", "checker", "dots", "rings", "speckle", "ramp", "waves")
_HUE_STD = 0.02  # hue circle = 1; classes are 1/8 apart
_TEXTURE_OF_CLASS_PROB = 0.8
_SATURATION = (0.35, 0.85)
_BACKGROUND_SATURATION = 0.22
_COLOR_CAST = 0.15  # change of each channel's gain, by image
_NOISE_STD = (0.015, 0.05)
_RADIUS = (0.11, 0.27)  # of the image size, before a shape's own proportions
_MIN_VISIBLE = 0.5  # share of every object that stays visible
_PLACEMENT_TRIES = 50
_SUPERSAMPLING = 4
_FILL_SHIFT = 4  # binary digits after the point of the vertices that cv2.fillPoly gets


def class_color(label: int) -> tuple[int, int, int]:
    """RGB colour of a class, 0 to 255, in legends and label files: its mean hue; background is black."""
    if label == 0:
        return (0, 0, 0)
    red, green, blue = colorsys.hsv_to_rgb(_class_hue(label), 0.75, 0.95)
    return (round(255 * red), round(255 * green), round(255 * blue))


def paint_scene(rng: np.random.Generator, labels: Sequence[int], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Paint a textured background and one object for each label, later ones in front of earlier ones.

    Args:
        rng: source of all that is random.
        labels: label ids of the objects, each in 1 to 8; ids may repeat.
        size: height and width in pixels, at least 16.

    Returns:
        RGB image ``(H, W, 3)`` uint8 and label map ``(H, W)`` uint8 with ``IGNORE`` on a border of one pixel
        around every object.
    """
    frames, coverage = _place_objects(rng, labels, size)
    layers = [_paint_background(rng, size)]
    layers += [_paint_object(rng, label, frame, size) for label, frame in zip(labels, frames, strict=True)]
    image = sum(share[..., None] * layer for share, layer in zip(coverage, layers, strict=True))
    image = image * _light(rng, size)[..., None] * (1 + _COLOR_CAST * rng.uniform(-1, 1, size=3))
    image = image + rng.uniform(*_NOISE_STD) * rng.standard_normal((size, size, 3))

    owner = coverage.argmax(0).astype(np.uint8)
    # A dilation is a maximum, and owners are numbered back to front: it differs just outside of an object's front edge.
    border = cv2.dilate(owner, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))) != owner
    label_map = np.array([0, *labels], dtype=np.uint8)[owner]
    label_map[border] = IGNORE
    return np.rint(image.clip(0, 1) * 255).astype(np.uint8), label_map


def _class_hue(label: int) -> float:
    return (label - 1) / (len(CLASSES) - 1)


# Geometry


def _place_objects(rng: np.random.Generator, labels: Sequence[int], size: int) -> tuple[list, np.ndarray]:
    """Frames (x, y, radius, angle) of the objects in pixels, and coverage (1 + objects, H, W), the background first.

    Objects may overlap, but the arrangement drawn shows at least ``_MIN_VISIBLE`` of each; if no try does, the best one
    is taken, so that an image has all objects it was asked for.
    """
    best, best_visible = None, -1.0
    for _ in range(_PLACEMENT_TRIES):
        frames, owner, areas = [], np.zeros((size * _SUPERSAMPLING,) * 2, np.uint8), []
        for number, label in enumerate(labels, start=1):
            radius = size * rng.uniform(*_RADIUS)
            x, y = rng.uniform(0.7 * radius, size - 0.7 * radius, size=2)
            frame = (x, y, radius, rng.uniform(0, 2 * math.pi))
            outline = _to_fixed_point(_outline(rng, CLASSES[label]), frame)
            frames.append(frame)
            areas.append(np.count_nonzero(cv2.fillPoly(np.zeros_like(owner), outline, 1, shift=_FILL_SHIFT)))
            cv2.fillPoly(owner, outline, number, shift=_FILL_SHIFT)
        visible = np.bincount(owner.ravel(), minlength=len(labels) + 1)[1:]
        worst = min((seen / area for seen, area in zip(visible, areas, strict=True)), default=1.0)
        if worst > best_visible:
            best, best_visible = (frames, owner), worst
        if worst >= _MIN_VISIBLE:
            break
    frames, owner = best
    blocks = owner.reshape(size, _SUPERSAMPLING, size, _SUPERSAMPLING)
    numbers = np.arange(len(labels) + 1).reshape(-1, 1, 1, 1, 1)
    return frames, (blocks == numbers).sum((2, 4)) / _SUPERSAMPLING**2


def _outline(rng: np.random.Generator, shape: str) -> list[np.ndarray]:
    """Contours (P, 2) of a shape around the origin, of about unit radius; a second contour is a hole."""
    if shape == "circle":
        return [_ring_of_points(48)]
    if shape == "ellipse":
        return [_ring_of_points(48) * (1.2, 1.2 * rng.uniform(0.45, 0.7))]
    if shape == "square":
        return [_ring_of_points(4) * 1.2]
    if shape == "rectangle":
        width, height = 1.15, 1.15 * rng.uniform(0.4, 0.65)
        return [np.array([(-width, -height), (width, -height), (width, height), (-width, height)])]
    if shape == "triangle":
        return [_ring_of_points(3) * (1.25, 1.25 * rng.uniform(0.85, 1.2))]
    if shape == "star":
        return [_ring_of_points(10) * np.where(np.arange(10) % 2, rng.uniform(0.45, 0.6), 1.3)[:, None]]
    if shape == "plus":
        arm, half = 1.15, 1.15 * rng.uniform(0.28, 0.4)
        corner = np.array([(arm, -half), (arm, half), (half, half)])
        quarter_turn = np.array([(0.0, 1.0), (-1.0, 0.0)])
        return [np.concatenate([corner @ np.linalg.matrix_power(quarter_turn, turns) for turns in range(4)])]
    if shape == "ring":
        return [_ring_of_points(48) * 1.1, _ring_of_points(48) * 1.1 * rng.uniform(0.45, 0.6)]
    raise ValueError(f"unknown shape '{shape}'; shapes are {', '.join(CLASSES[1:])}")


def _ring_of_points(count: int) -> np.ndarray:
    angles = [2 * math.pi * i / count for i in range(count)]
    return np.array([(math.cos(angle), math.sin(angle)) for angle in angles])


def _to_fixed_point(contours: list[np.ndarray], frame: tuple[float, float, float, float]) -> list[np.ndarray]:
    """Contours of a unit shape in ``frame``, as the integers that cv2.fillPoly wants, on the supersampled grid."""
    x, y, radius, angle = frame
    cos, sin = radius * math.cos(angle), radius * math.sin(angle)
    placed = [np.stack([x + u * cos - v * sin, y + u * sin + v * cos], -1) for u, v in (c.T for c in contours)]
    # cv2 counts from pixel centres, the frames from the image corner.
    return [np.rint((p * _SUPERSAMPLING - 0.5) * (1 << _FILL_SHIFT)).astype(np.int32) for p in placed]


# Colour and texture


def _paint_background(rng: np.random.Generator, size: int) -> np.ndarray:
    """(H, W, 3) RGB in [0, 1]: a blend of two dull colours by clouds and one of the objects' textures."""
    hue, value = rng.random(), rng.uniform(0.3, 0.8)
    dark = _rgb(hue, rng.uniform(0.0, _BACKGROUND_SATURATION), value * rng.uniform(0.55, 0.85))
    bright = _rgb(hue + rng.uniform(-0.2, 0.2), rng.uniform(0.0, _BACKGROUND_SATURATION), value)
    clouds = 0.6 * _clouds(rng, size, 4) + 0.4 * _clouds(rng, size, 12)
    frame = (*rng.uniform(0, size, size=2), size / 2, rng.uniform(0, 2 * math.pi))
    kind = _TEXTURES[rng.integers(len(_TEXTURES))]
    return _blend(dark, bright, 0.6 * clouds + 0.4 * _texture(rng, kind, frame, size))


def _paint_object(
    rng: np.random.Generator, label: int, frame: tuple[float, float, float, float], size: int
) -> np.ndarray:
    """(H, W, 3) RGB in [0, 1]: two shades of the class's hue, blended by a texture that mostly tells the class."""
    hue = _class_hue(label) + _HUE_STD * rng.standard_normal()
    saturation, value = rng.uniform(*_SATURATION), rng.uniform(0.55, 0.95)
    dark = _rgb(hue, saturation, value * rng.uniform(0.5, 0.75))
    bright = _rgb(hue, saturation * rng.uniform(0.6, 1.0), value)
    own = rng.random() < _TEXTURE_OF_CLASS_PROB
    kind = _TEXTURES[label - 1 if own else rng.integers(len(_TEXTURES))]
    return _blend(dark, bright, _texture(rng, kind, frame, size))


def _texture(rng: np.random.Generator, kind: str, frame: tuple[float, float, float, float], size: int) -> np.ndarray:
    """(H, W) in [0, 1], a pattern in the coordinates of ``frame``."""
    x, y, radius, angle = frame
    period = size / 64 * rng.uniform(4.5, 8.0)
    pixels = np.arange(size) + 0.5
    dx, dy = pixels[None, :] - x, pixels[:, None] - y
    u = (dx * math.cos(angle) + dy * math.sin(angle)) / period
    v = (dy * math.cos(angle) - dx * math.sin(angle)) / period
    if kind == "plain":
        return np.full((size, size), rng.uniform(0.5, 1.0))
    if kind == "stripes":
        return _wave(u)
    if kind == "checker":
        return 0.5 + 2 * (_wave(u) - 0.5) * (_wave(v) - 0.5)
    if kind == "dots":
        return _wave(u) * _wave(v)
    if kind == "rings":
        return _wave(np.sqrt(u * u + v * v))
    if kind == "speckle":
        return _clouds(rng, size, max(2, size * 32 // 64))
    if kind == "ramp":
        return (0.5 + 0.4 * u * period / radius).clip(0, 1)
    return _wave(u + 0.5 * _wave(v * 0.7))


def _wave(phase: np.ndarray) -> np.ndarray:
    """Smooth periodic function of period 1 between 0 and 1."""
    ramp = np.abs(2 * (phase - np.floor(phase)) - 1)
    return ramp * ramp * (3 - 2 * ramp)


def _clouds(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """(H, W) in [0, 1]: random values on a grid of ``cells`` by ``cells``, smoothly interpolated."""
    grid = rng.random((cells + 1, cells + 1))
    position = (np.arange(size) + 0.5) * cells / size
    low = np.floor(position).astype(np.int64)
    weight = position - low
    weight = weight * weight * (3 - 2 * weight)
    rows = grid[low] * (1 - weight)[:, None] + grid[low + 1] * weight[:, None]
    return rows[:, low] * (1 - weight) + rows[:, low + 1] * weight


def _light(rng: np.random.Generator, size: int) -> np.ndarray:
    """(H, W) factor around 1: brighter on one side of the image."""
    angle, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0.0, 0.35)
    offset = (np.arange(size) + 0.5) / size - 0.5
    return 1 + strength * (offset[None, :] * math.cos(angle) + offset[:, None] * math.sin(angle))


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value))


def _blend(dark: np.ndarray, bright: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return dark + weight[..., None] * (bright - dark)
