"""labelme's own JSON files as a dataset: shapes by hand, names, and what cannot be drawn."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from rc2l.data.datasets.description import describe
from rc2l.data.datasets.folder import load_subset
from rc2l.data.errors import DatasetError


def shape(label, points, kind="polygon", **more):
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}, **more}


def annotate(folder, name, shapes, size=(20, 30), **more):
    """An image and its annotation, as labelme saves them."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (10, 20, 30)).save(folder / f"{name}.jpg")
    content = {"version": "5.4", "flags": {}, "shapes": shapes, "imagePath": f"{name}.jpg", "imageData": None}
    (folder / f"{name}.json").write_text(
        json.dumps(content | {"imageHeight": size[0], "imageWidth": size[1]} | more), encoding="utf-8"
    )


def labels_of(folder, **content):
    records = load_subset(describe({"name": "toy", "labelme": str(folder), **content}, "test", folder), "train")
    return {
        record["image_id"]: np.asarray(Image.open(record["sem_seg_file_name"]))
        for record in records
        if "sem_seg_file_name" in record
    }


def test_every_type_of_shape_is_drawn_in_order(tmp_path):
    mask = io.BytesIO()
    Image.fromarray(np.array([[0, 255], [255, 255]], dtype=np.uint8)).save(mask, "PNG")
    annotate(
        tmp_path,
        "a",
        [
            shape("car", [[2, 2], [10, 2], [10, 8], [2, 8]]),
            shape("dog", [[8, 12], [4, 6]], "rectangle"),  # later ones on top, corners in any order
            shape("dog", [[22, 5], [22, 8]], "circle"),
            shape("car", [[20, 15], [21, 16]], "mask", mask=base64.b64encode(mask.getvalue()).decode()),
            shape("__ignore__", [[0, 18], [3, 18], [3, 19], [0, 19]]),
            shape("_background_", [[9, 2], [10, 2], [10, 3], [9, 3]]),
        ],
    )
    label = labels_of(tmp_path)["a"]
    assert label.shape == (20, 30)
    assert label[3, 3] == 1 and label[7, 5] == 2 and label[12, 8] == 2
    assert label[2, 10] == 0 and label[4, 9] == 1
    assert [label[5, x] for x in (18, 19, 22, 25, 26)] == [0, 2, 2, 2, 0]
    assert label[15:17, 20:22].tolist() == [[0, 1], [1, 1]]
    assert label[19, 1] == 255 and label[10, 28] == 0


def test_lines_and_points_are_as_wide_as_labelme_exports_them(tmp_path):
    annotate(
        tmp_path,
        "a",
        [shape("wire", [[0, 20], [59, 20]], "line"), shape("lamp", [[30, 45]], "point")],
        size=(60, 60),
    )
    label = labels_of(tmp_path)["a"]
    assert (label[:, 30] == 2).sum() in (10, 11)
    assert (label[:, 30] == 1).sum() == 11 and (label[45] == 1).sum() == 11


def test_classes_come_from_the_files_or_the_description(tmp_path):
    annotate(tmp_path, "a", [shape("tree", [[0, 0], [5, 0], [5, 5]]), shape("car", [[9, 9], [15, 9], [15, 15]])])
    found = describe({"name": "toy", "labelme": str(tmp_path)}, "test", tmp_path)
    assert found.classes == ("background", "car", "tree")
    label = labels_of(tmp_path, classes=["tree"], background=False)["a"]
    assert set(np.unique(label)) == {0, 255}  # "car" is no class, and there is no background
    label = labels_of(tmp_path, classes=["street", "car"], background="street")["a"]
    assert label[1, 4] == 255 and label[10, 14] == 1 and label[19, 0] == 0


def test_images_without_annotation_are_unlabeled_and_renamed_ones_found(tmp_path):
    annotate(tmp_path / "x", "a", [shape("car", [[0, 0], [5, 0], [5, 5]])])
    annotate(tmp_path / "x", "b", [shape("car", [[0, 0], [5, 0], [5, 5]])], imagePath="..\\y\\c.png")
    (tmp_path / "x/b.jpg").unlink()
    (tmp_path / "y").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "y/c.png")
    Image.new("RGB", (30, 20)).save(tmp_path / "y/d.png")
    records = load_subset(describe({"name": "toy", "labelme": str(tmp_path)}, "test", tmp_path), "train")
    assert {r["image_id"]: "sem_seg_file_name" in r for r in records} == {"x/a": True, "y/c": True, "y/d": False}
    # What was drawn does not join the images, and a changed file is drawn anew.
    assert len(load_subset(describe({"name": "toy", "labelme": str(tmp_path)}, "test", tmp_path), "train")) == 3
    annotate(tmp_path / "x", "a", [shape("car", [[0, 0], [29, 0], [29, 19], [0, 19]])])
    assert (labels_of(tmp_path)["x/a"] == 1).all()


@pytest.mark.parametrize(
    ("shapes", "more", "message"),
    [
        ([shape("car", [[0, 0], [1, 1]])], {}, "shape 0 .polygon. must have 3 or more points"),
        ([shape("car", [[0, 0], [1, "x"], [2, 2]])], {}, "must have 3 or more points"),
        ([shape("car", [[0, 0], [1, 10**400], [2, 2]])], {}, "or more points .x, y., at most 1000000 pixels away"),
        ([shape("car", [[0, 0], [1, 1]], "spline")], {}, "is a 'spline'"),
        ([shape("", [[0, 0], [1, 1], [2, 2]])], {}, "no 'label'"),
        ([shape("car", [[0, 0], [1, 1]], "mask", mask="??")], {}, "no PNG file in base64"),
        ([shape("car", [[0, 0], [1, 1], [2, 0]])], {"imageHeight": "20"}, "'imageHeight' is '20'"),
        ("none", {}, "no list 'shapes'"),
    ],
)
def test_what_cannot_be_drawn_is_named(tmp_path, shapes, more, message):
    annotate(tmp_path, "a", shapes, **more)
    with pytest.raises(DatasetError, match=f"a.json.*{message}"):
        labels_of(tmp_path, classes=["car"])


def test_other_files_and_keys_that_do_not_belong(tmp_path):
    annotate(tmp_path, "a", [shape("car", [[0, 0], [5, 0], [5, 5]])])
    (tmp_path / "settings.json").write_text('{"width": 3}')
    assert set(labels_of(tmp_path)) == {"a"}
    with pytest.raises(DatasetError, match="labelme's files name their classes"):
        labels_of(tmp_path, ignore=0)
    (tmp_path / "a.jpg").unlink()
    Image.new("RGB", (30, 20)).save(tmp_path / "z.jpg")
    with pytest.raises(DatasetError, match=r"a.json: there is no image for this annotation"):
        labels_of(tmp_path)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DatasetError, match=r"a.json: cannot read this annotation"):
        labels_of(tmp_path)
