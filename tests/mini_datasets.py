"""Miniature copies of the real datasets' folder layouts: a few small images with rectangles of every class."""

from pathlib import Path

import numpy as np
from PIL import Image

from rc2l.data.datasets.cityscapes import CLASSES as CITYSCAPES_CLASSES
from rc2l.data.datasets.voc import palette


def paint_label(index: int, num_classes: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8: class 0 with two rectangles of other classes, which change with ``index``, and a border of 255."""
    H, W = size
    label = np.zeros(size, dtype=np.uint8)
    for part, (top, left) in enumerate(((H // 8, W // 8), (H // 2, W // 2))):
        bottom, right = top + H // 3, left + W // 3
        label[top - 1 : bottom + 1, left - 1 : right + 1] = 255
        label[top:bottom, left:right] = 1 + (2 * index + part) % (num_classes - 1)
    return label


def paint_image(label: np.ndarray, seed: int) -> np.ndarray:
    """(H, W, 3) uint8: the colour of each class in the VOC palette, with noise."""
    colors = np.array(palette(256), dtype=np.int64)
    noise = np.random.default_rng(seed).integers(-20, 21, (*label.shape, 3))
    return np.clip(colors[label] // 2 + 60 + noise, 0, 255).astype(np.uint8)


def save_palette_png(label: np.ndarray, path: Path) -> None:
    """Save a label map as VOC does: indices with a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(label).convert("P")
    image.putpalette(np.array(palette(256), dtype=np.uint8).tobytes())
    image.putdata(label.ravel().tolist())
    image.save(path)


def save_gray_png(label: np.ndarray, path: Path) -> None:
    """Save a label map as 8-bit grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(label).save(path)


def save_image(image: np.ndarray, path: Path) -> None:
    """Save an RGB image; the suffix says how."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def build_mini_voc(
    root: Path,
    num_train: int = 32,
    num_aug: int = 16,
    num_val: int = 4,
    size: tuple[int, int] = (48, 64),
    aug_list: str | None = "trainaug.txt",
) -> Path:
    """A VOC 2012 devkit below ``root`` with ``num_train`` + ``num_aug`` + ``num_val`` images; returns ``root``.

    SegmentationClassAug holds labels of all of them, as the common archives do. ``aug_list`` None: no list of them.
    """
    devkit = Path(root) / "VOCdevkit" / "VOC2012"
    ids = {
        "train": [f"2007_{i:06d}" for i in range(num_train)],
        "aug": [f"2008_{i:06d}" for i in range(num_aug)],
        "val": [f"2009_{i:06d}" for i in range(num_val)],
    }
    pairs = [(subset, image_id) for subset, members in ids.items() for image_id in members]
    for seed, (subset, image_id) in enumerate(pairs):
        label = paint_label(seed, 21, size)
        save_image(paint_image(label, seed), devkit / "JPEGImages" / f"{image_id}.jpg")
        save_gray_png(label, devkit / "SegmentationClassAug" / f"{image_id}.png")
        if subset != "aug":
            save_palette_png(label, devkit / "SegmentationClass" / f"{image_id}.png")
    lists = devkit / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(ids["train"]) + "\n")
    (lists / "val.txt").write_text("\n".join(ids["val"]) + "\n")
    if aug_list:
        (lists / aug_list).write_text("\n".join(ids["train"] + ids["aug"]) + "\n")
    return Path(root)


def build_mini_cityscapes(root: Path, num_train: int = 8, num_val: int = 2, size: tuple[int, int] = (32, 64)) -> Path:
    """Cityscapes below ``root``, labels as labelIds (raw ids of 0..33); returns ``root``."""
    raw_ids = np.full(256, 0, dtype=np.uint8)
    raw_ids[: len(CITYSCAPES_CLASSES)] = [raw_id for raw_id, _, _ in CITYSCAPES_CLASSES]
    base = Path(root) / "cityscapes"
    for subset, count, cities in (("train", num_train, ("aachen", "bochum")), ("val", num_val, ("lindau",))):
        for index in range(count):
            city = cities[index % len(cities)]
            stem = f"{city}_{index:06d}_000019"
            label = paint_label(index, len(CITYSCAPES_CLASSES), size)
            save_image(paint_image(label, index), base / "leftImg8bit" / subset / city / f"{stem}_leftImg8bit.png")
            save_gray_png(raw_ids[label], base / "gtFine" / subset / city / f"{stem}_gtFine_labelIds.png")
    return Path(root)


def build_mini_camvid(root: Path, num_train: int = 16, num_val: int = 4, size: tuple[int, int] = (36, 48)) -> Path:
    """CamVid below ``root``, with 11 for unlabelled pixels; returns ``root``."""
    base = Path(root) / "camvid"
    for subset, count in (("train", num_train), ("val", num_val)):
        for index in range(count):
            label = paint_label(index, 11, size)
            name = f"{subset}_{index:05d}"
            save_image(paint_image(label, index), base / "images" / subset / f"{name}.jpg")
            save_gray_png(np.where(label == 255, np.uint8(11), label), base / "labels" / subset / f"{name}.png")
    return Path(root)
