"""What a run shows: pictures while training, scores and pictures of single images, the norm of gradients."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from PIL import Image

import train_net
from rc2l.data.datasets.shapes import generate_shapes
from rc2l.engine.run import argument_parser
from rc2l.evaluation import SemSegEvaluator
from rc2l.evaluation.extremes import Extremes, best_and_worst
from rc2l.visualization.grid import confidence_map, error_map, legend_of, picture_grid, shrink
from tests.shared_data import REPO
from tests.tool_modules import load_tool

TINY = """MODEL.SEM_SEG_HEAD.CONVS_DIM 32 MODEL.SEM_SEG_HEAD.MASK_DIM 32 MODEL.MASK_FORMER.HIDDEN_DIM 32
MODEL.MASK_FORMER.DIM_FEEDFORWARD 32 MODEL.MASK_FORMER.DEC_LAYERS 2 SOLVER.IMS_PER_BATCH 2
SOLVER.IMS_PER_BATCH_UNLABELED 2 SEMI.BURN_IN 1 SOLVER.MAX_ITER 3 SOLVER.CHECKPOINT_PERIOD 2 TEST.EVAL_PERIOD 2
TEST.MAX_IMAGES 2 DATASETS.SPLIT.FRACTION 1/4 MODEL.DEVICE cpu DATALOADER.NUM_WORKERS 0""".split()


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("datasets")
    generate_shapes(root, num_train=8, num_val=3, size=48)
    return root


@pytest.fixture(autouse=True)
def datasets_folder(datasets, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))


def run(config: str, output: Path, *overrides: str, options: tuple[str, ...] = ()) -> None:
    words = ["--config-file", str(REPO / "configs/shapes" / config), *options, *TINY, "OUTPUT_DIR", str(output)]
    train_net.main(argument_parser("").parse_args([*words, *overrides]))


def rows(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.fixture(scope="module")
def with_pictures(datasets, tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(datasets))
        run("rc2l.yaml", folder := tmp_path_factory.mktemp("with"))
    return folder


def test_pictures_come_with_evaluations_and_change_no_bit_of_training(with_pictures, tmp_path):
    both = ["0000001_test.jpg", "0000001_unlabeled.jpg", "0000002_test.jpg", "0000002_unlabeled.jpg"]
    assert names(with_pictures / "pictures") == both
    run("rc2l.yaml", tmp_path, "VIS_PERIOD", "0")
    assert names(tmp_path / "pictures") == []
    files = [torch.load(folder / "model_final.pth", weights_only=True) for folder in (with_pictures, tmp_path)]
    for network in ("model", "teacher"):
        assert all(torch.equal(tensor, files[1][network][name]) for name, tensor in files[0][network].items())
    clock = {"time", "data_time", "eta_seconds", "memory_mib"}
    for one, other in zip(rows(with_pictures), rows(tmp_path), strict=True):
        assert {key: one[key] for key in one.keys() - clock} == {key: other[key] for key in other.keys() - clock}
    assert not [name for name in names(tmp_path / "inference") if not name.endswith(".json")]


def test_pictures_reach_tensorboard(with_pictures):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(with_pictures), size_guidance={"images": 0}).Reload()
    assert set(events.Tags()["images"]) == {"pictures/unlabeled", "pictures/test"}
    assert [image.step for image in events.Images("pictures/test")] == [1, 2]


def test_a_picture_shows_what_it_says(with_pictures):
    unlabeled = Image.open(with_pictures / "pictures/0000002_unlabeled.jpg")
    test = Image.open(with_pictures / "pictures/0000002_test.jpg")
    # Eight columns with the hidden label; image, truth, teacher, student and errors.
    assert 8 * 150 < unlabeled.width < 9 * 215 and 5 * 150 < test.width < 6 * 215
    assert unlabeled.height > 4 * 100 and test.height > 2 * 100


@pytest.mark.parametrize(
    ("config", "overrides", "expected"),
    [
        ("supervised.yaml", ["VIS_PERIOD", "1"], [f"000000{i}_test.jpg" for i in range(3)]),
        (
            "Base-shapes-per-pixel.yaml",
            ["SEMI.METHOD", "unimatch", "INPUT.FORMAT", "BGR", "VIS_PERIOD", "2"],
            [f"000000{i}_{name}.jpg" for i in (1, 2) for name in ("test", "unlabeled")],
        ),
    ],
)
def test_pictures_of_other_methods_and_periods(config, overrides, expected, tmp_path):
    run(config, tmp_path, "TEST.EVAL_PERIOD", "0", *overrides)
    assert names(tmp_path / "pictures") == expected


def test_the_norm_of_the_gradient_is_in_the_metrics(with_pictures):
    assert rows(with_pictures)[-1]["gradient_norm"] > 0


def test_scores_and_pictures_of_single_images(with_pictures):
    content = json.loads((with_pictures / "inference/shapes_sem_seg_val_teacher.json").read_text())
    assert len(content["images"]) == content["num_images"] == 2
    assert {"image_id", "file_name", "mIoU", "pixel_accuracy"} == content["images"][0].keys()
    worst, best = content["pictures"]["worst"], content["pictures"]["best"]
    scores = [image["mIoU"] for image in content["images"]]
    assert [each["mIoU"] for each in worst] == sorted(scores) == [each["mIoU"] for each in best][::-1]
    for each in (*worst, *best):
        assert (with_pictures / "inference/shapes_sem_seg_val_teacher" / each["file"]).is_file()


def test_scores_of_an_image_by_hand():
    MetadataCatalog.get("watching_test").set(stuff_classes=["a", "b", "c"])
    drawn = []
    evaluator = SemSegEvaluator(
        "watching_test", 3, "cpu", lambda image, pred: drawn.append(pred) or np.zeros((1, 1, 3))
    )
    target = torch.tensor([[0, 0, 1, 255]], dtype=torch.uint8)
    scores = torch.nn.functional.one_hot(torch.tensor([[0, 1, 1, 2]]), 3).permute(2, 0, 1).float()
    evaluator.process([{"sem_seg": target, "file_name": "x/one.png"}], [{"sem_seg": scores}])
    evaluator.process([{"sem_seg": target * 0 + 255, "image_id": "empty"}], [{"sem_seg": scores}])
    one, empty = evaluator.evaluate()["images"]
    # a: 1 of 2 pixels, b: 1 of 2; c only where nothing counts.
    assert one == {"image_id": "one", "file_name": "x/one.png", "mIoU": 50.0, "pixel_accuracy": pytest.approx(200 / 3)}
    assert empty["image_id"] == "empty" and empty["mIoU"] != empty["mIoU"]
    assert drawn[0].tolist() == [[0, 1, 1, 2]] and len(drawn) == 1
    assert [each.image_id for each in evaluator.pictures()["worst"]] == ["one"]
    MetadataCatalog.remove("watching_test")


def test_extremes_keep_few_pictures_and_draw_no_others():
    scores = np.random.default_rng(0).permutation(50).tolist()
    drawn = []
    parts = [Extremes(3), Extremes(3)]
    for index, score in enumerate(scores):
        parts[index % 2].add(float(score), str(score), lambda score=score: drawn.append(score) or np.zeros((1, 1, 3)))
    best, worst = best_and_worst([each for part in parts for each in part.kept], 3)
    assert [each.score for each in best] == [49, 48, 47] and [each.score for each in worst] == [0, 1, 2]
    assert sum(len(part.kept) for part in parts) == 12 and len(drawn) < 40


def test_small_pictures():
    label_map = np.arange(600, dtype=np.uint8).reshape(20, 30) // 10
    assert set(np.unique(shrink(label_map, 10))) <= set(np.unique(label_map)) and shrink(label_map, 10).shape == (7, 10)
    assert shrink(label_map, 100) is label_map
    image = np.full((1, 3, 3), (120, 60, 30), dtype=np.uint8)
    errors = error_map(image, np.array([[0, 1, 0]]), np.array([[0, 0, 255]]))
    assert errors[0, 0].tolist() == [35] * 3 and errors[0, 1, 0] > 2 * errors[0, 1, 1] and errors[0, 2].min() > 200
    assert confidence_map(np.array([[0.0, np.nan, 1.0]]))[0].max(axis=1).tolist() == [84, 84, 253]
    legend = legend_of([np.array([[1, 255]])], ["a", "b\nδ" * 300], [(0, 0, 0), (9, 9, 9)])
    assert legend[0][1] == (9, 9, 9) and legend[1][0] == "ignored"
    grid = picture_grid([[image, image]] * 2, ("one", "two"), ("row " * 100, "日本"), legend, edge=90)
    assert grid.dtype == np.uint8 and grid.shape[1] < 250 and (grid == (120, 60, 30)).all(axis=2).sum() == 4 * 90 * 30


def test_a_report_of_a_real_run(with_pictures, tmp_path):
    from tests.test_report import Page

    load_tool("report").main([str(with_pictures), "--output", str(tmp_path / "page.html")])
    page = Page((tmp_path / "page.html").read_text())
    assert {"Worst images", "While training", "triangle", "SEMI.BURN_IN", "loss_rcc"} & set(page.texts)
    assert len(page.pictures) > 10
