"""SUN RGB-D: 37 classes of indoor scenes, 10335 images, split anew into 9860 and 475 as ReCo (appendix A) does."""

import hashlib
import logging
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import log_first_n

from rc2l.data.datasets.location import datasets_root, require, require_some
from rc2l.data.datasets.voc import palette
from rc2l.data.errors import DatasetError
from rc2l.data.file_listing import find_files
from rc2l.structures.label_map import IGNORE

#: Names in order of the ids 1 to 37 of label files; 0 is unlabelled.
CLASSES = (
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture"),
    *("counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes"),
    *("ceiling", "books", "fridge", "tv", "paper", "towel", "shower curtain", "box", "whiteboard", "person"),
    *("night stand", "toilet", "sink", "lamp", "bathtub", "bag"),
)
#: All ids of label files; 255 does not occur in the published ones, but in edited ones.
LABEL_MAP = {0: 255, 255: 255} | {raw_id: raw_id - 1 for raw_id in range(1, len(CLASSES) + 1)}
NUM_IMAGES, NUM_VAL = 10335, 475
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def validation_ids(ids: list[str]) -> set[str]:
    """The validation images of the re-split: the first by SHA-256 of their id, 475 of 10335, or that share of fewer."""
    count = max(round(len(ids) * NUM_VAL / NUM_IMAGES), 1)
    return set(sorted(ids, key=lambda image_id: hashlib.sha256(image_id.encode()).hexdigest())[:count])


def load_sun_rgbd(name: str, subset: str) -> list[dict]:
    """Dataset dicts of ``subset``: "train" or "val".

    The list ``<subset>.txt`` (one id or file name a line) is followed where there is one; without both lists the split
    is :func:`validation_ids`.

    Raises:
        DatasetError: a folder is missing or empty, a list names an image that is not there, or only one list is there.
    """
    root = datasets_root() / "sunrgbd"
    folder, labels = require(root / "images", name), require(root / "labels", name)
    images = {path.stem: path for path in find_files(folder, _IMAGE_SUFFIXES)}
    require_some(list(images), folder, name)
    lists = {part: root / f"{part}.txt" for part in ("train", "val")}
    if any(path.exists() for path in lists.values()):
        ids = _listed(require(lists[subset], name, "give both lists, train.txt and val.txt, or none"), images)
    else:
        if len(images) != NUM_IMAGES:
            log_first_n(
                logging.WARNING,
                f"{folder} holds {len(images)} images, not {NUM_IMAGES}: the split is not the one of the full dataset",
                name="rc2l",
                key="message",
            )
        validation = validation_ids(list(images))
        ids = [image_id for image_id in images if (image_id in validation) == (subset == "val")]
    records = [
        {
            "file_name": str(images[image_id]),
            "sem_seg_file_name": str(labels / f"{image_id}.png"),
            "image_id": image_id,
        }
        for image_id in ids
    ]
    return require_some(records, folder, name)


def _listed(path: Path, images: dict[str, Path]) -> list[str]:
    ids = [Path(line.split()[0]).stem for line in path.read_text().splitlines() if line.strip()]
    unknown = [image_id for image_id in ids if image_id not in images]
    if unknown:
        raise DatasetError(
            f"{path}: {len(unknown)} of {len(ids)} images are not in {path.parent / 'images'}, first '{unknown[0]}'; "
            "correct the list or complete the images"
        )
    return ids


def register_sun_rgbd() -> None:
    """Register ``sun_rgbd_sem_seg_{train,val}``; files are looked for when one is loaded."""
    for subset in ("train", "val"):
        name = f"sun_rgbd_sem_seg_{subset}"
        DatasetCatalog.register(name, partial(load_sun_rgbd, name, subset))
        MetadataCatalog.get(name).set(
            stuff_classes=list(CLASSES),
            # The palette's first colour, black, is for what is not labelled.
            stuff_colors=palette(len(CLASSES) + 1)[1:],
            ignore_label=IGNORE,
            label_map=LABEL_MAP,
            evaluator_type="sem_seg",
        )
