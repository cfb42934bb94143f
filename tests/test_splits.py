"""Splits: counts, independence of listing order, nesting, balance, the unlabeled pool, errors."""

import rc2l  # noqa: F401  first of all: makes detectron2 importable

# isort: split
import hashlib
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from rc2l.config import get_rc2l_cfg
from rc2l.data.datasets import load_records
from rc2l.data.errors import DatasetError
from rc2l.data.splits import _balanced_order, build_split, log_split
from tests.mini_datasets import build_mini_camvid, build_mini_voc, save_gray_png
from tests.shared_data import REPO, shared_file


@pytest.fixture
def register():
    """Registers datasets of bare ids (no files) and forgets them after the test."""
    names = []

    def add(name: str, ids: list[str]) -> str:
        def records() -> list[dict]:
            return [{"file_name": f"{i}.jpg", "sem_seg_file_name": f"{i}.png", "image_id": i} for i in ids]

        DatasetCatalog.register(name, records)
        MetadataCatalog.get(name).set(stuff_classes=["a", "b", "c"], ignore_label=255, evaluator_type="sem_seg")
        names.append(name)
        return name

    yield add
    for name in names:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)


def config(train, fraction="all", unlabeled=(), **split):
    cfg = get_rc2l_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.UNLABELED = (train,) if isinstance(train, str) else train, unlabeled
    cfg.DATASETS.SPLIT.FRACTION = fraction
    for key, value in split.items():
        cfg.DATASETS.SPLIT[key] = value
    return cfg


def ids_of(records):
    return [record["image_id"] for record in records]


@pytest.mark.parametrize(
    ("total", "fraction", "labeled"),
    [
        *[(1464, f"1/{d}", n) for d, n in ((2, 732), (4, 366), (8, 183), (16, 92))],
        *[(10582, f"1/{d}", n) for d, n in ((2, 5291), (4, 2646), (8, 1323), (16, 662))],
        *[(2975, f"1/{d}", n) for d, n in ((2, 1488), (4, 744), (8, 372), (16, 186))],
        (100, "0.07", 7),  # 0.07 * 100 in floating point is above 7
        (3, "1/100", 1),
    ],
)
def test_counts_are_those_of_the_papers(register, total, fraction, labeled):
    name = register("counts_sem_seg_train", [f"{i:05d}" for i in range(total)])
    split = build_split(config(name, fraction))
    assert (len(split.labeled), len(split.unlabeled)) == (labeled, total - labeled)
    assert set(ids_of(split.labeled)).isdisjoint(ids_of(split.unlabeled))


def test_order_is_the_hash_of_seed_and_id(register):
    ids = [f"image{i}" for i in range(20)]
    forward = build_split(config(register("forward_sem_seg_train", ids), "1/4", SEED=3))
    backward = build_split(config(register("backward_sem_seg_train", ids[::-1]), "1/4", SEED=3))
    expected = sorted(ids, key=lambda i: hashlib.sha256(f"3:{i}".encode()).hexdigest())
    assert ids_of(forward.labeled) == ids_of(backward.labeled) == expected[:5]
    assert ids_of(forward.unlabeled) == ids_of(backward.unlabeled) == expected[5:]
    assert forward.hash == backward.hash and len(forward.hash) == 12


def test_seed_and_fraction_change_the_hash_and_fractions_are_nested(register):
    name = register("nested_sem_seg_train", [f"image{i}" for i in range(64)])
    small, large = build_split(config(name, "1/8")), build_split(config(name, "1/4"))
    other = build_split(config(name, "1/8", SEED=1))
    assert set(ids_of(small.labeled)) < set(ids_of(large.labeled))
    assert set(ids_of(small.labeled)) != set(ids_of(other.labeled))
    assert len({small.hash, large.hash, other.hash}) == 3


def test_another_process_makes_the_same_split(register, monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(build_mini_camvid(tmp_path)))
    cfg = config("camvid_sem_seg_train", "1/4")
    code = (
        "from rc2l.config import get_rc2l_cfg; from rc2l.data.splits import build_split; cfg = get_rc2l_cfg();"
        "cfg.DATASETS.TRAIN = ('camvid_sem_seg_train',); cfg.DATASETS.SPLIT.FRACTION = '1/4';"
        "print(build_split(cfg).hash)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert run.stdout.split()[-1] == build_split(cfg).hash


def test_number_overrides_fraction(register):
    name = register("number_sem_seg_train", [str(i) for i in range(10)])
    assert len(build_split(config(name, "1/2", NUM_LABELED=3)).labeled) == 3


def test_unlabeled_images_have_no_label_file(register):
    name = register("nolabel_sem_seg_train", [str(i) for i in range(8)])
    split = build_split(config(name, "1/2"))
    assert all("sem_seg_file_name" in record for record in split.labeled)
    assert not any("sem_seg_file_name" in record for record in split.unlabeled)
    assert {record["dataset"] for record in split.unlabeled} == {name}


def test_unlabeled_dataset_of_the_same_family_counts_each_image_once(monkeypatch, tmp_path):
    """The 1.4k split of VOC: all of train is labeled, the rest of train_aug, which contains train, is not."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(build_mini_voc(tmp_path, num_train=5, num_aug=3, num_val=1)))
    split = build_split(config("voc_2012_sem_seg_train", unlabeled=("voc_2012_sem_seg_train_aug",)))
    assert len(split.labeled) == 5
    assert sorted(ids_of(split.unlabeled)) == ["2008_000000", "2008_000001", "2008_000002"]
    assert all("SegmentationClass/" in record["sem_seg_file_name"] for record in split.labeled)

    half = build_split(config("voc_2012_sem_seg_train", "2/5", unlabeled=("voc_2012_sem_seg_train_aug",)))
    assert (len(half.labeled), len(half.unlabeled)) == (2, 6)


def test_same_ids_in_other_families_are_other_images(register):
    first, second = register("first_sem_seg_train", ["1", "2"]), register("second_sem_seg_train", ["1", "2"])
    split = build_split(config((first, second), "1/4"))
    assert (len(split.labeled), len(split.unlabeled)) == (1, 3)


def test_class_balance_covers_rare_classes(monkeypatch, tmp_path):
    """Of 40 images one shows class 9 and one class 10: both are among the first four labeled ones for any seed."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(build_mini_camvid(tmp_path, num_train=40)))
    rare = {"train_00007": 9, "train_00031": 10}
    for record in load_records("camvid_sem_seg_train"):
        label = np.zeros((36, 48), dtype=np.uint8)
        label[0, 0] = rare.get(record["image_id"], 1)
        save_gray_png(label, Path(record["sem_seg_file_name"]))
    for seed in range(3):
        balanced = config("camvid_sem_seg_train", NUM_LABELED=4, SAMPLING="class_balanced", SEED=seed)
        assert set(rare) <= set(ids_of(build_split(balanced).labeled))
    large = build_split(config("camvid_sem_seg_train", NUM_LABELED=20, SAMPLING="class_balanced", SEED=seed))
    assert ids_of(large.labeled)[:4] == ids_of(build_split(balanced).labeled)
    assert len(set(ids_of(large.labeled))) == 20


def test_greedy_balance_on_a_case_worked_by_hand():
    """Least seen class first, ties to the smaller id, images in hash order; class c is in one image only."""
    presence = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 0], [1, 0, 1]], dtype=bool)
    # a: image 0. b (0 seen): image 1. c (0 seen): image 3. b (1 seen) before a (3): image 2.
    assert _balanced_order(presence, 4) == [0, 1, 3, 2]
    # An image of ignored pixels only is taken last.
    assert _balanced_order(np.array([[0, 0], [1, 0], [0, 1]], dtype=bool), 3) == [1, 2, 0]


def test_camvid_one_eighth(monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shared_file("camvid").parent))
    split = build_split(config("camvid_sem_seg_train", "1/8", SAMPLING="class_balanced"))
    assert (len(split.labeled), len(split.unlabeled), split.hash) == (46, 321, "73a1ec7c367c")


def test_log_line(register, caplog):
    split = build_split(config(register("logged_sem_seg_train", ["1", "2"]), "1/2", SEED=5))
    with caplog.at_level(logging.INFO, logger="rc2l"):
        log_split(split)
    (record,) = caplog.records
    for part in ("1 labeled + 1 unlabeled", "logged_sem_seg_train", "1/2", "seed 5", split.hash):
        assert part in record.getMessage()


@pytest.mark.parametrize("fraction", ["0", "-1/2", "3/2", "1/0", "half", ""])
def test_bad_fractions(register, fraction):
    name = register("bad_sem_seg_train", ["1", "2"])
    with pytest.raises(DatasetError, match=rf"FRACTION is '{fraction}'; it must be 'all' or a fraction above 0"):
        build_split(config(name, fraction))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"NUM_LABELED": 3}, "NUM_LABELED is 3, but DATASETS.TRAIN has 2 labeled images"),
        ({"NUM_LABELED": -1}, "NUM_LABELED is -1; it must be 0"),
        ({"SAMPLING": "sorted"}, "SAMPLING is 'sorted'; it must be one of"),
        ({}, "no unlabeled images are left for SEMI.METHOD 'rc2l': all 2 images"),
    ],
)
def test_bad_options(register, options, message):
    name = register("options_sem_seg_train", ["1", "2"])
    with pytest.raises(DatasetError, match=message):
        build_split(config(name, **options))


def test_supervised_needs_no_unlabeled_images(register):
    cfg = config(register("supervised_sem_seg_train", ["1", "2"]))
    cfg.SEMI.METHOD = "supervised"
    split = build_split(cfg)
    assert (len(split.labeled), split.unlabeled) == (2, [])


def test_no_or_unknown_dataset():
    with pytest.raises(DatasetError, match=r"DATASETS.TRAIN is empty"):
        build_split(config(()))
    with pytest.raises(DatasetError, match=r"unknown dataset 'nowhere'; registered are: .*camvid_sem_seg_train"):
        build_split(config("nowhere"))
