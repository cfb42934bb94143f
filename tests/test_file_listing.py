"""Which files of a folder count: links, files of the system, Unicode forms, patterns; labels found by any of them."""

import rc2l  # noqa: F401  first of all: makes detectron2 importable

# isort: split
import unicodedata
from pathlib import Path

import pytest
import yaml
from detectron2.data import MetadataCatalog

from rc2l.data.datasets import custom, load_records, register_dataset_file
from rc2l.data.faults import one_class_problem
from rc2l.data.file_listing import find_by_pattern, find_files
from rc2l.data.reading import read_label
from rc2l.engine.config_file import load_config
from tests.custom_data import SIZE, write_folder
from tests.mini_datasets import paint_label
from tests.shared_data import REPO


@pytest.fixture(autouse=True)
def forget_datasets():
    yield
    custom.unregister(custom.custom_datasets())


def register(root: Path, **description) -> list[dict]:
    content = {
        "name": "my",
        "classes": ["ground", "roof", "road"],
        "images": "images",
        "labels": "labels",
    } | description
    (root / "my.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    register_dataset_file(root / "my.yaml")
    return load_records("my_sem_seg_train")


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names_of(root: Path, found: list[Path]) -> list[str]:
    return [path.relative_to(root).as_posix() for path in found]


def test_links_are_followed_each_image_counts_once_and_loops_end(tmp_path):
    root = tmp_path / "images"
    touch(tmp_path, "disk/1.jpg", "disk/deep/2.jpg", "images/own/3.JPG", "labels/x.jpg")
    (root / "b").symlink_to("../disk")
    (root / "a_again").symlink_to("own")
    (root / "own/up").symlink_to("../..")
    (root / "loop").symlink_to(".")
    assert names_of(root, find_files(root, [".jpg"])) == ["b/1.jpg", "b/deep/2.jpg", "own/3.JPG"]
    assert "a_again/3.JPG" in names_of(root, find_files(root, [".jpg"], each_once=False))


def test_files_of_the_system_are_passed_over(tmp_path):
    touch(tmp_path, "1.jpg", "._1.jpg", ".ipynb_checkpoints/1.jpg", "@eaDir/1.jpg/thumb.jpg", "__MACOSX/2.jpg")
    touch(tmp_path, "1.jpg.d/4.jpg", "1.txt")
    assert names_of(tmp_path, find_files(tmp_path, [".jpg"])) == ["1.jpg", "1.jpg.d/4.jpg"]


@pytest.mark.parametrize(
    "pattern, expected", [("*/*.jpg", ["x/1.jpg", "x/[2].jpg"]), ("**/[13].jpg", ["x/1.jpg", "x/y/3.jpg"])]
)
def test_only_what_does_not_exist_by_name_is_a_pattern(tmp_path, pattern, expected):
    root = tmp_path / "Roofs [v2] *"
    touch(root, "x/1.jpg", "x/[2].jpg", "x/y/3.jpg", "x/a.png")
    touch(tmp_path, "Roofs v *x/x/9.jpg")
    base, found = find_by_pattern(root / pattern, [".jpg"])
    assert base == root and names_of(root, found) == expected


@pytest.mark.parametrize("pattern", ["images", "images/*.jpg", "images/?*.jpg"])
def test_a_folder_with_brackets_in_its_name_and_names_in_nfd(tmp_path, pattern):
    root = write_folder(tmp_path / unicodedata.normalize("NFD", "Dächer [v2]"), 4)
    for index in range(4):
        for kind, form in (("images/{}.jpg", "NFD"), ("labels/{}.png", "NFC")):
            path = root / kind.format(f"{index:02d}")
            path.rename(path.with_name(unicodedata.normalize(form, f"Ö {index}{path.suffix}")))
    records = register(root, images=pattern)
    assert len(records) == 4 and all("sem_seg_file_name" in record for record in records)
    label = read_label(records[3]["sem_seg_file_name"], MetadataCatalog.get("my_sem_seg_train"))
    assert (label == paint_label(3, 3, SIZE)).all()


@pytest.mark.parametrize("suffix, folder", [(".jpg", "labels"), (".v1.jpg", "labels"), (".jpg", "images")])
def test_labels_named_after_the_whole_file_of_their_image(tmp_path, suffix, folder):
    write_folder(tmp_path, 3)
    for index in range(3):
        (tmp_path / f"images/{index:02d}.jpg").rename(tmp_path / f"images/{index:02d}{suffix}")
        (tmp_path / f"labels/{index:02d}.png").rename(tmp_path / f"{folder}/{index:02d}{suffix}.png")
    records = register(tmp_path, labels=folder)
    assert [Path(record["sem_seg_file_name"]).name for record in records] == [f"{i:02d}{suffix}.png" for i in range(3)]


@pytest.mark.parametrize("divider, end", [(",", "\n"), ("\t", "\r\n"), (" , ", "\n")])
def test_pairs_of_paths_with_spaces(tmp_path, divider, end):
    write_folder(tmp_path, 3, "my images", "my labels")
    lines = [f"my images/{i:02d}.jpg{divider}my labels/{i:02d}.png{end}" for i in range(3)]
    (tmp_path / "train.txt").write_bytes(("\ufeff" + "".join(lines)).encode())
    records = register(tmp_path, images=None, labels=None, train="train.txt")
    assert [Path(record["sem_seg_file_name"]).name for record in records] == ["00.png", "01.png", "02.png"]


def test_one_class_is_told_to_need_a_background(tmp_path):
    write_folder(tmp_path, 3)
    register(tmp_path, classes=["roof"], label_map={0: "ignore", 1: "roof", 2: "roof", 255: "ignore"})
    problem = one_class_problem("my_sem_seg_train")
    assert "classes: [background, roof]" in problem
    assert "label_map: {0: background, 255: background, 1: roof, 2: roof}" in problem
    register(tmp_path)
    assert not one_class_problem("my_sem_seg_train")


@pytest.mark.parametrize("text", ["a_sem_seg_train", '("a_sem_seg_train")', "('a_sem_seg_train')"])
def test_a_single_text_is_one_name(tmp_path, text):
    config = tmp_path / "my.yaml"
    config.write_text(yaml.safe_dump({"_BASE_": f"{REPO}/configs/shapes/rc2l.yaml", "DATASETS": {"TRAIN": text}}))
    cfg = load_config(str(config), ["DATASETS.TEST", text])
    assert tuple(cfg.DATASETS.TRAIN) == tuple(cfg.DATASETS.TEST) == ("a_sem_seg_train",)
