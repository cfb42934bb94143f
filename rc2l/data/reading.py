"""Opens image and label files, with errors that name the file."""

import math
import os
from functools import lru_cache

import numpy as np
from detectron2.data.catalog import Metadata
from PIL import UnidentifiedImageError

from rc2l.data.errors import DamagedImageError, DatasetError
from rc2l.data.image_files import ImageFile, TooLargeError, open_image
from rc2l.data.image_rule import ImageRule, likely_range, plain_range, rule_of
from rc2l.structures.label_map import IGNORE

#: Label ids of up to 16 bits are understood before mapping.
_NUM_RAW_IDS = 1 << 16
#: Entry of the lookup table for raw ids that are neither a class nor ignored.
_INVALID = 254
_LABEL_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
_COLOR_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
#: What is raised for files that are missing, truncated, too large or no images at all.
READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError)


def unreadable(kind: str, path: str, error: Exception) -> DatasetError:
    """What to raise where reading an "image" or a "label" (``kind``) has failed with one of :data:`READ_ERRORS`."""
    if isinstance(error, DatasetError):
        return error
    if isinstance(error, TooLargeError):
        return DatasetError(f"{path}: this {kind} has {error}")
    message = (
        f"{path}: cannot read this {kind} ({_reason(path, error)}); restore the file or take it out of the dataset"
    )
    return DamagedImageError(message) if kind == "image" else DatasetError(message)


def _reason(path: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    if isinstance(error, UnidentifiedImageError):  # its text names an object in memory
        empty = os.path.isfile(path) and os.path.getsize(path) == 0
        return "it is empty" if empty else "it is no image of a known format"
    if "truncated" in str(error).lower():
        return f"it is cut off: {error}"
    return str(error) if type(error) is OSError and error.errno is None else f"{type(error).__name__}: {error}"


def _check_kind(path: str, image: ImageFile, rule: ImageRule, decode: bool = False) -> None:
    """Refuse what 8-bit RGB would cut off, unless the rule says what to do with it; ``decode`` to advise a range."""
    kind = image.kind
    if image.unusable:
        raise DatasetError(f"{path}: this image has {kind}, of which no RGB can be made here; save it as RGB")
    problems = [rule.band_problem(image.bands, image.alpha)]
    if image.deep and rule.value_range is None:
        problems.append(f"say which values become 0 and 255, such as {_advice(image, decode)}")
    if problem := "; ".join(filter(None, problems)):
        kind = kind or f"{image.bands + image.alpha} bands of {image.bits} bits"
        raise DatasetError(
            f"{path}: this image has {kind}, which 8-bit RGB would cut off; {problem}, in the description of "
            "the dataset (predict: --value-range, --bands)"
        )


def _advice(image: ImageFile, decode: bool) -> str:
    """A ``value_range`` that may be meant."""
    if not decode:
        ends = {"f": (0, 1), "u": (0, (1 << image.bits) - 1)}.get(image.dtype.kind, (-1000, 1000))
        return f"value_range: {list(ends)}"
    values = image.decode()
    lowest, highest = (float(end.reduce(values, axis=None)) for end in (np.fmin, np.fmax))
    if not math.isfinite(highest - lowest):
        return "value_range: [0, 1]"
    lo, hi = plain_range(likely_range(lowest, highest))
    return f"value_range: [{lo}, {hi}] (it has values from {lowest:g} to {highest:g})"


def read_image(path: str, image_format: str, rule: ImageRule = ImageRule()) -> np.ndarray:  # noqa: B008  frozen
    """Decode an image, turn it upright by its EXIF orientation, and make 8-bit RGB of it by the rule of its dataset.

    ``image_format`` is "RGB" or "BGR", the channel order of the result, (H, W, 3) uint8.

    Raises:
        DatasetError: the file is missing, damaged or too large, or holds what the rule says nothing about.
    """
    rgb = rule.to_rgb(read_stored(path, rule)[0])
    return rgb if image_format == "RGB" else rgb[:, :, ::-1]


def read_stored(path: str, rule: ImageRule) -> tuple[np.ndarray, str]:
    """The values of an image as the file has them, upright, (H, W, C) of any real type, and their kind in words.

    Colours of 8 bits are RGB; alpha is there only where the rule chooses bands.

    Raises:
        DatasetError: as :func:`read_image`.
    """
    try:
        with open_image(path, rule.max_pixels) as image:
            _check_kind(path, image, rule, decode=True)
            values = image.decode()
            if rule.bands is None and image.alpha:
                values = values[..., : image.bands]
            return values, image.kind or f"{image.bits} bits"
    except READ_ERRORS as error:
        raise unreadable("image", path, error) from error


def read_image_size(path: str, rule: ImageRule = ImageRule()) -> tuple[int, int]:  # noqa: B008  frozen
    """(height, width) of the upright image, from the file's header alone.

    Raises:
        DatasetError: the file is missing, too large or of a kind that the rule says nothing about, or its header is
            damaged.
    """
    return _read_header(path, rule)[0]


def read_image_kind(path: str, rule: ImageRule) -> str:
    """What an image holds, such as "16 bits per channel", from the file's header alone.

    Raises:
        DatasetError: as :func:`read_image_size`.
    """
    return _read_header(path, rule)[1]


def _read_header(path: str, rule: ImageRule) -> tuple[tuple[int, int], str]:
    try:
        with open_image(path, rule.max_pixels) as image:
            _check_kind(path, image, rule)
            return image.size, image.kind or f"{image.bits} bits"
    except READ_ERRORS as error:
        raise unreadable("image", path, error) from error


def read_label(path: str, metadata: Metadata) -> np.ndarray:
    """Decode a label file into train ids.

    ``metadata`` has ``stuff_classes`` (K names) and optionally

    * ``label_map``, raw id -> train id (0..K-1, or 255 to ignore). Raw ids that it does not name are errors, except
      ``ignore_label``, which stays ignored unless the map says otherwise;
    * ``train_id_suffix``: files whose name ends so hold train ids already and are not mapped;
    * ``color_map``, (R, G, B) -> train id or 255: labels are colours (in RGB or in a palette), not ids. Colours that it
      does not name are errors.

    Without ``color_map``, palette images are read as indices.

    Returns:
        (H, W) uint8, 0..K-1 or 255 where ignored.

    Raises:
        DatasetError: the file is missing, damaged or (without ``color_map``) a colour image, an id is out of range, or
            a colour has no class.
    """
    color_map = metadata.get("color_map")
    try:
        with open_image(path, rule_of(metadata).max_pixels, label=True) as image:
            raw, found = _label_values(image, colors=bool(color_map))
    except READ_ERRORS as error:
        raise unreadable("label", path, error) from error
    if raw is None and color_map:
        raise DatasetError(f"{path}: this label is {found}; with a color_map, labels must be RGB images of 8 bits")
    if raw is None:
        raise DatasetError(
            f"{path}: this label is {found}; labels must hold one class id per pixel (PNG or TIFF, grey or palette, of "
            "whole numbers): convert it to ids, or give the dataset a color_map where colours are classes"
        )
    if color_map:
        return _map_colors(raw, path, metadata.name, color_map)
    if raw.dtype == bool:
        raw = raw.astype(np.uint8)

    suffix = metadata.get("train_id_suffix")
    label_map = None if suffix and str(path).endswith(suffix) else metadata.get("label_map")
    table = _lookup_table(metadata, label_map)
    if raw.dtype == np.uint8 or (raw.min() >= -1 and raw.max() < _NUM_RAW_IDS):
        label = table[raw]
        bad = np.unique(raw[label == _INVALID]) if _INVALID in label else ()
    else:
        bad = np.unique(raw[(raw < -1) | (raw >= _NUM_RAW_IDS)])
    if len(bad):
        shown = ", ".join(str(int(value)) for value in bad[:8]) + (", ..." if len(bad) > 8 else "")
        last = len(metadata.stuff_classes) - 1
        allowed = f"0..{last} or {IGNORE}" if label_map is None else f"those of label_map, {_ranges(label_map)}"
        raise DatasetError(
            f"{path}: label ids {shown} are out of range; allowed are {allowed} ({IGNORE} = ignore). "
            f"Correct the file, or map the ids to 0..{last} or {IGNORE} in the label_map of dataset '{metadata.name}'"
        )
    return label


def _label_values(image: ImageFile, colors: bool) -> tuple[np.ndarray | None, str]:
    """Ids (H, W), or colours (H, W, 3) uint8; None where a label file has none. And what it is, in words."""
    if picture := image.picture:
        mode = picture.mode
        if colors:
            return (np.asarray(picture.convert("RGB")) if mode in _COLOR_MODES else None), f"a {mode} image"
        return (np.asarray(picture) if mode in _LABEL_MODES else None), f"a {mode} colour image"
    found = f"an image of {image.kind or f'{image.bands} bands'}"
    if image.unusable or image.alpha:
        return None, found
    if colors:
        return (None if image.deep or image.bands != 3 else image.decode()), found
    if image.bands != 1 or image.dtype.kind not in "bui":
        return None, found
    return image.decode()[..., 0], found


def _lookup_table(metadata: Metadata, label_map: dict[int, int] | None) -> np.ndarray:
    """(65537,) uint8: train id, 255 or 254 (invalid) of every raw id; the last entry is that of -1."""
    K = len(metadata.stuff_classes)
    if K > _INVALID:
        raise DatasetError(f"dataset '{metadata.name}' has {K} classes; 8-bit label maps allow at most {_INVALID}")
    table = np.full(_NUM_RAW_IDS + 1, _INVALID, dtype=np.uint8)
    table[metadata.get("ignore_label", IGNORE)] = IGNORE
    if label_map is None:
        table[:K] = np.arange(K)
        return table
    for raw_id, train_id in label_map.items():
        if not (0 <= train_id < K or train_id == IGNORE) or not -1 <= raw_id < _NUM_RAW_IDS:
            raise DatasetError(
                f"label_map of dataset '{metadata.name}' sends {raw_id} to {train_id}; "
                f"it must send -1..{_NUM_RAW_IDS - 1} to 0..{K - 1} or {IGNORE}"
            )
        table[raw_id] = train_id
    return table


def _map_colors(rgb: np.ndarray, path: str, dataset: str, color_map: dict[tuple[int, int, int], int]) -> np.ndarray:
    """(H, W, 3) colours -> (H, W) train ids."""
    # Shifts, not a product with (65536, 256, 1): that would need 64-bit numbers for the whole image.
    red, green, blue = (rgb[..., channel].astype(np.int32) for channel in range(3))
    codes = (red << 16) | (green << 8) | blue
    label = _color_table(tuple(color_map.items()))[codes]
    if _INVALID in label:
        bad, counts = np.unique(codes[label == _INVALID], return_counts=True)
        shown = ", ".join(f"({code >> 16}, {code >> 8 & 255}, {code & 255})" for code in bad[:4].tolist())
        raise DatasetError(
            f"{path}: {counts.sum()} pixels have colours that are not in the color_map of dataset '{dataset}': {shown}"
            f"{', ...' if len(bad) > 4 else ''}; add them (ignore is allowed too), or save labels without smoothing"
        )
    return label


@lru_cache(maxsize=4)
def _color_table(color_map: tuple[tuple[tuple[int, int, int], int], ...]) -> np.ndarray:
    """(2²⁴,) uint8: train id, 255 or 254 (invalid) of every colour, at R·2¹⁶ + G·2⁸ + B."""
    table = np.full(1 << 24, _INVALID, dtype=np.uint8)
    for (red, green, blue), train_id in color_map:
        table[red << 16 | green << 8 | blue] = train_id
    return table


def _ranges(ids) -> str:
    """Compact text of a set of numbers: {0, 1, 2, 7} -> "0..2, 7"."""
    runs: list[list[int]] = []
    for number in sorted(ids):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}..{last}" for first, last in runs)
