"""Partial labels: shares, truth, determinism, the folder of the tool."""

import rc2l  # noqa: F401  first of all: makes detectron2 importable

# isort: split
import hashlib
import json
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

from rc2l.config import get_rc2l_cfg
from rc2l.data.datasets import load_records
from rc2l.data.errors import DatasetError
from rc2l.data.mapper import LabeledMapper
from rc2l.data.partial_labels import FACTS_FILE, generator_of, partial_label, read_record_label
from rc2l.data.reading import read_label
from rc2l.data.splits import build_split
from tests.mini_datasets import build_mini_camvid, build_mini_cityscapes
from tests.shared_data import REPO

TOOL = runpy.run_path(str(REPO / "tools/make_partial_labels.py"))

SHARES = (0.0, 0.01, 0.05, 0.25, 1.0)


def blobs(size=(90, 120), num_classes=6, seed=0) -> np.ndarray:
    """A label with connected and scattered classes, single pixels and ignored areas."""
    noise = np.random.default_rng(seed).random((num_classes, *size)).astype(np.float32)
    smooth = np.stack([cv2.GaussianBlur(layer, (0, 0), 2 + 3 * k) for k, layer in enumerate(noise)])
    label = (smooth - smooth.mean((1, 2), keepdims=True)).argmax(0).astype(np.uint8)
    label[:20, 80:] = 255
    label[40, 60] = num_classes  # a class of one pixel
    return label


@pytest.mark.parametrize("share", SHARES)
def test_every_class_has_its_share_and_only_true_labels_are_kept(share):
    for seed in range(3):
        label = blobs(seed=seed)
        partial = partial_label(label, share, np.random.default_rng(seed))
        assert partial.shape == label.shape and partial.dtype == np.uint8
        known = partial != 255
        assert np.array_equal(partial[known], label[known])
        for train_id in np.unique(label[label != 255]):
            kept, whole = partial == train_id, label == train_id
            assert kept.sum() >= max(1, share * whole.sum())
            assert share > 0 or kept.sum() == 1
            assert share < 1 or np.array_equal(kept, whole)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.25])
def test_one_dilation_less_would_miss_the_share(share):
    """On a class without holes: the region is a square around one pixel, cut off at the border, of minimal size."""
    for seed in range(8):
        label = np.full((60, 80), 255, dtype=np.uint8)
        label[5:55, 10:70] = 3
        kept = partial_label(label, share, np.random.default_rng(seed)) == 3
        rows, columns = np.flatnonzero(kept.any(1)), np.flatnonzero(kept.any(0))
        assert kept[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        # The pixel in the middle and the number of dilations, as the sides that the border does not cut tell.
        sizes = {
            (row, column, radius): (min(row + radius, 54) - max(row - radius, 5) + 1)
            * (min(column + radius, 69) - max(column - radius, 10) + 1)
            for radius in range(0, 60, 2)
            for row in range(5, 55)
            for column in range(10, 70)
            if (max(row - radius, 5), min(row + radius, 54)) == (rows[0], rows[-1])
            and (max(column - radius, 10), min(column + radius, 69)) == (columns[0], columns[-1])
        }
        assert sizes and share * 3000 <= kept.sum()
        before = [
            (min(row + radius - 2, 54) - max(row - radius + 2, 5) + 1)
            * (min(column + radius - 2, 69) - max(column - radius + 2, 10) + 1)
            for row, column, radius in sizes
            if radius
        ]
        assert min(before) < share * 3000


def test_a_class_in_pieces_is_grown_in_several():
    label = np.zeros((20, 40), dtype=np.uint8)
    label[2:4, ::5] = 1  # eight pieces of 2 pixels, 5 columns apart
    partial = partial_label(label, 0.5, np.random.default_rng(0))
    assert 8 <= (partial == 1).sum() <= 9
    assert (label[partial == 1] == 1).all()


def test_nothing_but_ignored_pixels_stays_so():
    label = np.full((4, 4), 255, dtype=np.uint8)
    assert np.array_equal(partial_label(label, 0.25, np.random.default_rng(0)), label)


def test_the_same_pixels_on_every_machine():
    partial = partial_label(blobs(), 0.05, generator_of(3, "2007_000032"))
    assert np.array_equal(partial, partial_label(blobs(), 0.05, generator_of(3, "2007_000032")))
    for other in (generator_of(4, "2007_000032"), generator_of(3, "2007_000033")):
        assert not np.array_equal(partial, partial_label(blobs(), 0.05, other))
    square = np.add.outer(np.arange(64) // 16, np.arange(64) // 32).astype(np.uint8)
    chosen = partial_label(square, 0.0, generator_of(0, "a"))
    assert hashlib.sha256(chosen.tobytes()).hexdigest()[:12] == "c9534537d8a1"


def config(root_dataset: str, **partial):
    cfg = get_rc2l_cfg()
    cfg.DATASETS.TRAIN = (root_dataset,)
    cfg.DATASETS.PARTIAL_LABELS.ENABLED = True
    for key, value in partial.items():
        cfg.DATASETS.PARTIAL_LABELS[key] = value
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [32, 32]
    return cfg


@pytest.fixture
def camvid(tmp_path, monkeypatch) -> str:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(build_mini_camvid(tmp_path, num_train=4, num_val=1)))
    return "camvid_sem_seg_train"


def test_all_images_are_in_both_streams(camvid):
    cfg = config(camvid, SHARE=0.05, SEED=2)
    cfg.DATASETS.SPLIT.SAMPLING = "few_labels"  # asks for nothing where no images are drawn
    split = build_split(cfg)
    assert len(split.labeled) == len(split.unlabeled) == 4
    assert {r["image_id"] for r in split.labeled} == {r["image_id"] for r in split.unlabeled}
    assert not any("sem_seg_file_name" in record or "partial_label" in record for record in split.unlabeled)
    assert "all images labelled in 0.05 of the pixels of each class" in split.source and split.seed == 2
    for record in split.labeled:
        whole = read_label(record["sem_seg_file_name"], MetadataCatalog.get(camvid))
        thin = read_record_label(record)
        assert (thin != 255).sum() < 0.3 * (whole != 255).sum()
        assert np.array_equal(thin, partial_label(whole, 0.05, generator_of(2, record["image_id"])))


def test_the_mapper_sees_partial_labels(camvid):
    cfg = config(camvid, SHARE=0.0)
    cfg.INPUT.CROP.SIZE, cfg.INPUT.MIN_SIZE_TRAIN = [36, 48], (36,)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    split = build_split(cfg)
    sample = LabeledMapper(cfg)(split.labeled[0])
    assert (sample["target"] != 255).sum() == len(np.unique(read_record_label(split.labeled[0]))) - 1


@pytest.mark.parametrize("dataset", ["camvid_sem_seg_train", "cityscapes_sem_seg_train"])
def test_the_tool_writes_what_training_would_draw(dataset, tmp_path, monkeypatch, capsys):
    """Cityscapes has a label map and ids with folders: the files hold train ids all the same."""
    build = build_mini_camvid if dataset.startswith("camvid") else build_mini_cityscapes
    monkeypatch.setenv("DETECTRON2_DATASETS", str(build(tmp_path / "data", num_train=3, num_val=1)))
    output = tmp_path / "partial"
    TOOL["main"]([dataset, "--share", "0.25", "--seed", "1", "--output", str(output), "--jobs", "2"])
    assert f"{output}: 3 labels" in capsys.readouterr().out
    files = build_split(config(dataset, SHARE=0.25, SEED=1, FOLDER=str(output)))
    drawn = build_split(config(dataset, SHARE=0.25, SEED=1))
    assert files.hash == drawn.hash and str(output) in files.source
    for ours, theirs in zip(files.labeled, drawn.labeled, strict=True):
        assert np.array_equal(read_record_label(ours), read_record_label(theirs))
        with Image.open(ours["sem_seg_file_name"]) as image:
            assert image.mode == "P"
            assert image.getpalette()[:3] == list(MetadataCatalog.get(dataset).stuff_colors[0])
    assert sorted(tmp_path.iterdir()) == [tmp_path / "data", output]  # nothing temporary is left


def test_nothing_is_written_where_a_label_is_broken(camvid, tmp_path, capsys):
    Path(load_records(camvid)[2]["sem_seg_file_name"]).write_bytes(b"no picture")
    with pytest.raises(SystemExit):
        TOOL["main"]([camvid, "--share", "0.1", "--output", str(tmp_path / "partial")])
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert {path.name for path in tmp_path.iterdir()} == {"camvid"}


def make_folder(folder: Path, **facts) -> None:
    folder.mkdir()
    (folder / FACTS_FILE).write_text(json.dumps({"dataset": "camvid_sem_seg_train", "share": 0.01, "seed": 0} | facts))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("PARTIAL_LABELS.SHARE", 25.0, r"PARTIAL_LABELS.SHARE is 25.0; it must be in \[0, 1\]"),
        ("PARTIAL_LABELS.SHARE", -0.1, r"PARTIAL_LABELS.SHARE is -0.1"),
        ("PARTIAL_LABELS.SEED", -1, r"PARTIAL_LABELS.SEED is -1; it must be 0 or more"),
        (
            "PARTIAL_LABELS.FOLDER",
            "none",
            r"cannot read none/partial_labels.json \(FileNotFoundError\); make the folder",
        ),
        ("PARTIAL_LABELS.FOLDER", "share", r"says share 0.05, the config 0.01; name the folder"),
        ("PARTIAL_LABELS.FOLDER", "seed", r"says seed 7, the config 0"),
        ("PARTIAL_LABELS.FOLDER", "dataset", r"says dataset voc_2012_sem_seg_train, the config camvid_sem_seg_train"),
        (
            "SPLIT.FRACTION",
            "1/2",
            r"labels every image in part, so no images are drawn: set DATASETS.SPLIT.FRACTION all",
        ),
        ("SPLIT.NUM_LABELED", 2, r"so no images are drawn"),
        ("SPLIT.LABELED_LIST", "a.txt", r"so no images are drawn"),
    ],
)
def test_bad_options(camvid, tmp_path, monkeypatch, key, value, message):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name, facts in (("share", 0.05), ("seed", 7), ("dataset", "voc_2012_sem_seg_train")):
        make_folder(tmp_path / name, **{name: facts})
    cfg = config(camvid)
    cfg.merge_from_list([f"DATASETS.{key}", value])
    with pytest.raises(DatasetError, match=message) as error:
        build_split(cfg)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["camvid_sem_seg_train", "--share", "2"], "error: DATASETS.PARTIAL_LABELS.SHARE is 2.0"),
        (["nowhere", "--share", "0.1"], "error: unknown dataset 'nowhere'"),
        (["camvid_sem_seg_train", "--share", "0.1", "--output", "."], "error: . exists; remove it"),
    ],
)
def test_bad_arguments_of_the_tool(camvid, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        TOOL["main"](["--output", str(tmp_path / "new"), *arguments])
    assert message in capsys.readouterr().err
