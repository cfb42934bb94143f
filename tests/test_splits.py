"""Splits: counts, independence of listing order, nesting, balance, the unlabelled pool, errors."""

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
from rc2l.data.partial_labels import read_record_label
from rc2l.data.splits import _balanced_order, build_split, log_split
from rc2l.structures.needs import Needs
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


@pytest.mark.parametrize(
    ("total", "labeled"), [(2975, 100), (2975, 20), (2975, 50), (2975, 150), (10582, 60), (10582, 1464)]
)
def test_numbers_of_the_papers(register, total, labeled):
    name = register("numbers_sem_seg_train", [f"{i:05d}" for i in range(total)])
    split = build_split(config(name, NUM_LABELED=labeled))
    assert (len(split.labeled), len(split.unlabeled)) == (labeled, total - labeled)


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


@pytest.mark.whole_run
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
    """The 1.4k split of VOC: all of train is labelled, the rest of train_aug, which contains train, is not."""
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
    """Of 40 images one shows class 9 and one class 10: both are among the first four labelled ones for any seed."""
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
    for part in ("1 labelled + 1 unlabelled", "logged_sem_seg_train", "1/2", "seed 5", split.hash):
        assert part in record.getMessage()


@pytest.mark.parametrize("fraction", ["0", "-1/2", "3/2", "1/0", "half", ""])
def test_bad_fractions(register, fraction):
    name = register("bad_sem_seg_train", ["1", "2"])
    with pytest.raises(DatasetError, match=rf"FRACTION is '{fraction}'; it must be 'all' or a fraction above 0"):
        build_split(config(name, fraction))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"NUM_LABELED": 3}, "NUM_LABELED is 3, but DATASETS.TRAIN has 2 labelled images"),
        ({"NUM_LABELED": -1}, "NUM_LABELED is -1; it must be 0"),
        ({"SAMPLING": "sorted"}, "SAMPLING is 'sorted'; it must be one of"),
        ({}, "no unlabelled images are left for SEMI.METHOD 'rc2l': all 2 images"),
    ],
)
def test_bad_options(register, options, message):
    name = register("options_sem_seg_train", ["1", "2"])
    with pytest.raises(DatasetError, match=message):
        build_split(config(name, **options))


def present_classes(records) -> np.ndarray:
    """(n, 256): which ids the labels hold."""
    return np.stack([np.bincount(read_record_label(r).ravel(), minlength=256) > 0 for r in records])


@pytest.fixture
def rare_classes(tmp_path, register):
    """1200 images with labels of 9 classes: class 0 everywhere, others the rarer the higher, at most 5 in one."""
    name, folder, random = "rare_sem_seg_train", tmp_path / "rare", np.random.default_rng(0)
    folder.mkdir()
    register(name, [str(i) for i in range(1200)])
    MetadataCatalog.pop(name)
    MetadataCatalog.get(name).set(stuff_classes=[f"c{i}" for i in range(9)], evaluator_type="sem_seg")
    paths = [str(folder / f"{i}.png") for i in range(1200)]
    chance = 1 / np.arange(2, 10)
    for path in paths:
        chosen = [0, *(1 + random.choice(8, size=random.integers(0, 5), replace=False, p=chance / chance.sum()))]
        save_gray_png(np.resize(np.array(chosen, dtype=np.uint8), (2, 4)), Path(path))
    DatasetCatalog.pop(name)
    DatasetCatalog.register(name, lambda: [{"file_name": path, "sem_seg_file_name": path} for path in paths])
    return name


@pytest.mark.parametrize(("count", "least"), [(20, 5), (60, 15), (200, 50)])
def test_few_labels_show_the_least_seen_class_often_and_have_enough_classes(rare_classes, count, least):
    """ReCo section 4.1: the least seen classes appear in 5, 15 and 50 labelled images."""
    split = build_split(config(rare_classes, NUM_LABELED=count, SAMPLING="few_labels", MIN_CLASSES=4))
    present = present_classes(split.labeled)
    assert present.shape[0] == count and (present.sum(axis=1) >= 4).all()
    assert present[:, :9].sum(axis=0).min() >= least
    drawn = build_split(config(rare_classes, NUM_LABELED=count))
    assert present_classes(drawn.labeled)[:, :9].sum(axis=0).min() < least
    assert "few_labels with 4 or more classes" in split.source


def test_few_labels_say_when_too_few_images_have_enough_classes(rare_classes):
    with pytest.raises(DatasetError, match=r"asks for 20 images, but only 0 of 1200 have the 6 classes of MIN_CLASSES"):
        build_split(config(rare_classes, NUM_LABELED=20, SAMPLING="few_labels", MIN_CLASSES=6))


def test_smaller_shares_of_the_unlabeled_images_are_contained_in_larger_ones(register):
    """ReCo figure 7c: the same labelled images, fewer unlabelled ones; rounded up."""
    name = register("share_test", [f"image{number}" for number in range(120)])
    whole = build_split(config(name, "1/6"))
    for share, count in ((0.02, 2), (0.07, 7), (0.5, 50), (1.0, 100)):
        split = build_split(config(name, "1/6", UNLABELED_SHARE=share))
        assert ids_of(split.labeled) == ids_of(whole.labeled)
        assert ids_of(split.unlabeled) == ids_of(whole.unlabeled)[:count] and len(split.unlabeled) == count
        assert ("of the unlabelled images" in split.source) == (share < 1)


@pytest.fixture
def city(register):
    """Eight images in Cityscapes' layout: ids with a folder, file names with a suffix."""
    name = register("listed_sem_seg_train", [])
    DatasetCatalog.pop(name)
    DatasetCatalog.register(
        name,
        lambda: [
            {
                "file_name": f"/data/city/leftImg8bit/train/{town}/{town}_{i}_leftImg8bit.png",
                "sem_seg_file_name": f"/data/city/gtFine/train/{town}/{town}_{i}_gtFine_labelIds.png",
                "image_id": f"{town}/{town}_{i}",
            }
            for town in ("aachen", "bonn")
            for i in range(4)
        ],
    )
    return name


LAYOUTS = {
    "id": "{town}/{town}_{i}",
    "id without its folder": "{town}_{i}",
    "file name": "{town}_{i}_leftImg8bit.png",
    "stem": "{town}_{i}_leftImg8bit",
    "end of the path": "leftImg8bit/train/{town}/{town}_{i}_leftImg8bit.png",
    "path of another machine": "/home/me/cityscapes/leftImg8bit/train/{town}/{town}_{i}_leftImg8bit.png",
    "image and label": "leftImg8bit/train/{town}/{town}_{i}_leftImg8bit.png gtFine/{town}/{town}_{i}_labelTrainIds.png",
    "image, tab, label": "./train/{town}/{town}_{i}_leftImg8bit.png\tgtFine/{town}_{i}_labelTrainIds.png",
    "comma": "{town}_{i}_leftImg8bit.png,{town}_{i}_labelTrainIds.png",
    "another suffix": "images/{town}_{i}_leftImg8bit.jpg",
    "backslashes": "train\\{town}\\{town}_{i}_leftImg8bit.png",
}


def write_list(path: Path, pattern: str, members: str) -> Path:
    """``members`` "a0 b2" -> aachen_0 and bonn_2, one a line in ``pattern``."""
    towns = {"a": "aachen", "b": "bonn"}
    lines = [pattern.format(town=towns[member[0]], i=member[1:]) for member in members.split()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\ufeff" + "\r\n".join(lines) + "\n\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts_are_read(city, tmp_path, layout):
    labeled = write_list(tmp_path / "2/labeled.txt", LAYOUTS[layout], "b3 a1")
    split = build_split(config(city, LABELED_LIST=str(labeled)))
    assert sorted(ids_of(split.labeled)) == ["aachen/aachen_1", "bonn/bonn_3"] and len(split.unlabeled) == 6
    assert all("sem_seg_file_name" in record for record in split.labeled)

    write_list(tmp_path / "2/unlabeled.txt", LAYOUTS[layout], "a2 b0 b1")
    for lists in (
        {"LABELED_LIST": str(tmp_path / "2")},
        {"LABELED_LIST": str(labeled), "UNLABELED_LIST": str(tmp_path / "2")},
    ):
        split = build_split(config(city, **lists))
        assert sorted(ids_of(split.labeled)) == ["aachen/aachen_1", "bonn/bonn_3"]
        assert sorted(ids_of(split.unlabeled)) == ["aachen/aachen_2", "bonn/bonn_0", "bonn/bonn_1"]
        assert not any("sem_seg_file_name" in record for record in split.unlabeled)
        assert split.seed is None and str(tmp_path / "2") in split.source


def test_the_order_of_lines_changes_nothing_and_file_names_may_hold_spaces(register, tmp_path):
    name = register("spaces_sem_seg_train", ["my roof 1", "my roof 2", "my", "roof"])
    files = {"a": "my roof 2.jpg\nmy.jpg\n", "b": "my\nmy roof 2 label.png\n"}
    splits = []
    for key, text in files.items():
        (tmp_path / key).write_text(text)
        splits.append(build_split(config(name, LABELED_LIST=str(tmp_path / key))))
    assert sorted(ids_of(splits[0].labeled)) == ["my", "my roof 2"]
    assert splits[0].labeled == splits[1].labeled and splits[0].hash == splits[1].hash


def test_a_listed_split_equals_the_drawn_one(city, tmp_path, caplog):
    drawn = build_split(config(city, "1/4"))
    (tmp_path / "labeled.txt").write_text("\n".join(ids_of(drawn.labeled)))
    read = build_split(config(city, LABELED_LIST=str(tmp_path)))
    assert (read.labeled, read.unlabeled, read.hash) == (drawn.labeled, drawn.unlabeled, drawn.hash)
    with caplog.at_level(logging.INFO, logger="rc2l"):
        log_split(read)
    assert f"2 labelled + 6 unlabelled images from {city} (lists {tmp_path}), hash {read.hash}" in caplog.text


BAD_LISTS = {
    "no match": ("a1\nzurich_1\nzurich_2", "", {}, r"labeled.txt line 2: 'zurich_1' matches no image of .*1 more such"),
    "twice": ("aachen_1\n\nleftImg8bit/train/aachen/aachen_1_leftImg8bit.png", "", {}, r"line 3: .* of line 1 again"),
    "ambiguous": ("x/1.jpg", "", {}, r"line 1: 'x/1.jpg' matches 2 images \(1.jpg, 1.jpg\); write more"),
    "empty": ("\n \n", "", {}, r"labeled.txt is empty; write one"),
    "both": ("bonn_1\nbonn_2", "aachen_1\nbonn_2", {}, r"unlabeled.txt line 2 is labelled by .*labeled.txt line 2 \("),
    "bad unlabelled": (
        "bonn_1",
        "nowhere",
        {},
        r"unlabeled.txt line 1: 'nowhere' matches no image of DATASETS.TRAIN and",
    ),
    "other fraction": (
        "bonn_1",
        "",
        {"FRACTION": "1/4"},
        r"lists 1 images, but DATASETS.SPLIT asks for FRACTION 1/4 \(",
    ),
    "other number": ("bonn_1", "", {"NUM_LABELED": 3}, r"lists 1 images, but .* NUM_LABELED 3; set FRACTION all"),
    "missing": (None, "", {}, r"LABELED_LIST: .*labeled.txt does not exist; name a text file"),
    "no unlabelled file": ("bonn_1", "", {"UNLABELED_LIST": "none.txt"}, r"UNLABELED_LIST: none.txt does not exist"),
    "no labelled list": (
        "",
        "",
        {"LABELED_LIST": "", "UNLABELED_LIST": "u.txt"},
        r"UNLABELED_LIST is 'u.txt' without a",
    ),
    "binary": (b"\xff\xfe\x00", "", {}, r"labeled.txt: cannot read this list \(.*UTF-8 text"),
}


@pytest.mark.parametrize("case", BAD_LISTS)
def test_bad_lists(city, register, tmp_path, case):
    labeled, unlabeled, options, message = BAD_LISTS[case]
    names = (city, register("one_sem_seg_train", ["1"]), register("two_sem_seg_train", ["1"]))
    for file, content in (("labeled.txt", labeled), ("unlabeled.txt", unlabeled)):
        if content:
            content = content if isinstance(content, bytes) else content.replace("a1\n", "aachen_1\n").encode()
            (tmp_path / file).write_bytes(content)
    if labeled is not None and not labeled.strip():
        (tmp_path / "labeled.txt").write_text(labeled)
    options = {"LABELED_LIST": str(tmp_path)} | options
    with pytest.raises(DatasetError, match=message) as error:
        build_split(config(names, options.pop("FRACTION", "all"), **options))
    assert "\n" not in str(error.value)


def test_a_listed_image_must_have_a_label(city, register, tmp_path):
    name = register("bare_sem_seg_train", [])
    DatasetCatalog.pop(name)
    DatasetCatalog.register(name, lambda: [{"file_name": "/data/bare.jpg"}])
    (tmp_path / "labeled.txt").write_text("bare.jpg\n")
    with pytest.raises(DatasetError, match=r"'bare.jpg' matches no image of DATASETS.TRAIN with a label"):
        build_split(config((city, name), LABELED_LIST=str(tmp_path)))


def test_unlabeled_lists_may_name_images_of_unlabeled_datasets(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(build_mini_voc(tmp_path, num_train=4, num_aug=3, num_val=1)))
    (tmp_path / "labeled.txt").write_text("JPEGImages/2007_000001.jpg SegmentationClass/2007_000001.png\n")
    (tmp_path / "unlabeled.txt").write_text("2007_000000\n2008_000002\n")
    cfg = config("voc_2012_sem_seg_train", unlabeled=("voc_2012_sem_seg_train_aug",), LABELED_LIST=str(tmp_path))
    split = build_split(cfg)
    assert ids_of(split.labeled) == ["2007_000001"] and "SegmentationClass/" in split.labeled[0]["sem_seg_file_name"]
    assert sorted(ids_of(split.unlabeled)) == ["2007_000000", "2008_000002"]


def test_supervised_needs_no_unlabeled_images(register):
    cfg = config(register("supervised_sem_seg_train", ["1", "2"]))
    split = build_split(cfg, Needs())
    assert (len(split.labeled), split.unlabeled) == (2, [])


def test_no_or_unknown_dataset():
    with pytest.raises(DatasetError, match=r"DATASETS.TRAIN is empty"):
        build_split(config(()))
    with pytest.raises(DatasetError, match=r"unknown dataset 'nowhere'; registered are: .*camvid_sem_seg_train"):
        build_split(config("nowhere"))
