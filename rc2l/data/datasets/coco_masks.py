"""Segmentations of COCO files -> masks, with the checks that pycocotools leaves to its callers."""

import numpy as np
from pycocotools import mask as rle

from rc2l.data.errors import DatasetError

#: What pycocotools raises for segmentations that it cannot use.
_MASK_ERRORS = (TypeError, ValueError, KeyError, IndexError, OverflowError, AttributeError)


def decode_segmentation(shape: object, size: tuple[int, int], what: str) -> np.ndarray:
    """(H, W) bool mask of a ``segmentation``: polygons, or run lengths as numbers or as text.

    Args:
        shape: what the JSON file has there.
        size: (height, width) of the image.
        what: what error messages start with.

    Raises:
        DatasetError: there is no segmentation, it is of another size, or it is damaged.
    """
    if not shape:
        raise DatasetError(f"{what} has no segmentation; boxes alone cannot be learned from: add polygons or a mask")
    if isinstance(shape, list):
        bad = [polygon for polygon in shape if not _is_polygon(polygon, 2 * max(size))]
        if bad:
            raise DatasetError(
                f"{what} has a polygon that is no list of 3 or more points x, y, x, y, ... in the image: "
                f"{str(bad[0])[:60]}; correct it"
            )
    elif not isinstance(shape, dict) or list(shape.get("size", ())) != list(size):
        raise DatasetError(
            f"{what} is a mask of size {shape.get('size') if isinstance(shape, dict) else shape}, but the image has "
            f"[height, width] {list(size)}; both must be equal"
        )
    try:
        if isinstance(shape, list):
            encoded = rle.merge(rle.frPyObjects(shape, *size))
        else:
            # pycocotools decodes counts that don't fit the size into a wrong mask without a word.
            counts = _decompress(shape["counts"]) if isinstance(shape["counts"], str) else shape["counts"]
            if min(counts) < 0 or sum(counts) != size[0] * size[1]:
                raise ValueError(f"the counts sum to {sum(counts)}, not to {size[0] * size[1]} pixels")
            encoded = rle.frPyObjects({"size": list(size), "counts": counts}, *size)
        return rle.decode(encoded).astype(bool)
    except _MASK_ERRORS as error:
        raise DatasetError(f"{what} cannot be decoded ({error}); export the annotations again") from error


def _is_polygon(points: object, limit: float) -> bool:
    # Far outside of the image, pycocotools' polygons take all memory or crash.
    return (
        isinstance(points, list)
        and len(points) >= 6
        and len(points) % 2 == 0
        and all(isinstance(number, (int, float)) and abs(number) <= limit for number in points)
    )


def _decompress(text: str) -> list[int]:
    """The run lengths of COCO's compressed counts.

    A number is a row of characters of 5 bits each, lowest first, from "0" on; 32 says that another follows, 16 in the
    last one is the sign. From the fourth on, numbers are differences to the last but one.
    """
    codes = np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    last = (codes & 32) == 0
    if len(codes) == 0 or not last[-1] or codes.min() < 0 or codes.max() > 63:
        raise ValueError("the counts are damaged")
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    lengths = np.diff([*starts, len(codes)])
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    if shifts.max() > 50:
        raise ValueError("the counts are damaged")
    numbers = np.add.reduceat((codes & 31) << shifts, starts)
    numbers -= np.where(codes[last] & 16, np.int64(1) << (5 * lengths), 0)
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers.tolist()
