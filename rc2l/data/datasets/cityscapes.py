"""Cityscapes, fine annotations: 2975 training and 500 validation images, 19 of the 34 labelled classes."""

from functools import partial

from detectron2.data import DatasetCatalog, MetadataCatalog

from rc2l.data.datasets.location import datasets_root, require, require_some
from rc2l.structures.label_map import IGNORE

#: (id in labelIds files, name, colour) in order of the train ids.
CLASSES = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
#: All ids of labelIds files: 19 classes, the rest ignored. The license plate (-1) is 255 in an 8-bit file.
LABEL_MAP = {raw_id: IGNORE for raw_id in (*range(34), 255)} | {
    raw_id: train_id for train_id, (raw_id, _, _) in enumerate(CLASSES)
}
_IMAGE_SUFFIX = "_leftImg8bit.png"
_LABEL_SUFFIX = "_gtFine_labelIds.png"
_TRAIN_ID_SUFFIX = "_gtFine_labelTrainIds.png"


def load_cityscapes(name: str, subset: str) -> list[dict]:
    """Dataset dicts of ``subset``: "train" or "val". ``labelTrainIds`` files are preferred where they exist.

    Raises:
        DatasetError: a folder is missing or empty.
    """
    root = datasets_root() / "cityscapes"
    images = require(root / "leftImg8bit" / subset, name)
    labels = require(root / "gtFine" / subset, name)
    converted = {path.name for path in labels.glob(f"*/*{_TRAIN_ID_SUFFIX}")}
    records = []
    for image in sorted(images.glob(f"*/*{_IMAGE_SUFFIX}")):
        city, stem = image.parent.name, image.name.removesuffix(_IMAGE_SUFFIX)
        train_ids = stem + _TRAIN_ID_SUFFIX
        label = labels / city / (train_ids if train_ids in converted else stem + _LABEL_SUFFIX)
        records.append({"file_name": str(image), "sem_seg_file_name": str(label), "image_id": f"{city}/{stem}"})
    return require_some(records, images, name)


def register_cityscapes() -> None:
    """Register ``cityscapes_sem_seg_{train,val}``; files are looked for when one is loaded."""
    for subset in ("train", "val"):
        name = f"cityscapes_sem_seg_{subset}"
        DatasetCatalog.register(name, partial(load_cityscapes, name, subset))
        MetadataCatalog.get(name).set(
            stuff_classes=[class_name for _, class_name, _ in CLASSES],
            stuff_colors=[color for _, _, color in CLASSES],
            ignore_label=IGNORE,
            label_map=LABEL_MAP,
            train_id_suffix=_TRAIN_ID_SUFFIX,
            evaluator_type="sem_seg",
        )
