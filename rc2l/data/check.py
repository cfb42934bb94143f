"""Looks at all data before training starts, so that errors come in seconds, not in hours."""

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from tabulate import tabulate
from tqdm import tqdm

from rc2l.data.datasets import dataset_family, load_records
from rc2l.data.errors import DatasetError
from rc2l.data.mapper import size_mismatch
from rc2l.data.partial_labels import read_record_label
from rc2l.data.reading import IGNORE, read_image_size
from rc2l.data.splits import Split
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
    _check_overlap(split, test)

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
    _report_classes(pixels, images, MetadataCatalog.get(split.labeled[0]["dataset"]).stuff_classes)
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
    classes = {name: list(MetadataCatalog.get(name).stuff_classes) for name in names}
    first = names[0]
    K = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if len(classes[first]) != K:
        raise DatasetError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {K}, but dataset '{first}' has {len(classes[first])} classes; "
            f"set it to {len(classes[first])}"
        )
    for name in names[1:]:
        if classes[name] != classes[first]:
            pairs = enumerate(zip_longest(classes[first], classes[name]))
            index, (ours, theirs) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
            raise DatasetError(
                f"datasets '{first}' ({len(classes[first])} classes) and '{name}' ({len(classes[name])} classes) "
                f"differ: class {index} is '{ours}' and '{theirs}'; train and test on one list of classes"
            )


def one_class_problem(name: str) -> str:
    """What to do about a dataset with a single class, which any network scores 100 on; empty where it has more."""
    metadata = MetadataCatalog.get(name)
    names = list(metadata.get("stuff_classes") or ())
    if len(names) != 1:
        return ""
    roof, background = names[0], "background" if names[0] != "background" else "other"
    ids = [raw_id for raw_id, train_id in (metadata.get("label_map") or {0: 0}).items() if train_id == 0]
    label_map = dict.fromkeys(ids, roof)
    others = [raw_id for raw_id in (metadata.get("label_map") or {}) if raw_id not in label_map]
    others = others or [metadata.get("ignore_label", IGNORE)]
    meaning = dict.fromkeys(others, background) | label_map
    entries = ", ".join(f"{raw_id}: {target}" for raw_id, target in meaning.items())
    return (
        f"dataset '{name}' has one class, '{roof}': one class needs a background, else every score is always 100; "
        f"give it classes: [{background}, {roof}] and label_map: {{{entries}}} (of COCO files: background: true), "
        "and set MODEL.SEM_SEG_HEAD.NUM_CLASSES to 2"
    )


def _check_overlap(split: Split, test: dict[str, list[dict]]) -> None:
    train_files = {os.path.realpath(record["file_name"]) for record in [*split.labeled, *split.unlabeled]}
    train_ids = {
        (dataset_family(record["dataset"]), record["image_id"]) for record in [*split.labeled, *split.unlabeled]
    }
    for name, records in test.items():
        family = dataset_family(name)
        common = [
            record["image_id"]
            for record in records
            if (family, record["image_id"]) in train_ids or os.path.realpath(record["file_name"]) in train_files
        ]
        if common:
            raise DatasetError(
                f"{len(common)} of {len(records)} images of test dataset '{name}' are also in the training data "
                f"({split.source}), first '{common[0]}'; take them out of one of the two"
            )


def _report_classes(pixels: np.ndarray, images: np.ndarray, names: list[str]) -> None:
    logger = logging.getLogger("rc2l")
    total = max(int(pixels.sum()), 1)
    rows = [(i, name, int(images[i]), f"{pixels[i] / total:.2%}") for i, name in enumerate(names)]
    rows.append((IGNORE, "(ignored)", int(images[IGNORE]), f"{pixels[IGNORE] / total:.2%}"))
    table = tabulate(rows, headers=("id", "class", "images", "pixels"), tablefmt="github")
    logger.info(f"Labelled training pixels by class:\n{table}")

    absent = [name for i, name in enumerate(names) if not pixels[i]]
    if len(names) > 1 and not pixels[1:IGNORE].any() and pixels[IGNORE]:
        logger.warning(
            f"The labelled masks hold only 0 and {IGNORE}, and {IGNORE} means ignore: nothing of class "
            f"'{names[min(1, len(names) - 1)]}' will be learned. If {IGNORE} is foreground, give the dataset "
            "label_map {0: 0, 255: 1}"
        )
    elif absent:
        logger.warning(f"No labelled image shows {', '.join(absent)}: these classes cannot be learned")
