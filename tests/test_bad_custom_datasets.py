"""Mistakes in descriptions and files of users' own datasets: each is one line that names the place and the fix."""

import rc2l  # noqa: F401  first of all: makes detectron2 importable

# isort: split
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from rc2l.config import get_rc2l_cfg
from rc2l.data.check import check_labeled
from rc2l.data.datasets import custom, load_records, register_custom_datasets, register_dataset_file
from rc2l.data.errors import DatasetError
from tests.custom_data import coco_content, write_coco, write_folder, write_panoptic
from tests.mini_datasets import save_gray_png

#: A description without mistakes; cases replace or add keys, None removes one.
GOOD = {"name": "my", "classes": ["ground", "roof", "road"], "images": "images", "labels": "labels"}


@pytest.fixture(autouse=True)
def forget_datasets():
    yield
    custom.unregister(custom.custom_datasets())


def write(file: str, text: str) -> Callable[[Path], object]:
    return lambda root: (root / file).write_text(text)


def remove(pattern: str) -> Callable[[Path], object]:
    return lambda root: [path.unlink() for path in root.glob(pattern)]


def each_label(values: list) -> Callable[[Path], object]:
    return lambda root: [save_gray_png(np.array(values, dtype=np.uint8), path) for path in root.glob("labels/*.png")]


#: name -> (changes of GOOD, change of the files, message).
DESCRIPTIONS = {
    "unknown key": ({"image": "images"}, None, r"my\.yaml: unknown key 'image'; did you mean 'images'\?"),
    "strange key": ({"zzz": 1}, None, r"unknown key 'zzz'; allowed are name, root"),
    "no name": ({"name": None}, None, r"'name' is None; it must be a word"),
    "name with spaces": ({"name": "my roofs"}, None, r"'name' is 'my roofs'; it must be a word"),
    "name of a subset": ({"name": "a_sem_seg_train"}, None, r"'name' is 'a_sem_seg_train'"),
    "name that is taken": ({"name": "camvid"}, None, r"'camvid_sem_seg_train' is registered already; use another"),
    "no classes": ({"classes": None}, None, r"dataset 'my': 'classes' is missing; give"),
    "empty classes": ({"classes": []}, None, r"'classes' has 0 names; give 1 to 254"),
    "255 classes": ({"classes": [f"c{i}" for i in range(255)]}, None, r"'classes' has 255 names; give 1 to 254"),
    "class twice": ({"classes": ["a", "b", "a"]}, None, r"'classes' has 'a' twice; every class"),
    "class with a line break": (
        {"classes": ["a", "b\nc"]},
        None,
        r"'classes' has 'b\\nc', which holds a line break or",
    ),
    "class with an escape": ({"classes": ["a", "\x1b[31mred"]}, None, r"'classes' has '\\x1b\[31mred', which holds a"),
    "file of classes with an escape": (
        {"classes": "names.txt"},
        write("names.txt", "ground\nroof\x1b]0;x\x07\nroad\n"),
        r"names\.txt has 'roof\\x1b\]0;x\\x07', which holds a line break or control character; remove it",
    ),
    "class that YAML reads as no": ({"classes": [False, "b"]}, None, r"'classes' has False, which is not text; put"),
    "no file of classes": (
        {"classes": "names.txt"},
        None,
        r"'classes' is /.*/names\.txt, which cannot be read \(No such",
    ),
    "binary file of classes": (
        {"classes": "names.txt"},
        lambda root: (root / "names.txt").write_bytes(b"\xff\xfe\xfa"),
        r"names\.txt, which cannot be read \(it is no text\)",
    ),
    "classes is a number": ({"classes": 3}, None, r"'classes' is 3; give 1 to 254"),
    "too few colours": ({"colors": [[0, 0, 0]]}, None, r"'colors' is 1 colours for 3 classes; give one"),
    "no such colour": ({"colors": [[0, 0, 256]] * 3}, None, r"'colors' has \[0, 0, 256\], which is no colour; use"),
    "colour of no class": ({"colors": {"tree": "#000000"}}, None, r"'colors' names 'tree', which is no class; use"),
    "class without colour": ({"colors": {"roof": "#000000"}}, None, r"'colors' has no colour for class 'ground'; add"),
    "label_map to no class": ({"label_map": {0: 3}}, None, r"'label_map' names 3, which is no class; use .* 0\.\.2"),
    "label_map from text": ({"label_map": {"roof": 1}}, None, r"'label_map' has the id 'roof'; ids .* -1\.\.65535"),
    "label_map is a list": ({"label_map": [0, 1]}, None, r"'label_map' is \[0, 1\]; it must be a mapping such as"),
    "color_map is text": ({"color_map": "red"}, None, r"'color_map' is 'red'; it must be a mapping"),
    "color_map with no colour": (
        {"color_map": {"roof": "red"}},
        None,
        r"'color_map', class 'roof' has 'red', which is no",
    ),
    "colour of two classes": (
        {"color_map": {"roof": "#010203", "road": [1, 2, 3]}},
        None,
        r"'color_map' gives the colour \[1, 2, 3\] to two classes; give",
    ),
    "label_map and color_map": (
        {"color_map": {"roof": "#010203"}, "label_map": {0: 0}},
        None,
        r"'color_map' and 'label_map' exclude each other",
    ),
    "ignore is text": ({"ignore": "void"}, None, r"'ignore' is 'void'; it must be the id"),
    "ignore is a class": ({"ignore": 0}, None, r"'ignore' is 0, the id of class 'ground'; say in 'label_map'"),
    "background without coco": ({"background": True}, None, r"'background' is for COCO and labelme files"),
    "no images": ({"images": None}, None, r"no images; give 'images', 'coco' or 'labelme'"),
    "no labels": ({"labels": None}, None, r"'train' has no labels; give 'labels'"),
    "images is a number": ({"images": 5}, None, r"'images' is 5; it must be a path"),
    "val_fraction too large": ({"val_fraction": 20}, None, r"'val_fraction' is 20; it must be a number above 0"),
    "val_fraction and val": ({"val_fraction": 0.2, "val": "val.txt"}, None, r"'val_fraction' takes .* 'val' is given"),
    "train is a list": ({"train": ["a.jpg"]}, None, r"'train' is \['a\.jpg'\]; it must be a folder, a glob"),
    "unknown key of train": ({"train": {"image": "a"}}, None, r"'train' is \{'image': 'a'\}; it must be"),
    "two lists": (
        {"train": {"images": "a.txt", "list": "b.txt"}},
        None,
        r"'images' .*a\.txt and 'list' .* are both lists",
    ),
    "unlabelled without images": ({"unlabeled": {"labels": "labels"}}, None, r"'unlabeled' names no images; give"),
    "suffix is a number": ({"label_suffix": 1}, None, r"'label_suffix' is 1; it must be text"),
    "no labelme export": (
        {"images": None, "labels": None, "labelme": "."},
        None,
        r"nor the folder JPEGImages of labelme2voc\.py",
    ),
    "labelme and images": ({"labelme": "."}, None, r"'labelme' and 'images' exclude each other; remove one"),
    "no such image folder": ({"images": "imgs"}, None, r"/imgs does not exist; correct 'images' or 'root'"),
    "image folder is a file": ({"images": "my.yaml"}, None, r"my\.yaml, which is a file; give a folder"),
    "empty image folder": ({}, remove("images/*"), r"/images holds no images; files of \.jpg"),
    "pattern without match": ({"images": "images/*.gif"}, None, r"/images/\*\.gif holds no images"),
    "image_suffix without match": ({"image_suffix": "_rgb"}, None, r"holds no images whose name ends in '_rgb'"),
    "no such label folder": ({"labels": "masks"}, None, r"the label folder /.*/masks does not exist; correct 'labels'"),
    "no label fits": (
        {"label_suffix": "_gt"},
        None,
        r"none of the 8 images .* has a label .*00_gt\.png for 00\.jpg; corr",
    ),
    "labels are arrays": (
        {},
        lambda root: [path.rename(path.with_suffix(".npy")) for path in root.glob("labels/*.png")],
        r"the folder holds \.npy files; save the labels as PNG",
    ),
    "two labels of an image": (
        {},
        lambda root: Image.new("L", (4, 4)).save(root / "labels/00.tif"),
        r"labels/00\.png and 00\.tif are labels of the same image; remove one",
    ),
    "images and labels mixed": (
        {"images": "data", "labels": "data"},
        lambda root: write_folder(root, 2, "data", "data"),
        r"holds images and labels of the same names; tell them apart by 'label_suffix'",
    ),
    "val image without label": (
        {"val": {"images": "more"}},
        lambda root: [
            (root / "more").mkdir(),
            *(Image.new("RGB", (4, 4)).save(root / f"more/{name}.png") for name in ("00", "zz")),
        ],
        r"dataset 'my_sem_seg_val': 1 of 2 images have no label, first /.*/more/zz\.png; add",
    ),
    "one label for val_fraction": (
        {"val_fraction": 0.5},
        remove("labels/0[1-7].png"),
        r"'val_fraction' needs 2 or more images with labels, but there are 1",
    ),
    "no such list": ({"train": "train.txt"}, None, r"train\.txt: cannot read this list of images \(No such file"),
    "empty list": ({"train": "train.txt"}, write("train.txt", "\n\n"), r"train\.txt: this list of images is empty"),
    "list names no image": (
        {"train": "train.txt"},
        write("train.txt", "00\n99"),
        r"train\.txt:2: '99' is no image below",
    ),
    "list names an image twice": (
        {"train": "train.txt"},
        write("train.txt", "00\n01\nimages/00.jpg"),
        r"train\.txt:3: 'images/00\.jpg' is also in line 1; list",
    ),
    "list names no label": (
        {"train": "train.txt"},
        write("train.txt", "00 labels/77.png"),
        r"train\.txt:1: the label labels/77\.png does not exist below .*; correct",
    ),
    "list without labels": (
        {"images": None, "labels": None, "train": "train.txt"},
        write("train.txt", "images/00.jpg"),
        r"none of the 1 images has a label; give 'labels'",
    ),
    "all images are for val": (
        {"val": "val.txt"},
        lambda root: (root / "val.txt").write_text("\n".join(f"{i:02d}" for i in range(8))),
        r"all images are in 'val'; leave some for training",
    ),
}


def one_line(error: pytest.ExceptionInfo) -> None:
    assert "\n" not in str(error.value)


def attempt(root: Path, description: dict) -> None:
    """Register and load all subsets, and check every label."""
    (root / "my.yaml").write_text(yaml.safe_dump(description))
    for name in register_dataset_file(root / "my.yaml"):
        for record in load_records(name):
            if "sem_seg_file_name" in record:
                check_labeled(record)


@pytest.mark.parametrize("case", DESCRIPTIONS)
def test_bad_description(tmp_path, case):
    changes, damage, message = DESCRIPTIONS[case]
    write_folder(tmp_path)
    if damage:
        damage(tmp_path)
    description = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    with pytest.raises(DatasetError, match=message) as error:
        attempt(tmp_path, description)
    one_line(error)


def test_the_good_description_is_good(tmp_path):
    attempt(write_folder(tmp_path), GOOD)


LABELS = {
    "id out of range": (
        {},
        each_label([[0] * 48] * 31 + [[3] * 48]),
        r"00\.png: label ids 3 are out of range.* 'my_sem",
    ),
    "id not in label_map": (
        {"label_map": {0: 0}},
        None,
        r"label ids 1, 2 are out of range.*label_map, 0 \(255 = ignore",
    ),
    "colour label without color_map": (
        {},
        lambda root: Image.new("RGB", (48, 32)).save(root / "labels/00.png"),
        r"00\.png: this label is a RGB colour image.* or give the dataset a color_map",
    ),
    "colour not in color_map": (
        {"color_map": {"ground": [0, 0, 0], "roof": [1, 1, 1]}},
        None,
        r"00\.png: \d+ pixels have colours that are not in the color_map of dataset 'my_.*: \(2, 2, 2\), \(255",
    ),
    "16-bit label with color_map": (
        {"color_map": {"ground": [0, 0, 0]}},
        lambda root: Image.fromarray(np.zeros((32, 48), np.uint16)).save(root / "labels/00.png"),
        r"00\.png: this label is an image of 16 bits per channel; with a color_map",
    ),
    "label of another size": ({}, each_label([[0, 1], [1, 0]]), r"00\.jpg is 48x32 pixels .* 2x2; both must have"),
    "label is no image": ({}, write("labels/00.png", "?"), r"00\.png: cannot read this label .*; restore the file"),
    "image is no image": ({}, write("images/00.jpg", "?"), r"00\.jpg: cannot read this image .*; restore the file"),
}


@pytest.mark.parametrize("case", LABELS)
def test_bad_label_files(tmp_path, case):
    changes, damage, message = LABELS[case]
    write_folder(tmp_path)
    if damage:
        damage(tmp_path)
    with pytest.raises(DatasetError, match=message) as error:
        attempt(tmp_path, {**GOOD, **changes})
    one_line(error)


def annotation(**changes) -> Callable[[dict], object]:
    return lambda content: content["annotations"][1].update(changes)


#: name -> (change of the JSON's content, change of the description, message).
COCO = {
    "no images": (lambda c: c.pop("images"), {}, r"annotations\.json: there is no list 'images'; a COCO file has"),
    "image without file": (
        lambda c: c["images"][0].pop("file_name"),
        {},
        r"'images' has no 'file_name' that is text",
    ),
    "image without size": (lambda c: c["images"][0].pop("width"), {}, r"image 00\.jpg has no height and width; add"),
    "image ids twice": (lambda c: c["images"][1].update(id=10), {}, r"two images have the same id; give"),
    "image file twice": (
        lambda c: c["images"][1].update(file_name="00.jpg"),
        {},
        r"file 00\.jpg is listed twice; list",
    ),
    "image outside": (
        lambda c: c["images"][1].update(file_name="../a.jpg"),
        {},
        r"\.\./a\.jpg leaves the image folder",
    ),
    "category id is text": (
        lambda c: c["categories"][1].update(id="a"),
        {},
        r"'categories' has no 'id' that is a",
    ),
    "counts are garbage": (
        annotation(segmentation={"size": [32, 48], "counts": "zz~~"}),
        {},
        r"annotation 1 of 00\.jpg cannot be decoded \(.*\); export",
    ),
    "category with a line break": (
        lambda c: c["categories"][0].update(name="ro\nof"),
        {},
        r"'categories' of .*annotations\.json has 'ro\\nof', which holds a line break or control character; remove it",
    ),
    "category with an escape": (
        lambda c: c["categories"][0].update(name="\x1b[2Jroof"),
        {},
        r"has '\\x1b\[2Jroof', which holds a line break or control character",
    ),
    "category without a name": (lambda c: c["categories"][0].update(name=""), {}, r"has '', which is not text; put"),
    "category ids twice": (lambda c: c["categories"][1].update(id=7), {}, r"two categories have the same id; give"),
    "unknown image": (annotation(image_id=99), {}, r"annotation 1 is of image 99, which is not among 'images'; add"),
    "unknown category": (annotation(category_id=9), {}, r"annotation 1 has category 9, .* categories 3, 7; correct"),
    "box only": (annotation(segmentation=[]), {}, r"annotation 1 of 00\.jpg has no segmentation; boxes alone"),
    "polygon of numbers": (annotation(segmentation=[1, 2, 3, 4, 5, 6]), {}, r"a polygon that is no list of 3 or more"),
    "polygon of text": (
        annotation(segmentation=[["a"] * 6]),
        {},
        r"annotation 1 of 00\.jpg has a polygon that is no list",
    ),
    "polygon far away": (
        annotation(segmentation=[[0, 0, 1e12, 0, 0, 1e12]]),
        {},
        r"a polygon .* in the image: \[0, 0, 1",
    ),
    "mask of another size": (
        annotation(segmentation={"size": [2, 2], "counts": [4]}),
        {},
        r"a mask of size \[2, 2\], but the image has \[height, width\] \[32, 48\]; both",
    ),
    "wrong counts": (
        annotation(segmentation={"size": [32, 48], "counts": [4]}),
        {},
        r"cannot be decoded \(the counts sum to 4, not to 1536 pixels\); export",
    ),
    "class that is no category": (
        lambda c: None,
        {"classes": ["car"]},
        r"class 'car' is no category of .* road, roof; corr",
    ),
    "label_map of some categories": (
        lambda c: None,
        {"classes": ["a"], "label_map": {7: "a"}},
        r"annotation 1 has category 3, which is not among the categories 7; correct it or add",
    ),
    "labels cannot be written": (
        lambda c: None,
        {"label_cache": "my.yaml"},
        r"my\.yaml/annotations-labels-\w+: cannot write the labels here .*; name a folder for them in 'label_cache'",
    ),
    "background is a category": (
        lambda c: None,
        {"background": "road"},
        r"'background' is 'road', which is a class too",
    ),
}


@pytest.mark.parametrize("case", COCO)
def test_bad_coco_files(tmp_path, case):
    change, changes, message = COCO[case]
    content = coco_content()
    write_coco(tmp_path, content)
    change(content)
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=message) as error:
        attempt(tmp_path, {"name": "my", "images": "images", "coco": "annotations.json", **changes})
    one_line(error)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["annotations.json", "images", "my.yaml"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"annotations\.json: no such file; 'coco' names"),
        ("{", r"this is no JSON file"),
        ("[]", r"no list 'images'"),
    ],
)
def test_bad_json(tmp_path, text, message):
    write_folder(tmp_path)
    if text is not None:
        (tmp_path / "annotations.json").write_text(text)
    with pytest.raises(DatasetError, match=message) as error:
        attempt(tmp_path, {"name": "my", "images": "images", "coco": "annotations.json"})
    one_line(error)


def test_json_files_of_different_categories(tmp_path):
    content = coco_content()
    write_coco(tmp_path, content)
    content["categories"][0]["name"] = "tree"
    (tmp_path / "val.json").write_text(json.dumps(content))
    with pytest.raises(
        DatasetError, match=r"annotations\.json and .*val\.json have different categories; export"
    ) as error:
        attempt(tmp_path, {"name": "my", "images": "images", "coco": "annotations.json", "val": {"coco": "val.json"}})
    one_line(error)


PANOPTIC = {
    "file missing": (
        remove("panoptic/01.png"),
        r"panoptic/01\.png: cannot read this file .*it does not exist.*'labels'",
    ),
    "file of another size": (
        lambda root: Image.new("RGB", (2, 2)).save(root / "panoptic/01.png"),
        r"01\.png is 2x2 pixels \(width x height\), but .* says 48x32",
    ),
    "unknown segment": (
        lambda root: Image.new("RGB", (48, 32), (5, 1, 0)).save(root / "panoptic/01.png"),
        r"01\.png: segment 261 is not in segments_info of",
    ),
}


@pytest.mark.parametrize("case", PANOPTIC)
def test_bad_panoptic_files(tmp_path, case):
    damage, message = PANOPTIC[case]
    damage(write_panoptic(tmp_path))
    with pytest.raises(DatasetError, match=message) as error:
        attempt(tmp_path, {"name": "my", "images": "images", "coco": "panoptic.json"})
    one_line(error)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("none.yaml", r"DATASETS\.CUSTOM: there is neither /.*none\.yaml nor /.*none\.yaml; it must be the path"),
        (5, r"DATASETS\.CUSTOM is 5; it must be the path of a dataset YAML file, or a list"),
        ([5], r"DATASETS\.CUSTOM: a dataset is a mapping with the keys name, classes, images, \.\.\., not 5"),
        ([GOOD, GOOD], r"DATASETS\.CUSTOM: two datasets have the name 'my'; every"),
        ("broken.yaml", r"broken\.yaml: this is no YAML file \(.*\); correct it"),
        ("twice.yaml", r"DATASETS\.CUSTOM: two datasets have the name 'my'; every dataset needs"),
        ("text.yaml", r"text\.yaml: a dataset is a mapping with the keys .* not 'roofs'"),
    ],
)
def test_bad_datasets_custom(tmp_path, value, message):
    (tmp_path / "broken.yaml").write_text("name: [")
    (tmp_path / "text.yaml").write_text("roofs")
    (tmp_path / "twice.yaml").write_text(yaml.safe_dump([GOOD, GOOD]))
    cfg = get_rc2l_cfg()
    cfg.DATASETS.CUSTOM = value
    with pytest.raises(DatasetError, match=message) as error:
        register_custom_datasets(cfg, tmp_path / "run.yaml")
    one_line(error)
