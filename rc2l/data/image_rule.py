"""How the values that image files store become the 8-bit RGB that networks see: one fixed rule a dataset."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata

from rc2l.data.errors import DatasetError

#: Largest width x height that is read where nothing else is said, 179 megapixels: that of Pillow.
MAX_PIXELS = 178_956_970
#: Largest values that are likely to be meant: of shares, and of 8, 10, 12, 14 and 16 bits.
_LIKELY_LIMITS = (1, 255, 1023, 4095, 16383, 65535)
#: Values that are scaled at a time, so that float64 needs little memory.
_BLOCK = 1 << 20


@dataclass(frozen=True)
class ImageRule:
    """What a description says about reading images (``datasets/README.md``, "16 bits, floats, more bands")."""

    #: (lo, hi): lo becomes 0, hi 255, linearly; None: values are 0 to 255 already.
    value_range: tuple[float, float] | None = None
    #: One band for grey, or those of red, green and blue, from 0; None: files have one or three, and perhaps alpha.
    bands: tuple[int, ...] | None = None
    #: Largest width x height that is read.
    max_pixels: int = MAX_PIXELS

    def to_rgb(self, values: np.ndarray) -> np.ndarray:
        """Stored values (H, W) or (H, W, C), of any real type -> (H, W, 3) uint8.

        Pixels depend on nothing but themselves, so windows of an image can be given one by one. Values beyond
        ``value_range`` are clipped, NaN counts as its lower end, and each value is rounded once.

        Raises:
            ValueError: values of more than 8 bits without a ``value_range``, or bands that are not there.
        """
        values = values[..., None] if values.ndim == 2 else values
        if values.ndim != 3 or 0 in values.shape or values.dtype.kind not in "buif":
            raise ValueError(f"the image is {values.dtype} of shape {values.shape}: it must be uint8 (H, W, 3), in RGB")
        problem = self.band_problem(values.shape[2])
        if not problem and self.value_range is None and values.dtype not in (np.uint8, bool):
            problem = "say which values become 0 and 255, such as value_range: [0, 65535]"
        if problem:
            raise ValueError(
                f"the image is {values.dtype} of shape {values.shape}: it must be uint8 (H, W, 3), in RGB, or {problem}"
            )
        count = values.shape[2]
        if self.bands is not None:
            wanted = [0 if count == 1 else band for band in self.bands]
            values = values if wanted == list(range(count)) else values[..., wanted]
        scaled = self.scale(values)
        return scaled if scaled.shape[2] == 3 else np.repeat(scaled, 3, axis=2)

    def band_problem(self, bands: int, alpha: int = 0) -> str:
        """What is wrong with it for an image of so many bands and alpha bands behind them; empty where it fits."""
        if self.bands is None and bands not in (1, 3):
            return "say which bands are red, green and blue, such as bands: [0, 1, 2], or bands: [0] for grey"
        # One band stands for three equal ones, so that grey images can be mixed with those of more bands.
        if self.bands is not None and max(self.bands) >= max(bands + alpha, 3 if bands == 1 else 0):
            return (
                f"bands {list(self.bands)} asks for band {max(self.bands)}, counted from 0, but there are "
                f"{bands + alpha}"
            )
        return ""

    def describe(self) -> str:
        """The rule in words; empty where nothing is asked for."""
        texts = []
        if self.bands is not None:
            texts.append(f"bands {list(self.bands)} are {'grey' if len(self.bands) == 1 else 'red, green and blue'}")
        if self.value_range is not None:
            ends = plain_range(self.value_range)
            texts.append(f"value_range {ends} becomes 0 to 255 (what lies beyond is clipped, NaN becomes 0)")
        return "; ".join(texts)

    def scale(self, values: np.ndarray) -> np.ndarray:
        """Numbers of any shape -> uint8 of this shape; without a ``value_range``, uint8 as they are."""
        if values.dtype == bool:
            values = values * np.uint8(255)
        if self.value_range is None:
            return values
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        if values.dtype.kind in "ui" and values.dtype.itemsize <= 2:
            table = _table(values.dtype.str, *self.value_range)
            return table[values.view(f"u{values.dtype.itemsize}")]
        flat = np.ascontiguousarray(values).reshape(-1)
        result = np.empty(flat.shape, dtype=np.uint8)
        for start in range(0, len(flat), _BLOCK):
            result[start : start + _BLOCK] = _scale(flat[start : start + _BLOCK], *self.value_range)
        return result.reshape(values.shape)


def _scale(values: np.ndarray, lo: float, hi: float) -> np.ndarray:
    scaled = (values.astype(np.float64) - lo) / (hi - lo) * 255
    return np.rint(np.nan_to_num(scaled, nan=0.0).clip(0, 255)).astype(np.uint8)


@lru_cache(maxsize=16)
def _table(dtype: str, lo: float, hi: float) -> np.ndarray:
    """What each number of an integer type of up to 16 bits becomes, in the order of its bits as unsigned ones."""
    size = np.dtype(dtype).itemsize
    return _scale(np.arange(1 << 8 * size, dtype=f"u{size}").view(dtype), lo, hi)


def read_rule(content: Mapping, where: str) -> ImageRule:
    """The keys ``value_range``, ``bands`` and ``max_pixels`` of a mapping, each of which may be absent or None.

    Args:
        content: has them, and perhaps others.
        where: what error messages start with.

    Raises:
        DatasetError: a value is out of range.
    """
    given = {key: content[key] for key in ("value_range", "bands", "max_pixels") if content.get(key) is not None}
    if "value_range" in given:
        given["value_range"] = _read_range(given["value_range"], where)
    if "bands" in given:
        bands = given["bands"]
        if not _is_list(bands) or len(bands) not in (1, 3) or not all(_is_whole(band) and band >= 0 for band in bands):
            raise DatasetError(
                f"{where}: 'bands' is {bands!r}; it must be the numbers of the bands that are red, green and blue, "
                "counted from 0, such as [0, 1, 2], or one for grey"
            )
        given["bands"] = tuple(bands)
    if "max_pixels" in given and not (_is_whole(given["max_pixels"]) and given["max_pixels"] >= 1):
        raise DatasetError(
            f"{where}: 'max_pixels' is {given['max_pixels']!r}; it must be the largest width x height to read, a whole "
            f"number of at least 1, such as {2 * MAX_PIXELS}"
        )
    return ImageRule(**given)


def changed_rule(rule: ImageRule, asked: Mapping, where: str) -> ImageRule:
    """A rule with the keys of ``asked`` that are not None in place of its own.

    Raises:
        DatasetError: as :func:`read_rule`.
    """
    return read_rule(vars(rule) | {key: value for key, value in asked.items() if value is not None}, where)


def _read_range(value: object, where: str) -> tuple[float, float]:
    numbers = [float(end) for end in value if _is_number(end)] if _is_list(value) else []
    if len(numbers) != 2 or len(value) != 2 or not 0 < numbers[1] - numbers[0] < math.inf:
        raise DatasetError(
            f"{where}: 'value_range' is {value!r}; it must be the values that become 0 and 255, the lower one first, "
            "such as [0, 65535]"
        )
    return numbers[0], numbers[1]


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def likely_range(lowest: float, highest: float) -> tuple[float, float]:
    """A ``value_range`` that may be meant for values from ``lowest`` to ``highest``, which are no NaN."""
    if lowest >= 0:
        return 0.0, float(next((limit for limit in _LIKELY_LIMITS if limit >= highest), f"{highest:.3g}"))
    return float(f"{lowest:.3g}"), float(f"{highest:.3g}")


def plain_range(value_range: tuple[float, float]) -> list[float]:
    """Both ends as a person writes them: [0, 4095], not [0.0, 4095.0]."""
    return [int(end) if end.is_integer() else end for end in value_range]


def rule_of(metadata: Metadata) -> ImageRule:
    """The rule of a registered dataset, from ``value_range``, ``bands`` and ``max_pixels`` in its metadata.

    Raises:
        DatasetError: a value is out of range.
    """
    return read_rule(vars(metadata), f"metadata of dataset '{metadata.get('name', '')}'")


def dataset_rule(name: str) -> ImageRule:
    """:func:`rule_of` by the name of a registered dataset."""
    return rule_of(MetadataCatalog.get(name))


def record_rule(record: dict) -> ImageRule:
    """The rule of the dataset that a dataset dict is of; that of 8-bit images where it says none.

    Raises:
        DatasetError: as :func:`rule_of`.
    """
    return dataset_rule(record["dataset"]) if "dataset" in record else ImageRule()
