"""SUN RGB-D: ids value by value, ReCo's re-split by hash or by lists, and the configs of its appendix A."""

import rc2l  # noqa: F401  first of all: makes detectron2 importable

# isort: split
import logging
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from rc2l.data.datasets import load_records
from rc2l.data.datasets.sun_rgbd import CLASSES, validation_ids
from rc2l.data.errors import DatasetError
from rc2l.data.reading import read_label
from rc2l.engine.config_file import load_config
from tests.mini_datasets import paint_image, paint_label, save_gray_png, save_image
from tests.shared_data import REPO

TRAIN, VAL = "sun_rgbd_sem_seg_train", "sun_rgbd_sem_seg_val"


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """44 images in the real layout."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for index in range(44):
        label = paint_label(index, 37, (24, 32))
        name = f"img-{index + 1:06d}"
        save_image(paint_image(label, index), tmp_path / "sunrgbd/images" / f"{name}.jpg")
        save_gray_png(
            np.where(label == 255, 0, label + 1).astype(np.uint8), tmp_path / "sunrgbd/labels" / f"{name}.png"
        )
    return tmp_path / "sunrgbd"


def ids(name: str) -> list[str]:
    return [record["image_id"] for record in load_records(name)]


def test_every_id(tmp_path):
    """0 is unlabelled; 1 (wall) to 37 (bag) are 0 to 36."""
    save_gray_png(np.array([[*range(38), 255]], dtype=np.uint8), tmp_path / "label.png")
    metadata = MetadataCatalog.get(TRAIN)
    assert read_label(str(tmp_path / "label.png"), metadata).tolist() == [[255, *range(37), 255]]
    places = {0: "wall", 1: "floor", 6: "table", 9: "bookshelf", 13: "desk", 24: "tv", 31: "night stand", 36: "bag"}
    assert len(CLASSES) == 37 and {index: CLASSES[index] for index in places} == places
    save_gray_png(np.array([[38]], dtype=np.uint8), tmp_path / "label.png")
    with pytest.raises(DatasetError, match=r"label\.png: label ids 38 are out of range"):
        read_label(str(tmp_path / "label.png"), metadata)


def test_the_full_dataset_splits_into_9860_and_475():
    all_ids = [f"img-{number:06d}" for number in range(1, 10336)]
    validation = validation_ids(all_ids)
    assert (len(all_ids) - len(validation), len(validation)) == (9860, 475)
    assert validation == validation_ids(all_ids[::-1])
    assert sorted(validation)[:3] == ["img-000035", "img-000061", "img-000088"]


def test_the_split_of_a_miniature_tree(root, caplog):
    with caplog.at_level(logging.WARNING, logger="rc2l"):
        train, val = ids(TRAIN), ids(VAL)
    assert len(train) == 42 and len(val) == 2 and not set(train) & set(val)
    assert "holds 44 images, not 10335" in caplog.text
    record = load_records(TRAIN)[3]
    index = int(record["image_id"][-6:]) - 1
    assert np.array_equal(
        read_label(record["sem_seg_file_name"], MetadataCatalog.get(TRAIN)), paint_label(index, 37, (24, 32))
    )


def test_lists_are_followed(root):
    (root / "train.txt").write_text("img-000002\nimg-000003.jpg\nimages/img-000005.jpg labels/img-000005.png\n")
    (root / "val.txt").write_text("img-000009\n")
    assert ids(TRAIN) == ["img-000002", "img-000003", "img-000005"] and ids(VAL) == ["img-000009"]


def test_one_list_of_two(root):
    (root / "val.txt").write_text("img-000009\n")
    with pytest.raises(DatasetError, match=r"train\.txt does not exist .*; give both lists"):
        load_records(TRAIN)


def test_a_list_with_an_unknown_image(root):
    (root / "train.txt").write_text("img-000002\nimg-010335\n")
    (root / "val.txt").write_text("img-000009\n")
    with pytest.raises(DatasetError, match=r"train\.txt: 1 of 2 images are not in .*, first 'img-010335'; correct"):
        load_records(TRAIN)


def test_no_images(root):
    for path in (root / "images").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match=r"sunrgbd/images holds no images; see datasets/README\.md"):
        load_records(VAL)


@pytest.mark.parametrize(
    ("recipe", "size", "crop"),
    [
        ("sun/classmix-reco_deeplab-r101_50", [384, 512], 321),
        ("cityscapes_half/classmix-reco_deeplab-r101_20", [512, 1024], 512),
    ],
)
def test_recipes_have_the_sizes_and_splits_of_the_paper(recipe, size, crop):
    """ReCo appendix A and table 1."""
    cfg = load_config(str(REPO / f"configs/{recipe}.yaml"), [])
    assert (list(cfg.INPUT.BASE_SIZE), list(cfg.INPUT.CROP.SIZE)) == (size, [crop, crop])
    assert list(cfg.INPUT.SCALE_RANGE) == ([0.5, 1.5] if recipe.startswith("sun") else [])
    assert (cfg.SOLVER.MAX_ITER, cfg.DATASETS.SPLIT.SAMPLING) == (40_000, "few_labels")
    assert int(recipe.rsplit("_", 1)[1]) == cfg.DATASETS.SPLIT.NUM_LABELED
