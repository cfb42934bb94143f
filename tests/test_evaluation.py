"""Confusion matrix, scores, and the evaluation of named networks."""

import rc2l  # noqa: F401  first of all: makes detectron2 importable

# isort: split

import json
import logging
import math

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

from rc2l.config import get_rc2l_cfg
from rc2l.evaluation import SemSegEvaluator, confusion_matrix, evaluate_networks, scores_from_confusion
from rc2l.evaluation.boundary import boundary_counts

NAMES = ["ground", "tree", "car", "boat"]
DATASETS = ["evaluation_test_a", "evaluation_test_b"]


@pytest.fixture
def datasets():
    for name in DATASETS:
        MetadataCatalog.get(name).set(stuff_classes=NAMES, ignore_label=255)
    yield DATASETS
    for name in DATASETS:
        MetadataCatalog.remove(name)
        assert name not in DatasetCatalog.list()


def one_hot_scores(pred: torch.Tensor) -> torch.Tensor:
    return nn.functional.one_hot(pred.long(), len(NAMES)).permute(2, 0, 1).float()


class Remembering(nn.Module):
    """Predicts the label map that its input carries, shifted by some classes."""

    def __init__(self, shift: int):
        super().__init__()
        self.shift = shift
        self.seen_training = []

    def forward(self, inputs):
        self.seen_training.append((self.training, torch.is_grad_enabled()))
        return [{"sem_seg": one_hot_scores((x["truth"] + self.shift) % len(NAMES))} for x in inputs]


def build_loader(cfg, dataset_name):
    generator = torch.Generator().manual_seed(DATASETS.index(dataset_name))
    batches = []
    for size in ((4, 6), (5, 3)):
        truth = torch.randint(0, 3, size, generator=generator)
        target = truth.to(torch.uint8)
        target[0, 0] = 255
        batches.append([{"file_name": "image.jpg", "sem_seg": target, "truth": truth}])
    return batches


def test_confusion_matrix_counts_by_truth_and_prediction():
    target = torch.tensor([[0, 0, 1], [2, 255, 1]], dtype=torch.uint8)
    pred = torch.tensor([[0, 1, 1], [0, 2, 2]])
    matrix = confusion_matrix(pred, target, 3)
    assert matrix.dtype == torch.int64
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 1], [1, 0, 0]]


def test_confusion_matrix_agrees_with_loops_and_leaves_its_inputs_alone():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 5, (17, 13), generator=generator)
    target[target == 4] = 255
    pred = torch.randint(0, 4, (17, 13), generator=generator)
    kept = target.clone(), pred.clone()
    expected = [[0] * 4 for _ in range(4)]
    for truth, guess in zip(target.flatten().tolist(), pred.flatten().tolist(), strict=True):
        if truth != 255:
            expected[truth][guess] += 1
    assert confusion_matrix(pred, target, 4).tolist() == expected
    assert torch.equal(target, kept[0]) and torch.equal(pred, kept[1])


def test_confusion_matrix_of_ignored_pixels_is_zero():
    target = torch.full((4, 4), 255, dtype=torch.uint8)
    assert not confusion_matrix(torch.zeros(4, 4), target, 3).any()


def test_scores_by_hand():
    # "car" is predicted but never true: IoU 0. "boat" is neither: not applicable.
    matrix = torch.tensor([[6, 1, 1, 0], [2, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    scores = scores_from_confusion(matrix, NAMES)
    assert scores["IoU"]["ground"] == pytest.approx(100 * 6 / 10)
    assert scores["IoU"]["tree"] == pytest.approx(100 * 2 / 5)
    assert scores["IoU"]["car"] == 0
    assert math.isnan(scores["IoU"]["boat"])
    assert scores["mIoU"] == pytest.approx((60 + 40 + 0) / 3)
    assert scores["Dice"]["ground"] == pytest.approx(100 * 12 / 16)
    assert scores["Dice"]["car"] == 0 and math.isnan(scores["Dice"]["boat"])
    assert scores["mDice"] == pytest.approx((75 + 100 * 4 / 7 + 0) / 3)
    assert "boundary_mIoU" not in scores
    assert scores["accuracy"]["ground"] == pytest.approx(75)
    assert math.isnan(scores["accuracy"]["car"])
    assert scores["mean_accuracy"] == pytest.approx((75 + 50) / 2)
    assert scores["pixel_accuracy"] == pytest.approx(100 * 8 / 12)
    assert scores["fwIoU"] == pytest.approx((8 * 60 + 4 * 40) / 12)
    assert scores["pixels"] == {"ground": 8, "tree": 4, "car": 0, "boat": 0}
    assert all(isinstance(count, int) for count in scores["pixels"].values())


def boundary_by_erosion(label: np.ndarray, d: int, k: int) -> np.ndarray:
    """The mask of one class less its erosion by a square, the outside being no mask: Boundary IoU as its authors do."""
    mask = cv2.copyMakeBorder((label == k).astype(np.uint8), d, d, d, d, cv2.BORDER_CONSTANT, value=0)
    return ((mask == 1) & (cv2.erode(mask, np.ones((2 * d + 1, 2 * d + 1), np.uint8)) == 0))[d:-d, d:-d]


def test_boundary_counts_agree_with_the_erosion_of_each_class():
    generator = torch.Generator().manual_seed(0)
    for (H, W), width, d in (((30, 40), 0.02, 1), ((61, 47), 0.05, 4), ((5, 9), 0.5, 5)):
        coarse = torch.randint(0, 3, (2, H // 4 + 1, W // 4 + 1), generator=generator)
        pred, target = coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :H, :W]
        target = target.to(torch.uint8)
        target[:3, : W // 2] = 255
        counts = boundary_counts(pred, target, 4, width)
        expected = torch.zeros(3, 4, dtype=torch.int64)
        ignored = (target == 255).numpy()
        for k in range(4):
            truth = boundary_by_erosion(target.numpy(), d, k)
            guess = boundary_by_erosion(np.where(ignored, 255, pred.numpy()), d, k)
            expected[:, k] = torch.tensor([each.sum() for each in (truth & guess, truth, guess)])
        assert torch.equal(counts, expected) and counts.any()


def test_boundary_iou_by_hand():
    """A square of 6 pixels in an image of 12 moves by one column; d is 1."""
    target = torch.zeros(12, 12, dtype=torch.uint8)
    pred = torch.zeros(12, 12, dtype=torch.int64)
    target[3:9, 3:9] = pred[3:9, 4:10] = 1
    counts = boundary_counts(pred, target, 2, 0.02)
    # The outlines have 6² - 4² = 20 pixels each and share 5 columns of top and bottom row.
    assert counts[:, 1].tolist() == [10, 20, 20]
    scores = scores_from_confusion(confusion_matrix(pred, target, 2), ["ground", "square"], counts)
    assert scores["boundary_IoU"]["square"] == pytest.approx(100 * 10 / 30)
    assert scores["boundary_mIoU"] < scores["mIoU"]
    perfect = boundary_counts(target.long(), target, 2, 0.02)
    assert torch.equal(perfect[0], perfect[1]) and torch.equal(perfect[0], perfect[2])


def test_scores_refuse_a_wrong_number_of_names():
    with pytest.raises(ValueError, match="4 class names"):
        scores_from_confusion(torch.zeros(3, 3, dtype=torch.int64), NAMES)


def test_evaluator_accumulates_over_images(datasets):
    evaluator = SemSegEvaluator(datasets[0], len(NAMES), "cpu")
    for truth, guess in ((0, 0), (0, 1), (1, 1)):
        target = torch.full((2, 2), truth, dtype=torch.uint8)
        pred = torch.full((2, 2), guess)
        evaluator.process([{"sem_seg": target}], [{"sem_seg": one_hot_scores(pred)}])
    scores = evaluator.evaluate()
    assert scores["num_images"] == 3
    assert scores["pixels"] == {"ground": 8, "tree": 4, "car": 0, "boat": 0}
    assert scores["mIoU"] == pytest.approx(50)
    assert scores["confusion_matrix"][0] == [4, 4, 0, 0]
    evaluator.reset()
    with pytest.raises(ValueError, match="0 images have no pixel to evaluate"):
        evaluator.evaluate()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({}, r"img\.png is missing"),
        ({"sem_seg": torch.zeros(2, 3, dtype=torch.uint8)}, r"is \(2, 3\) pixels, its prediction \(2, 2\)"),
        (
            {"sem_seg": torch.tensor([[0, 7], [9, 255]], dtype=torch.uint8)},
            r"labels \[7, 9\]; allowed are 0 to 3 and 255",
        ),
    ],
)
def test_evaluator_names_the_file_of_a_bad_target(datasets, image, message):
    evaluator = SemSegEvaluator(datasets[0], len(NAMES), "cpu")
    with pytest.raises(ValueError, match=message):
        evaluator.process([{"file_name": "img.png", **image}], [{"sem_seg": torch.zeros(4, 2, 2)}])


def test_evaluator_refuses_another_number_of_classes(datasets):
    with pytest.raises(ValueError, match="has 4 classes, but the model predicts 21"):
        SemSegEvaluator(datasets[0], 21, "cpu")


def config(datasets, tmp_path):
    cfg = get_rc2l_cfg()
    cfg.DATASETS.TEST = tuple(datasets)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(NAMES)
    cfg.MODEL.DEVICE = "cpu"
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.VIS_PERIOD = 0
    return cfg


def test_networks_are_evaluated_by_name(datasets, tmp_path, caplog):
    cfg = config(datasets[:1], tmp_path)
    student, teacher = Remembering(1).train(), Remembering(0).eval()
    with caplog.at_level(logging.INFO):
        results = evaluate_networks(cfg, {"teacher": teacher, "student": student}, build_loader)

    assert next(iter(results)) == "teacher/mIoU"
    assert results["teacher/mIoU"] == results["teacher/pixel_accuracy"] == results["teacher/fwIoU"] == 100
    assert results["student/mIoU"] == 0
    assert results["teacher/IoU/tree"] == 100
    assert "teacher/IoU/boat" not in results  # never true, never predicted
    assert results["student/IoU/boat"] == 0  # predicted
    assert all(isinstance(value, float) and not math.isnan(value) for value in results.values())

    assert student.training and not teacher.training
    assert student.seen_training == teacher.seen_training == [(False, False)] * 2

    reports = [message for message in caplog.messages if " on evaluation_test_a, 2 images" in message]
    assert [report.split()[0] for report in reports] == ["teacher", "student"]
    assert "single scale, original size" in reports[0]
    assert "mIoU 100.00" in reports[0]
    boat = next(line for line in reports[0].splitlines() if "boat" in line)
    assert boat.replace(" ", "") == "|3|boat|n/a|n/a|n/a|n/a|0|"


def test_results_are_written_as_strict_json(datasets, tmp_path):
    cfg = config(datasets[:1], tmp_path)
    evaluate_networks(cfg, {"teacher": Remembering(0)}, build_loader)
    files = list((tmp_path / "inference").iterdir())
    assert [file.name for file in files] == ["evaluation_test_a_teacher.json"]

    def refuse(literal):
        raise AssertionError(f"{literal} is not JSON")

    content = json.loads(files[0].read_text(), parse_constant=refuse)
    assert content["dataset"] == "evaluation_test_a" and content["network"] == "teacher"
    assert content["mIoU"] == 100 and content["IoU"]["boat"] is None
    assert content["num_images"] == 2
    assert sum(map(sum, content["confusion_matrix"])) == 4 * 6 + 5 * 3 - 2 == sum(content["pixels"].values())


def test_several_test_sets_are_told_apart(datasets, tmp_path):
    results = evaluate_networks(config(datasets, tmp_path), {"teacher": Remembering(0)}, build_loader)
    assert results["evaluation_test_a/teacher/mIoU"] == results["evaluation_test_b/teacher/mIoU"] == 100
    assert not any(key.startswith("teacher") for key in results)


def test_no_test_set_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"DATASETS\.TEST is empty"):
        evaluate_networks(config([], tmp_path), {"teacher": Remembering(0)}, build_loader)


def _evaluate_share(rank, init_file, queue):
    """One of two processes, which has every second image."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=2)
    MetadataCatalog.get(DATASETS[0]).set(stuff_classes=NAMES)
    evaluator = SemSegEvaluator(DATASETS[0], len(NAMES), "cpu")
    for batch in build_loader(None, DATASETS[0])[rank::2]:
        evaluator.process(batch, Remembering(0)(batch))
    queue.put((rank, evaluator.evaluate()["confusion_matrix"]))
    dist.destroy_process_group()


@pytest.mark.whole_run
def test_two_processes_get_the_joint_result(datasets, tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    torch.multiprocessing.spawn(_evaluate_share, (str(tmp_path / "init"), queue), nprocs=2)
    of_rank = dict(queue.get() for _ in range(2))

    evaluator = SemSegEvaluator(datasets[0], len(NAMES), "cpu")
    for batch in build_loader(None, datasets[0]):
        evaluator.process(batch, Remembering(0)(batch))
    assert of_rank[0] == of_rank[1] == evaluator.evaluate()["confusion_matrix"]
