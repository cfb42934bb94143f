"""Miniature data of users: folders with images and labels, a labelme export, COCO-style JSON files."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from tests.mini_datasets import paint_image, paint_label, save_gray_png, save_image, save_palette_png

SIZE = (32, 48)


def write_folder(root: Path, count: int = 8, images: str = "images", labels: str = "labels") -> Path:
    """``count`` images and labels of 3 classes; returns ``root``."""
    for index in range(count):
        label = paint_label(index, 3, SIZE)
        save_image(paint_image(label, index), root / images / f"{index:02d}.jpg")
        save_gray_png(label, root / labels / f"{index:02d}.png")
    return root


def write_labelme(root: Path, count: int = 8) -> Path:
    """The output folder of labelme2voc.py: palette PNG files beside arrays, class names with labelme's special ones."""
    for index in range(count):
        label = paint_label(index, 3, SIZE)
        save_image(paint_image(label, index), root / "JPEGImages" / f"{index:02d}.jpg")
        save_palette_png(label, root / "SegmentationClass" / f"{index:02d}.png")
        np.save(root / "SegmentationClass" / f"{index:02d}.npy", np.where(label == 255, -1, label.astype(np.int32)))
        save_image(paint_image(label, index), root / "SegmentationClassVisualization" / f"{index:02d}.jpg")
    (root / "class_names.txt").write_text("__ignore__\n_background_\nroof\nroad\n")
    return root


def rectangle(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    """A polygon as COCO has it."""
    return [[left, top, right, top, right, bottom, left, bottom]]


def run_lengths(mask: np.ndarray, compressed: bool) -> dict:
    """A mask as COCO has it: counts as a list of numbers, or as text."""
    if compressed:
        encoded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
        return {"size": list(mask.shape), "counts": encoded["counts"].decode()}
    flat = mask.ravel(order="F").astype(np.int8)
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flat])))
    return {"size": list(mask.shape), "counts": np.diff([0, *changes, flat.size]).tolist()}


def coco_content(count: int = 8) -> dict:
    """Instances of two categories on ``count`` images of :data:`SIZE`; category ids are not sorted."""
    H, W = SIZE
    images = [{"id": 10 + i, "file_name": f"{i:02d}.jpg", "height": H, "width": W} for i in range(count)]
    annotations = []
    for image in images:
        mask = np.zeros(SIZE, dtype=bool)
        mask[16:28, 20:44] = True
        annotations += [
            {"image_id": image["id"], "category_id": 7, "segmentation": rectangle(4, 4, 24, 20)},
            {"image_id": image["id"], "category_id": 3, "segmentation": run_lengths(mask, image["id"] % 2 == 0)},
            {"image_id": image["id"], "category_id": 7, "iscrowd": 1, "segmentation": run_lengths(mask[::-1], False)},
        ]
    for number, annotation in enumerate(annotations):
        annotation["id"] = number
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 7, "name": "roof"}, {"id": 3, "name": "road"}],
    }


def write_coco(root: Path, content: dict | None = None) -> Path:
    """Images and ``annotations.json`` below ``root``; returns ``root``."""
    content = content or coco_content()
    for index, image in enumerate(content["images"]):
        save_image(paint_image(paint_label(index, 3, SIZE), index), root / "images" / image["file_name"])
    (root / "annotations.json").write_text(json.dumps(content))
    return root


def write_panoptic(root: Path, count: int = 4) -> Path:
    """Images, ``panoptic.json`` and ``panoptic/*.png`` below ``root``, with segment ids above 255; returns ``root``."""
    images, annotations = [], []
    for index in range(count):
        label = paint_label(index, 3, SIZE)
        save_image(paint_image(label, index), root / "images" / f"{index:02d}.jpg")
        ids = np.array([1000, 70000, 3], dtype=np.int64)
        segments = np.where(label == 255, 0, ids[np.minimum(label, 2)])
        colors = np.stack([segments & 255, segments >> 8 & 255, segments >> 16], axis=-1).astype(np.uint8)
        (root / "panoptic").mkdir(exist_ok=True)
        Image.fromarray(colors).save(root / "panoptic" / f"{index:02d}.png")
        images.append({"id": index, "file_name": f"{index:02d}.jpg", "height": SIZE[0], "width": SIZE[1]})
        info = [{"id": int(i), "category_id": c, "iscrowd": 0} for c, i in enumerate(ids) if (segments == i).any()]
        annotations.append({"image_id": index, "file_name": f"{index:02d}.png", "segments_info": info})
    categories = [{"id": i, "name": name} for i, name in enumerate(("ground", "roof", "road"))]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "panoptic.json").write_text(json.dumps(content))
    return root
