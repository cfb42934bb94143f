"""The embedded dataset `shapes`: made by our own code in VOC layout, read by ``shapes_sem_seg_{train,val}``.

Layout below ``DETECTRON2_DATASETS``: ``shapes/JPEGImages/*.jpg``, ``shapes/SegmentationClass/*.png`` (palette, 255 =
ignore), ``shapes/ImageSets/Segmentation/{train,val}.txt`` and ``shapes/shapes.json`` (what it was made with).
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from tqdm import tqdm

from rc2l.data.datasets.shapes_painter import CLASSES, class_color, paint_scene
from rc2l.data.errors import DatasetError
from rc2l.data.scratch import scratch_folder
from rc2l.structures.label_map import IGNORE

#: Changes whenever the same parameters give other images.
VERSION = 1
SPLITS = ("train", "val")
_JPEG_QUALITY = 95
_IGNORE_COLOR = (224, 224, 192)


def generate_shapes(
    root: str | Path,
    num_train: int = 512,
    num_val: int = 128,
    size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> Path:
    """Write the dataset to ``root/shapes``; nothing to do where it already is, made with the same parameters.

    Image ``i`` of a split depends on ``seed``, the split and ``i`` only, so a smaller dataset is the beginning of a
    larger one. Files are written to a temporary folder that then takes the place of an older ``root/shapes``.

    Args:
        root: folder of all datasets (``DETECTRON2_DATASETS``), made if missing.
        num_train, num_val: images a split, at least 1.
        size: height and width in pixels, at least 16.
        seed: at least 0.
        progress: show a progress bar.

    Returns:
        The folder ``root/shapes``.

    Raises:
        ValueError: a parameter is out of range.
        FileExistsError: ``root/shapes`` exists and was not made by this function.
    """
    for name, value, low in (
        ("num_train", num_train, 1),
        ("num_val", num_val, 1),
        ("size", size, 16),
        ("seed", seed, 0),
    ):
        if value < low:
            raise ValueError(f"shapes: {name} is {value}; use {low} or more")
    root = Path(root)
    folder = root / "shapes"
    record = {"version": VERSION, "num_train": num_train, "num_val": num_val, "size": size, "seed": seed}
    if folder.exists():
        if not (folder / "shapes.json").is_file():
            raise FileExistsError(
                f"{folder} has no shapes.json, so it is not ours to replace; move it or use another root"
            )
        if _read_record(folder) == record:
            return folder

    root.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder) as scratch:
        _write_dataset(scratch, record, progress)
        if folder.exists():
            folder.rename(scratch / "replaced")
        # The old dataset sits inside the new one for a moment, so that one cleanup serves success and failure.
        scratch.rename(folder)
        shutil.rmtree(folder / "replaced", ignore_errors=True)
    return folder


def load_shapes(split: str) -> list[dict]:
    """Dataset dicts of a split (``file_name``, ``sem_seg_file_name``, ``image_id``), read at call time.

    Raises:
        DatasetError: a file or folder of the dataset is missing, or the split is empty.
    """
    folder = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "shapes"
    images, labels = folder / "JPEGImages", folder / "SegmentationClass"
    names_file = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
    for path in (images, labels, names_file):
        if not path.exists():
            raise DatasetError(f"shapes: {path} is missing; make the dataset with `python tools/make_shapes.py`")
    names = names_file.read_text().split()
    if not names:
        raise DatasetError(f"shapes: {names_file} names no image; make the dataset with `python tools/make_shapes.py`")
    return [
        {
            "file_name": str(images / f"{name}.jpg"),
            "sem_seg_file_name": str(labels / f"{name}.png"),
            "image_id": name,
        }
        for name in names
    ]


def register_shapes() -> None:
    """Register ``shapes_sem_seg_train`` and ``shapes_sem_seg_val``; a second call changes nothing."""
    for split in SPLITS:
        name = f"shapes_sem_seg_{split}"
        if name in DatasetCatalog.list():
            continue
        DatasetCatalog.register(name, lambda split=split: load_shapes(split))
        MetadataCatalog.get(name).set(
            stuff_classes=list(CLASSES),
            stuff_colors=[class_color(label) for label in range(len(CLASSES))],
            ignore_label=IGNORE,
            evaluator_type="sem_seg",
        )


def _read_record(folder: Path) -> dict | None:
    try:
        return json.loads((folder / "shapes.json").read_text())
    except json.JSONDecodeError:
        return None


def _write_dataset(folder: Path, record: dict, progress: bool) -> None:
    images, labels, lists = folder / "JPEGImages", folder / "SegmentationClass", folder / "ImageSets" / "Segmentation"
    for path in (images, labels, lists):
        path.mkdir(parents=True)
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(CLASSES)] = [class_color(label) for label in range(len(CLASSES))]
    palette[IGNORE] = _IGNORE_COLOR

    total = record["num_train"] + record["num_val"]
    with tqdm(total=total, desc="shapes", unit="image", disable=not progress) as bar:
        for number, split in enumerate(SPLITS):
            count = record[f"num_{split}"]
            names = [f"{split}_{index:04d}" for index in range(count)]
            plan = _class_plan(record["seed"], number)
            for index, name in enumerate(names):
                rng = _generator(record["seed"], number, index)
                image, label_map = paint_scene(rng, next(plan), record["size"])
                _write_jpeg(images / f"{name}.jpg", image)
                label_image = Image.fromarray(label_map).convert("P")
                label_image.putpalette(palette.tobytes())
                label_image.save(labels / f"{name}.png")
                bar.update()
            (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    (folder / "shapes.json").write_text(json.dumps(record, indent=2) + "\n")


def _class_plan(seed: int, split: int) -> Iterator[list[int]]:
    """Label ids of the objects of each image in turn: 1 to 3 objects, all counts and all classes equally often.

    Classes come in shuffled blocks that hold each one three times, so one image may have several objects of a class.
    """
    # One stream for counts and one for classes; the third word keeps both apart from the images' streams.
    count_rng, class_rng = _generator(seed, split, 0, 1), _generator(seed, split, 0, 2)
    pool: list[int] = []
    while True:
        for count in count_rng.permutation([1, 2, 3]):
            if len(pool) < count:
                pool += class_rng.permutation(np.repeat(np.arange(1, len(CLASSES)), 3)).tolist()
            labels, pool = pool[:count], pool[count:]
            yield labels


def _generator(*words: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(list(words)))


def _write_jpeg(path: Path, image: np.ndarray) -> None:
    """Write an RGB image; cv2 itself only returns False where it cannot."""
    if not cv2.imwrite(str(path), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]):
        raise OSError(f"cannot write {path}; check the folder's permissions and the free space")
