"""Which images are labelled and which are not: drawn from (datasets, fraction, seed) or read from lists.

The same on every machine and process.
"""

import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from tqdm import tqdm

from rc2l.data.datasets import dataset_family, load_records
from rc2l.data.errors import DatasetError
from rc2l.data.partial_labels import describe_partial_labels, thin_out
from rc2l.data.reading import read_label
from rc2l.data.split_lists import ImageIndex, list_files, read_list
from rc2l.structures.label_map import IGNORE
from rc2l.structures.needs import BOTH_STREAMS, Needs

_SAMPLINGS = ("random", "class_balanced", "few_labels")


@dataclass(frozen=True)
class Split:
    """The two pools of images that a run draws from; dataset dicts as in detectron2, plus ``dataset``, their name."""

    #: With ``sem_seg_file_name``.
    labeled: list[dict]
    #: Without it: nothing can open a label of these.
    unlabeled: list[dict]
    #: Where the split comes from, in words.
    source: str
    #: Which draw, ``DATASETS.SPLIT.SEED`` (of images) or ``DATASETS.PARTIAL_LABELS.SEED`` (of pixels); None where lists
    #: were read.
    seed: int | None
    #: First 12 hex digits of the SHA-256 of all image ids, labelled and unlabelled.
    hash: str
    #: Files of unlabeled images that are damaged and in neither pool.
    damaged: tuple[str, ...] = ()


def build_split(cfg: CfgNode, needs: Needs = BOTH_STREAMS) -> Split:
    """Draw the labelled images from ``DATASETS.TRAIN`` as ``DATASETS.SPLIT`` says, or read which they are from lists.

    Images are ordered by the SHA-256 of "<seed>:<image id>", so that a split depends neither on the order of files nor
    on the machine, and smaller fractions are contained in larger ones. The unlabelled pool is all other images of
    ``DATASETS.TRAIN`` and ``DATASETS.UNLABELED``, each once, or what ``UNLABELED_LIST`` says. With
    ``DATASETS.PARTIAL_LABELS``, every image that has a label is in the labelled pool, and in the unlabelled one too.

    Raises:
        DatasetError: a dataset is unknown or missing; the fraction, number or sampling is out of range; a list has
            lines that match no image or several, images twice, or another number of images than asked for; there is no
            labelled image, or no unlabelled one although the method ``needs`` them.
    """
    options, partial = cfg.DATASETS.SPLIT, cfg.DATASETS.PARTIAL_LABELS
    if not cfg.DATASETS.TRAIN:
        raise DatasetError("DATASETS.TRAIN is empty; name at least one dataset to take labelled images from")
    train = _load_once(cfg.DATASETS.TRAIN, options.SEED)
    extra = _load_once(cfg.DATASETS.UNLABELED, options.SEED)
    candidates = [record for record in train if "sem_seg_file_name" in record]
    if not candidates:
        raise DatasetError(f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)} has no image with a label")
    if partial.ENABLED and (
        options.LABELED_LIST or options.UNLABELED_LIST or options.NUM_LABELED or options.FRACTION != "all"
    ):
        raise DatasetError(
            "DATASETS.PARTIAL_LABELS labels every image in part, so no images are drawn: set DATASETS.SPLIT.FRACTION "
            "all, NUM_LABELED 0 and LABELED_LIST '', or PARTIAL_LABELS.ENABLED False"
        )

    pool = [*extra, *train]
    if options.LABELED_LIST or options.UNLABELED_LIST:
        labeled, pool = _read_lists(options, candidates, pool)
        seed = None
    elif partial.ENABLED:
        labeled, seed = candidates, partial.SEED
    else:
        labeled, seed = _draw(options, candidates), options.SEED
    taken = set() if partial.ENABLED else {_identity(record) for record in labeled}
    rest = {_identity(record): record for record in pool if _identity(record) not in taken}
    unlabeled = [
        {key: value for key, value in record.items() if key != "sem_seg_file_name"}
        for record in sorted(rest.values(), key=lambda record: _order(record, options.SEED))
    ]
    # In hash order: a smaller share is the beginning of a larger one. By its text, as 0.07 is no binary number.
    unlabeled = unlabeled[: ceil(Fraction(str(options.UNLABELED_SHARE)) * len(unlabeled))]
    if not unlabeled and needs.unlabeled:
        raise DatasetError(
            f"no unlabelled images are left for SEMI.METHOD '{cfg.SEMI.METHOD}': all {len(labeled)} images of "
            f"{tuple(cfg.DATASETS.TRAIN)} are labelled; lower DATASETS.SPLIT.FRACTION or NUM_LABELED, "
            "name a dataset in DATASETS.UNLABELED, or train with SEMI.METHOD supervised"
        )
    digest = _digest(labeled, unlabeled)
    if partial.ENABLED:
        labeled = thin_out(cfg, labeled)
    return Split(labeled, unlabeled, _describe(cfg), seed, digest)


def hidden_labels(cfg: CfgNode, split: Split, most: int) -> list[dict]:
    """Of the unlabelled images whose labels are there but hidden by the split, the first ``most`` in hash order.

    For measurements only: these dataset dicts have their ``sem_seg_file_name`` back.

    Raises:
        DatasetError: as :func:`~rc2l.data.datasets.load_records`.
    """
    if most <= 0:
        return []
    with_label = {
        _identity(record): record
        for name in cfg.DATASETS.TRAIN
        for record in load_records(name)
        if "sem_seg_file_name" in record
    }
    known = (with_label.get(_identity(record)) for record in split.unlabeled)
    return [record for record in known if record is not None][:most]


def without_unlabeled(split: Split, damaged: tuple[str, ...]) -> Split:
    """The split without the unlabeled images of these files, which its hash tells from the one with them."""
    if not damaged:
        return split
    unlabeled = [record for record in split.unlabeled if record["file_name"] not in damaged]
    return replace(split, unlabeled=unlabeled, hash=_digest(split.labeled, unlabeled), damaged=damaged)


def log_split(split: Split) -> None:
    """Write counts, source, seed and hash of a split to the log, in one line."""
    seed = "" if split.seed is None else f"seed {split.seed}, "
    damaged = f" ({len(split.damaged)} damaged ones are left out)" if split.damaged else ""
    logging.getLogger("rc2l").info(
        f"Split: {len(split.labeled)} labelled + {len(split.unlabeled)} unlabelled images{damaged} from "
        f"{split.source}, {seed}hash {split.hash}"
    )


def _draw(options: CfgNode, candidates: list[dict]) -> list[dict]:
    """The images of ``candidates``, which are in hash order, that are labelled."""
    count = _num_labeled(options, len(candidates))
    if options.SAMPLING not in _SAMPLINGS:
        raise DatasetError(f"DATASETS.SPLIT.SAMPLING is '{options.SAMPLING}'; it must be one of {_SAMPLINGS}")
    if options.SAMPLING == "few_labels":
        presence = _class_presence(candidates)
        rich = np.flatnonzero(presence.sum(axis=1) >= options.MIN_CLASSES)
        if len(rich) < count:
            raise DatasetError(
                f"DATASETS.SPLIT asks for {count} images, but only {len(rich)} of {len(candidates)} have the "
                f"{options.MIN_CLASSES} classes of MIN_CLASSES; lower it, or the number of images"
            )
        chosen = rich[_balanced_order(presence[rich], count)]
    elif options.SAMPLING == "class_balanced" and count < len(candidates):
        chosen = _balanced_order(_class_presence(candidates), count)
    else:
        chosen = range(count)
    return [candidates[index] for index in chosen]


def _read_lists(options: CfgNode, candidates: list[dict], pool: list[dict]) -> tuple[list[dict], list[dict]]:
    """Labelled images and those that may be unlabelled, as ``DATASETS.SPLIT``'s lists say."""
    if not options.LABELED_LIST:
        raise DatasetError(
            f"DATASETS.SPLIT.UNLABELED_LIST is '{options.UNLABELED_LIST}' without a LABELED_LIST; name both, or none"
        )
    labeled_file, unlabeled_file = list_files(options.LABELED_LIST, options.UNLABELED_LIST)
    index = ImageIndex(candidates)
    lines = read_list(labeled_file, index, "DATASETS.TRAIN with a label")
    labeled = [candidates[position] for position in sorted(lines)]
    if options.NUM_LABELED or options.FRACTION != "all":
        count = _num_labeled(options, len(candidates))
        if count != len(labeled):
            asked = f"NUM_LABELED {count}" if options.NUM_LABELED else f"FRACTION {options.FRACTION} ({count} images)"
            raise DatasetError(
                f"{labeled_file} lists {len(labeled)} images, but DATASETS.SPLIT asks for {asked}; set FRACTION all "
                "and NUM_LABELED 0 to take the list as it is"
            )
    if unlabeled_file is None:
        return labeled, pool

    line_of = {_identity(candidates[position]): number for position, number in lines.items()}
    images = list({_identity(record): record for record in pool}.values())
    listed = read_list(unlabeled_file, ImageIndex(images), "DATASETS.TRAIN and DATASETS.UNLABELED")
    for position, number in listed.items():
        if _identity(images[position]) in line_of:
            labeled_line = line_of[_identity(images[position])]
            raise DatasetError(
                f"{unlabeled_file} line {number} is labelled by {labeled_file} line {labeled_line} "
                f"({images[position]['file_name']}); an image must be in one of the lists only"
            )
    return labeled, [images[position] for position in listed]


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
            f"DATASETS.SPLIT.NUM_LABELED is {options.NUM_LABELED}, but DATASETS.TRAIN has {available} labelled images"
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
    if options.LABELED_LIST:
        lists = f", {options.UNLABELED_LIST}" if options.UNLABELED_LIST else ""
        how = f"lists {options.LABELED_LIST}{lists}"
    elif cfg.DATASETS.PARTIAL_LABELS.ENABLED:
        how = describe_partial_labels(cfg)
    else:
        amount = f"{options.NUM_LABELED} images" if options.NUM_LABELED else options.FRACTION
        how = f"{amount} labelled, {options.SAMPLING}"
        how += f" with {options.MIN_CLASSES} or more classes" if options.SAMPLING == "few_labels" else ""
    text = f"{' + '.join(cfg.DATASETS.TRAIN)} ({how})"
    if options.UNLABELED_SHARE < 1:
        text += f", {options.UNLABELED_SHARE:g} of the unlabelled images"
    return text + (f", unlabelled also from {' + '.join(cfg.DATASETS.UNLABELED)}" if cfg.DATASETS.UNLABELED else "")


def _digest(labeled: list[dict], unlabeled: list[dict]) -> str:
    lists = ("\n".join(sorted(str(record["image_id"]) for record in pool)) for pool in (labeled, unlabeled))
    return hashlib.sha256("\n\n".join(lists).encode()).hexdigest()[:12]
