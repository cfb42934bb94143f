"""tools/check_dataset.py: what it prints of clean data, and that each kind of problem is named and fails the check."""

import rc2l  # noqa: F401  first of all: makes detectron2 importable

# isort: split
import re
import runpy
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from rc2l.data.datasets import custom, load_records
from tests.custom_data import SIZE, write_coco, write_folder
from tests.mini_datasets import build_mini_camvid, paint_image, paint_label, save_gray_png, save_image
from tests.shared_data import REPO

main = runpy.run_path(str(REPO / "tools/check_dataset.py"))["main"]
CAMVID = ["camvid_sem_seg_train", "camvid_sem_seg_val"]


@pytest.fixture(autouse=True)
def forget_datasets():
    yield
    custom.unregister(custom.custom_datasets())


@pytest.fixture
def camvid(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    root = build_mini_camvid(tmp_path, num_train=8, num_val=3) / "camvid"
    for index in range(3):  # the miniature's are copies of training images
        image = paint_image(paint_label(index, 11, (36, 48)), 100 + index)
        save_image(image, root / f"images/val/val_{index:05d}.jpg")
    return root


@pytest.fixture
def roofs(tmp_path):
    """A clean custom dataset; returns its YAML file."""
    write_folder(tmp_path, 8)
    description = {"name": "roofs", "classes": ["a", "b", "c"], "images": "images", "labels": "labels"}
    (tmp_path / "roofs.yaml").write_text(yaml.safe_dump({**description, "val_fraction": 0.25}))
    return tmp_path / "roofs.yaml"


def test_clean_data(camvid, capsys):
    assert main(CAMVID) == 0
    out = capsys.readouterr().out
    assert "camvid_sem_seg_train: 8 images, 8 with labels" in out and "camvid_sem_seg_val: 3 images" in out
    assert "sizes (width x height): 8 of 48x36" in out and out.endswith("clean\n")
    pixels = sum(int((paint_label(index, 11, (36, 48)) == 0).sum()) for index in range(8))
    assert re.search(rf"\|\s+0 \| Sky\s+\|\s+8 \|\s+{pixels} \| {pixels / (8 * 36 * 48):.2%}", out)


DAMAGES = {
    "label missing": (
        lambda root: (root / "labels/train/train_00003.png").unlink(),
        r"train_00003\.jpg: the label file",
    ),
    "label damaged": (
        lambda root: (root / "labels/val/val_00001.png").write_bytes(b"?"),
        r"val_00001\.png: cannot read",
    ),
    "image truncated": (
        lambda root: (root / "images/train/train_00002.jpg").write_bytes(
            (root / "images/train/train_00002.jpg").read_bytes()[:-200]
        ),
        r"train_00002\.jpg: cannot read this image",
    ),
    "sizes differ": (
        lambda root: save_gray_png(np.zeros((4, 6), np.uint8), root / "labels/train/train_00000.png"),
        r"train_00000\.jpg is 48x36 pixels .* 6x4",
    ),
    "id out of range": (
        lambda root: save_gray_png(np.full((36, 48), 12, np.uint8), root / "labels/train/train_00000.png"),
        r"train_00000\.png: label ids 12 are out of range",
    ),
    "copy in val": (
        lambda root: shutil.copy(root / "images/train/train_00000.jpg", root / "images/val/val_00000.jpg"),
        r"val_00000\.jpg is a copy of the training image .*train_00000\.jpg; remove",
    ),
    "image in train and val": (
        lambda root: [
            shutil.copy(root / f"{kind}/train/train_00000.{end}", root / f"{kind}/val/train_00000.{end}")
            for kind, end in (("images", "jpg"), ("labels", "png"))
        ],
        r"1 of 4 images of camvid_sem_seg_val are also in camvid_sem_seg_train, first 'train_00000'; take",
    ),
    "folder missing": (lambda root: shutil.rmtree(root / "images/val"), r"camvid/images/val does not exist"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_each_problem_is_named_and_fails(camvid, capsys, case):
    damage, message = DAMAGES[case]
    damage(camvid)
    assert main(CAMVID) == 1
    out = capsys.readouterr().out
    assert re.search(rf"^problem: .*{message}", out, re.MULTILINE), out
    assert re.search(r"^[12] problems$", out, re.MULTILINE)


def test_all_problems_are_found_in_one_go(camvid, capsys):
    for index in (1, 3, 5):
        (camvid / f"labels/train/train_0000{index}.png").unlink()
    assert main([*CAMVID, "--workers", "2"]) == 1
    out = capsys.readouterr().out
    assert out.count("problem: ") == 3 and "3 problems" in out and "8 images, 8 with labels" in out


def test_masks_of_0_and_255(roofs, capsys):
    for path in (roofs.parent / "labels").iterdir():
        save_gray_png(np.where(paint_label(0, 3, SIZE) == 0, 0, 255).astype(np.uint8), path)
    assert main([str(roofs)]) == 1
    assert "all labels hold only 0 and 255" in capsys.readouterr().out
    roofs.write_text(roofs.read_text() + "label_map: {0: a, 255: b}\n")
    assert main([str(roofs)]) == 0
    assert "note: no label shows c" in capsys.readouterr().out


def test_a_dataset_file_and_labels_without_image(roofs, capsys):
    assert main([str(roofs)]) == 0
    assert "roofs_sem_seg_train: 5 images" in capsys.readouterr().out
    save_gray_png(paint_label(0, 3, SIZE), roofs.parent / "labels/extra.png")
    assert main([str(roofs)]) == 1
    assert re.search(r"1 label files belong to no image, first .*extra\.png; add", capsys.readouterr().out)


def test_unlabeled_images_are_a_note(roofs, capsys):
    (roofs.parent / "labels/05.png").unlink()
    assert main([str(roofs)]) == 0
    assert re.search(r"note: 1 images have no label, first .*05\.jpg", capsys.readouterr().out)


def test_unlabeled_datasets_are_read_and_compared(roofs, capsys):
    more = roofs.parent / "more"
    more.mkdir()
    for index in range(8):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(more / f"x{index}.png")
    roofs.write_text(roofs.read_text() + "unlabeled: more\n")
    assert main([str(roofs)]) == 0
    for index in range(8):
        shutil.copy(roofs.parent / f"images/{index:02d}.jpg", more)
    assert main([str(roofs)]) == 1
    assert len(re.findall(r"problem: .*images/\d+\.jpg is a copy of the training image", capsys.readouterr().out)) == 3


def test_coco_by_a_config(tmp_path, capsys):
    write_coco(tmp_path)
    description = {"name": "roofs", "images": "images", "coco": "annotations.json", "val_fraction": 0.25}
    datasets = {"CUSTOM": [description], "TRAIN": ["roofs_sem_seg_train"], "TEST": ["roofs_sem_seg_val"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"DATASETS": datasets}))
    assert main(["--config-file", str(tmp_path / "config.yaml")]) == 0
    out = capsys.readouterr().out
    assert "roofs_sem_seg_train: 5 images, 5 with labels" in out and "roofs_sem_seg_val: 3 images" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: nothing to check"),
        (["none.yaml"], "none.yaml: there is no such file"),
        (["--config-file", "none.yaml"], "none.yaml: no such file"),
    ],
)
def test_nothing_to_check(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_unknown_dataset(capsys):
    assert main(["voc"]) == 1
    assert "problem: unknown dataset 'voc'; registered are: " in capsys.readouterr().out


def test_classes_that_only_validation_shows(roofs, capsys):
    assert main([str(roofs)]) == 0
    validated = re.findall(r"labels/(\d+)\.png", str(load_records("roofs_sem_seg_val")))
    for path in (roofs.parent / "labels").iterdir():
        if path.stem not in validated:
            save_gray_png(np.minimum(paint_label(0, 3, SIZE), 1), path)
    assert main([str(roofs)]) == 1
    assert re.search(
        r"problem: roofs_sem_seg_val scores c, which no label of roofs_sem_seg_train shows.* label such images",
        capsys.readouterr().out,
    )


def test_sizes_damage_and_what_will_be_slow(roofs, capsys):
    more = roofs.parent / "more"
    more.mkdir()
    Image.new("RGB", (2400, 1600), (9, 9, 9)).save(more / "a.jpg")
    Image.new("RGB", (2000, 1700), (8, 9, 9)).save(more / "b.png")
    roofs.write_text(roofs.read_text() + "unlabeled: more\n")
    assert main([str(roofs)]) == 0
    out = capsys.readouterr().out
    assert "1 of 2400x1600, 1 of 2000x1700; smallest 2000x1700, largest 2400x1600" in out
    assert re.search(r"note: images have 3\.6 megapixels on average and up to 3\.8: .* one loader worker gives", out)
    assert out.count("megapixels on average") == 1
    (more / "c.jpg").write_bytes((more / "a.jpg").read_bytes()[:-9])
    datasets = {"CUSTOM": str(roofs), "TRAIN": ["roofs_sem_seg_train"], "UNLABELED": ["roofs_sem_seg_unlabeled"]}
    (roofs.parent / "config.yaml").write_text(yaml.safe_dump({"DATASETS": datasets | {"TEST": ["roofs_sem_seg_val"]}}))
    config = ["--config-file", str(roofs.parent / "config.yaml")]
    assert main(config) == 1
    assert re.search(r"problem: .*c\.jpg: cannot read this image \(it is cut off", capsys.readouterr().out)
    assert main([*config, "DATASETS.DAMAGED", "skip"]) == 0
    assert re.search(r"note: left out in training \(DATASETS.DAMAGED skip\): .*c\.jpg", capsys.readouterr().out)
