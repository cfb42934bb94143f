"""CamVid in its usual 480x360 form: 11 classes, id 11 = unlabelled."""

from functools import partial

from detectron2.data import DatasetCatalog, MetadataCatalog

from rc2l.data.datasets.location import datasets_root, require, require_some
from rc2l.structures.label_map import IGNORE

#: (name, colour) in order of the ids.
CLASSES = (
    ("Sky", (128, 128, 128)),
    ("Building", (128, 0, 0)),
    ("Pole", (192, 192, 128)),
    ("Road", (128, 64, 128)),
    ("Pavement", (60, 40, 222)),
    ("Tree", (128, 128, 0)),
    ("SignSymbol", (192, 128, 128)),
    ("Fence", (64, 64, 128)),
    ("Car", (64, 0, 128)),
    ("Pedestrian", (64, 64, 0)),
    ("Bicyclist", (0, 128, 192)),
)
_UNLABELED_ID = 11
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def load_camvid(name: str, subset: str) -> list[dict]:
    """Dataset dicts of ``subset``: "train" or "val".

    Raises:
        DatasetError: a folder is missing or empty.
    """
    root = datasets_root() / "camvid"
    images = require(root / "images" / subset, name)
    labels = require(root / "labels" / subset, name)
    records = [
        {"file_name": str(image), "sem_seg_file_name": str(labels / f"{image.stem}.png"), "image_id": image.stem}
        for image in sorted(images.iterdir())
        if image.suffix.lower() in _IMAGE_SUFFIXES
    ]
    return require_some(records, images, name)


def register_camvid() -> None:
    """Register ``camvid_sem_seg_{train,val}``; files are looked for when one is loaded."""
    for subset in ("train", "val"):
        name = f"camvid_sem_seg_{subset}"
        DatasetCatalog.register(name, partial(load_camvid, name, subset))
        MetadataCatalog.get(name).set(
            stuff_classes=[class_name for class_name, _ in CLASSES],
            stuff_colors=[color for _, color in CLASSES],
            ignore_label=IGNORE,
            label_map={train_id: train_id for train_id in range(len(CLASSES))} | {_UNLABELED_ID: IGNORE},
            evaluator_type="sem_seg",
        )
