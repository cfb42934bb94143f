"""Weak and strong augmentations as detectron2 ``Augmentation``s; what detectron2 has is only configured here.

Random numbers come from the global generators of numpy and ``random``, as in detectron2; the mapper seeds them.
"""

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from PIL import Image
from torchvision.transforms import functional as F

from rc2l.data.reading import IGNORE

_FORMATS = ("RGB", "BGR")


class PadToSizeTransform(T.Transform):
    """Pads at the right and bottom: images with a color, label maps with 255."""

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


class ColorAugSSD(T.Augmentation):
    """Color augmentation of the SSD detector, as detectron2's PointRend has it."""

    def __init__(self, image_format: str):
        super().__init__()
        self.image_format = image_format

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return ColorAugSSDTransform(self.image_format)


class ColorJitter(T.Augmentation):
    """Brightness, contrast, saturation and hue, each by a random amount, in random order.

    ``strengths`` (b, c, s, h): the first three draw a factor from [1-x, 1+x], the last a hue shift from [-h, h], where
    1 is the whole color circle.
    """

    def __init__(self, strengths: tuple[float, float, float, float], image_format: str):
        super().__init__()
        self.strengths, self.image_format = strengths, image_format

    def get_transform(self, image: np.ndarray) -> T.Transform:
        *factor_strengths, hue_strength = self.strengths
        amounts = [np.random.uniform(max(0.0, 1 - x), 1 + x) for x in factor_strengths]
        amounts.append(np.random.uniform(-hue_strength, hue_strength))
        adjustments = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
        steps = [(adjustments[i], amounts[i]) for i in np.random.permutation(4) if self.strengths[i] > 0]

        def jitter(rgb: Image.Image) -> Image.Image:
            for adjust, amount in steps:
                rgb = adjust(rgb, amount)
            return rgb

        return _rgb_transform(jitter, self.image_format)


class Grayscale(T.Augmentation):
    """Replace all three channels by the luma."""

    def __init__(self, image_format: str):
        super().__init__()
        self.image_format = image_format

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return _rgb_transform(lambda rgb: F.to_grayscale(rgb, num_output_channels=3), self.image_format)


class GaussianBlur(T.Augmentation):
    """Gaussian blur; sigma in pixels is drawn from the range ``sigma``."""

    def __init__(self, sigma: tuple[float, float]):
        super().__init__()
        self.sigma = sigma

    def get_transform(self, image: np.ndarray) -> T.Transform:
        sigma = np.random.uniform(*self.sigma)
        return T.ColorTransform(lambda image: cv2.GaussianBlur(image, (0, 0), sigma))


def _rgb_transform(operation, image_format: str) -> T.Transform:
    """A transform that shows ``operation`` a PIL image in RGB, whatever the channel order of the array."""
    step = -1 if image_format == "BGR" else 1

    def apply(image: np.ndarray) -> np.ndarray:
        rgb = Image.fromarray(np.ascontiguousarray(image[..., ::step]))
        return np.asarray(operation(rgb))[..., ::step]

    return T.ColorTransform(apply)


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
    """The mean color, so that padding is about 0 after normalization."""
    return tuple(round(mean) for mean in cfg.MODEL.PIXEL_MEAN)


def build_weak_augmentations(cfg: CfgNode, labeled: bool = True) -> list[T.Augmentation]:
    """Short-edge resize, random crop, color and flip (RC²L section 3.1), without the padding.

    Only ``labeled`` images can avoid crops of one class (``INPUT.CROP.SINGLE_CATEGORY_MAX_AREA``).

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

    size = crop_size(cfg)
    max_area = cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA if labeled else 1.0
    if max_area < 1.0:
        crop = T.RandomCrop_CategoryAreaConstraint("absolute", size, max_area, ignored_category=IGNORE)
    else:
        crop = T.RandomCrop("absolute", size)
    augmentations = [_build_resize(cfg), crop]
    if cfg.INPUT.COLOR_AUG_SSD:
        augmentations.append(ColorAugSSD(cfg.INPUT.FORMAT))
    if cfg.INPUT.RANDOM_FLIP != "none":
        horizontal = cfg.INPUT.RANDOM_FLIP == "horizontal"
        augmentations.append(T.RandomFlip(horizontal=horizontal, vertical=not horizontal))
    return augmentations


def _build_resize(cfg: CfgNode) -> T.Augmentation:
    sizes, style = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    if style not in ("choice", "range") or not sizes or (style == "range" and len(sizes) != 2) or min(sizes) < 0:
        raise ValueError(
            f"INPUT.MIN_SIZE_TRAIN is {sizes} with MIN_SIZE_TRAIN_SAMPLING '{style}'; it must be pixel sizes with "
            "'choice', or (smallest, largest) with 'range'"
        )
    return T.ResizeShortestEdge(sizes, cfg.INPUT.MAX_SIZE_TRAIN, style)


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
    strong = cfg.INPUT.STRONG
    jitter, sigma = tuple(strong.COLOR_JITTER), tuple(strong.BLUR_SIGMA)
    if len(jitter) != 4 or min(jitter) < 0 or jitter[3] > 0.5:
        raise ValueError(
            f"INPUT.STRONG.COLOR_JITTER is {list(jitter)}; it must be [brightness, contrast, saturation, hue], "
            "all at least 0, hue at most 0.5"
        )
    for key in ("COLOR_JITTER_PROB", "GRAYSCALE_PROB", "BLUR_PROB"):
        if not 0 <= strong[key] <= 1:
            raise ValueError(f"INPUT.STRONG.{key} is {strong[key]}; it must be in [0, 1]")
    if len(sigma) != 2 or not 0 < sigma[0] <= sigma[1]:
        raise ValueError(f"INPUT.STRONG.BLUR_SIGMA is {list(sigma)}; it must be [smallest, largest], above 0")

    augmentations = []
    if max(jitter) > 0 and strong.COLOR_JITTER_PROB > 0:
        augmentations.append(T.RandomApply(ColorJitter(jitter, cfg.INPUT.FORMAT), strong.COLOR_JITTER_PROB))
    if strong.GRAYSCALE_PROB > 0:
        augmentations.append(T.RandomApply(Grayscale(cfg.INPUT.FORMAT), strong.GRAYSCALE_PROB))
    if strong.BLUR_PROB > 0:
        augmentations.append(T.RandomApply(GaussianBlur(sigma), strong.BLUR_PROB))
    return augmentations
