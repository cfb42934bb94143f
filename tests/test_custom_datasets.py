"""Anyone's own images by YAML alone: folders, lists, labelme, COCO; what is read, and training through train_net.py."""

# isort: split
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

import train_net
from rc2l.config import get_rc2l_cfg
from rc2l.data.datasets import (
    custom,
    load_records,
    register_custom_datasets,
    register_dataset_file,
    register_semantic_dataset,
)
from rc2l.data.datasets.image_ids import validation_ids
from rc2l.data.reading import read_label
from rc2l.engine.run import argument_parser
from tests.custom_data import (
    SIZE,
    coco_content,
    rectangle,
    run_lengths,
    write_coco,
    write_folder,
    write_labelme,
    write_panoptic,
)
from tests.mini_datasets import paint_image, paint_label, save_gray_png, save_image
from tests.shared_data import REPO

CLASSES = ["ground", "roof", "road"]


@pytest.fixture(autouse=True)
def forget_datasets():
    yield
    custom.unregister(custom.custom_datasets())


def register(root: Path, /, **description) -> tuple[str, ...]:
    """Register ``my`` from a YAML file in ``root``."""
    path = root / "my.yaml"
    path.write_text(yaml.safe_dump({"name": "my", "classes": CLASSES, **description}, sort_keys=False))
    return register_dataset_file(path)


def labels_of(name: str) -> list[np.ndarray]:
    metadata = MetadataCatalog.get(name)
    return [read_label(record["sem_seg_file_name"], metadata) for record in load_records(name)]


def ids_of(subset: str) -> list[str]:
    return [record["image_id"] for record in load_records(f"my_sem_seg_{subset}")]


def test_a_folder_of_images_and_labels(tmp_path):
    write_folder(tmp_path, 5)
    assert register(tmp_path, images="images", labels="labels") == ("my_sem_seg_train",)
    metadata = MetadataCatalog.get("my_sem_seg_train")
    assert metadata.stuff_classes == CLASSES and len(metadata.stuff_colors) == 3 and metadata.ignore_label == 255
    assert ids_of("train") == [f"{i:02d}" for i in range(5)]
    for index, label in enumerate(labels_of("my_sem_seg_train")):
        assert np.array_equal(label, paint_label(index, 3, SIZE))


def test_paths_and_ids_do_not_depend_on_where_the_data_lies(tmp_path, monkeypatch):
    for place in ("a", "b/c"):
        write_folder(tmp_path / place, 3)
        register(tmp_path / place, images="images", labels="labels", val_fraction=0.34)
        ids = ids_of("val")
        assert load_records("my_sem_seg_val")[0]["file_name"].startswith(str(tmp_path / place))
    register(tmp_path / "a", root=".", images="images", labels="labels", val_fraction=0.34)
    assert ids == ids_of("val")
    monkeypatch.setenv("MY_DATA", str(tmp_path / "a"))
    (tmp_path / "elsewhere").mkdir()
    register(tmp_path / "elsewhere", root="$MY_DATA", images="images", labels="labels", val_fraction=0.34)
    assert ids == ids_of("val")


def test_val_fraction_parts_the_labeled_images(tmp_path):
    write_folder(tmp_path, 10)
    for index in (2, 7):
        (tmp_path / f"labels/{index:02d}.png").unlink()
    register(tmp_path, images="images", labels="labels", val_fraction=0.25)
    train, val = ids_of("train"), ids_of("val")
    # SHA-256 of "val:<id>" as a share of its range: 0.05 of 00, 0.06 of 09; 0.11 of 02 and 0.05 of 07, without labels.
    assert val == ["00", "09"] and len(train) == 8 and not set(train) & set(val)
    save_image(paint_image(paint_label(0, 3, SIZE), 0), tmp_path / "images/new.jpg")
    assert ids_of("val") == val


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.6])
def test_validation_images_stay_when_images_and_labels_are_added(tmp_path, fraction):
    write_folder(tmp_path, 40)
    labels = sorted((tmp_path / "labels").iterdir())
    for path in labels[12:]:
        path.rename(path.with_suffix(".later"))
    register(tmp_path, images="images", labels="labels", val_fraction=fraction)
    validated, trained = set(ids_of("val")), {r["image_id"] for r in load_records("my_sem_seg_train") if len(r) == 4}
    assert len(validated) + len(trained) == 12
    for path in labels[12:]:
        path.with_suffix(".later").rename(path)
    assert validated < set(ids_of("val")) and trained < set(ids_of("train"))


def test_a_split_into_two_leaves_neither_part_empty(caplog):
    ids = ["00", "01", "02"]  # hashes 0.05, 0.75, 0.11
    assert validation_ids(ids, 0.04, "my") == {"00"}
    assert "takes none of 3 images by their hashes, so '00' validates" in caplog.text
    assert validation_ids(ids, 0.8, "my") == {"00", "02"}
    assert "takes all of 3 images by their hashes, so '01' trains" in caplog.text
    caplog.clear()
    assert validation_ids(ids, 0.1, "my") == {"00"} and not caplog.text


def test_ids_of_a_labelme_folder_do_not_depend_on_the_place_of_its_description(tmp_path):
    export = tmp_path / "data/export"
    write_folder(export, 12, "JPEGImages", "SegmentationClass")
    (export / "class_names.txt").write_text("\n".join(CLASSES))
    (tmp_path / "project").mkdir()
    found = []
    for place, folder in ((tmp_path / "data", "export"), (export, "."), (tmp_path / "project", str(export))):
        (place / "my.yaml").write_text(yaml.safe_dump({"name": "my", "labelme": folder, "val_fraction": 0.3}))
        register_dataset_file(place / "my.yaml")
        found.append((ids_of("train"), ids_of("val")))
    assert found[0] == found[1] == found[2] and sorted([*found[0][0], *found[0][1]]) == [f"{i:02d}" for i in range(12)]


def test_images_without_labels_are_unlabeled_and_counted(tmp_path, caplog):
    write_folder(tmp_path, 4)
    (tmp_path / "labels/01.png").unlink()
    register(tmp_path, images="images", labels="labels")
    with caplog.at_level(logging.INFO, logger="rc2l"):
        records = load_records("my_sem_seg_train")
    assert ["sem_seg_file_name" in record for record in records] == [True, False, True, True]
    assert "3 of 4 images have a label" in caplog.text


def test_unlabeled_images_need_nothing_but_a_folder(tmp_path):
    write_folder(tmp_path / "more", 3)
    path = tmp_path / "more.yaml"
    path.write_text("name: more\nunlabeled: more/images")
    assert register_dataset_file(path) == ("more_sem_seg_unlabeled",)
    records = load_records("more_sem_seg_unlabeled")
    assert len(records) == 3 and not any("sem_seg_file_name" in record for record in records)


@pytest.mark.parametrize("line", ["{i:02d}", "images/{i:02d}.jpg", "{i:02d}.jpg", "./images/{i:02d}.jpg", "\n{i:02d}"])
def test_lists_of_ids_and_paths(tmp_path, line):
    write_folder(tmp_path, 6)
    for subset, members in (("train", (4, 0, 1)), ("val", (2, 5))):
        (tmp_path / f"{subset}.txt").write_text("\n".join(line.format(i=i) for i in members))
    register(tmp_path, images="images", labels="labels", train="train.txt", val="val.txt")
    assert ids_of("train") == ["04", "00", "01"] and ids_of("val") == ["02", "05"]
    assert np.array_equal(labels_of("my_sem_seg_val")[1], paint_label(5, 3, SIZE))


def test_lists_of_image_and_label_paths_without_folders(tmp_path):
    write_folder(tmp_path, 3, "JPEG Images", "Labels")
    (tmp_path / "list.txt").write_text("/other/a.jpg,/other/a.png\n")
    write_folder(tmp_path / "other", 1)
    (tmp_path / "other/images/00.jpg").rename(tmp_path / "other/a.jpg")
    (tmp_path / "other/labels/00.png").rename(tmp_path / "other/a.png")
    (tmp_path / "spaces.txt").write_text("JPEG Images/00.jpg\nJPEG Images/02\n")
    register(tmp_path, train="list.txt", val={"list": "spaces.txt", "labels": "Labels"})
    assert ids_of("train") == ["other/a"] and ids_of("val") == ["JPEG Images/00", "JPEG Images/02"]
    assert np.array_equal(labels_of("my_sem_seg_val")[1], paint_label(2, 3, SIZE))


def test_val_alone_leaves_the_rest_for_training(tmp_path):
    write_folder(tmp_path, 5)
    (tmp_path / "val.txt").write_text("01\n03\n")
    register(tmp_path, images="images", labels="labels", val="val.txt")
    assert ids_of("train") == ["00", "02", "04"]


def test_folders_of_train_and_val_with_equal_names_are_different_images(tmp_path):
    for subset in ("train", "val"):
        write_folder(tmp_path / subset, 2)
    sources = {s: {"images": f"{s}/images", "labels": f"{s}/labels"} for s in ("train", "val")}
    register(tmp_path, **sources)
    assert ids_of("train") == ["00", "01"] and ids_of("val") == ["val/images/00", "val/images/01"]


def test_cityscapes_like_names_patterns_and_subfolders(tmp_path):
    for index, city in enumerate(("aachen", "bonn")):
        label = paint_label(index, 3, SIZE)
        save_image(paint_image(label, 0), tmp_path / f"left/{city}/1_left.png")
        save_image(paint_image(label, 0), tmp_path / f"left/{city}/1_right.png")
        save_gray_png(label, tmp_path / f"gt/{city}/1_gt.png")
    register(tmp_path, images="left/*/*.png", labels="gt", image_suffix="_left", label_suffix="_gt")
    assert ids_of("train") == ["aachen/1_left", "bonn/1_left"]
    assert np.array_equal(labels_of("my_sem_seg_train")[1], paint_label(1, 3, SIZE))


def test_images_and_labels_in_one_folder(tmp_path):
    write_folder(tmp_path, 2, "data", "data")
    register(tmp_path, images="data/*.jpg", labels="data")
    assert len(labels_of("my_sem_seg_train")) == 2
    for path in (tmp_path / "data").glob("*.png"):
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    register(tmp_path, images="data", labels="data", label_suffix="_mask")
    assert ids_of("train") == ["00", "01"] and len(labels_of("my_sem_seg_train")) == 2


def test_labels_inside_the_image_folder_are_no_images(tmp_path):
    write_folder(tmp_path, 2, "data", "data/labels")
    register(tmp_path, images="data", labels="data/labels")
    assert ids_of("train") == ["00", "01"]


def test_classes_from_a_file_and_colors_by_name(tmp_path):
    write_folder(tmp_path, 1)
    (tmp_path / "names.txt").write_text("ground\nroof\n\nroad\n")
    colors = {"road": "#0a0B0c", "ground": [0, 0, 0], "roof": [255, 0, 0]}
    register(tmp_path, images="images", labels="labels", classes="names.txt", colors=colors)
    metadata = MetadataCatalog.get("my_sem_seg_train")
    assert metadata.stuff_classes == CLASSES and metadata.stuff_colors == [(0, 0, 0), (255, 0, 0), (10, 11, 12)]


def test_label_map_by_name_and_id(tmp_path):
    write_folder(tmp_path, 1)
    save_gray_png(np.array([[0, 100, 200, 255, 7]], dtype=np.uint8), tmp_path / "labels/00.png")
    label_map = {0: "roof", 100: 2, 200: "ignore", 255: "ground", 7: 255}
    register(tmp_path, images="images", labels="labels", label_map=label_map)
    assert labels_of("my_sem_seg_train")[0].tolist() == [[1, 2, 255, 0, 255]]


def test_ignore_value(tmp_path):
    write_folder(tmp_path, 1)
    (tmp_path / "labels/00.png").unlink()
    Image.fromarray(np.array([[0, 2, -1]], dtype=np.int32)).save(tmp_path / "labels/00.tif")
    register(tmp_path, images="images", labels="labels", ignore=-1)
    assert labels_of("my_sem_seg_train")[0].tolist() == [[0, 2, 255]]
    save_gray_png(np.array([[0, 2, 9]], dtype=np.uint8), tmp_path / "labels/00.png")
    (tmp_path / "labels/00.tif").unlink()
    register(tmp_path, images="images", labels="labels", ignore=9)
    assert labels_of("my_sem_seg_train")[0].tolist() == [[0, 2, 255]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_color_map(tmp_path, mode):
    write_folder(tmp_path, 1)
    colors = np.array([[[1, 2, 3], [255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]], dtype=np.uint8)
    image = Image.fromarray(colors)
    image = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=5) if mode == "P" else image.convert(mode)
    assert image.mode == mode
    image.save(tmp_path / "labels/00.png")
    color_map = {"ground": [1, 2, 3], "roof": [[255, 0, 0], "#00ff00"], "road": "#0000FF", "ignore": [9, 9, 9]}
    register(tmp_path, images="images", labels="labels", color_map=color_map)
    assert labels_of("my_sem_seg_train")[0].tolist() == [[0, 1, 1, 2, 255]]


@pytest.mark.parametrize("png_folder", [False, True])
def test_labelme_export(tmp_path, png_folder):
    write_labelme(tmp_path / "export", 4)
    if png_folder:
        (tmp_path / "export/SegmentationClassPNG").mkdir()
        for path in (tmp_path / "export/SegmentationClass").glob("*.png"):
            path.rename(tmp_path / "export/SegmentationClassPNG" / path.name)
    path = tmp_path / "my.yaml"
    path.write_text("name: my\nlabelme: export")
    register_dataset_file(path)
    assert MetadataCatalog.get("my_sem_seg_train").stuff_classes == ["background", "roof", "road"]
    labels = labels_of("my_sem_seg_train")
    assert len(labels) == 4 and np.array_equal(labels[3], paint_label(3, 3, SIZE)) and 255 in labels[3]


def register_coco(root: Path, /, **description) -> tuple[str, ...]:
    path = root / "my.yaml"
    path.write_text(yaml.safe_dump({"name": "my", "images": "images", "coco": "annotations.json", **description}))
    return register_dataset_file(path)


def expected_coco(ground: int, road: int, roof: int) -> np.ndarray:
    """The label of every image of ``coco_content``."""
    label = np.full(SIZE, ground, dtype=np.uint8)
    label[4:20, 4:24] = roof
    label[16:28, 20:44] = road
    label[4:16, 20:44] = 255
    return label


@pytest.mark.parametrize("background", [None, True, "ground"])
def test_coco_instances(tmp_path, background):
    write_coco(tmp_path)
    register_coco(tmp_path, background=background)
    names = MetadataCatalog.get("my_sem_seg_train").stuff_classes
    first = [] if background is None else ["background" if background is True else background]
    assert names == [*first, "road", "roof"]
    shift = len(first)
    for label in labels_of("my_sem_seg_train"):
        assert np.array_equal(label, expected_coco(0 if first else 255, shift, shift + 1))


def test_coco_classes_by_name_and_by_category_id(tmp_path):
    write_coco(tmp_path)
    register_coco(tmp_path, classes=["roof"])
    assert np.array_equal(labels_of("my_sem_seg_train")[0], expected_coco(255, 255, 0))
    register_coco(tmp_path, classes=["a", "b"], label_map={7: "b", 3: 0}, background="none")
    assert np.array_equal(labels_of("my_sem_seg_train")[0], expected_coco(0, 0, 2))


def test_coco_labels_are_drawn_once_and_anew_where_the_file_changes(tmp_path):
    write_coco(tmp_path)
    register_coco(tmp_path, label_cache="cache", val_fraction=0.25)
    drawn = Path(load_records("my_sem_seg_train")[0]["sem_seg_file_name"])
    assert drawn.parent.parent == tmp_path / "cache" and len(load_records("my_sem_seg_val")) == 3
    before = drawn.stat().st_mtime_ns
    load_records("my_sem_seg_train")
    assert drawn.stat().st_mtime_ns == before and len(list((tmp_path / "cache").iterdir())) == 1
    content = coco_content()
    for annotation in content["annotations"]:
        annotation["category_id"] = 3
    write_coco(tmp_path, content)
    assert Path(load_records("my_sem_seg_train")[0]["sem_seg_file_name"]).parent != drawn.parent


def test_coco_images_without_annotations(tmp_path):
    content = coco_content(4)
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 11]
    write_coco(tmp_path, content)
    register_coco(tmp_path)
    assert ["sem_seg_file_name" in record for record in load_records("my_sem_seg_train")] == [True, False, True, True]
    register_coco(tmp_path, background=True)
    assert not labels_of("my_sem_seg_train")[1].any()


@pytest.mark.parametrize("seed", range(5))
def test_compressed_run_lengths_are_read_as_pycocotools_does(tmp_path, seed):
    rng = np.random.default_rng(seed)
    coarse = rng.random((4, 6)) < (0.1, 0.5, 0.9, 1.1, 0.5)[seed]
    mask = np.kron(coarse, np.ones((8, 8), dtype=bool)) ^ (rng.random(SIZE) < (0.3 if seed == 4 else 0.01))
    content = coco_content(1)
    content["annotations"] = [
        {"id": 0, "image_id": 10, "category_id": 7, "segmentation": run_lengths(mask, compressed=True)}
    ]
    write_coco(tmp_path, content)
    register_coco(tmp_path, background=True)
    assert np.array_equal(labels_of("my_sem_seg_train")[0], 2 * mask)


def test_coco_files_of_train_and_val_and_a_list(tmp_path):
    content = coco_content(6)
    write_coco(tmp_path, content)
    for subset, members in (("train", (10, 11, 12, 13)), ("val", (14, 15))):
        part = {key: [item for item in content[key] if item.get("image_id", item["id"]) in members] for key in content}
        (tmp_path / f"{subset}.json").write_text(json.dumps({**part, "categories": content["categories"]}))
    (tmp_path / "some.txt").write_text("03\nimages/00.jpg\n")
    register_coco(tmp_path, coco=None, train={"coco": "train.json", "list": "some.txt"}, val={"coco": "val.json"})
    assert ids_of("train") == ["03", "00"] and ids_of("val") == ["04", "05"]
    assert np.array_equal(labels_of("my_sem_seg_train")[0], expected_coco(255, 0, 1))


def test_coco_panoptic(tmp_path):
    write_panoptic(tmp_path)
    register_coco(tmp_path, coco="panoptic.json")
    assert MetadataCatalog.get("my_sem_seg_train").stuff_classes == CLASSES
    for index, label in enumerate(labels_of("my_sem_seg_train")):
        assert np.array_equal(label, paint_label(index, 3, SIZE))
    (tmp_path / "panoptic").rename(tmp_path / "segments")
    register_coco(tmp_path, coco="panoptic.json", labels="segments", background=True)
    expected = paint_label(2, 3, SIZE)
    assert np.array_equal(labels_of("my_sem_seg_train")[2], np.where(expected == 255, 0, expected + 1))


def test_the_python_call(tmp_path):
    write_folder(tmp_path, 4)
    names = register_semantic_dataset(
        "my", tmp_path, classes=CLASSES, images="images", labels=tmp_path / "labels", val_fraction=0.5
    )
    assert names == ("my_sem_seg_train", "my_sem_seg_val") and [len(load_records(name)) for name in names] == [1, 3]


def test_a_description_can_be_registered_anew(tmp_path):
    write_folder(tmp_path, 4)
    register(tmp_path, images="images", labels="labels", val_fraction=0.5)
    register(tmp_path, images="images", labels="labels", classes=["a", "b", "c"], label_map={0: 0, 1: 1, 2: 2})
    assert MetadataCatalog.get("my_sem_seg_train").stuff_classes == ["a", "b", "c"]
    assert "my_sem_seg_val" not in DatasetCatalog.list()


@pytest.mark.parametrize("how", ["beside the config", "in the working directory", "absolute", "inline", "several"])
def test_datasets_custom(tmp_path, monkeypatch, how):
    write_folder(tmp_path / "data", 2)
    (tmp_path / "configs").mkdir()
    monkeypatch.chdir(tmp_path)
    description = {"name": "my", "classes": CLASSES, "root": "../data", "images": "images", "labels": "labels"}
    file = tmp_path / ("other" if how == "in the working directory" else "configs") / "my.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(description))
    value = {
        "beside the config": "my.yaml",
        "in the working directory": "other/my.yaml",
        "absolute": str(file),
        "inline": [description],
        "several": ["my.yaml", {**description, "name": "second"}],
    }[how]
    (tmp_path / "configs/run.yaml").write_text(yaml.safe_dump({"DATASETS": {"CUSTOM": value}}))
    cfg = get_rc2l_cfg()
    cfg.merge_from_file(str(tmp_path / "configs/run.yaml"))
    names = register_custom_datasets(cfg, "configs/run.yaml")
    assert names == (("my_sem_seg_train", "second_sem_seg_train") if how == "several" else ("my_sem_seg_train",))
    records = [load_records(name) for name in names]

    saved = tmp_path / "saved/config.yaml"
    saved.parent.mkdir()
    saved.write_text(cfg.dump())
    os.chdir(saved.parent)
    again = get_rc2l_cfg()
    again.merge_from_file("config.yaml")
    again.freeze()
    assert register_custom_datasets(again, "config.yaml") == names
    assert [load_records(name) for name in names] == records


@pytest.mark.parametrize("template", ["rc2l_efficientnet-lite0.yaml", "rc2l_r50.yaml"])
def test_the_templates_work_on_a_real_folder(template, tmp_path):
    description = yaml.safe_load((REPO / "configs/custom/my_dataset.yaml").read_text())
    write_folder(tmp_path, 5)
    for path in (tmp_path / "labels").iterdir():
        save_gray_png((paint_label(0, 3, SIZE) == 1) * np.uint8(255), path)
    (tmp_path / "my_dataset.yaml").write_text(yaml.safe_dump({**description, "root": "."}))
    config = (REPO / "configs/custom" / template).read_text()
    (tmp_path / template).write_text(config.replace("../", f"{REPO}/configs/"))
    cfg = get_rc2l_cfg()
    cfg.merge_from_file(str(tmp_path / template))
    names = register_custom_datasets(cfg, tmp_path / template)
    assert names == (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    assert len(MetadataCatalog.get(names[0]).stuff_classes) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    assert [len(labels_of(name)) for name in names] == [3, 2]
    assert set(np.unique(labels_of(names[1])[0])) == {0, 1}


MODEL = """MODEL.SEM_SEG_HEAD.CONVS_DIM 32 MODEL.SEM_SEG_HEAD.MASK_DIM 32 MODEL.MASK_FORMER.HIDDEN_DIM 32
MODEL.MASK_FORMER.DIM_FEEDFORWARD 32 MODEL.MASK_FORMER.DEC_LAYERS 1 MODEL.SEM_SEG_HEAD.NUM_CLASSES 3
SOLVER.IMS_PER_BATCH 2 SOLVER.IMS_PER_BATCH_UNLABELED 2 SEMI.BURN_IN 0 SOLVER.MAX_ITER 2 DATALOADER.NUM_WORKERS 0
DATASETS.SPLIT.SAMPLING random DATASETS.SPLIT.FRACTION 1/2""".split()


def train(root: Path, description: dict, *overrides: str) -> dict[str, float]:
    """Two iterations of rc2l by YAML files alone, beside the data."""
    (root / "my.yaml").write_text(yaml.safe_dump({"name": "my", "val_fraction": 0.25, **description}))
    datasets = {"CUSTOM": "my.yaml", "TRAIN": ["my_sem_seg_train"], "TEST": ["my_sem_seg_val"]}
    config = {"_BASE_": str(REPO / "configs/shapes/rc2l.yaml"), "DATASETS": datasets}
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    arguments = ["--config-file", str(root / "config.yaml"), *MODEL, "OUTPUT_DIR", str(root / "output"), *overrides]
    return train_net.main(argument_parser("").parse_args(arguments))


TRAINED = {
    "labelme": (write_labelme, {"labelme": "."}),
    "COCO instances": (write_coco, {"images": "images", "coco": "annotations.json", "background": True}),
    "panoptic": (lambda root: write_panoptic(root, 8), {"images": "images", "coco": "panoptic.json"}),
    "folder": (write_folder, {"images": "images", "labels": "labels", "classes": CLASSES}),
}


@pytest.mark.parametrize("kind", TRAINED)
def test_training_by_yaml_alone(kind, tmp_path):
    write, description = TRAINED[kind]
    write(tmp_path)
    results = train(tmp_path, description)
    assert {"teacher/mIoU", "student/mIoU"} <= results.keys()
    rows = [json.loads(line) for line in (tmp_path / "output/metrics.json").read_text().splitlines()]
    assert all(np.isfinite(row["total_loss"]) for row in rows if "total_loss" in row)
    assert torch.load(tmp_path / "output/model_final.pth", weights_only=True)["trainer"]["iteration"] == 1


def test_unlabeled_images_train_without_label_files(tmp_path):
    write_folder(tmp_path, 4)
    write_folder(tmp_path / "more", 4)
    for path in (tmp_path / "more/labels").iterdir():
        path.unlink()
    description = {"images": "images", "labels": "labels", "classes": CLASSES, "unlabeled": "more/images"}
    train(tmp_path, description, "DATASETS.SPLIT.FRACTION", "all", "DATASETS.UNLABELED", "('my_sem_seg_unlabeled',)")


def test_a_wrong_number_of_classes_says_the_right_one(tmp_path):
    write_folder(tmp_path)
    description = {"images": "images", "labels": "labels", "classes": CLASSES}
    with pytest.raises(
        ValueError, match=r"NUM_CLASSES is 9, but dataset 'my_sem_seg_train' has 3 classes; set it to 3"
    ):
        train(tmp_path, description, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "9")


def test_half_of_a_polygon_file_is_never_written(tmp_path):
    """An annotation that cannot be drawn leaves no folder of labels behind."""
    content = coco_content()
    content["annotations"][-1]["segmentation"] = rectangle(0, 0, 5, 5)[0][:4]
    write_coco(tmp_path, content)
    register_coco(tmp_path)
    with pytest.raises(ValueError, match="has a polygon that is no list of 3 or more points"):
        load_records("my_sem_seg_train")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["annotations.json", "images", "my.yaml"]
