"""The builder of VOC Aug: which images, whose labels, and nothing half done."""

import rc2l  # noqa: F401  first of all: makes detectron2 importable

# isort: split
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from scipy.io import savemat

from rc2l.data.datasets import load_records
from rc2l.data.datasets.sbd import build_voc_aug
from rc2l.data.errors import DatasetError
from rc2l.data.reading import read_label
from tests.mini_datasets import build_mini_voc, paint_label
from tests.shared_data import REPO

main = runpy.run_path(str(REPO / "tools/build_voc_aug.py"))["main"]
SIZE = (48, 64)


def write_sbd(folder: Path, image_id: str, label: np.ndarray) -> None:
    """A ``cls`` file with SBD's nesting: a 1x1 array of structs."""
    folder.mkdir(parents=True, exist_ok=True)
    dtype = [("Boundaries", object), ("Segmentation", object), ("CategoriesPresent", object)]
    struct = np.zeros((1, 1), dtype=dtype)
    struct[0, 0] = (np.zeros((1, 1)), label, np.zeros((1, 1)))
    savemat(folder / f"{image_id}.mat", {"GTcls": struct})


@pytest.fixture
def devkit(tmp_path, monkeypatch) -> Path:
    """VOC with 3 training images, 2 others and 2 for validation; SBD with one of each and both others."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    build_mini_voc(tmp_path, num_train=3, num_aug=2, num_val=2, aug_list=None)
    devkit = tmp_path / "VOCdevkit/VOC2012"
    shutil.rmtree(devkit / "SegmentationClassAug")
    for number, image_id in enumerate(("2007_000000", "2008_000000", "2008_000001", "2009_000000")):
        write_sbd(tmp_path / "sbd/cls", image_id, np.full(SIZE, 10 + number, dtype=np.uint8))
    return devkit


def untouched(devkit: Path) -> bool:
    names = {path.name for path in devkit.iterdir()}
    return (
        names == {"JPEGImages", "SegmentationClass", "ImageSets"}
        and not (devkit / "ImageSets/Segmentation/trainaug.txt").exists()
    )


def test_images_and_labels(tmp_path, devkit, capsys):
    main(["--sbd", str(tmp_path / "sbd")])
    assert "5 labels (the complete datasets give 10582)" in capsys.readouterr().out
    records = {record["image_id"]: record for record in load_records("voc_2012_sem_seg_train_aug")}
    assert sorted(records) == ["2007_000000", "2007_000001", "2007_000002", "2008_000000", "2008_000001"]
    metadata = MetadataCatalog.get("voc_2012_sem_seg_train_aug")
    labels = {image_id: read_label(record["sem_seg_file_name"], metadata) for image_id, record in records.items()}
    for index in range(3):
        assert np.array_equal(labels[f"2007_{index:06d}"], paint_label(index, 21, SIZE))
    assert (labels["2008_000000"] == 11).all() and (labels["2008_000001"] == 12).all()
    assert {path.name for path in devkit.iterdir()} == {
        *("JPEGImages", "SegmentationClass", "SegmentationClassAug", "ImageSets")
    }


def test_results_are_replaced_only_on_request(tmp_path, devkit, capsys):
    build_voc_aug(tmp_path / "sbd", devkit)
    with pytest.raises(SystemExit) as stop:
        main(["--sbd", str(tmp_path / "sbd"), "--voc", str(devkit)])
    assert stop.value.code == 2
    assert "SegmentationClassAug exists already; add --overwrite" in capsys.readouterr().err
    write_sbd(tmp_path / "sbd/cls", "2008_000000", np.full(SIZE, 3, dtype=np.uint8))
    assert build_voc_aug(tmp_path / "sbd", devkit, overwrite=True) == 5
    record = load_records("voc_2012_sem_seg_train_aug")[3]
    assert (read_label(record["sem_seg_file_name"], MetadataCatalog.get(record["dataset"])) == 3).all()


BAD = {
    "damaged label": (
        lambda root: (root / "sbd/cls/2008_000001.mat").write_bytes(b"?" * 200),
        r"2008_000001\.mat: cannot",
    ),
    "id out of range": (
        lambda root: write_sbd(root / "sbd/cls", "2008_000001", np.full(SIZE, 21, dtype=np.uint8)),
        r"2008_000001\.mat: this is no label map of ids 0\.\.20; unpack",
    ),
    "no SBD": (lambda root: shutil.rmtree(root / "sbd"), r"sbd/cls does not exist; --sbd must be"),
    "no VOC list": (
        lambda root: (root / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").unlink(),
        r"val\.txt does not exist; --voc must be",
    ),
    "no image": (
        lambda root: (root / "VOCdevkit/VOC2012/JPEGImages/2008_000001.jpg").unlink(),
        r"2008_000001\.jpg and 0 others are missing; unpack",
    ),
    "no label of VOC": (
        lambda root: (root / "VOCdevkit/VOC2012/SegmentationClass/2007_000002.png").unlink(),
        r"2007_000002\.png is missing; unpack",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_nothing_is_written_where_something_is_wrong(tmp_path, devkit, case):
    damage, message = BAD[case]
    damage(tmp_path)
    with pytest.raises(DatasetError, match=message) as error:
        build_voc_aug(tmp_path / "sbd", devkit)
    assert "\n" not in str(error.value) and untouched(devkit)
