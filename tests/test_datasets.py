"""Registered datasets: layouts, label encodings, what is said when files are missing; and the configs that use them."""

import rc2l  # noqa: F401  first of all: makes detectron2 importable

# isort: split
import re
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from rc2l.data.datasets import known_datasets, load_records
from rc2l.data.datasets.voc import palette
from rc2l.data.errors import DatasetError
from rc2l.data.reading import read_image, read_image_size, read_label
from rc2l.engine.config_file import load_config
from rc2l.semi.method import method_of
from tests.mini_datasets import build_mini_camvid, build_mini_cityscapes, build_mini_voc, paint_label, save_gray_png
from tests.shared_data import REPO, shared_file

PARTS = ("data", "methods", "models", "papers")
CONFIGS = sorted(
    path
    for path in (REPO / "configs").rglob("*.yaml")
    if path.parent.name not in PARTS and path.name != "my_dataset.yaml" and not path.name.startswith("Base-")
)
SIZES = {"voc": 21, "cityscapes": 19, "sun": 37, "camvid": 11, "shapes": 9}


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


@pytest.fixture
def toy_metadata():
    name = "toy_sem_seg_labels"
    metadata = MetadataCatalog.get(name)
    metadata.set(stuff_classes=["a", "b", "c"], ignore_label=255)
    yield metadata
    MetadataCatalog.pop(name)


@pytest.mark.parametrize("name", [n for n in known_datasets() if n.split("_")[0] in SIZES and "fine" not in n])
def test_metadata_is_complete(name):
    metadata = MetadataCatalog.get(name)
    K = SIZES[name.split("_")[0]]
    assert len(metadata.stuff_classes) == len(set(metadata.stuff_classes)) == len(metadata.stuff_colors) == K
    assert metadata.ignore_label == 255


def test_all_promised_datasets_are_registered():
    promised = {
        f"{d}_sem_seg_{s}" for d in ("shapes", "voc_2012", "cityscapes", "sun_rgbd", "camvid") for s in ("train", "val")
    }
    assert promised | {"voc_2012_sem_seg_train_aug"} <= set(known_datasets())


@pytest.mark.parametrize(
    ("name", "looked_for"),
    [
        ("voc_2012_sem_seg_train", "VOCdevkit/VOC2012/JPEGImages"),
        ("cityscapes_sem_seg_val", "cityscapes/leftImg8bit/val"),
        ("sun_rgbd_sem_seg_train", "sunrgbd/images"),
        ("camvid_sem_seg_train", "camvid/images/train"),
        ("shapes_sem_seg_train", "make_shapes.py"),
    ],
)
def test_missing_dataset_names_path_and_root(datasets, name, looked_for):
    with pytest.raises(DatasetError) as error:
        load_records(name)
    assert looked_for in str(error.value) and str(datasets) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_dataset_without_environment_variable(tmp_path, monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match=f"DETECTRON2_DATASETS is not set.*{tmp_path}/datasets"):
        load_records("voc_2012_sem_seg_val")


def test_unknown_dataset_lists_the_known():
    with pytest.raises(DatasetError, match=r"unknown dataset 'voc'.*camvid_sem_seg_train.*voc_2012_sem_seg_val"):
        load_records("voc")


def test_duplicate_image_ids_are_refused():
    name = "twice_sem_seg_train"
    DatasetCatalog.register(name, lambda: [{"file_name": "a/x.png"}, {"file_name": "b/x.png"}])
    MetadataCatalog.get(name).set(stuff_classes=["a"], ignore_label=255)
    try:
        with pytest.raises(DatasetError, match="'x' occurs twice"):
            load_records(name)
    finally:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)


def test_voc_palette_starts_as_the_devkit_says():
    expected = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128)]
    colors = palette(256)
    assert colors[:7] == expected
    assert colors[20] == (0, 64, 128) and colors[255] == (224, 224, 192)


@pytest.mark.parametrize("aug_list", ["trainaug.txt", "train_aug.txt", None])
def test_voc_subsets(datasets, aug_list):
    build_mini_voc(datasets, num_train=3, num_aug=2, num_val=2, aug_list=aug_list)
    subsets = {s: load_records(f"voc_2012_sem_seg_{s}") for s in ("train", "train_aug", "val")}
    assert {s: len(records) for s, records in subsets.items()} == {"train": 3, "train_aug": 5, "val": 2}
    assert subsets["train"][0]["image_id"] == "2007_000000"
    assert all("SegmentationClassAug" in record["sem_seg_file_name"] for record in subsets["train_aug"])
    label = read_label(subsets["train"][1]["sem_seg_file_name"], MetadataCatalog.get("voc_2012_sem_seg_train"))
    assert np.array_equal(label, paint_label(1, 21, (48, 64)))


def test_voc_list_of_sbd_paths(datasets):
    build_mini_voc(datasets, num_train=1, num_aug=1, num_val=1)
    path = datasets / "VOCdevkit/VOC2012/ImageSets/Segmentation/trainaug.txt"
    path.write_text("/JPEGImages/2008_000000.jpg /SegmentationClassAug/2008_000000.png\n\n")
    assert [record["image_id"] for record in load_records("voc_2012_sem_seg_train_aug")] == ["2008_000000"]


def test_cityscapes_ids_are_mapped_and_train_ids_are_not(datasets):
    build_mini_cityscapes(datasets, num_train=3, num_val=1)
    name = "cityscapes_sem_seg_train"
    raw = datasets / "cityscapes/gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"
    converted = raw.with_name("aachen_000000_000019_gtFine_labelTrainIds.png")
    train_ids = paint_label(0, 19, (32, 64))
    save_gray_png(train_ids[::-1], converted)

    records = {record["image_id"]: record for record in load_records(name)}
    assert set(records) == {"aachen/aachen_000000_000019", "bochum/bochum_000001_000019", "aachen/aachen_000002_000019"}
    metadata = MetadataCatalog.get(name)
    preferred = records["aachen/aachen_000000_000019"]["sem_seg_file_name"]
    assert preferred == str(converted)
    assert np.array_equal(read_label(preferred, metadata), train_ids[::-1])
    assert np.array_equal(read_label(str(raw), metadata), train_ids)


def test_every_cityscapes_id(datasets):
    """labelIds of the dataset's definition -> train ids, value by value; the license plate (-1) is 255 in a file."""
    train_ids = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13}
    train_ids |= {27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
    raw = [*range(34), 255]
    save_gray_png(np.array([raw], dtype=np.uint8), datasets / "a_gtFine_labelIds.png")
    metadata = MetadataCatalog.get("cityscapes_sem_seg_train")
    label = read_label(str(datasets / "a_gtFine_labelIds.png"), metadata)
    assert label.tolist() == [[train_ids.get(raw_id, 255) for raw_id in raw]]
    save_gray_png(np.array([[34]], dtype=np.uint8), datasets / "b_gtFine_labelIds.png")
    with pytest.raises(DatasetError, match="label ids 34 are out of range"):
        read_label(str(datasets / "b_gtFine_labelIds.png"), metadata)
    save_gray_png(np.array([[*range(19), 255]], dtype=np.uint8), datasets / "c_gtFine_labelTrainIds.png")
    assert read_label(str(datasets / "c_gtFine_labelTrainIds.png"), metadata).tolist() == [[*range(19), 255]]


def test_camvid_unlabeled_is_ignored(datasets):
    build_mini_camvid(datasets, num_train=2, num_val=1)
    record = load_records("camvid_sem_seg_train")[1]
    label = read_label(record["sem_seg_file_name"], MetadataCatalog.get("camvid_sem_seg_train"))
    assert np.array_equal(label, paint_label(1, 11, (36, 48)))


def test_real_camvid(monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shared_file("camvid").parent))
    records = load_records("camvid_sem_seg_train")
    assert len(records) == 367 and len(load_records("camvid_sem_seg_val")) == 101
    label = read_label(records[0]["sem_seg_file_name"], MetadataCatalog.get("camvid_sem_seg_train"))
    assert label.shape == read_image_size(records[0]["file_name"]) == (360, 480)
    assert set(np.unique(label)) <= {*range(11), 255}


def test_label_ids_out_of_range_are_named(tmp_path, toy_metadata):
    path = tmp_path / "bad.png"
    save_gray_png(np.array([[0, 1, 2], [3, 17, 255]], dtype=np.uint8), path)
    with pytest.raises(DatasetError, match=r"bad.png: label ids 3, 17 are out of range; allowed are 0..2 or 255.*map"):
        read_label(str(path), toy_metadata)


def test_label_map_is_exhaustive_and_may_use_255(tmp_path, toy_metadata):
    path = tmp_path / "mapped.png"
    save_gray_png(np.array([[0, 9, 255]], dtype=np.uint8), path)
    toy_metadata.label_map = {0: 2, 9: 255, 255: 1}
    assert read_label(str(path), toy_metadata).tolist() == [[2, 255, 1]]
    save_gray_png(np.array([[0, 1]], dtype=np.uint8), path)
    with pytest.raises(DatasetError, match="label ids 1 are out of range; allowed are those of label_map, 0, 9, 255"):
        read_label(str(path), toy_metadata)


def test_label_map_to_a_class_that_does_not_exist(tmp_path, toy_metadata):
    save_gray_png(np.zeros((1, 1), dtype=np.uint8), tmp_path / "x.png")
    toy_metadata.label_map = {0: 3}
    with pytest.raises(DatasetError, match=r"sends 0 to 3; it must send .* to 0..2 or 255"):
        read_label(str(tmp_path / "x.png"), toy_metadata)


def test_16_bit_labels(tmp_path, toy_metadata):
    path = tmp_path / "deep.png"
    Image.fromarray(np.array([[1, 1000]], dtype=np.uint16)).save(path)
    with pytest.raises(DatasetError, match="label ids 1000 are out of range"):
        read_label(str(path), toy_metadata)
    toy_metadata.label_map = {1: 1, 1000: 0}
    assert read_label(str(path), toy_metadata).tolist() == [[1, 0]]


def test_color_and_damaged_labels(tmp_path, toy_metadata):
    color, damaged = tmp_path / "color.png", tmp_path / "damaged.png"
    Image.new("RGB", (4, 4)).save(color)
    damaged.write_bytes(color.read_bytes()[:40])
    with pytest.raises(DatasetError, match=r"color.png: this label is a RGB colour image"):
        read_label(str(color), toy_metadata)
    with pytest.raises(DatasetError, match=r"damaged.png: cannot read this label"):
        read_label(str(damaged), toy_metadata)
    with pytest.raises(DatasetError, match=r"none.png: cannot read this label \(it does not exist\)"):
        read_label(str(tmp_path / "none.png"), toy_metadata)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_images_are_turned_upright(tmp_path, suffix):
    path = tmp_path / f"turned{suffix}"
    pixels = np.zeros((10, 20, 3), dtype=np.uint8)
    pixels[:5, :10] = (250, 0, 0)
    exif = Image.Exif()
    exif[274] = 6  # to be shown turned by 90 degrees clockwise
    Image.fromarray(pixels).save(path, exif=exif, **({"quality": 100} if suffix == ".jpg" else {}))
    image = read_image(str(path), "BGR")
    assert image.shape == (20, 10, 3) and read_image_size(str(path)) == (20, 10)
    assert image[2, 8, 2] > 150 > 100 > image[2, 8, 0] and image[2, 2].max() < 100


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(REPO / "configs")))
def test_config_loads(path):
    cfg = load_config(str(path), [])
    assert cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupPolyLR"
    method_of(cfg)  # knows the method, and that it fits the model
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.UNLABELED, *cfg.DATASETS.TEST]
    assert names and set(names) <= set(known_datasets())
    assert all(len(MetadataCatalog.get(name).stuff_classes) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES for name in names)


def paper_configs() -> list[Path]:
    """Those of RC²L."""
    found = [path for path in CONFIGS if path.parts[-2] in ("voc", "voc_aug", "cityscapes")]
    return [path for path in found if re.search(r"_r\d+_", path.name) and "dgcl" not in path.name]


@pytest.mark.parametrize("path", paper_configs(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_paper_configs_say_what_their_names_say(path):
    """RC²L section 4.1; the file name is <method>_<backbone>_<split>.yaml."""
    method, backbone, split = re.fullmatch(r"(\w+?)_(r\d+)_([\w.-]+)\.yaml", path.name).groups()
    cfg = load_config(str(path), [])
    assert (method, f"r{cfg.MODEL.RESNETS.DEPTH}") == (cfg.SEMI.METHOD, backbone)
    fraction = "all" if split == "1.4k" else split.replace("-", "/")
    assert fraction == cfg.DATASETS.SPLIT.FRACTION
    iterations, crop, alpha = {
        "voc": (120_000, [512, 512], 2.0),
        "voc_aug": (160_000, [512, 512], 1.0),
        "cityscapes": (120_000, [768, 768], 1.0),
    }[path.parent.name]
    assert (cfg.SOLVER.MAX_ITER, list(cfg.INPUT.CROP.SIZE), cfg.SEMI.UNSUPERVISED_WEIGHT) == (iterations, crop, alpha)
    unlabeled = 0 if method == "supervised" else cfg.SOLVER.IMS_PER_BATCH_UNLABELED
    assert cfg.SOLVER.IMS_PER_BATCH + unlabeled == 16
    solver = cfg.SOLVER
    assert (solver.OPTIMIZER, solver.BASE_LR, solver.WEIGHT_DECAY, solver.POLY_LR_POWER) == ("ADAMW", 1e-4, 1e-4, 0.9)
    clip = solver.CLIP_GRADIENTS
    assert (clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE) == (True, "full_model", 0.01)
    assert cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES == 50
    weights = cfg.RC2L
    assert (weights.RCC_WEIGHT, weights.SMC_FOCAL_WEIGHT, weights.RMC_WEIGHT, weights.RFC_WEIGHT) == (1, 20, 4, 4)
