"""Which images are labeled and which are not: made from (datasets, fraction, seed), the same on every process."""

import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from tqdm import tqdm

from rc2l.data.datasets import dataset_family, load_records
from rc2l.data.errors import DatasetError
from rc2l.data.reading import IGNORE, read_label

_SAMPLINGS = ("random", "class_balanced")


@dataclass(frozen=True)
class Split:
    """The two pools of images that a run draws from; dataset dicts as in detectron2, plus ``dataset``, their name."""

    #: With ``sem_seg_file_name``.
    labeled: list[dict]
    #: Without it: nothing can open a label of these.
    unlabeled: list[dict]
    #: Where the split comes from, in words.
    source: str
    #: Which draw; ``DATASETS.SPLIT.SEED``.
    seed: int
    #: First 12 hex digits of the SHA-256 of all image ids, labeled and unlabeled.
    hash: str


def build_split(cfg: CfgNode) -> Split:
    """Draw the labeled images from ``DATASETS.TRAIN`` as ``DATASETS.SPLIT`` says.

    Images are ordered by the SHA-256 of "<seed>:<image id>", so that a split depends neither on the order of files nor
    on the machine, and smaller fractions are contained in larger ones. The unlabeled pool is all other images of
    ``DATASETS.TRAIN`` and ``DATASETS.UNLABELED``, each once.

    Raises:
        DatasetError: a dataset is unknown or missing; the fraction, number or sampling is out of range; there is no
            labeled image, or no unlabeled one although ``SEMI.METHOD`` learns from them.
    """
    options = cfg.DATASETS.SPLIT
    if not cfg.DATASETS.TRAIN:
        raise DatasetError("DATASETS.TRAIN is empty; name at least one dataset to take labeled images from")
    train = _load_once(cfg.DATASETS.TRAIN, options.SEED)
    extra = _load_once(cfg.DATASETS.UNLABELED, options.SEED)
    candidates = [record for record in train if "sem_seg_file_name" in record]
    if not candidates:
        raise DatasetError(f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)} has no image with a label")

    count = _num_labeled(options, len(candidates))
    if options.SAMPLING not in _SAMPLINGS:
        raise DatasetError(f"DATASETS.SPLIT.SAMPLING is '{options.SAMPLING}'; it must be one of {_SAMPLINGS}")
    if options.SAMPLING == "class_balanced" and count < len(candidates):
        chosen = _balanced_order(_class_presence(candidates), count)
    else:
        chosen = list(range(count))
    labeled = [candidates[index] for index in chosen]

    taken = {_identity(record) for record in labeled}
    rest = {_identity(record): record for record in [*extra, *train] if _identity(record) not in taken}
    unlabeled = [
        {key: value for key, value in record.items() if key != "sem_seg_file_name"}
        for record in sorted(rest.values(), key=lambda record: _order(record, options.SEED))
    ]
    if not unlabeled and cfg.SEMI.METHOD != "supervised":
        raise DatasetError(
            f"no unlabeled images are left for SEMI.METHOD '{cfg.SEMI.METHOD}': all {len(labeled)} images of "
            f"{tuple(cfg.DATASETS.TRAIN)} are labeled; lower DATASETS.SPLIT.FRACTION or NUM_LABELED, "
            "name a dataset in DATASETS.UNLABELED, or train with SEMI.METHOD supervised"
        )
    return Split(labeled, unlabeled, _describe(cfg), options.SEED, _digest(labeled, unlabeled))


def log_split(split: Split) -> None:
    """Write counts, source, seed and hash of a split to the log, in one line."""
    logging.getLogger("rc2l").info(
        f"Split: {len(split.labeled)} labeled + {len(split.unlabeled)} unlabeled images from {split.source}, "
        f"seed {split.seed}, hash {split.hash}"
    )


def _load_once(names: tuple[str, ...], seed: int) -> list[dict]:
    """The images of several datasets in hash order; of an image in more than one, the first dataset's entry."""
    records: dict[tuple[str, str], dict] = {}
    for name in names:
        for record in load_records(name):
            records.setdefault(_identity(record), record)
    return sorted(records.values(), key=lambda record: _order(record, seed))


def _identity(record: dict) -> tuple[str, str]:
    return dataset_family(record["dataset"]), str(record["image_id"])


def _order(record: dict, seed: int) -> tuple[str, str]:
    family, image_id = _identity(record)
    return hashlib.sha256(f"{seed}:{image_id}".encode()).hexdigest(), family


def _num_labeled(options: CfgNode, available: int) -> int:
    if options.NUM_LABELED < 0:
        raise DatasetError(f"DATASETS.SPLIT.NUM_LABELED is {options.NUM_LABELED}; it must be 0 (use FRACTION) or more")
    if available < options.NUM_LABELED:
        raise DatasetError(
            f"DATASETS.SPLIT.NUM_LABELED is {options.NUM_LABELED}, but DATASETS.TRAIN has {available} labeled images"
        )
    if options.NUM_LABELED > 0:
        return options.NUM_LABELED
    if options.FRACTION == "all":
        return available
    try:
        fraction = Fraction(options.FRACTION)
    except (ValueError, ZeroDivisionError):
        fraction = Fraction(0)
    if not 0 < fraction <= 1:
        raise DatasetError(
            f"DATASETS.SPLIT.FRACTION is '{options.FRACTION}'; it must be 'all' or a fraction above 0 and up to 1, "
            "such as '1/16'"
        )
    # Fraction, not float: 0.07 * 100 is above 7 in floating point and would round up to 8.
    return ceil(fraction * available)


def _class_presence(records: list[dict]) -> np.ndarray:
    """(n, K) bool: which classes occur in the label of each image."""
    K = max(len(MetadataCatalog.get(record["dataset"]).stuff_classes) for record in records)

    def presence(record: dict) -> np.ndarray:
        label = read_label(record["sem_seg_file_name"], MetadataCatalog.get(record["dataset"]))
        return np.bincount(label.ravel(), minlength=IGNORE + 1)[:K] > 0

    with ThreadPoolExecutor() as pool:
        rows = tqdm(
            pool.map(presence, records), "Reading labels to balance the split", len(records), delay=3, disable=None
        )
        return np.stack(list(rows))


def _balanced_order(presence: np.ndarray, count: int) -> list[int]:
    """Greedy choice of ``count`` rows of ``presence`` (n, K).

    Each next row is the first free one that contains the class that the fewest chosen rows contain. Classes of which
    no free row is left are passed over; ties go to the smaller class id.
    """
    n, K = presence.shape
    free = np.ones(n, dtype=bool)
    seen = np.zeros(K, dtype=np.int64)
    left = presence.sum(axis=0)
    chosen = []
    while len(chosen) < count:
        open_classes = np.flatnonzero(left > 0)
        if len(open_classes):
            wanted = open_classes[np.argmin(seen[open_classes])]
            index = int(np.argmax(free & presence[:, wanted]))
        else:
            index = int(np.argmax(free))
        free[index] = False
        seen += presence[index]
        left -= presence[index]
        chosen.append(index)
    return chosen


def _describe(cfg: CfgNode) -> str:
    options = cfg.DATASETS.SPLIT
    amount = f"{options.NUM_LABELED} images" if options.NUM_LABELED else options.FRACTION
    text = f"{' + '.join(cfg.DATASETS.TRAIN)} ({amount} labeled, {options.SAMPLING})"
    return text + (f", unlabeled also from {' + '.join(cfg.DATASETS.UNLABELED)}" if cfg.DATASETS.UNLABELED else "")


def _digest(labeled: list[dict], unlabeled: list[dict]) -> str:
    lists = ("\n".join(sorted(str(record["image_id"]) for record in pool)) for pool in (labeled, unlabeled))
    return hashlib.sha256("\n\n".join(lists).encode()).hexdigest()[:12]
