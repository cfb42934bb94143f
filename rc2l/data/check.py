"""Looks at all data before training starts, so that errors come in seconds, not in hours."""

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from tqdm import tqdm

from rc2l.data.datasets import load_records
from rc2l.data.errors import DatasetError
from rc2l.data.faults import (
    absent_classes,
    class_lists_problem,
    class_table,
    one_class_problem,
    only_zero_problem,
    overlap_problem,
)
from rc2l.data.mapper import size_mismatch
from rc2l.data.partial_labels import read_record_label
from rc2l.data.reading import read_image_size
from rc2l.data.splits import Split
from rc2l.structures.label_map import IGNORE
from rc2l.structures.needs import BOTH_STREAMS, Needs

#: Problems that an error message spells out; the rest are counted.
_SHOWN = 5


def check_data(cfg: CfgNode, split: Split, test_datasets: tuple[str, ...], needs: Needs = BOTH_STREAMS) -> None:
    """Check everything that training and evaluation will read; log the share of each class in the labelled pixels.

    Labels are decoded, of images the headers. One process is enough.

    Raises:
        DatasetError: the split is empty, training and test images overlap, class lists differ from each other or from
            ``MODEL.SEM_SEG_HEAD.NUM_CLASSES``, an image has no label file, a file is unreadable, an image and its label
            differ in size, or a label id is out of range.
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

    pixels = np.zeros(IGNORE + 1, dtype=np.int64)
    images = np.zeros(IGNORE + 1, dtype=np.int64)
    for counts in _run(check_labeled, split.labeled, "Checking labelled images"):
        pixels += counts
        images += counts > 0
    if not pixels[:IGNORE].any():
        raise DatasetError(
            f"all pixels of all {len(split.labeled)} labelled images are ignored ({IGNORE}): there is nothing to learn "
            f"from; correct the labels, or the label_map of dataset '{split.labeled[0]['dataset']}'"
        )
    _report_classes(pixels, images, split.labeled[0]["dataset"])
    if needs.unlabeled:
        _run(lambda record: read_image_size(record["file_name"]), split.unlabeled, "Checking unlabelled images")
    for name, records in test.items():
        counts = _run(check_labeled, records, f"Checking {name}")
        if not any(each[:IGNORE].any() for each in counts):
            raise DatasetError(
                f"all pixels of all labels of test dataset '{name}' are ignored ({IGNORE}), so there is nothing to "
                "score; correct the labels or its label_map"
            )


def check_labeled(record: dict) -> np.ndarray:
    """(256,) number of pixels of each train id in the label of a dataset dict, after all checks of one image.

    Raises:
        DatasetError: see :func:`check_data`.
    """
    image_size = read_image_size(record["file_name"])
    path = record.get("sem_seg_file_name")
    if path is None or not os.path.exists(path):
        raise DatasetError(
            f"{record['file_name']}: the label file {path or ''} of this image does not exist; add it or take the "
            "image out of the dataset (images without labels belong in DATASETS.UNLABELED)"
        )
    label = read_record_label(record)
    if image_size != label.shape:
        raise DatasetError(size_mismatch(record, image_size, label.shape))
    return np.bincount(label.ravel(), minlength=IGNORE + 1)


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


def _run(check: Callable[[dict], object], records: list[dict], title: str) -> list:
    """Results of ``check`` on all records, or one error about all that failed."""
    results = attempt_all(check, records, title)
    errors = [str(result) for result in results if isinstance(result, DatasetError)]
    if len(errors) == 1:
        raise DatasetError(errors[0])
    if errors:
        shown = "".join(f"\n  {error}" for error in errors[:_SHOWN])
        more = f"\n  and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
        raise DatasetError(f"{title}: {len(errors)} of {len(records)} have errors:{shown}{more}")
    return results


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
    logger = logging.getLogger("rc2l")
    logger.info(f"Labelled training pixels by class:\n{class_table(name, pixels, images)}")
    if problem := only_zero_problem(name, pixels):
        logger.warning(problem)
    elif absent := absent_classes(name, pixels):
        logger.warning(f"No labelled image shows {', '.join(absent)}: these classes cannot be learned")
