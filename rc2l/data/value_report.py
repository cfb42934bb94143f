"""Does the rule of a dataset fit the values that its images store? In words, for the log and ``check_dataset``."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rc2l.data.image_rule import ImageRule
from rc2l.data.reading import read_stored

#: Fewer greys of 256 than this are worth a word: of values up to 4095, the range [0, 65535] leaves 16.
_FEW_GREYS = 32
_HALF = 0.5


@dataclass(frozen=True)
class StoredValues:
    """The values of one image before the rule; bands that the rule leaves out do not count."""

    #: Such as "16 bits per channel".
    kind: str
    #: NaN where no value is a number.
    lowest: float
    highest: float
    #: Shares in [0, 1] of all values: beyond ``value_range``, and NaN.
    beyond: float
    nan: float


def stored_values(path: str, rule: ImageRule) -> tuple[StoredValues, tuple[int, int]]:
    """What an image stores, and its (height, width).

    Raises:
        DatasetError: as :func:`~rc2l.data.reading.read_image`.
    """
    values, kind = read_stored(path, rule)
    if rule.bands is not None and values.shape[2] > 1:
        values = values[..., list(rule.bands)]
    nan = float(np.isnan(values).mean()) if values.dtype.kind == "f" else 0.0
    lowest, highest = (float(end.reduce(values, axis=None)) for end in (np.fmin, np.fmax))
    beyond = 0.0
    if rule.value_range is not None:
        lo, hi = rule.value_range
        beyond = float(((values < lo) | (values > hi)).mean())
    return StoredValues(kind, lowest, highest, beyond, nan), values.shape[:2]


def describe_values(rule: ImageRule, found: Sequence[StoredValues]) -> tuple[list[str], list[str]]:
    """(notes, problems): what the images are and what the rule makes of them; what of it can hardly be meant.

    Both are empty for a rule that says nothing.
    """
    text = rule.describe()
    if not text or not found:
        return [], []
    kinds = Counter(each.kind for each in found)
    notes = [f"{text}; in {', '.join(f'{count} images of {kind}' for kind, count in kinds.items())}"]
    nan = sum(each.nan > 0 for each in found)
    if nan:
        notes.append(f"{nan} of {len(found)} images have pixels that are NaN, which become 0")
    if rule.value_range is None:
        return notes, []
    for kind in kinds:
        notes.append(_fit(rule, [each for each in found if each.kind == kind], kind))
    problems = []
    beyond = float(np.mean([each.beyond for each in found]))
    if beyond > _HALF:
        lowest, highest = _span(found)
        problems.append(
            f"{beyond:.0%} of all values lie beyond value_range, so they are black or white: they reach from "
            f"{lowest:g} to {highest:g}; correct value_range"
        )
    return notes, problems


def _fit(rule: ImageRule, found: list[StoredValues], kind: str) -> str:
    lowest, highest = _span(found)
    beyond = float(np.mean([each.beyond for each in found]))
    greys = _greys(rule, found)
    text = f"images of {kind} have values from {lowest:g} to {highest:g}"
    if beyond:
        text += f", {max(beyond, 1e-4):.2%} of them beyond value_range"
    if greys < _FEW_GREYS:
        text += f": only {greys} of 256 greys are left, so value_range is too wide for them"
    return text


def _span(found: list[StoredValues]) -> tuple[float, float]:
    lowest, highest = np.array([(each.lowest, each.highest) for each in found]).T
    return float(np.fmin.reduce(lowest)), float(np.fmax.reduce(highest))


def _greys(rule: ImageRule, found: list[StoredValues]) -> int:
    """How many greys there are from the lowest to the highest value."""
    darkest, brightest = rule.scale(np.array(_span(found))).tolist()
    return brightest - darkest + 1
