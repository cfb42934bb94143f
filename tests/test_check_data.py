"""Every kind of bad data gives one clear error before training."""

import rc2l  # noqa: F401  first of all: makes detectron2 importable

# isort: split
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from rc2l.config import get_rc2l_cfg
from rc2l.data.check import check_data
from rc2l.data.errors import DatasetError
from rc2l.data.splits import build_split
from rc2l.structures.needs import Needs
from tests.mini_datasets import build_mini_camvid, save_gray_png

TEST = ("camvid_sem_seg_val",)


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(build_mini_camvid(tmp_path, num_train=12, num_val=3)))
    cfg = get_rc2l_cfg()
    cfg.DATASETS.TRAIN = ("camvid_sem_seg_train",)
    cfg.DATASETS.SPLIT.FRACTION = "1/2"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 11
    return cfg


@pytest.fixture
def split(cfg):
    return build_split(cfg)


def label_of(record) -> Path:
    return Path(record["sem_seg_file_name"])


def fails(cfg, split, message, test=TEST):
    with pytest.raises(DatasetError, match=message) as error:
        check_data(cfg, split, test)
    return str(error.value)


def test_good_data_passes_and_logs_the_classes(cfg, split, caplog):
    with caplog.at_level(logging.INFO, logger="rc2l"):
        check_data(cfg, split, TEST)
    text = caplog.text
    assert "Building" in text and "(ignored)" in text and not any(r.levelno >= 30 for r in caplog.records)


def test_label_file_missing(cfg, split):
    label_of(split.labeled[2]).unlink()
    text = fails(cfg, split, "the label file .* of this image does not exist; add it")
    assert split.labeled[2]["file_name"] in text and "\n" not in text


def test_unlabeled_images_need_no_label(cfg, split, tmp_path):
    for record in split.unlabeled:
        (tmp_path / "camvid/labels/train" / f"{record['image_id']}.png").unlink()
    check_data(cfg, split, TEST)


@pytest.mark.parametrize("pool", ["labeled", "unlabeled"])
def test_image_unreadable(cfg, split, pool):
    path = getattr(split, pool)[0]["file_name"]
    Path(path).write_bytes(b"nothing")
    fails(cfg, split, rf"{path}: cannot read this image")
    Path(path).unlink()
    fails(cfg, split, rf"{path}: cannot read this image \(it does not exist\)")


def test_unlabeled_images_are_not_looked_at_for_supervised_training(cfg, split):
    Path(split.unlabeled[0]["file_name"]).unlink()
    check_data(cfg, split, TEST, Needs())


def test_label_unreadable(cfg, split):
    path = label_of(split.labeled[0])
    path.write_bytes(path.read_bytes()[:50])
    fails(cfg, split, rf"{path}: cannot read this label")


def test_label_is_a_color_image(cfg, split):
    Image.new("RGB", (48, 36)).save(label_of(split.labeled[0]))
    fails(cfg, split, "this label is a RGB colour image")


def test_label_id_out_of_range(cfg, split):
    save_gray_png(np.full((36, 48), 12, dtype=np.uint8), label_of(split.labeled[0]))
    fails(cfg, split, "label ids 12 are out of range; allowed are those of label_map, 0..11")


def test_sizes_differ(cfg, split):
    save_gray_png(np.zeros((48, 36), dtype=np.uint8), label_of(split.labeled[0]))
    fails(cfg, split, "is 48x36 pixels .* 36x48; both must have the same size")


def test_many_errors_are_counted_and_some_shown(cfg, split):
    for record in split.labeled:
        label_of(record).unlink()
    for index in range(4):
        (label_of(split.labeled[0]).parents[1] / f"val/val_{index:05d}.png").unlink(missing_ok=True)
    for record in split.unlabeled:
        Path(record["file_name"]).write_bytes(b"")
    text = fails(cfg, split, "15 of 15 images cannot be used")
    assert text.count("does not exist") == 6 and text.count("it is empty") == 4 and text.endswith("and 5 more")


def test_empty_split(cfg, split):
    fails(cfg, replace(split, labeled=[]), "the split has no labelled image")


def test_number_of_classes(cfg, split):
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 12
    fails(cfg, split, "NUM_CLASSES is 12, but dataset 'camvid_sem_seg_train' has 11 classes; set it to 11")


def test_train_and_test_classes_differ(cfg, split):
    name = "other_sem_seg_val"
    DatasetCatalog.register(name, lambda: [])
    classes = list(MetadataCatalog.get(TEST[0]).stuff_classes)
    MetadataCatalog.get(name).set(stuff_classes=["Sky", "House", *classes[2:]], ignore_label=255)
    try:
        fails(cfg, split, "'camvid_sem_seg_train' .* 'other_sem_seg_val' .*class 1 is 'Building' and 'House'", (name,))
    finally:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)


@pytest.mark.parametrize("pool", ["labeled", "unlabeled"])
def test_overlap_by_image_id(cfg, split, pool, tmp_path):
    image_id = getattr(split, pool)[0]["image_id"]
    for kind, suffix in (("images", "jpg"), ("labels", "png")):
        folder = tmp_path / "camvid" / kind
        (folder / "val" / f"{image_id}.{suffix}").write_bytes((folder / "train" / f"{image_id}.{suffix}").read_bytes())
    fails(cfg, split, f"1 of 4 images of test dataset 'camvid_sem_seg_val' are also in the training data.*'{image_id}'")


def test_overlap_by_file(cfg, split, tmp_path):
    image = tmp_path / "camvid/images/val/val_00000.jpg"
    image.unlink()
    image.symlink_to(split.unlabeled[0]["file_name"])
    fails(cfg, split, "first 'val_00000'")


def test_test_images_are_checked_up_to_the_limit(cfg, split, tmp_path):
    (tmp_path / "camvid/labels/val/val_00002.png").unlink()
    fails(cfg, split, r"val_00002.jpg: the label file")
    cfg.TEST.MAX_IMAGES = 2
    check_data(cfg, split, TEST)


def test_foreground_saved_as_255_gives_a_warning(cfg, split, caplog):
    for record in split.labeled:
        label = np.zeros((36, 48), dtype=np.uint8)
        label[:10] = 255
        save_gray_png(label, label_of(record))
    check_data(cfg, split, TEST)
    assert "hold only 0 and 255" in caplog.text and "label_map {0: 0, 255: 1}" in caplog.text


def test_classes_without_labels_give_a_warning(cfg, split, caplog):
    for record in split.labeled:
        label = np.full((36, 48), 3, dtype=np.uint8)
        label[:10] = 1
        save_gray_png(label, label_of(record))
    check_data(cfg, split, TEST)
    assert "No labelled image shows Sky, Pole, Pavement" in caplog.text
