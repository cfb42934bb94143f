"""PASCAL VOC 2012: the 1464 finely labelled training images, the 10582 of the augmented set, and the validation set."""

from functools import partial
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from rc2l.data.datasets.location import datasets_root, require, require_some
from rc2l.structures.label_map import IGNORE

CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
#: Both names are in use for the list of the augmented training set.
_AUG_LISTS = ("trainaug.txt", "train_aug.txt")


def palette(num_colors: int) -> list[tuple[int, int, int]]:
    """The VOC colour map: colour i spreads the bits of i over red, green and blue, lowest bits to the highest."""
    index = np.arange(num_colors)
    colors = np.zeros((num_colors, 3), dtype=int)
    for bit in range(8):
        channel, rank = bit % 3, bit // 3
        colors[:, channel] |= ((index >> bit) & 1) << (7 - rank)
    return [tuple(color) for color in colors.tolist()]


def read_ids(path: Path) -> list[str]:
    """Image ids of a list file: one id per line, or the paths of image and label, as SBD's lists have them."""
    return [Path(line.split()[0]).stem for line in path.read_text().splitlines() if line.strip()]


def _augmented_ids(root: Path, name: str) -> list[str]:
    lists = root / "ImageSets" / "Segmentation"
    for list_name in _AUG_LISTS:
        if (lists / list_name).exists():
            return read_ids(lists / list_name)
    # Archives of the augmented labels often come without a list. They hold the validation labels too.
    validation = set(read_ids(require(lists / "val.txt", name)))
    return sorted(path.stem for path in (root / "SegmentationClassAug").glob("*.png") if path.stem not in validation)


def load_voc(name: str, subset: str) -> list[dict]:
    """Dataset dicts of ``subset``: "train", "train_aug" or "val".

    Raises:
        DatasetError: a folder or list file is missing.
    """
    root = datasets_root() / "VOCdevkit" / "VOC2012"
    augmented = subset == "train_aug"
    images = require(root / "JPEGImages", name)
    labels = require(root / ("SegmentationClassAug" if augmented else "SegmentationClass"), name)
    if augmented:
        ids = _augmented_ids(root, name)
    else:
        ids = read_ids(require(root / "ImageSets" / "Segmentation" / f"{subset}.txt", name))
    records = [
        {
            "file_name": str(images / f"{image_id}.jpg"),
            "sem_seg_file_name": str(labels / f"{image_id}.png"),
            "image_id": image_id,
        }
        for image_id in ids
    ]
    return require_some(records, labels, name)


def register_voc() -> None:
    """Register ``voc_2012_sem_seg_{train,train_aug,val}``; files are looked for when one is loaded."""
    for subset in ("train", "train_aug", "val"):
        name = f"voc_2012_sem_seg_{subset}"
        DatasetCatalog.register(name, partial(load_voc, name, subset))
        MetadataCatalog.get(name).set(
            stuff_classes=list(CLASSES),
            stuff_colors=palette(len(CLASSES)),
            ignore_label=IGNORE,
            evaluator_type="sem_seg",
        )
