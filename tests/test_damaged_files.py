"""Image files that are cut off or no images: what finds them, what is remembered, and what a run does with them."""

import rc2l  # noqa: F401  first of all: makes detectron2 importable

# isort: split
import io
import json
import logging
import os
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rc2l.config import get_rc2l_cfg
from rc2l.data import whole_files
from rc2l.data.check import check_data, damaged_unlabeled
from rc2l.data.damage import check_to_the_end
from rc2l.data.errors import DamagedImageError, DatasetError
from rc2l.data.splits import build_split, log_split, without_unlabeled
from rc2l.data.whole_files import WholeFiles
from tests.mini_datasets import build_mini_camvid

TEST = ("camvid_sem_seg_val",)


def encoded(**options) -> bytes:
    noise = np.random.default_rng(0).normal(0, 20, (48, 64, 3)) + np.arange(64)[:, None] * 3
    file = io.BytesIO()
    Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8)).save(file, **options)
    return file.getvalue()


def exif() -> Image.Exif:
    tags = Image.Exif()
    tags[271] = "a maker whose name \xff is no marker"
    return tags


FORMATS = {
    "jpeg": {"format": "JPEG"},
    "jpeg of best quality": {"format": "JPEG", "quality": 100, "subsampling": 0, "optimize": True},
    "progressive jpeg": {"format": "JPEG", "progressive": True},
    "jpeg with restart markers": {"format": "JPEG", "restart_marker_blocks": 2},
    "jpeg with exif": {"format": "JPEG", "exif": exif()},
    "png": {"format": "PNG"},
    "tiff": {"format": "TIFF"},
    "tiff of strips": {"format": "TIFF", "compression": "tiff_deflate"},
    "bmp": {"format": "BMP"},
    "webp": {"format": "WEBP"},
    "ppm": {"format": "PPM"},
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_cut_is_found_and_whole_files_pass(kind, tmp_path):
    content, path = encoded(**FORMATS[kind]), tmp_path / "image"
    for whole in (content, content + b"what a camera adds" * 9, content + bytes(500)):
        path.write_bytes(whole)
        check_to_the_end(str(path))
    draw = random.Random(0)
    # Of a JPEG, two bytes less are the end marker alone: all pixels are there.
    lengths = [0, 1, 2, len(content) - 3, *(draw.randrange(3, len(content) - 3) for _ in range(40))]
    for length in lengths:
        path.write_bytes(content[:length])
        with pytest.raises(DamagedImageError, match=r"image: cannot read this image \(.*\); restore the file"):
            check_to_the_end(str(path))


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if "jpeg" in kind or kind == "png"])
def test_files_that_end_in_zeros_are_found(kind, tmp_path):
    content, path = encoded(**FORMATS[kind]), tmp_path / "image"
    for share in (0.2, 0.5, 0.9):
        length = int(len(content) * share)
        path.write_bytes(content[:length] + bytes(len(content) - length))
        with pytest.raises(DamagedImageError):
            check_to_the_end(str(path))


def test_each_changed_byte_of_a_png_is_found(tmp_path):
    content, path = encoded(format="PNG"), tmp_path / "image"
    for position in random.Random(0).sample(range(8, len(content)), 40):
        path.write_bytes(content[:position] + bytes([content[position] ^ 16]) + content[position + 1 :])
        with pytest.raises(DamagedImageError):
            check_to_the_end(str(path))


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "it is empty"), (b"<html>404 not found</html>", "it is no image"), (None, "it does not exist")],
)
def test_what_is_no_image_is_told_apart(content, reason, tmp_path):
    path = tmp_path / "image.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DamagedImageError, match=reason) as error:
        check_to_the_end(str(path))
    assert str(error.value).count(str(path)) == 1


@pytest.fixture
def counted(monkeypatch):
    """The files that were read to their end, in order."""
    read = []

    def check(path: str) -> None:
        read.append(Path(path).name)
        check_to_the_end(path)

    monkeypatch.setattr(whole_files, "check_to_the_end", check)
    return read


def test_a_file_is_read_once_until_it_changes(tmp_path, counted):
    images = [tmp_path / f"{index}.png" for index in range(3)]
    for path in images:
        path.write_bytes(encoded(format="PNG"))

    def start() -> None:
        """What a new process does."""
        counted.clear()
        whole = WholeFiles(tmp_path / "cache/a.json")
        for path in images:
            whole.check(str(path))
            whole.check(str(path))
        whole.save()

    start()
    assert counted == ["0.png", "1.png", "2.png"]
    start()
    assert counted == []
    os.utime(images[1], ns=(1, 1))
    start()
    assert counted == ["1.png"]
    images[2].write_bytes(images[2].read_bytes()[:-5])
    with pytest.raises(DamagedImageError):
        start()
    images.pop(2).unlink()
    os.utime(images[0], ns=(2, 2))
    start()
    content = json.loads((tmp_path / "cache/a.json").read_text())
    assert content["files"] == {str(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in images}
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["a.json"]
    for broken in ('{"files"', "[]", '{"version": 1, "files": {"a": 3}}', '{"version": 0, "files": {}}', "\xff"):
        (tmp_path / "cache/a.json").write_text(broken, encoding="latin-1")
        start()
        assert counted == ["0.png", "1.png"]


def test_several_that_save_at_once_lose_nothing(tmp_path):
    for index in range(16):
        (tmp_path / f"{index}.png").write_bytes(encoded(format="PNG"))
    objects = [WholeFiles(tmp_path / "cache/a.json") for _ in range(16)]
    for index, whole in enumerate(objects):
        whole.check(str(tmp_path / f"{index}.png"))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(WholeFiles.save, objects))
    assert len(json.loads((tmp_path / "cache/a.json").read_text())["files"]) == 16


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path, caplog):
    (tmp_path / "a.png").write_bytes(encoded(format="PNG"))
    (tmp_path / "file").touch()
    whole = WholeFiles(tmp_path / "file/a.json")
    with caplog.at_level(logging.INFO, logger="rc2l"):
        for _ in range(2):
            whole.check(str(tmp_path / "a.png"))
            whole.save()
    assert caplog.text.count("cannot be written (File exists)") == 1 and "RC2L_CACHE" in caplog.text


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(build_mini_camvid(tmp_path, num_train=12, num_val=3)))
    monkeypatch.setenv("RC2L_CACHE", str(tmp_path / "cache"))
    cfg = get_rc2l_cfg()
    cfg.DATASETS.TRAIN = ("camvid_sem_seg_train",)
    cfg.DATASETS.SPLIT.FRACTION = "1/2"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 11
    return cfg


def cut(record: dict) -> str:
    path = Path(record["file_name"])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return str(path)


def test_one_error_names_the_damaged_images_of_all_splits(cfg, counted):
    split = build_split(cfg)
    check_data(cfg, split, TEST)
    assert len(counted) == 15
    check_data(cfg, split, TEST)
    assert len(counted) == 15
    test_image = Path(split.labeled[0]["file_name"]).parents[1] / "val/val_00001.jpg"
    damaged = [cut(split.labeled[3]), cut(split.unlabeled[2]), cut({"file_name": test_image})]
    with pytest.raises(DatasetError) as error:
        check_data(cfg, split, TEST)
    first, *lines = str(error.value).splitlines()
    assert first == "3 of 15 images cannot be used (DATASETS.DAMAGED skip leaves damaged unlabelled images out):"
    assert [line.split(":")[0].strip() for line in lines] == damaged
    assert all("cannot read this image (it is cut off" in line for line in lines)


def test_damaged_unlabeled_images_are_left_out_by_name_and_by_hash(cfg, caplog):
    split = build_split(cfg)
    assert damaged_unlabeled(split) == () and without_unlabeled(split, ()) is split
    damaged = {cut(split.unlabeled[2]), cut(split.unlabeled[4])}
    files = damaged_unlabeled(build_split(cfg))
    assert set(files) == damaged
    assert [r.levelno for r in caplog.records] == [logging.WARNING] * 2 and all(d in caplog.text for d in damaged)
    rest = without_unlabeled(split, files)
    assert [r for r in split.unlabeled if r["file_name"] not in damaged] == rest.unlabeled
    assert rest.labeled == split.labeled and rest.hash != split.hash
    with caplog.at_level(logging.INFO, logger="rc2l"):
        log_split(rest)
    assert "6 labelled + 4 unlabelled images (2 damaged ones are left out)" in caplog.text and rest.hash in caplog.text
    check_data(cfg, rest, TEST)
    cut(split.labeled[0])
    with pytest.raises(DatasetError, match=r"it is cut off.*take it out of the dataset$"):
        check_data(cfg, rest, TEST)


def test_what_is_not_damaged_is_not_left_out(cfg):
    split = build_split(cfg)
    path = Path(split.unlabeled[0]["file_name"])
    Image.fromarray(np.zeros((36, 48), np.uint16)).save(path, format="PNG")
    assert damaged_unlabeled(split) == ()
    with pytest.raises(DatasetError, match="16 bits"):
        check_data(cfg, split, TEST)
    with pytest.raises(DatasetError, match=r"all 2 unlabelled images are damaged, so .*skip leaves none"):
        damaged_unlabeled(replace(split, unlabeled=[split.unlabeled[i] for i in (1, 2) if cut(split.unlabeled[i])]))
