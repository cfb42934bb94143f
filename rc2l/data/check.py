"""Looks at all data before training starts, so that errors come in seconds, not in hours."""

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from tqdm import tqdm

from rc2l.data.datasets import load_records
from rc2l.data.errors import DamagedImageError, DatasetError
from rc2l.data.faults import (
    absent_classes,
    class_lists_problem,
    class_table,
    one_class_problem,
    only_zero_problem,
    overlap_problem,
    unseen_classes,
)
from rc2l.data.image_rule import record_rule
from rc2l.data.mapper import size_mismatch
from rc2l.data.partial_labels import read_record_label
from rc2l.data.reading import read_image_size
from rc2l.data.splits import Split
from rc2l.data.value_report import log_values
from rc2l.data.whole_files import WholeFiles, remembered
from rc2l.structures.label_map import IGNORE
from rc2l.structures.needs import BOTH_STREAMS, Needs

#: Problems that an error message spells out; the rest are counted.
_SHOWN = 10

#: Pixels that are counted at a time.
_BLOCK = 1 << 22

logger = logging.getLogger("rc2l")


def check_data(cfg: CfgNode, split: Split, test_datasets: tuple[str, ...], needs: Needs = BOTH_STREAMS) -> None:
    """Check everything that training and evaluation will read; log the share of each class in the labelled pixels.

    Labels are decoded; images are read to their end, if they are not known to be whole. One process is enough.

    Raises:
        DatasetError: the split is empty, training and test images overlap, class lists differ from each other or from
            ``MODEL.SEM_SEG_HEAD.NUM_CLASSES``, an image has no label file, a file is damaged, an image and its label
            differ in size, or a label id is out of range. One error names all files of all datasets.
    """
    if not split.labeled:
        raise DatasetError(f"the split has no labelled image ({split.source}); raise DATASETS.SPLIT.FRACTION")
    test = {name: load_records(name) for name in test_datasets}
    if cfg.TEST.MAX_IMAGES > 0:
        test = {name: records[: cfg.TEST.MAX_IMAGES] for name, records in test.items()}
    _check_classes(cfg, split, test_datasets)
    if problem := one_class_problem(split.labeled[0]["dataset"]):
        raise DatasetError(problem)
    trained = [*split.labeled, *split.unlabeled]
    for name, records in test.items():
        if problem := overlap_problem(
            f"test dataset '{name}'", records, f"the training data ({split.source})", trained
        ):
            raise DatasetError(problem)

    unlabeled = split.unlabeled if needs.unlabeled else []
    pools = [split.labeled, unlabeled, *test.values()]
    with remembered(record["dataset"] for pool in pools for record in pool) as whole:
        results = [
            attempt_all(partial(check_record, whole=whole, labeled=pool is not unlabeled), pool, f"Checking {what}")
            for what, pool in zip(("labelled images", "unlabelled images", *test), pools, strict=True)
        ]
    _raise_all(results, unlabeled, len(pools[0] + pools[1]) + sum(map(len, test.values())))

    counts = [np.stack(each) if each else np.zeros((0, IGNORE + 1), np.int64) for each in (results[0], *results[2:])]
    if not counts[0][:, :IGNORE].any():
        raise DatasetError(
            f"all pixels of all {len(split.labeled)} labelled images are ignored ({IGNORE}): there is nothing to learn "
            f"from; correct the labels, or the label_map of dataset '{split.labeled[0]['dataset']}'"
        )
    _report_classes(counts[0].sum(axis=0), (counts[0] > 0).sum(axis=0), split.labeled[0]["dataset"])
    for name, pixels in zip(test, counts[1:], strict=True):
        if not pixels[:, :IGNORE].any():
            raise DatasetError(
                f"all pixels of all labels of test dataset '{name}' are ignored ({IGNORE}), so there is nothing to "
                "score; correct the labels or its label_map"
            )
        if problem := unseen_classes(name, pixels.sum(axis=0), "labelled training image", counts[0].sum(axis=0)):
            logger.warning(problem)
    log_values([record for pool in pools for record in pool])


def damaged_unlabeled(split: Split) -> tuple[str, ...]:
    """The files of a split's unlabeled images that are damaged, each named in a warning: for ``DATASETS.DAMAGED skip``.

    Raises:
        DatasetError: all of them are.
    """
    with remembered(record["dataset"] for record in split.unlabeled) as whole:
        check = partial(check_record, whole=whole, labeled=False)
        results = attempt_all(check, split.unlabeled, "Checking unlabelled images")
    damaged = {
        record["file_name"]: error
        for record, error in zip(split.unlabeled, results, strict=True)
        if isinstance(error, DamagedImageError)
    }
    if damaged and len(damaged) == len(split.unlabeled):
        raise DatasetError(
            f"all {len(damaged)} unlabelled images are damaged, so DATASETS.DAMAGED skip leaves none: first "
            f"{next(iter(damaged.values()))}"
        )
    for error in damaged.values():
        logger.warning(f"left out (DATASETS.DAMAGED skip): {error}")
    return tuple(damaged)


def check_record(record: dict, whole: dict[str, WholeFiles], labeled: bool) -> np.ndarray | None:
    """All checks of one image and, where it must be ``labeled``, of its label, whose pixels are returned.

    Args:
        record: a dataset dict.
        whole: dataset -> which of its files need not be read again.
        labeled: whether it must have a label; else it has none, or none that is looked at.

    Raises:
        DatasetError: see :func:`check_data`.
    """
    if labeled:
        pixels = check_labeled(record)
    else:
        read_image_size(record["file_name"], record_rule(record))
        pixels = None
    whole[record["dataset"]].check(record["file_name"])
    return pixels


def check_labeled(record: dict) -> np.ndarray:
    """(256,) number of pixels of each train id in the label of a dataset dict, after all checks of one image.

    Raises:
        DatasetError: see :func:`check_data`.
    """
    image_size = read_image_size(record["file_name"], record_rule(record))
    path = record.get("sem_seg_file_name")
    if path is None or not os.path.exists(path):
        raise DatasetError(
            f"{record['file_name']}: the label file {path or ''} of this image does not exist; add it or take the "
            "image out of the dataset (images without labels belong in DATASETS.UNLABELED)"
        )
    label = read_record_label(record)
    if image_size != label.shape:
        raise DatasetError(size_mismatch(record, image_size, label.shape))
    return count_ids(label)


def count_ids(label: np.ndarray) -> np.ndarray:
    """(256,) int64 number of pixels of each train id of a label map, (H, W) uint8."""
    flat = label.ravel()
    # np.bincount makes eight bytes of each pixel: of a whole orthophoto, gigabytes.
    parts = (np.bincount(flat[start : start + _BLOCK], minlength=IGNORE + 1) for start in range(0, len(flat), _BLOCK))
    return sum(parts, start=np.zeros(IGNORE + 1, dtype=np.int64))


def attempt_all(check: Callable[[dict], object], records: list[dict], title: str, workers: int | None = None) -> list:
    """The result of ``check`` on each record, or its :class:`DatasetError`; in ``workers`` threads, with a bar."""

    def attempt(record: dict) -> object:
        try:
            return check(record)
        except DatasetError as error:
            return error

    with ThreadPoolExecutor(workers) as pool:
        # The bar shows up only where the check takes long.
        return list(tqdm(pool.map(attempt, records), title, len(records), delay=3, disable=None))


def _raise_all(results: list[list], unlabeled: list[dict], count: int) -> None:
    """Raise one error about all that failed, if any did; ``count`` is the number of images."""
    errors = [result for pool in results for result in pool if isinstance(result, DatasetError)]
    if not errors:
        return
    advice = ""
    if unlabeled and any(isinstance(result, DamagedImageError) for result in results[1]):
        advice = "DATASETS.DAMAGED skip leaves damaged unlabelled images out"
    if len(errors) == 1:
        raise DatasetError(f"{errors[0]}" + (f" ({advice})" if advice else ""))
    shown = "".join(f"\n  {error}" for error in errors[:_SHOWN])
    more = f"\n  and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
    raise DatasetError(
        f"{len(errors)} of {count} images cannot be used{f' ({advice})' if advice else ''}:{shown}{more}"
    )


def _check_classes(cfg: CfgNode, split: Split, test_datasets: tuple[str, ...]) -> None:
    names = [*dict.fromkeys(record["dataset"] for record in split.labeled), *test_datasets]
    first, K = names[0], cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    number = len(MetadataCatalog.get(first).stuff_classes)
    if number != K:
        raise DatasetError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {K}, but dataset '{first}' has {number} classes; set it to {number}"
        )
    for name in names[1:]:
        if problem := class_lists_problem(first, name):
            raise DatasetError(problem)


def _report_classes(pixels: np.ndarray, images: np.ndarray, name: str) -> None:
    logger.info(f"Labelled training pixels by class:\n{class_table(name, pixels, images)}")
    if problem := only_zero_problem(name, pixels):
        logger.warning(problem)
    elif absent := absent_classes(name, pixels):
        logger.warning(f"No labelled image shows {', '.join(absent)}: these classes cannot be learned")
