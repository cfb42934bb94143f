"""Faults of whole datasets, each a line that says what to do: what checks before training and audits both look for."""

import os
from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
from detectron2.data import MetadataCatalog
from tabulate import tabulate

from rc2l.data.datasets import dataset_family
from rc2l.structures.label_map import IGNORE


def class_table(name: str, pixels: np.ndarray, images: np.ndarray) -> str:
    """Images and pixels of each class of a dataset; ``pixels`` and ``images`` (256,) count them by train id."""
    names, total = MetadataCatalog.get(name).stuff_classes, max(int(pixels.sum()), 1)
    rows = [
        (train_id, label, int(images[train_id]), int(pixels[train_id]), f"{pixels[train_id] / total:.2%}")
        for train_id, label in [*enumerate(names), (IGNORE, "(ignored)")]
    ]
    return tabulate(rows, headers=("id", "class", "images", "pixels", "share"), tablefmt="github")


def absent_classes(name: str, pixels: np.ndarray) -> list[str]:
    """Classes of a dataset of which ``pixels`` (256,) counts none."""
    return [label for train_id, label in enumerate(MetadataCatalog.get(name).stuff_classes) if not pixels[train_id]]


def unseen_classes(name: str, pixels: np.ndarray, trained: str, trained_pixels: np.ndarray) -> str:
    """What to do about classes that a test set scores and no label to train on shows; empty where there are none.

    Args:
        name: of the test set.
        pixels: (256,) pixels of each train id in its labels.
        trained: what shows nothing of them, in words, to follow "no".
        trained_pixels: (256,) pixels of each train id in the labels to train on.
    """
    untested = absent_classes(name, pixels)
    unseen = [label for label in absent_classes(name, trained_pixels) if label not in untested]
    if not unseen:
        return ""
    return (
        f"{name} scores {', '.join(unseen)}, which no {trained} shows, so that nothing can be learned about it: label "
        "such images, or map it to another class or to ignore"
    )


def only_zero_problem(name: str, pixels: np.ndarray) -> str:
    """What to do about labels of 0 and 255 alone, as masks of foreground are often saved; empty where there are others.

    Args:
        name: of the dataset.
        pixels: (256,) pixels of each train id.
    """
    names = MetadataCatalog.get(name).stuff_classes
    if len(names) < 2 or not pixels[IGNORE] or pixels[1:IGNORE].any():
        return ""
    return (
        f"dataset '{name}': all labels hold only 0 and {IGNORE}, and {IGNORE} means ignore: nothing of class "
        f"'{names[1]}' will be learned; if {IGNORE} is foreground, give the dataset label_map {{0: 0, {IGNORE}: 1}}"
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


def class_lists_problem(first: str, second: str) -> str:
    """What to do about two datasets with different classes; empty where one of them has no labels."""
    ours, theirs = (list(MetadataCatalog.get(name).get("stuff_classes") or ()) for name in (first, second))
    if ours == theirs or not ours or not theirs:
        return ""
    index, pair = next((i, pair) for i, pair in enumerate(zip_longest(ours, theirs)) if pair[0] != pair[1])
    return (
        f"datasets '{first}' ({len(ours)} classes) and '{second}' ({len(theirs)} classes) differ: class {index} is "
        f"'{pair[0]}' and '{pair[1]}'; train and test on one list of classes"
    )


def overlap_problem(name: str, records: Sequence[dict], trained_name: str, trained: Sequence[dict]) -> str:
    """What to do about images of ``records`` that are in ``trained`` too, by file or by id in a family of datasets."""
    files = {os.path.realpath(record["file_name"]) for record in trained}
    ids = {(dataset_family(record["dataset"]), record["image_id"]) for record in trained}
    common = [
        record["image_id"]
        for record in records
        if (dataset_family(record["dataset"]), record["image_id"]) in ids
        or os.path.realpath(record["file_name"]) in files
    ]
    if not common:
        return ""
    return (
        f"{len(common)} of {len(records)} images of {name} are also in {trained_name}, first '{common[0]}'; take them "
        "out of one of the two"
    )
