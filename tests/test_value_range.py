"""value_range, bands and max_pixels of a description: one rule in training, checks, evaluation and prediction."""

import rc2l  # noqa: F401  first of all: makes detectron2 importable

# isort: split
import logging

import numpy as np
import pytest
import tifffile
import yaml
from detectron2.data import MetadataCatalog
from PIL import Image

from rc2l.config import get_rc2l_cfg
from rc2l.data.audit import audit_dataset
from rc2l.data.check import check_data
from rc2l.data.datasets import custom, load_records, register_dataset_file
from rc2l.data.errors import DatasetError
from rc2l.data.image_rule import changed_rule, dataset_rule
from rc2l.data.mapper import EvaluationMapper, LabeledMapper, UnlabeledMapper
from rc2l.data.splits import build_split
from rc2l.modeling.weight_files import WeightFile
from rc2l.modeling.weights import _rule_warnings

SIZE = (24, 32)
RULE = {"value_range": [-10, 90], "bands": [3, 0, 1]}


def values_of(index: int) -> np.ndarray:
    """(H, W, 4) float32 from -10 to 90."""
    ramp = np.linspace(-10, 90, SIZE[0] * SIZE[1], dtype=np.float32).reshape(SIZE)
    return np.stack([np.roll(ramp, index + 7 * band) for band in range(4)], axis=-1)


def write(root, count=8, more=2, **keys):
    """A dataset of float TIFF files with four bands; ``keys`` go into the description."""
    for index in range(count + more):
        path = root / ("images" if index < count else "more") / f"{index}.tif"
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, values_of(index), photometric="minisblack", planarconfig="contig")
        if index < count:
            (root / "labels").mkdir(exist_ok=True)
            Image.fromarray(np.arange(SIZE[0] * SIZE[1], dtype=np.uint8).reshape(SIZE) % 2).save(
                root / f"labels/{index}.png"
            )
    return describe(root, **keys)


def describe(root, **keys):
    content = {"name": "heat", "classes": ["a", "b"], "images": "images", "labels": "labels", "unlabeled": "more"}
    (root / "heat.yaml").write_text(yaml.safe_dump(content | {"val_fraction": 0.3} | keys))
    register_dataset_file(root / "heat.yaml")
    cfg = get_rc2l_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("heat_sem_seg_train",), ("heat_sem_seg_val",)
    cfg.DATASETS.UNLABELED = ("heat_sem_seg_unlabeled",)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", list(SIZE)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = (SIZE[0],), "choice"
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.RANDOM_FLIP, cfg.INPUT.COLOR_AUG_SSD = 0, "none", False
    cfg.INPUT.FORMAT = "RGB"
    return cfg


@pytest.fixture(autouse=True)
def forget_datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("RC2L_CACHE", str(tmp_path / "cache"))
    yield
    custom.unregister(custom.custom_datasets())


def expected(record) -> np.ndarray:
    """By the definition, from the values that were written."""
    index = int(record["image_id"].rsplit("/", 1)[-1])
    scaled = (values_of(index)[..., RULE["bands"]].astype(np.float64) + 10) / 100 * 255
    return np.rint(scaled).clip(0, 255).astype(np.uint8).transpose(2, 0, 1)


def test_every_mapper_shows_the_same_values(tmp_path):
    cfg = write(tmp_path, **RULE)
    checked = 0
    for name, mapper, keys in (
        ("train", LabeledMapper(cfg), ["image"]),
        ("unlabeled", UnlabeledMapper(cfg), ["image"]),
        ("val", EvaluationMapper(cfg), ["image"]),
    ):
        for record in load_records(f"heat_sem_seg_{name}"):
            sample = mapper(record)
            for key in keys:
                np.testing.assert_array_equal(sample[key].numpy(), expected(record))
                checked += 1
    assert checked == 10


def test_without_the_rule_training_is_refused_before_it_starts(tmp_path):
    cfg = write(tmp_path)
    with pytest.raises(DatasetError) as error:
        check_data(cfg, build_split(cfg), cfg.DATASETS.TEST)
    first = str(error.value).split("\n")[1]
    assert "10 of 10 images cannot be used" in str(error.value)
    assert "0.tif: this image has 4 bands of floating-point values of 32 bits" in str(error.value)
    assert "bands: [0, 1, 2]" in first and "value_range: [0, 1]" in first
    report = audit_dataset("heat_sem_seg_val")
    assert len(report.problems) == len(report.records) and "has values from -10 to 90" in report.problems[0]


def test_the_rule_is_said_once_before_training(tmp_path, caplog):
    cfg = write(tmp_path, **RULE)
    with caplog.at_level(logging.INFO, logger="rc2l"):
        check_data(cfg, build_split(cfg), cfg.DATASETS.TEST)
    (line,) = [r.getMessage() for r in caplog.records if "value_range" in r.getMessage()]
    assert "heat_sem_seg_train, heat_sem_seg_unlabeled, heat_sem_seg_val: " in line
    assert "bands [3, 0, 1] are red, green and blue; value_range [-10, 90] becomes 0 to 255" in line
    assert "10 images of 4 bands of floating-point values of 32 bits; their values reach from -10 to 90" in line


def test_check_says_what_does_not_fit(tmp_path):
    write(tmp_path, bands=[0], value_range=[0, 4095])
    values = np.full(SIZE, 5000.0)
    values[:2] = np.nan
    tifffile.imwrite(tmp_path / "images/0.tif", values)
    Image.fromarray(np.full(SIZE, 255, np.uint8)).save(tmp_path / "more/x.png")
    reports = [audit_dataset(f"heat_sem_seg_{subset}") for subset in ("train", "val", "unlabeled")]
    notes = "\n".join(note for report in reports for note in report.notes)
    assert "1 of" in notes and "images have pixels that are NaN" in notes
    assert "value_range scales the images of all kinds alike: 2 images of 4 bands" in notes
    assert "images of 8 bits have values from 255 to 255: only 1 of 256 greys are left" in notes
    assert "only 7 of 256 greys are left of them, so value_range is too wide; 10." in notes
    assert not any(report.problems for report in reports)
    describe(tmp_path, bands=[0], value_range=[0, 1])
    (problem,) = audit_dataset("heat_sem_seg_unlabeled").problems
    assert "of all values lie beyond value_range, so they are black or white: they reach from -10 to 255" in problem


def test_the_keys_stand_in_the_metadata_and_prediction_may_change_them(tmp_path):
    cfg = write(tmp_path, **RULE, max_pixels=1000)
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
    assert (metadata.value_range, metadata.bands, metadata.max_pixels) == ((-10.0, 90.0), (3, 0, 1), 1000)
    rule = changed_rule(dataset_rule(cfg.DATASETS.TEST[0]), {"value_range": [0.0, 1.0], "bands": None}, "predict")
    assert (rule.value_range, rule.bands, rule.max_pixels) == ((0.0, 1.0), (3, 0, 1), 1000)
    describe(tmp_path, **RULE, max_pixels=767)
    with pytest.raises(DatasetError, match=r"32x24 pixels .*, 0\.0 million, .*max_pixels: 768 in the description"):
        EvaluationMapper(cfg)(load_records("heat_sem_seg_val")[0])
    with pytest.raises(DatasetError, match="'value_range' is \\[5, 5\\]; it must be"):
        describe(tmp_path, value_range=[5, 5])


def test_weights_of_a_run_with_another_rule_are_named(tmp_path):
    cfg = write(tmp_path, **RULE)
    then = {"heat.value_range": [0.0, 1.0], "heat.bands": [3, 0, 1], "roofs.bands": [1]}
    (warning,) = _rule_warnings(cfg, WeightFile("w.pth", "", "", None, {}, [], then))
    assert "value_range of dataset 'heat' is [-10.0, 90.0], and was [0.0, 1.0] when they were trained" in warning
    then = {"heat.value_range": [-10.0, 90.0], "heat.bands": [3, 0, 1]}
    assert not _rule_warnings(cfg, WeightFile("w.pth", "", "", None, {}, [], then))
    assert not _rule_warnings(cfg, WeightFile("w.pth", "", "", None, {}, []))


#: INPUT.MIN_SIZE_TEST, MAX_SIZE_TEST, BASE_SIZE, SCALE_RANGE.
SIZES = ((512, 2048, [], []), (20, 30, [], []), (0, 100, [], [0.5, 2.0]), (0, 100, [64, 64], []))


@pytest.mark.parametrize("size", [(3, 4000), (4000, 3), (1, 1), (1, 500)])
def test_strips_and_single_pixels_come_through_all_mappers(tmp_path, size):
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(tmp_path / "strip.png")
    Image.fromarray(np.ones(size, np.uint8)).save(tmp_path / "label.png")
    write(tmp_path)
    record = {"file_name": str(tmp_path / "strip.png"), "image_id": "strip", "dataset": "heat_sem_seg_val"}
    labeled = record | {"sem_seg_file_name": str(tmp_path / "label.png")}
    for short, long, base, scales in SIZES:
        cfg = get_rc2l_cfg()
        cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [16, 16]
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (short or 4,), long, short
        cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.BASE_SIZE, cfg.INPUT.SCALE_RANGE = long, base, scales
        assert LabeledMapper(cfg)(labeled)["image"].shape == (3, 16, 16)
        assert UnlabeledMapper(cfg)(record)["image"].shape == (3, 16, 16)
        sample = EvaluationMapper(cfg)(labeled)
        assert min(sample["image"].shape) >= 1 and (sample["height"], sample["width"]) == size
