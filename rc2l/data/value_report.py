"""Does the rule of a dataset fit the values that its images store? In words, for the log and ``check_dataset``."""

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from rc2l.data.image_files import open_image
from rc2l.data.image_rule import MAX_PIXELS, ImageRule, likely_range, plain_range, record_rule
from rc2l.data.reading import READ_ERRORS, read_image_kind, read_stored

logger = logging.getLogger("rc2l")

#: Fewer greys of 256 than this are worth a word: of values up to 4095, the range [0, 65535] leaves 16.
_FEW_GREYS = 32
_HALF = 0.5
#: Images of a rule whose values are looked at before training.
_SAMPLE = 8


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


@dataclass(frozen=True)
class ValueReport:
    """What the values of a dataset are, and what its rule makes of them; all empty for a rule that says nothing."""

    #: What is so.
    notes: list[str] = field(default_factory=list)
    #: What may be meant so.
    doubts: list[str] = field(default_factory=list)
    #: What cannot be meant.
    problems: list[str] = field(default_factory=list)


def report_values(rule: ImageRule, kinds: Mapping[str, int], found: Sequence[StoredValues]) -> ValueReport:
    """Compare a rule with the images that it is for.

    Args:
        rule: of the dataset.
        kinds: kind in words -> number of images, of all.
        found: the values of all images or of some.
    """
    text = rule.describe()
    if not text or not found:
        return ValueReport()
    several = ", ".join(f"{count} images of {kind}" for kind, count in kinds.items())
    part = f" ({len(found)} looked at)" if len(found) < sum(kinds.values()) else ""
    lowest, highest = _span(found)
    report = ValueReport([f"{text}: {several}; their values reach from {lowest:g} to {highest:g}{part}"])
    if nan := sum(each.nan > 0 for each in found):
        report.notes.append(f"{nan} of {len(found)} images have pixels that are NaN")
    if rule.value_range is None:
        return report
    if len(kinds) > 1:
        report.doubts.append(f"value_range scales the images of all kinds alike: {several}")
    for kind in dict.fromkeys(each.kind for each in found):
        report.doubts.extend(_fit(rule, [each for each in found if each.kind == kind], kind))
    beyond = float(np.mean([each.beyond for each in found]))
    if beyond > _HALF:
        report.problems.append(
            f"{beyond:.0%} of all values lie beyond value_range, so they are black or white: they reach from "
            f"{lowest:g} to {highest:g}; correct value_range"
        )
    return report


def suggest_rule(paths: Sequence[str]) -> dict[str, list]:
    """``bands`` and ``value_range`` that a description of some images seems to need; none for 8-bit grey and RGB.

    Files that cannot be read are passed over.
    """
    bands, ends = [], []
    for path in paths:
        try:
            with open_image(path, MAX_PIXELS) as image:
                if image.bands not in (1, 3):
                    bands.append(image.bands + image.alpha)
                if image.deep and not image.unusable:
                    values = image.decode()
                    ends.append([float(end.reduce(values, axis=None)) for end in (np.fmin, np.fmax)])
        except READ_ERRORS:
            continue
    keys: dict[str, list] = {}
    if bands:
        keys["bands"] = [0, 1, 2] if min(bands) > 2 else [0]
    if ends := [pair for pair in ends if np.isfinite(pair).all()]:
        lo, hi = likely_range(min(lowest for lowest, _ in ends), max(highest for _, highest in ends))
        if lo < hi:
            keys["value_range"] = plain_range((lo, hi))
    return keys


def log_values(records: Sequence[dict]) -> None:
    """Write to the log, once for each rule, which kinds of images the datasets hold and what becomes of their values.

    A few images of each rule are decoded; of all others the headers are read.

    Raises:
        DatasetError: as :func:`~rc2l.data.reading.read_image`.
    """
    groups: dict[ImageRule, list[dict]] = defaultdict(list)
    for record in records:
        groups[record_rule(record)].append(record)
    for rule, group in groups.items():
        if not rule.describe():
            continue
        with ThreadPoolExecutor() as pool:
            kinds = Counter(pool.map(lambda record: read_image_kind(record["file_name"], rule), group))  # noqa: B023
        sample = group[:: max(len(group) // _SAMPLE, 1)]
        report = report_values(rule, kinds, [stored_values(record["file_name"], rule)[0] for record in sample])
        names = ", ".join(sorted({record["dataset"] for record in group}))
        for texts, level in (
            (report.notes, logging.INFO),
            (report.doubts, logging.WARNING),
            (report.problems, logging.WARNING),
        ):
            for text in texts:
                logger.log(level, f"{names}: {text}")


def _fit(rule: ImageRule, found: list[StoredValues], kind: str) -> list[str]:
    (lowest, highest), greys = _span(found), _greys(rule, found)
    beyond = float(np.mean([each.beyond for each in found]))
    doubts = []
    if greys < _FEW_GREYS:
        doubts.append(f"only {greys} of 256 greys are left of them, so value_range is too wide")
    if beyond:
        doubts.append(f"{max(beyond, 1e-4):.2%} of them lie beyond value_range")
    return [f"images of {kind} have values from {lowest:g} to {highest:g}: {'; '.join(doubts)}"] if doubts else []


def _span(found: list[StoredValues]) -> tuple[float, float]:
    lowest, highest = np.array([(each.lowest, each.highest) for each in found]).T
    return float(np.fmin.reduce(lowest)), float(np.fmax.reduce(highest))


def _greys(rule: ImageRule, found: list[StoredValues]) -> int:
    """How many greys there are from the lowest to the highest value."""
    darkest, brightest = rule.scale(np.array(_span(found))).tolist()
    return brightest - darkest + 1
