"""Changes of colour as detectron2 ``Augmentation``s: lookup tables and OpenCV on uint8, one conversion at most.

Random numbers come from the global generators of numpy and ``random``, as in detectron2; the mapper seeds them.
"""

import random

import cv2
import numpy as np
from detectron2.data import transforms as T

_IDENTITY = np.arange(256, dtype=np.uint8)
#: OpenCV's 8-bit hue is in steps of 2 degrees.
_NUM_HUES = 180


class ColorAugSSD(T.Augmentation):
    """Colour augmentation of the SSD detector: brightness, contrast, saturation and hue, each with probability 1/2.

    Draws the same numbers as the transform in detectron2's PointRend, and gives its result but for the rounding between
    saturation and hue, which are one step here.
    """

    def __init__(self, image_format: str):
        super().__init__()
        self.image_format = image_format

    def get_transform(self, image: np.ndarray) -> T.Transform:
        first = _affine(offset=random.uniform(-32, 32)) if random.randrange(2) else _IDENTITY
        contrast_first = random.randrange(2)
        if contrast_first:
            first = self._contrast()[first]
        saturation = _affine(random.uniform(0.5, 1.5)) if random.randrange(2) else _IDENTITY
        hue = random.randint(-18, 18) if random.randrange(2) else 0
        last = _IDENTITY if contrast_first else self._contrast()

        def apply(image: np.ndarray) -> np.ndarray:
            image = _look_up(image, first)
            if hue or saturation is not _IDENTITY:
                image = _change_hsv(image, hue, saturation, self.image_format)
            return _look_up(image, last)

        return T.ColorTransform(apply)

    @staticmethod
    def _contrast() -> np.ndarray:
        return _affine(random.uniform(0.5, 1.5)) if random.randrange(2) else _IDENTITY


class ColorJitter(T.Augmentation):
    """Brightness, contrast, saturation and hue, each by a random amount, in random order.

    ``strengths`` (b, c, s, h): the first three draw a factor from [1-x, 1+x], the last a hue shift from [-h, h], where
    1 is the whole colour circle. What the operations mean is as in torchvision: brightness is blended with black,
    contrast with the mean luma of the image, saturation with the luma of the pixel.
    """

    def __init__(self, strengths: tuple[float, float, float, float], image_format: str):
        super().__init__()
        self.strengths, self.image_format = strengths, image_format

    def get_transform(self, image: np.ndarray) -> T.Transform:
        *factor_strengths, hue_strength = self.strengths
        amounts = [np.random.uniform(max(0.0, 1 - x), 1 + x) for x in factor_strengths]
        amounts.append(np.random.uniform(-hue_strength, hue_strength))
        adjustments = (self._brightness, self._contrast, self._saturation, self._hue)
        steps = [(adjustments[i], amounts[i]) for i in np.random.permutation(4) if self.strengths[i] > 0]

        def apply(image: np.ndarray) -> np.ndarray:
            for adjust, amount in steps:
                image = adjust(image, amount)
            return image

        return T.ColorTransform(apply)

    def _brightness(self, image: np.ndarray, factor: float) -> np.ndarray:
        return _look_up(image, _affine(factor))

    def _contrast(self, image: np.ndarray, factor: float) -> np.ndarray:
        mean = round(cv2.mean(_luma(image, self.image_format))[0])
        return _look_up(image, _affine(factor, (1 - factor) * mean))

    def _saturation(self, image: np.ndarray, factor: float) -> np.ndarray:
        luma = cv2.merge([_luma(image, self.image_format)] * 3)
        return cv2.addWeighted(image, factor, luma, 1 - factor, 0)

    def _hue(self, image: np.ndarray, shift: float) -> np.ndarray:
        return _change_hsv(image, round(shift * _NUM_HUES), _IDENTITY, self.image_format)


class Grayscale(T.Augmentation):
    """Replace all three channels by the luma."""

    def __init__(self, image_format: str):
        super().__init__()
        self.image_format = image_format

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return T.ColorTransform(lambda image: cv2.merge([_luma(image, self.image_format)] * 3))


class GaussianBlur(T.Augmentation):
    """Gaussian blur; sigma in pixels is drawn from the range ``sigma``."""

    def __init__(self, sigma: tuple[float, float]):
        super().__init__()
        self.sigma = sigma

    def get_transform(self, image: np.ndarray) -> T.Transform:
        sigma = np.random.uniform(*self.sigma)
        return T.ColorTransform(lambda image: cv2.GaussianBlur(image, (0, 0), sigma))


def _affine(factor: float = 1.0, offset: float = 0.0) -> np.ndarray:
    """(256,) uint8: factor · value + offset, cut off at 0 and 255."""
    return np.clip(np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(offset), 0, 255).astype(np.uint8)


def _look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    return image if table is _IDENTITY else cv2.LUT(image, table)


def _luma(image: np.ndarray, image_format: str) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY if image_format == "BGR" else cv2.COLOR_RGB2GRAY)


def _change_hsv(image: np.ndarray, hue: int, saturation: np.ndarray, image_format: str) -> np.ndarray:
    """Shift the hue by ``hue`` steps of 2 degrees and look the saturation up in a table."""
    to_hsv = cv2.COLOR_BGR2HSV if image_format == "BGR" else cv2.COLOR_RGB2HSV
    back = cv2.COLOR_HSV2BGR if image_format == "BGR" else cv2.COLOR_HSV2RGB
    hues = ((np.arange(256) + hue) % _NUM_HUES).astype(np.uint8)
    tables = np.stack([hues, saturation, _IDENTITY], axis=-1)[None]
    return cv2.cvtColor(cv2.LUT(cv2.cvtColor(image, to_hsv), tables), back)
