"""Registers the datasets of the project with detectron2 and loads registered ones, whoever registered them."""

from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from rc2l.data.datasets.camvid import register_camvid
from rc2l.data.datasets.cityscapes import register_cityscapes
from rc2l.data.datasets.custom import register_custom_datasets, register_dataset_file, register_semantic_dataset
from rc2l.data.datasets.shapes import register_shapes
from rc2l.data.datasets.sun_rgbd import register_sun_rgbd
from rc2l.data.datasets.voc import register_voc
from rc2l.data.errors import DatasetError

register_shapes()
register_voc()
register_cityscapes()
register_camvid()
register_sun_rgbd()

__all__ = [
    "dataset_family",
    "known_datasets",
    "load_records",
    "register_custom_datasets",
    "register_dataset_file",
    "register_semantic_dataset",
]


def dataset_family(name: str) -> str:
    """What the subsets of one dataset share: "voc_2012" for ``voc_2012_sem_seg_train``; else the name itself."""
    return name.split("_sem_seg_")[0]


def known_datasets() -> list[str]:
    """Names of all registered datasets for semantic segmentation."""
    return sorted(
        name for name in DatasetCatalog.list() if MetadataCatalog.get(name).get("evaluator_type") == "sem_seg"
    )


def load_records(name: str) -> list[dict]:
    """Dataset dicts of a registered dataset.

    Each has ``file_name``, ``image_id`` (the file's stem where the dataset gives none), ``dataset`` (``name``), and
    ``sem_seg_file_name`` where there is a label.

    Raises:
        DatasetError: ``name`` is not registered or has labels but no ``stuff_classes``, its files are missing, or two
            images have the same id.
    """
    if name not in DatasetCatalog.list():
        raise DatasetError(f"unknown dataset '{name}'; registered are: {', '.join(known_datasets())}")
    records = [
        {"image_id": Path(record["file_name"]).stem, **record, "dataset": name} for record in DatasetCatalog.get(name)
    ]
    # Images without labels can do without classes.
    if not MetadataCatalog.get(name).get("stuff_classes") and any("sem_seg_file_name" in record for record in records):
        raise DatasetError(
            f"dataset '{name}' has no class names for semantic segmentation; set stuff_classes in its metadata"
        )
    if len({record["image_id"] for record in records}) < len(records):
        seen: set[str] = set()
        twice = next(i for i in (record["image_id"] for record in records) if i in seen or seen.add(i))
        raise DatasetError(f"dataset '{name}': image id '{twice}' occurs twice; every image needs an id of its own")
    return records
