"""The Predictor: what it takes, that it labels as evaluations do, and images in pieces."""

import csv
import io

import cv2
import numpy as np
import pytest
import rasterio
import torch
from PIL import Image

from rc2l.data.errors import DatasetError
from rc2l.data.mapper import EvaluationMapper
from rc2l.evaluation import build_scorer
from rc2l.inference import Predictor
from rc2l.inference.large_tiff import LargeTiff
from rc2l.inference.results import ResultFolder
from rc2l.inference.sources import Video, VideoWriter, find_sources
from rc2l.inference.tables import ImageTable, Tally, write_class_table
from tests.toy_network import NUM_CLASSES, PerPixel, toy_config

WINDOW = ("TEST.WINDOW.SIZE", [32, 48])


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth enough for neighbouring pixels to have one label, mostly."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height))


def assert_equal(one, other) -> None:
    np.testing.assert_array_equal(one.label_map, other.label_map)
    np.testing.assert_allclose(one.confidence, other.confidence, atol=1e-6)


def test_files_pictures_arrays_lists_and_batches_give_the_same(tmp_path):
    predictor = Predictor(toy_config(), PerPixel())
    images = [noise(20, 30, seed) for seed in range(3)]
    paths = [tmp_path / f"{seed}.png" for seed in range(3)]
    for image, path in zip(images, paths, strict=True):
        Image.fromarray(image).save(path)
    expected = [predictor(image) for image in images]
    assert expected[0].label_map.shape == (20, 30) and len(np.unique(expected[0].label_map)) > 2
    assert_equal(predictor(str(paths[0])), expected[0])
    for given in (paths, [Image.open(path) for path in paths], tuple(images), np.stack(images)):
        results = predictor(given)
        assert len(results) == 3
        for result, wanted in zip(results, expected, strict=True):
            assert_equal(result, wanted)
    together = Predictor(toy_config(), PerPixel(), batch_size=2)
    for result, wanted in zip(together([*images, noise(8, 8)]), expected, strict=False):
        assert_equal(result, wanted)
    assert together.network.batches == [[(20, 30)] * 2, [(20, 30)], [(8, 8)]]
    assert predictor([]) == []


def test_pictures_are_turned_upright_and_grey_ones_are_coloured():
    predictor = Predictor(toy_config(), PerPixel())
    grey = noise(12, 18)[..., 0]
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees, clockwise
    stored = io.BytesIO()
    Image.fromarray(np.rot90(grey)).save(stored, "png", exif=exif)
    expected = predictor(np.repeat(grey[..., None], 3, axis=2))
    assert_equal(predictor(Image.open(stored)), expected)
    assert_equal(predictor(Image.fromarray(grey)), expected)
    with pytest.raises(ValueError, match="value_range"):
        predictor(Image.fromarray(grey.astype(np.int32)))
    with pytest.raises(ValueError, match="the image is a dict"):
        predictor({"image": grey})
    with pytest.raises(ValueError, match="the batch size is 0"):
        Predictor(toy_config(), PerPixel(), batch_size=0)


def test_probabilities_belong_to_labels_and_confidence():
    predictor = Predictor(toy_config(), PerPixel(), min_confidence=0.3)
    assert predictor(noise(9, 9)).probabilities is None
    result = predictor(noise(20, 30), probabilities=True)
    np.testing.assert_allclose(result.probabilities.sum(0), 1, atol=1e-5)
    np.testing.assert_allclose(result.probabilities.max(0), result.confidence, atol=1e-6)
    sure = result.confidence >= 0.3
    assert 0 < sure.mean() < 1 and (result.label_map[~sure] == 255).all()
    assert (result.probabilities.argmax(0) == result.label_map)[sure].all()


def test_a_network_in_memory_keeps_its_training_mode_and_gets_no_gradient():
    network = torch.nn.Sequential(PerPixel(), torch.nn.Identity()).train()
    network[1].eval()
    result = Predictor(toy_config(), network)(noise(8, 8), probabilities=True)
    assert result.probabilities.shape == (NUM_CLASSES, 8, 8)
    assert network.training and network[0].training and not network[1].training


@pytest.mark.parametrize(
    "options",
    [
        ("INPUT.MIN_SIZE_TEST", 16, "INPUT.FORMAT", "BGR"),
        ("INPUT.BASE_SIZE", [24, 40], *WINDOW, "TEST.WINDOW.SIZE", [16, 16]),
        ("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (12, 30), "TEST.AUG.FLIP", True, *WINDOW),
    ],
    ids=["resized", "windows", "scales"],
)
def test_labels_are_those_of_the_evaluation(options, tmp_path):
    cfg = toy_config(*options)
    path = tmp_path / "image.png"
    Image.fromarray(noise(33, 50)).save(path)
    Image.fromarray(np.zeros((33, 50), np.uint8)).save(tmp_path / "label.png")
    network = PerPixel().eval()
    with torch.no_grad():
        scores = build_scorer(cfg, network)([EvaluationMapper(cfg)({"file_name": str(path)})])[0]["sem_seg"]
    result = Predictor(cfg, network)(path)
    np.testing.assert_array_equal(result.label_map, scores.max(0).indices.numpy())


@pytest.mark.parametrize("mirrored", [False, True])
def test_pieces_have_the_labels_of_the_whole_image(mirrored):
    options = ("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (0,)) if mirrored else ()
    predictor = Predictor(toy_config(*WINDOW, *options), PerPixel())
    image, asked = noise(150, 110), []

    def read_rows(top, count):
        asked.append((top, count))
        return image[top : top + count]

    whole = predictor(image, probabilities=True)
    pieces = list(predictor.pieces(read_rows, 150, 110, probabilities=True))
    assert [top for top, _ in pieces] == np.cumsum([0, *(len(each.label_map) for _, each in pieces)])[:-1].tolist()
    np.testing.assert_array_equal(np.concatenate([each.label_map for _, each in pieces]), whole.label_map)
    probabilities = np.concatenate([each.probabilities for _, each in pieces], 1)
    np.testing.assert_allclose(probabilities, whole.probabilities, atol=1e-6)
    assert len(asked) == len(set(asked)) > 3 and all(count == 32 for _, count in asked)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), r"TEST\.WINDOW\.SIZE is \[\]: labelling in pieces needs windows"),
        ((*WINDOW, "INPUT.MIN_SIZE_TEST", 64), r"add INPUT\.MIN_SIZE_TEST 0"),
        ((*WINDOW, "TEST.AUG.ENABLED", True), r"TEST\.AUG\.MIN_SIZES \[0\]"),
    ],
)
def test_what_pieces_need_is_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        Predictor(toy_config(*options), PerPixel()).check_pieces()


def write_tiff(path, bands: np.ndarray, **options) -> None:
    """Shape: (bands, H, W)."""
    count, height, width = bands.shape
    place = rasterio.transform.from_origin(500000, 5800000, 0.5, 0.5)
    profile = {"driver": "GTiff", "dtype": bands.dtype, "count": count, "height": height, "width": width}
    with rasterio.open(path, "w", **profile, crs="EPSG:32633", transform=place, **options) as file:
        file.write(bands)


def test_large_tiffs_are_read_and_written_by_rows_and_stay_where_they_are(tmp_path):
    image = noise(300, 70)
    image[100:150, 20:40] = 0
    path = tmp_path / "map.tif"
    write_tiff(path, image.transpose(2, 0, 1), nodata=0, tiled=True, blockxsize=16, blockysize=16)
    predictor = Predictor(toy_config(*WINDOW), PerPixel())
    folder = ResultFolder(
        tmp_path, predictor.class_names, predictor.class_colors, confidence=True, probabilities="uint8"
    )
    with LargeTiff(path) as tiff:
        assert tiff.size == (300, 70)
        tally = folder.write_pieces("map", tiff, predictor)
    whole = predictor(image, probabilities=True)
    valid = image.any(2)
    assert 0 < (~valid).sum() < 2000
    with rasterio.open(tmp_path / "labels/map.tif") as file:
        labels = file.read(1)
        assert file.crs.to_epsg() == 32633 and file.transform.c == 500000 and file.nodata == 255
        assert file.block_shapes == [(256, 256)] and file.colormap(1)[1][:3] == tuple(predictor.class_colors[1])
    np.testing.assert_array_equal(labels, np.where(valid, whole.label_map, 255))
    assert tally.pixels.sum() == labels.size and tally.pixels[255] == (~valid).sum()
    with rasterio.open(tmp_path / "confidence/map.tif") as file:
        np.testing.assert_allclose(file.read(1) / 255, whole.confidence * valid, atol=0.003)
    with rasterio.open(tmp_path / "probabilities/map.tif") as file:
        np.testing.assert_allclose(file.read() / 255, whole.probabilities * valid, atol=0.003)


def test_palettes_alpha_grey_and_pictures_without_a_place_are_read(tmp_path):
    image = noise(40, 50)
    Image.fromarray(image).save(tmp_path / "plain.tif")
    Image.fromarray(np.dstack([image, np.full((40, 50), 255, np.uint8)])).save(tmp_path / "alpha.tif")
    Image.fromarray(image).quantize(16).save(tmp_path / "palette.tif")
    Image.fromarray(image[..., 0]).save(tmp_path / "grey.tif")
    for name in ("plain", "alpha", "palette", "grey"):
        expected = np.asarray(Image.open(tmp_path / f"{name}.tif").convert("RGB"))
        with LargeTiff(tmp_path / f"{name}.tif") as tiff:
            np.testing.assert_array_equal(np.broadcast_to(tiff.read_rows(7, 20), (20, 50, 3)), expected[7:27])
            assert tiff.read_valid(7, 20).all()


def test_damaged_tiffs_name_themselves_and_leave_nothing(tmp_path):
    path = tmp_path / "cut.tif"
    write_tiff(path, noise(300, 70).transpose(2, 0, 1))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    predictor = Predictor(toy_config(*WINDOW), PerPixel())
    folder = ResultFolder(tmp_path / "out", predictor.class_names, predictor.class_colors)
    with pytest.raises(DatasetError, match=r"cut\.tif: cannot read this image"), LargeTiff(path) as tiff:
        folder.write_pieces("cut", tiff, predictor)
    assert not list((tmp_path / "out/labels").iterdir())
    with pytest.raises(DatasetError, match=r"none\.tif: cannot read"):
        LargeTiff(tmp_path / "none.tif")
    turned = tmp_path / "turned.tif"
    Image.fromarray(noise(8, 8)).save(turned, tiffinfo={274: 6})
    with pytest.raises(DatasetError, match=r"turned\.tif: this image is stored turned"):
        LargeTiff(turned)


def test_videos_are_written_and_read_by_every_so_many_frames(tmp_path):
    frames = [np.full((34, 51, 3), 20 * number, np.uint8) for number in range(10)]
    path = tmp_path / "clip.mp4"
    writer = VideoWriter(path, 10.0)
    for frame in frames:
        writer.write(frame)
    writer.close()
    video = Video(path, every=4)
    read = dict(video)
    assert sorted(read) == [0, 4, 8] and video.rate == 2.5 and not video.shortfall
    for number, frame in read.items():  # sides became even
        assert frame.shape == (34, 52, 3) and abs(int(frame.mean()) - 20 * number) < 8
    path.write_bytes(b"no video")
    with pytest.raises(DatasetError, match=r"clip\.mp4: cannot read this video"):
        list(Video(path))


def test_names_of_results_follow_folders_files_and_lists(tmp_path, monkeypatch):
    for name in ("a/x.jpg", "b/x.jpg", "b/deep/y.png", "c/clip.mp4", "c/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    output = tmp_path / "out"
    found = find_sources([tmp_path / "b", tmp_path / "c/clip.mp4"], output)
    assert set(found) == {"x", "deep/y", "clip"}
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{tmp_path}/a/x.jpg\n\n{tmp_path}/b/deep/../x.jpg\n"))
    assert set(find_sources(["-"], output)) == {"a/x", "b/x"}
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{tmp_path}/a/x.jpg\n"))
    assert set(find_sources(["-"], output)) == {"x"}
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    with pytest.raises(ValueError, match="standard input names no file"):
        find_sources(["-"], output)


def test_tables_have_a_row_an_image_and_a_row_a_class(tmp_path):
    names, colors = ["road", "path"], [(1, 2, 3), (255, 0, 16)]
    table = ImageTable(tmp_path / "images.csv", names)
    first, second = Tally(), Tally()
    first.add(np.array([[0, 0, 1, 255]], np.uint8), np.array([[1.0, 0.5, 0.75, 0.25]]))
    second.add(np.array([[0, 0]], np.uint8), np.array([[1.0, 1.0]]))
    table.add("a", tmp_path / "a.jpg", (1, 4), 0.5, first)
    rows = list(csv.DictReader((tmp_path / "images.csv").open()))  # there before the second image is
    assert [(row["image"], row["width"], row["mean_confidence"]) for row in rows] == [("a", "4", "0.6250")]
    assert [float(rows[0][f"share of {name}"]) for name in ("road", "path", "unsure")] == [0.5, 0.25, 0.25]
    table.add("b", tmp_path / "b.jpg", (1, 2), 0.5, second)
    table.close()
    write_class_table(tmp_path / "classes.csv", names, colors, table.total)
    rows = list(csv.reader((tmp_path / "classes.csv").open()))
    assert rows[1:3] == [["0", "road", "#010203", "0.666667", "0.8750"], ["1", "path", "#ff0010", "0.166667", "0.7500"]]
    assert rows[3][:3] == ["255", "unsure", ""] and table.rows == 2 and table.seconds == 1.0
