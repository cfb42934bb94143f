"""Masks of single classes, joined into label maps by the key `masks`: names, overlap, background, mismatches."""

import rc2l  # noqa: F401  first of all: makes detectron2 importable

# isort: split
import logging
import os
import re
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

from rc2l.data.audit import unmatched_labels
from rc2l.data.datasets import custom, load_records, register_semantic_dataset
from rc2l.data.errors import DatasetError
from rc2l.data.reading import read_label

H, W = 12, 16
CLASSES = ["ground", "square", "disc"]


@pytest.fixture(autouse=True)
def forget_datasets():
    yield
    custom.unregister(custom.custom_datasets())


def mask(*rows: int) -> np.ndarray:
    """(H, W) uint8: these rows are 255."""
    values = np.zeros((H, W), np.uint8)
    values[list(rows)] = 255
    return values


def save(array: np.ndarray, path: Path, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def write(root: Path, masks: dict[str, np.ndarray], images: tuple[str, ...] = ("000.jpg", "001.jpg")) -> None:
    for image in images:
        save(np.zeros((H, W, 3), np.uint8), root / "images" / image)
    for name, values in masks.items():
        save(values, root / "labels" / name)


def labels(root: Path, **keys) -> dict[str, list[int]]:
    """Image id -> the train ids of its label, a row each (each row is of one class)."""
    content = {"classes": CLASSES, "images": "images", "labels": "labels"} | keys
    register_semantic_dataset("toy", root, **content)
    found = {}
    for record in load_records("toy_sem_seg_train"):
        if "sem_seg_file_name" in record:
            label = read_label(record["sem_seg_file_name"], MetadataCatalog.get("toy_sem_seg_train"))
            assert label.shape == (H, W) and (label == label[:, :1]).all()
            found[record["image_id"]] = label[:, 0].tolist()
    return found


def rows(background: int, **of: tuple[int, ...]) -> list[int]:
    label = [background] * H
    for train_id, positions in of.items():
        for position in positions:
            label[position] = int(train_id[1:])
    return label


def test_masks_are_joined_and_later_classes_lie_on_top(tmp_path):
    write(
        tmp_path,
        {
            "000-tag-square-0.png": mask(0, 1, 2),
            "000-tag-square-1.png": mask(5),
            "000-tag-disc-0.png": mask(2, 3),
            "001-tag-disc-0.png": mask(4),
        },
    )
    expected = {"000": rows(0, _1=(0, 1, 5), _2=(2, 3)), "001": rows(0, _2=(4,))}
    pattern = "{image}-tag-{class}-{n}.png"
    assert labels(tmp_path, masks=pattern, background="ground") == expected
    swapped = {"000": rows(0, _2=(0, 1, 2, 5), _1=(3,)), "001": rows(0, _1=(4,))}
    assert labels(tmp_path, masks=pattern, background="ground", classes=["ground", "disc", "square"]) == swapped
    for nothing in ({}, {"background": "ignore"}, {"background": False}):
        assert labels(tmp_path, masks=pattern, **nothing)["001"] == rows(255, _2=(4,))
    assert labels(tmp_path, masks=pattern, background="floor", classes=["square", "disc"])["001"] == rows(0, _2=(4,))
    assert MetadataCatalog.get("toy_sem_seg_train").stuff_classes == ["floor", "square", "disc"]


@pytest.mark.parametrize(
    ("pattern", "name", "image"),
    [
        ("{class}/{image}.png", "disc/a/x.y.png", "a/x.y.jpg"),
        ("{image}/{class}_{n}.tif", "a/x/disc_007.tif", "a/x.png"),
        ("{image}_{class}.PNG", "my roof 1.jpg_disc.png", "my roof 1.jpg"),
        ("{image}-{class}-*.png", "x-disc-by-tom.png", "x.jpg"),
        ("{image}[{class}].png", "x[disc].png", "x.jpg"),
        ("{image}{class}{n}.png", "xdisc3.png", "x.jpg"),
        ("{image}_{class}.png", "x_2.png", "x.jpg"),
        ("{image}_{class}.png", "x_02.png", "x.jpg"),
        ("{image}-{class}-{n}.png", "a-disc-1-square-1.png".replace("square", "disc"), "a-disc-1.jpg"),
    ],
)
def test_names(tmp_path, pattern, name, image):
    write(tmp_path, {name: mask(3)}, (image,))
    assert list(labels(tmp_path, masks=pattern, background="ground").values()) == [rows(0, _2=(3,))]


def test_ids_by_label_map_and_names_in_either_unicode_form(tmp_path):
    write(tmp_path, {"000_7.png": mask(0), "000_9.png": mask(1), "000_8.png": mask(2)})
    label_map = {7: "disc", 8: "square", 9: "ignore"}
    assert labels(tmp_path, masks="{image}_{class}.png", background="ground", label_map=label_map) == {
        "000": rows(0, _2=(0,), _1=(2,), _255=(1,))
    }
    other = tmp_path / "other"
    write(other, {"Da\u0308cher_Fla\u0308che.png": mask(0)}, ("D\u00e4cher.jpg",))
    assert labels(other, masks="{image}_{class}.png", classes=["a", "Fl\u00e4che"]) == {
        "D\u00e4cher": rows(255, _1=(0,))
    }


@pytest.mark.parametrize("kind", ["bool", "palette", "rgb", "rgba", "16 bits", "float", "any value"])
def test_every_kind_of_mask(tmp_path, kind):
    write(tmp_path, {})
    values = mask(3)
    palette = Image.fromarray(values // 255, mode="P")
    palette.putpalette([0, 0, 0, 128, 0, 0])
    color = np.dstack([values, values * 0, values * 0])
    image, suffix = {
        "bool": (Image.fromarray(values > 0), "png"),
        "palette": (palette, "png"),
        "rgb": (Image.fromarray(color), "png"),
        "rgba": (Image.fromarray(np.dstack([color * 0 + 255, values])), "png"),
        "16 bits": (Image.fromarray(values.astype(np.uint16) * 4), "png"),
        "float": (Image.fromarray(values.astype(np.float32) / 255), "tif"),
        "any value": (Image.fromarray(values // 255 * 3), "png"),
    }[kind]
    (tmp_path / "labels").mkdir()
    image.save(tmp_path / f"labels/000_disc.{suffix}")
    assert labels(tmp_path, masks=f"{{image}}_{{class}}.{suffix}") == {"000": rows(255, _2=(3,))}


def test_masks_beside_their_images_and_a_read_only_place_for_labels(tmp_path):
    for index in range(2):
        save(np.zeros((H, W, 3), np.uint8), tmp_path / f"00{index}.png")
        save(mask(index), tmp_path / f"00{index}_disc.png")
    keys = {"images": ".", "labels": ".", "masks": "{image}_{class}.png", "label_cache": "drawn/here"}
    assert labels(tmp_path, **keys) == {"000": rows(255, _2=(0,)), "001": rows(255, _2=(1,))}
    assert len(list((tmp_path / "drawn/here").glob(f"{tmp_path.name}-joined-*"))) == 1
    assert unmatched_labels(["toy_sem_seg_train"]) == []
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match=r"cannot write the labels here .*'label_cache'"):
        labels(tmp_path, **keys | {"label_cache": "file"})


def test_they_are_drawn_once_and_anew_where_a_mask_changed(tmp_path):
    write(tmp_path, {"000_disc.png": mask(1)})
    keys = {"masks": "{image}_{class}.png", "background": "ground"}
    assert labels(tmp_path, **keys) == {"000": rows(0, _2=(1,))}
    (drawn,) = tmp_path.glob(".labels-joined-*/000.jpg.png")
    before = os.stat(drawn).st_mtime_ns
    assert labels(tmp_path, **keys) == {"000": rows(0, _2=(1,))} and os.stat(drawn).st_mtime_ns == before
    save(mask(2), tmp_path / "labels/000_disc.png")
    os.utime(tmp_path / "labels/000_disc.png", ns=(5, 5))
    assert labels(tmp_path, **keys) == {"000": rows(0, _2=(2,))}


MISMATCHES = {
    "unknown class": (
        {"000_dics.png": mask(1)},
        r"labels/000_dics\.png: .* 'dics', which is no class \(did you mean 'disc'",
    ),
    "unknown id": ({"000_3.png": mask(1)}, r"a mask of '3', which is no class \(known are 0, 1, 2, ground, square"),
    "another size": ({"000_disc.png": mask(1).T}, r"000_disc\.png: this mask is 12x16 pixels .*000\.jpg has 16x12"),
    "no name fits": ({"disc-000.png": mask(1)}, r"none of the 2 images .*000\.jpg, has a mask .*, but disc-000\.png"),
    "no mask": ({}, r"label folder .* does not exist"),
    "ambiguous": (
        {"a_disc_b_disc_c.png": mask(1)},
        r"may be a mask of image 'a' or of 'a_disc_b'; rename",
    ),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_every_mismatch_is_named(tmp_path, case):
    masks, message = MISMATCHES[case]
    write(tmp_path, masks, ("000.jpg", "001.jpg") if case != "ambiguous" else ("a.jpg", "a_disc_b.jpg"))
    pattern = "{image}_{class}.png" if case != "ambiguous" else "{image}_{class}_*.png"
    with pytest.raises(DatasetError, match=message) as error:
        labels(tmp_path, masks=pattern)
    assert "\n" not in str(error.value)


def test_damaged_masks_and_masks_without_image_are_named(tmp_path, caplog):
    write(tmp_path, {"000_disc.png": mask(1), "002_disc.png": mask(1), "overview.png": mask(1)})
    with caplog.at_level(logging.WARNING, logger="rc2l"):
        assert labels(tmp_path, masks="{image}_{class}.png") == {"000": rows(255, _2=(1,))}
    assert re.search(r"2 files in the folder of masks .* first .*002_disc\.png", caplog.text)
    (problem,) = unmatched_labels(["toy_sem_seg_train"])
    assert re.search(r"2 label files belong to no image, first .*002_disc\.png.*'masks'", problem)
    (tmp_path / "labels/001_disc.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"001_disc\.png: cannot read this label"):
        labels(tmp_path, masks="{image}_{class}.png")


BAD_KEYS = {
    "no class": ({"masks": "{image}.png"}, r"'masks' is '\{image\}\.png'; it must be .* \{image\} and \{class\}"),
    "twice": ({"masks": "{image}_{image}_{class}.png"}, "each once"),
    "unknown": ({"masks": "{image}_{label}.png"}, "it must be a path below 'labels'"),
    "no text": ({"masks": 3}, "'masks' is 3; it must be"),
    "jpeg": ({"masks": "{image}_{class}.jpg"}, r"must end in one of \.png"),
    "color_map": (
        {"masks": "{image}_{class}.png", "color_map": {"disc": [1, 1, 1]}},
        "'masks' and 'color_map' exclude",
    ),
    "ignore": ({"masks": "{image}_{class}.png", "ignore": 3}, "'masks' and 'ignore' exclude"),
    "list": ({"masks": "{image}_{class}.png", "images": "list.txt"}, "'masks' needs 'images' and 'labels'"),
    "background alone": ({"background": "ground"}, "'background' is for COCO and labelme files and for 'masks'"),
    "ignore and label_map": (
        {"ignore": 9, "label_map": {0: "ground", 9: "disc"}},
        r"'ignore' is 9, which 'label_map' makes class 'disc'; .*write 9: ignore in 'label_map'",
    ),
}


@pytest.mark.parametrize("case", BAD_KEYS)
def test_bad_keys_are_refused(tmp_path, case):
    keys, message = BAD_KEYS[case]
    with pytest.raises(DatasetError, match=message) as error:
        labels(tmp_path, **keys)
    assert "\n" not in str(error.value)


def test_an_id_may_be_ignored_by_both_keys(tmp_path):
    save(mask(1), tmp_path / "labels/000.png")
    save(np.zeros((H, W, 3), np.uint8), tmp_path / "images/000.jpg")
    assert labels(tmp_path, ignore=255, label_map={0: "disc", 255: "ignore"}) == {"000": rows(2, _255=(1,))}
    assert labels(tmp_path, label_map={0: "disc", 255: "ground"}) == {"000": rows(2, _0=(1,))}


SUGGESTIONS = {
    "000-tag-{}-0.png": 'masks: "{image}-tag-{class}-{n}.png" and background: ground',
    "{}/000.png": 'masks: "{class}/{image}.png" and background: ground',
    "000/{}.png": 'masks: "{image}/{class}.png" and background: ground',
    "{}_000.png": 'masks: "{class}_{image}.png" and background: ground',
}


@pytest.mark.parametrize("names", SUGGESTIONS)
def test_without_the_key_several_masks_are_recognised_and_the_advice_works(tmp_path, names):
    write(tmp_path, {names.format(name): mask(row) for row, name in enumerate(("square", "disc"), start=1)})
    with pytest.raises(DatasetError, match=r"there are 2 masks of it, first .*the key 'masks'") as error:
        labels(tmp_path)
    assert SUGGESTIONS[names] in str(error.value)
    masks, background = re.search(r'masks: "(.*)" and background: (\w+)', str(error.value)).groups()
    assert labels(tmp_path, masks=masks, background=background) == {"000": rows(0, _1=(1,), _2=(2,))}
