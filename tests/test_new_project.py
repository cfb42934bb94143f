"""`rc2l new`: folders as people have them become a description that loads and a config that is valid."""

import json

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from rc2l.data.datasets import load_records, register_dataset_file
from rc2l.data.reading import read_label
from rc2l.engine.config_file import load_config
from rc2l.new_project.mask_folders import subset_of
from rc2l.new_project.settings import Facts, Machine, choose_settings, step_seconds
from tests.test_labelme import annotate, shape
from tests.tool_modules import load_tool

SIZE = (24, 40)
new = load_tool("new")


def photo(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def mask(path, values, mode=None):
    """Stripes of the values, or of colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stripes = np.array(values, dtype=np.uint8)[np.arange(SIZE[1]) * len(values) // SIZE[1]]
    Image.fromarray(np.broadcast_to(stripes, (SIZE[0], *stripes.shape)).copy(), mode).save(path)


def start(folder, *arguments):
    """The description and the config that are written, and the records of each subset."""
    new.main([str(folder), *arguments])
    description = yaml.safe_load((folder / "dataset.yaml").read_text())
    names = register_dataset_file(folder / "dataset.yaml")
    cfg = load_config(str(folder / "train.yaml"), [])
    assert set(cfg.DATASETS.TRAIN) | set(cfg.DATASETS.TEST) | set(cfg.DATASETS.UNLABELED) == set(names)
    return description, cfg, {name.rpartition("_")[2]: load_records(name) for name in names}


def labeled(records):
    return sum("sem_seg_file_name" in record for record in records)


def test_folders_of_images_and_masks(tmp_path, capsys):
    for i in range(8):
        photo(tmp_path / f"images/{i}.jpg", i)
        mask(tmp_path / f"masks/{i}_mask.png", (0, 1, 2))
    for i in range(3):
        photo(tmp_path / f"more/{i}.jpg", 20 + i)
    photo(tmp_path / "test/0.jpg", 30)
    (tmp_path / "classes.txt").write_text("ground\nroof\ntree\n")
    description, cfg, records = start(tmp_path)
    assert description["classes"] == ["ground", "roof", "tree"] and description["label_suffix"] == "_mask"
    assert labeled(records["train"]) + labeled(records["val"]) == 8 and len(records["unlabeled"]) == 3
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 3 and cfg.SEMI.METHOD == "rc2l"
    printed = capsys.readouterr().out
    assert "test has no labels and is left out" in printed and "rc2l train --config-file" in printed


def test_images_that_are_not_8_bit_rgb(tmp_path, capsys):
    for i in range(8):
        (tmp_path / "images").mkdir(exist_ok=True)
        pixels = np.random.default_rng(i).integers(300, 3900, (*SIZE, 5), dtype=np.uint16)
        tifffile.imwrite(tmp_path / f"images/{i}.tif", pixels, photometric="minisblack", planarconfig="contig")
        mask(tmp_path / f"masks/{i}.png", (0, 1))
    description, _, records = start(tmp_path)
    assert description["bands"] == [0, 1, 2] and description["value_range"] == [0, 4095]
    assert labeled(records["train"]) + labeled(records["val"]) == 8
    assert "bands [0, 1, 2], value_range [0, 4095] is guessed" in capsys.readouterr().out


def test_subsets_and_suffixes_on_both_sides(tmp_path):
    for subset, count in (("train", 4), ("val", 2)):
        for i in range(count):
            photo(tmp_path / f"leftImg8bit/{subset}/ulm/{subset}{i}_left.png", i + 10 * count)
            mask(tmp_path / f"gtFine/{subset}/ulm/{subset}{i}_gt_ids.png", (0, 7, 255))
    description, cfg, records = start(tmp_path)
    assert description["image_suffix"] == "_left" and description["label_suffix"] == "_gt_ids"
    assert description["label_map"] == {0: "background", 7: "class_7", 255: "ignore"}
    assert [labeled(records[subset]) for subset in ("train", "val")] == [4, 2]
    assert cfg.SEMI.METHOD == "supervised" and "val_fraction" not in description


@pytest.mark.parametrize("layout", ["suffix", "same names"])
def test_masks_beside_their_images(tmp_path, layout):
    for i in range(6):
        photo(tmp_path / f"{i}.jpg", i)
        if i < 5:
            mask(tmp_path / (f"{i}-seg.png" if layout == "suffix" else f"{i}.png"), (0, 255))
    description, cfg, records = start(tmp_path)
    assert description["label_map"] == {0: "background", 255: "foreground"}
    assert labeled(records["train"]) + labeled(records["val"]) == 5
    assert len(records["train"]) + len(records["val"]) == 6 and cfg.SEMI.METHOD == "rc2l"


def test_colours_with_and_without_names(tmp_path):
    for i in range(4):
        photo(tmp_path / f"train/{i}.jpg", i)
        mask(tmp_path / f"train_masks/{i}.png", ((0, 0, 0), (0, 128, 0), (200, 0, 0)), "RGB")
    description, _, records = start(tmp_path)
    assert description["classes"] == ["background", "color_008000", "color_c80000"]
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nvoid,0,0,0\ngrass,0,128,0\nroof,200,0,0\nsky,1,2,3\n")
    description, _, records = start(tmp_path, "--force")
    assert description["classes"] == ["void", "grass", "roof", "sky"]
    name = f"{description['name']}_sem_seg_train"
    from detectron2.data import MetadataCatalog

    label = read_label(records["train"][0]["sem_seg_file_name"], MetadataCatalog.get(name))
    assert sorted(np.unique(label)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("masks/{image}-tag-{name}-0.png", "{image}-tag-{class}-{n}.png"),
        ("masks/{image}_{name}.png", "{image}_{class}.png"),
        ("masks/{name}/{image}.png", "{class}/{image}.png"),
    ],
)
def test_one_mask_for_each_class(tmp_path, pattern, found):
    for i in range(4):
        photo(tmp_path / f"images/a_{i}.jpg", i)
        for name in ("disc", "square"):
            if (i, name) != (2, "disc"):
                mask(tmp_path / pattern.format(image=f"a_{i}", name=name), (0, 255))
    description, cfg, records = start(tmp_path)
    assert description["masks"] == found and description["classes"] == ["disc", "square"]
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 3
    assert labeled(records["train"]) + labeled(records["val"]) == 4


def test_labelme(tmp_path):
    for i in range(5):
        annotate(tmp_path, str(i), [shape("car", [[0, 0], [9, 0], [9, 9]])])
    photo(tmp_path / "free.jpg")
    description, _, records = start(tmp_path)
    assert description["labelme"] == "." and labeled(records["train"]) == len(records["train"]) - 1


@pytest.mark.parametrize("split", [True, False])
def test_coco(tmp_path, split):
    for subset in ("train", "valid") if split else ("data",):
        folder = tmp_path / subset
        for i in range(4):
            photo(folder / f"{subset}{i}.jpg", i + 10 * len(subset))
        content = {
            "images": [{"id": i, "file_name": f"{subset}{i}.jpg", "height": 24, "width": 40} for i in range(4)],
            "annotations": [
                {"id": i, "image_id": i, "category_id": 3, "segmentation": [[0, 0, 9, 0, 9, 9]]} for i in range(4)
            ],
            "categories": [{"id": 3, "name": "boat"}],
        }
        (folder / "_annotations.coco.json").write_text(json.dumps(content))
    description, cfg, records = start(tmp_path)
    assert description["background"] is True and cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 2
    assert labeled(records["train"]) + labeled(records["val"]) == (8 if split else 4)
    assert ("val_fraction" in description) is not split


def test_data_elsewhere_and_files_that_are_there(tmp_path, capsys):
    for i in range(4):
        photo(tmp_path / f"disk/images/{i}.jpg", i)
        mask(tmp_path / f"disk/labels/{i}.png", (0, 1))
    project = tmp_path / "my project"
    description, _, _ = start(project, "--data", str(tmp_path / "disk"))
    assert description["root"] == str(tmp_path / "disk") and description["name"] == "my_project"
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        new.main([str(project), "--data", str(tmp_path / "disk")])
    assert "--force" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "holds no images"),
        (("images/0.jpg", "images/1.jpg"), "2 images and no labels"),
    ],
)
def test_what_cannot_be_described_is_one_line(tmp_path, capsys, files, message):
    for i, name in enumerate(files):
        photo(tmp_path / name, i)
    with pytest.raises(SystemExit, match="2"):
        new.main([str(tmp_path)])
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "dataset.yaml").exists()


def test_settings_follow_data_and_machine():
    facts = Facts(labeled=12, unlabeled=300, validation=20, num_classes=5, sizes=[(360, 480)] * 3)
    few = choose_settings(facts, Machine(cores=2))
    assert few["INPUT"]["MIN_SIZE_TEST"] == 192 and few["INPUT"]["CROP"]["SIZE"] == [192, 192]
    seconds = step_seconds(192, few["SOLVER"]["IMS_PER_BATCH"], Machine(cores=2), True)
    assert few["SOLVER"]["MAX_ITER"] * seconds < 2400
    gpu = choose_settings(facts, Machine(cores=16, gpu_memory=80.0))
    assert gpu["INPUT"]["MIN_SIZE_TEST"] == 360 and gpu["SOLVER"]["IMS_PER_BATCH"] == 8
    tiny = choose_settings(Facts(4, 0, 1, 2, [(30, 50)]), Machine(cores=2))
    assert tiny["INPUT"]["CROP"]["SIZE"] == [64, 64] and tiny["SEMI"]["METHOD"] == "supervised"


@pytest.mark.parametrize(
    ("path", "subset"),
    [("train/a", "train"), ("Training_set", "train"), ("a/valid", "val"), ("value", ""), ("instances_val2017", "val")],
)
def test_subsets_by_name(path, subset, tmp_path):
    assert subset_of(tmp_path.relative_to(tmp_path) / path) == subset
