"""The geometry of training crops, and the weak, strong and labelled views that the config asks for.

All are detectron2 ``Augmentation``s. Random numbers come from the global generators of numpy and ``random``, as in
detectron2; the mapper seeds them.
"""

from math import ceil

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from PIL import Image

from rc2l.data.color import ColorAugSSD, ColorJitter, GaussianBlur, Grayscale
from rc2l.structures.label_map import IGNORE

_FORMATS = ("RGB", "BGR")
#: Tries to find a crop that one class does not fill.
_MAX_TRIES = 10


class ResizeByScale(T.Augmentation):
    """Resize to ``base_size`` (height, width), or the image's own size where it is empty, times a random scale."""

    def __init__(self, base_size: tuple[int, ...], scale_range: tuple[float, ...]):
        super().__init__()
        self.base_size, self.scale_range = base_size, scale_range

    def get_transform(self, image: np.ndarray) -> T.Transform:
        h, w = image.shape[:2]
        base_h, base_w = self.base_size or (h, w)
        scale = np.random.uniform(*self.scale_range) if self.scale_range else 1.0
        return T.ResizeTransform(h, w, max(round(base_h * scale), 1), max(round(base_w * scale), 1))


class ResizeShortestEdge(T.ResizeShortestEdge):
    """detectron2's, with no side below one pixel, so that an image of 4000x3 can be shrunk too."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        resize = super().get_transform(image)
        if isinstance(resize, T.NoOpTransform):
            return resize
        return T.ResizeTransform(resize.h, resize.w, max(resize.new_h, 1), max(resize.new_w, 1), resize.interp)


class ResizeCropTransform(T.Transform):
    """What a resize from ``size`` to ``new_size`` and then a crop give, computed for the pixels of the crop alone.

    Sizes are (height, width), ``crop`` is (top, left, height, width) in the resized image.
    """

    def __init__(self, size: tuple[int, int], new_size: tuple[int, int], crop: tuple[int, int, int, int]):
        super().__init__()
        self.size, self.new_size, self.crop = size, new_size, crop

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """(h, w, C) uint8 -> (crop height, crop width, C), bilinear, with antialiasing where it shrinks."""
        top, left, height, width = self.crop
        if self.size == self.new_size:
            return img[top : top + height, left : left + width]
        box, windows = [], []
        for start, length, old, new in zip(self.crop[:2], self.crop[2:], self.size, self.new_size, strict=True):
            scale = old / new
            begin, end = start * scale, min((start + length) * scale, old)
            reach = ceil(max(scale, 1.0)) + 1  # as far as the filter looks
            first, last = max(int(begin) - reach, 0), min(ceil(end) + reach, old)
            box.append((begin - first, min(end - first, last - first)))
            windows.append(slice(first, last))
        region = Image.fromarray(np.ascontiguousarray(img[tuple(windows)]))
        (y0, y1), (x0, x1) = box
        return np.asarray(region.resize((width, height), Image.BILINEAR, box=(x0, y0, x1, y1)))

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """(h, w) -> (crop height, crop width), nearest neighbour."""
        top, left, height, width = self.crop
        if self.size == self.new_size:
            return segmentation[top : top + height, left : left + width]
        rows, columns = (
            (2 * np.arange(start, start + length) + 1) * old // (2 * new)
            for start, length, old, new in zip(self.crop[:2], self.crop[2:], self.size, self.new_size, strict=True)
        )
        return segmentation.take(rows, axis=0).take(columns, axis=1)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(n, 2) x and y in the image -> in the crop."""
        scale = np.array(self.new_size[::-1]) / np.array(self.size[::-1])
        return coords * scale - np.array(self.crop[1::-1])


class ResizeCrop(T.Augmentation):
    """A resize, then a random crop of ``size`` (height, width) or what the image has of it, in one step.

    Where a label is there and ``max_area`` is below 1, crops in which one class has that share or more of the pixels
    that are not ignored are drawn again, a few times at most.
    """

    def __init__(self, resize: T.Augmentation, size: tuple[int, int], max_area: float = 1.0):
        super().__init__()
        self.resize, self.max_area = resize, max_area
        self.crop = T.RandomCrop("absolute", size)

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray | None) -> T.Transform:
        size = image.shape[:2]
        resize = self.resize.get_transform(image)
        new_size = size if isinstance(resize, T.NoOpTransform) else (resize.new_h, resize.new_w)
        # A crop is drawn from the size alone, so an image without memory will do.
        blank = np.broadcast_to(np.uint8(0), new_size)
        for _ in range(_MAX_TRIES if sem_seg is not None and self.max_area < 1 else 1):
            crop = self.crop.get_transform(blank)
            transform = ResizeCropTransform(size, new_size, (crop.y0, crop.x0, crop.h, crop.w))
            if sem_seg is None or self.max_area >= 1:
                break
            label = transform.apply_segmentation(sem_seg)
            # Counts as np.bincount does, several times as fast.
            pixels = cv2.calcHist([label], [0], None, [IGNORE], [0, IGNORE])
            if 0 < pixels.max() < self.max_area * pixels.sum():
                break
        return transform


class PadToSizeTransform(T.Transform):
    """Pads at the right and bottom: images with a colour, label maps with 255."""

    def __init__(self, height: int, width: int, color: tuple[int, ...]):
        super().__init__()
        self.height, self.width, self.color = height, width, color

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """(h, w, C) -> (height, width, C)."""
        return self._pad(img, np.asarray(self.color, dtype=img.dtype))

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """(h, w) -> (height, width)."""
        return self._pad(segmentation, IGNORE)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Unchanged: the origin stays."""
        return coords

    def _pad(self, array: np.ndarray, value: np.ndarray | int) -> np.ndarray:
        h, w = array.shape[:2]
        if (h, w) == (self.height, self.width):
            return array
        padded = np.empty((self.height, self.width, *array.shape[2:]), dtype=array.dtype)
        padded[:] = value
        padded[:h, :w] = array
        return padded


class PadToSize(T.Augmentation):
    """Pad images that are smaller than ``size`` (height, width) to it."""

    def __init__(self, size: tuple[int, int], color: tuple[int, ...]):
        super().__init__()
        self.size, self.color = size, color

    def get_transform(self, image: np.ndarray) -> T.Transform:
        h, w = image.shape[:2]
        return PadToSizeTransform(max(h, self.size[0]), max(w, self.size[1]), self.color)


def crop_size(cfg: CfgNode) -> tuple[int, int]:
    """(height, width) of the training crops before ``INPUT.SIZE_DIVISIBILITY``.

    Raises:
        ValueError: ``INPUT.CROP`` does not ask for crops of a fixed size.
    """
    crop = cfg.INPUT.CROP
    sizes = tuple(crop.SIZE)
    fixed = crop.ENABLED and crop.TYPE == "absolute" and len(sizes) == 2
    if not fixed or any(size < 1 or size != int(size) for size in sizes):
        raise ValueError(
            f"INPUT.CROP is ENABLED {crop.ENABLED}, TYPE '{crop.TYPE}', SIZE {list(sizes)}; training needs crops of "
            "one size: set ENABLED True, TYPE absolute and SIZE [height, width] in pixels"
        )
    return int(sizes[0]), int(sizes[1])


def padding_color(cfg: CfgNode) -> tuple[int, ...]:
    """The mean colour, so that padding is about 0 after normalisation."""
    return tuple(round(mean) for mean in cfg.MODEL.PIXEL_MEAN)


def build_weak_augmentations(cfg: CfgNode, labeled: bool = True) -> list[T.Augmentation]:
    """Resize, random crop, colour and flip (RC²L section 3.1), without the padding.

    ``labeled`` images follow ``INPUT.LABELED``, others ``INPUT.WEAK``; only labelled ones can avoid crops of one class
    (``INPUT.CROP.SINGLE_CATEGORY_MAX_AREA``).

    Raises:
        ValueError: a key of ``INPUT`` is out of range; the message names it.
    """
    if cfg.INPUT.DATASET_MAPPER_NAME != "mask_former_semantic":
        raise ValueError(
            f"INPUT.DATASET_MAPPER_NAME is '{cfg.INPUT.DATASET_MAPPER_NAME}'; RC²L does semantic segmentation only: "
            "'mask_former_semantic'"
        )
    if cfg.INPUT.FORMAT not in _FORMATS:
        raise ValueError(f"INPUT.FORMAT is '{cfg.INPUT.FORMAT}'; it must be one of {_FORMATS}")
    if cfg.INPUT.RANDOM_FLIP not in ("horizontal", "vertical", "none"):
        raise ValueError(f"INPUT.RANDOM_FLIP is '{cfg.INPUT.RANDOM_FLIP}'; it must be horizontal, vertical or none")

    max_area = cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA if labeled else 1.0
    augmentations: list[T.Augmentation] = [ResizeCrop(_build_resize(cfg), crop_size(cfg), max_area)]
    if cfg.INPUT.COLOR_AUG_SSD:
        augmentations.append(ColorAugSSD(cfg.INPUT.FORMAT))
    augmentations += _build_colors(cfg, "LABELED" if labeled else "WEAK")
    if cfg.INPUT.RANDOM_FLIP != "none":
        horizontal = cfg.INPUT.RANDOM_FLIP == "horizontal"
        augmentations.append(T.RandomFlip(horizontal=horizontal, vertical=not horizontal))
    return augmentations


def _base_size(cfg: CfgNode) -> tuple[int, ...]:
    size = tuple(cfg.INPUT.BASE_SIZE)
    if len(size) not in (0, 2) or any(edge < 1 or edge != int(edge) for edge in size):
        raise ValueError(f"INPUT.BASE_SIZE is {list(size)}; it must be [height, width] in pixels, or [] for none")
    return size


def _build_resize(cfg: CfgNode) -> T.Augmentation:
    base_size, scale_range = _base_size(cfg), tuple(cfg.INPUT.SCALE_RANGE)
    if scale_range and (len(scale_range) != 2 or not 0 < scale_range[0] <= scale_range[1]):
        raise ValueError(
            f"INPUT.SCALE_RANGE is {list(scale_range)}; it must be [smallest, largest], above 0, or [] for none"
        )
    if base_size or scale_range:
        return ResizeByScale(base_size, scale_range)
    sizes, style = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    if style not in ("choice", "range") or not sizes or (style == "range" and len(sizes) != 2) or min(sizes) < 0:
        raise ValueError(
            f"INPUT.MIN_SIZE_TRAIN is {sizes} with MIN_SIZE_TRAIN_SAMPLING '{style}'; it must be pixel sizes with "
            "'choice', or (smallest, largest) with 'range'"
        )
    return ResizeShortestEdge(sizes, cfg.INPUT.MAX_SIZE_TRAIN, style)


def build_test_resize(cfg: CfgNode) -> T.Augmentation:
    """``INPUT.BASE_SIZE`` where it is set, else the short edge ``INPUT.MIN_SIZE_TEST`` (0: as it is).

    Raises:
        ValueError: ``INPUT.BASE_SIZE`` is no size.
    """
    base_size = _base_size(cfg)
    if base_size:
        return T.Resize(base_size)
    return ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)


class ResizeLike(T.Augmentation):
    """Resize to ``base_size`` (height, width) times what makes its short edge ``short_edge``, the long one at most
    ``max_size``; for images that training shows with another aspect ratio than their own."""

    def __init__(self, base_size: tuple[int, ...], short_edge: int, max_size: int):
        super().__init__()
        scale = min(short_edge / min(base_size), max_size / max(base_size)) if short_edge else 1.0
        self.new_size = tuple(max(round(edge * scale), 1) for edge in base_size)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return T.ResizeTransform(*image.shape[:2], *self.new_size)


def build_scales(cfg: CfgNode) -> list[T.Augmentation]:
    """The resizes of ``TEST.AUG``, one for each of its sizes; none where it is not enabled.

    Raises:
        ValueError: ``INPUT.BASE_SIZE`` is no size.
    """
    if not cfg.TEST.AUG.ENABLED:
        return []
    base_size, longest = _base_size(cfg), cfg.TEST.AUG.MAX_SIZE
    if base_size:
        return [ResizeLike(base_size, size, longest) for size in cfg.TEST.AUG.MIN_SIZES]
    return [ResizeShortestEdge(size, longest) for size in cfg.TEST.AUG.MIN_SIZES]


def build_padding(cfg: CfgNode) -> T.Augmentation:
    """Pad to the crop size, rounded up to a multiple of ``INPUT.SIZE_DIVISIBILITY``; the last transform of a view."""
    divisor = max(cfg.INPUT.SIZE_DIVISIBILITY, 1)
    height, width = (-(-size // divisor) * divisor for size in crop_size(cfg))
    return PadToSize((height, width), padding_color(cfg))


def build_strong_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """Photometric augmentations of ``INPUT.STRONG``, applied to the weak view; empty where nothing is asked for.

    Raises:
        ValueError: a key of ``INPUT.STRONG`` is out of range; the message names it.
    """
    return _build_colors(cfg, "STRONG")


def _build_colors(cfg: CfgNode, view: str) -> list[T.Augmentation]:
    """What ``INPUT.<view>`` asks for; ``view`` is "LABELED", "WEAK" or "STRONG"."""
    options = cfg.INPUT[view]
    jitter, sigma = tuple(options.COLOR_JITTER), tuple(options.BLUR_SIGMA)
    if len(jitter) != 4 or min(jitter) < 0 or jitter[3] > 0.5:
        raise ValueError(
            f"INPUT.{view}.COLOR_JITTER is {list(jitter)}; it must be [brightness, contrast, saturation, hue], "
            "all at least 0, hue at most 0.5"
        )
    for key in ("COLOR_JITTER_PROB", "GRAYSCALE_PROB", "BLUR_PROB"):
        if not 0 <= options[key] <= 1:
            raise ValueError(f"INPUT.{view}.{key} is {options[key]}; it must be in [0, 1]")
    if len(sigma) != 2 or not 0 < sigma[0] <= sigma[1]:
        raise ValueError(f"INPUT.{view}.BLUR_SIGMA is {list(sigma)}; it must be [smallest, largest], above 0")

    augmentations = []
    if max(jitter) > 0 and options.COLOR_JITTER_PROB > 0:
        augmentations.append(T.RandomApply(ColorJitter(jitter, cfg.INPUT.FORMAT), options.COLOR_JITTER_PROB))
    if options.GRAYSCALE_PROB > 0:
        augmentations.append(T.RandomApply(Grayscale(cfg.INPUT.FORMAT), options.GRAYSCALE_PROB))
    if options.BLUR_PROB > 0:
        augmentations.append(T.RandomApply(GaussianBlur(sigma), options.BLUR_PROB))
    return augmentations
