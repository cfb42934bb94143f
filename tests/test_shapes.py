"""The embedded dataset: content, determinism, registration."""

import rc2l  # noqa: F401  first of all: makes detectron2 importable

# isort: split

import json
import runpy
import sys

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from rc2l.data.datasets import shapes_painter
from rc2l.data.datasets.shapes import generate_shapes, load_shapes, register_shapes
from rc2l.data.datasets.shapes_painter import CLASSES, class_color, paint_scene
from rc2l.data.errors import DatasetError
from tests.shared_data import REPO


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    generate_shapes(root, num_train=96, num_val=24)
    return root


def test_layout_and_encoding(root):
    folder = root / "shapes"
    names = (folder / "ImageSets/Segmentation/train.txt").read_text().split()
    assert names == [f"train_{i:04d}" for i in range(96)]
    assert (folder / "ImageSets/Segmentation/val.txt").read_text().split() == [f"val_{i:04d}" for i in range(24)]
    for name in names:
        with Image.open(folder / "JPEGImages" / f"{name}.jpg") as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 64))
        with Image.open(folder / "SegmentationClass" / f"{name}.png") as label:
            assert (label.format, label.mode, label.size) == ("PNG", "P", (64, 64))
            labels = np.unique(np.array(label))
            assert set(labels.tolist()) <= {*range(len(CLASSES)), 255}
            assert 0 in labels and 255 in labels and len(labels) >= 3
            assert tuple(label.getpalette()[3:6]) == class_color(1)


def test_classes_are_balanced(root):
    images = np.zeros(256, int)
    for path in (root / "shapes/SegmentationClass").glob("train_*.png"):
        images[np.unique(np.array(Image.open(path)))] += 1
    counts = images[1 : len(CLASSES)]
    assert counts.min() > 0.8 * counts.max()
    assert images[0] == 96


def test_same_parameters_same_bytes(root, tmp_path):
    first = contents(root / "shapes")
    np.random.seed(1)  # the global state must not matter
    assert contents(generate_shapes(tmp_path, num_train=96, num_val=24)) == first


def test_another_seed_other_images_and_a_smaller_set_is_the_beginning(root, tmp_path):
    full = contents(root / "shapes")
    part = contents(generate_shapes(tmp_path / "part", num_train=5, num_val=2))
    other = contents(generate_shapes(tmp_path / "other", num_train=5, num_val=2, seed=1))
    images = [name for name in part if name.endswith((".jpg", ".png"))]
    assert len(images) == 14
    assert all(part[name] == full[name] for name in images)
    assert all(other[name] != part[name] for name in images)


def test_generating_again_does_nothing_unless_parameters_change(tmp_path):
    folder = generate_shapes(tmp_path, num_train=3, num_val=2)
    marker = folder / "marker"
    marker.touch()
    generate_shapes(tmp_path, num_train=3, num_val=2)
    assert marker.exists()
    generate_shapes(tmp_path, num_train=4, num_val=2)
    assert not marker.exists()
    assert len(list((folder / "JPEGImages").iterdir())) == 6
    assert json.loads((folder / "shapes.json").read_text())["num_train"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


def test_interruption_leaves_nothing_half_written(tmp_path, monkeypatch):
    before = contents(generate_shapes(tmp_path, num_train=3, num_val=2))

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("rc2l.data.datasets.shapes.paint_scene", interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate_shapes(tmp_path, num_train=9, num_val=2)
    assert contents(tmp_path / "shapes") == before
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


def test_a_foreign_folder_is_left_alone(tmp_path):
    precious = tmp_path / "shapes" / "precious.txt"
    precious.parent.mkdir()
    precious.touch()
    with pytest.raises(FileExistsError, match=r"has no shapes\.json"):
        generate_shapes(tmp_path, num_train=1, num_val=1)
    assert precious.exists()


@pytest.mark.parametrize("bad", [{"size": 8}, {"num_train": 0}, {"num_val": 0}, {"seed": -1}])
def test_bad_parameters_are_named(tmp_path, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        generate_shapes(tmp_path, **bad)


@pytest.mark.parametrize("label", range(1, len(CLASSES)))
def test_an_object_lies_under_its_label(label, monkeypatch):
    # Without texture, noise and light, pixels of an object have one colour, which differs from all others.
    monkeypatch.setattr(shapes_painter, "_TEXTURES", ("plain",) * len(CLASSES))
    monkeypatch.setattr(shapes_painter, "_clouds", lambda rng, size, cells: np.zeros((size, size)))
    monkeypatch.setattr(shapes_painter, "_light", lambda rng, size: np.ones((size, size)))
    monkeypatch.setattr(shapes_painter, "_NOISE_STD", (0.0, 0.0))
    image, label_map = paint_scene(rng(label), [label], 64)
    inside, outside = image[label_map == label], image[label_map == 0]
    assert len(inside) > 40
    # Anti-aliased edge pixels are inside or on the border; all else is exact.
    color = np.median(inside, axis=0)
    exact = (np.abs(image - color).max(-1) <= 1) & (label_map != 255)
    assert (exact & (label_map == label)).sum() > 0.6 * len(inside)
    assert not (exact & (label_map == 0)).any()
    assert np.abs(outside - np.median(outside, axis=0)).max() <= 128


def test_border_is_one_pixel_around_objects():
    _, label_map = paint_scene(rng(3), [1], 64)
    padded = np.pad(label_map, 1, mode="edge")
    neighbors = np.stack([padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]])
    border = label_map == 255
    assert border.any()
    assert (neighbors == 1).any(0)[border].all()  # one pixel: each touches the object
    assert not ((neighbors == 0).any(0) & (label_map == 1)).any()  # closed: object and background never touch


def test_every_object_stays_visible():
    for seed in range(20):
        _, label_map = paint_scene(rng(seed), [1, 4, 8], 64)
        assert all((label_map == label).sum() >= 20 for label in (1, 4, 8))


def test_catalog_reads_the_root_at_call_time(root, monkeypatch):
    register_shapes()
    register_shapes()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    assert len(DatasetCatalog.get("shapes_sem_seg_train")) == 96
    dicts = DatasetCatalog.get("shapes_sem_seg_val")
    assert dicts[0] == {
        "file_name": str(root / "shapes/JPEGImages/val_0000.jpg"),
        "sem_seg_file_name": str(root / "shapes/SegmentationClass/val_0000.png"),
        "image_id": "val_0000",
    }
    metadata = MetadataCatalog.get("shapes_sem_seg_val")
    assert metadata.stuff_classes == list(CLASSES)
    assert len(set(metadata.stuff_colors)) == len(CLASSES) == 9
    assert (metadata.ignore_label, metadata.evaluator_type) == (255, "sem_seg")


def test_missing_dataset_says_how_to_make_it(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(DatasetError, match=r"python tools/make_shapes\.py") as error:
        load_shapes("train")
    assert str(tmp_path / "shapes") in str(error.value)


def test_command_line(tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["make_shapes.py", "--root", str(tmp_path), "--num-val", "1", *arguments])
        runpy.run_path(str(REPO / "tools" / "make_shapes.py"), run_name="__main__")

    run("--num-train", "2", "--size", "32")
    assert "2 training and 1 validation images of 32x32 pixels" in capsys.readouterr().out
    assert len(list((tmp_path / "shapes/JPEGImages").iterdir())) == 3
    with pytest.raises(SystemExit) as stop:
        run("--size", "4")
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines() == ["error: shapes: size is 4; use 16 or more"]
