"""EMA teacher, pseudo labels, and the strong view."""

import numpy as np
import pytest
import torch
from torch import nn

from rc2l.data.mixing import box_masks, cutmix_boxes, paste_from_next
from rc2l.semi import pseudo_label
from rc2l.semi.pseudo_label import drop_small_regions, pseudo_labels
from rc2l.semi.teacher import Teacher, ema_decay
from rc2l.structures.outputs import SegmentationOutput, semantic_scores
from tests.shared_data import shared_file


class Vector(nn.Module):
    def __init__(self, values: np.ndarray, buffer: np.ndarray | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(values))
        if buffer is not None:
            self.register_buffer("statistic", torch.tensor(buffer))


def test_moving_average_equals_the_official_one():
    with np.load(shared_file("reference/ema.npz")) as file:
        arrays = {key: file[key] for key in file.files}
    runs = sorted({key.split("/")[0] for key in arrays if "/" in key})
    assert runs
    for run in runs:
        data = {key.split("/")[1]: value for key, value in arrays.items() if key.startswith(f"{run}/")}
        student = Vector(data["initial"])
        teacher = Teacher(student, float(data["alpha"]))
        for step, decay in enumerate(data["decay"]):
            student.weight.data = torch.tensor(data["student"][step])
            assert teacher.update(student, step) == pytest.approx(float(decay))
            np.testing.assert_allclose(teacher.model.weight, data["teacher"][step], rtol=1e-6, atol=1e-7)


def test_first_update_copies_and_decay_is_bounded():
    assert ema_decay(0, 0.999) == 0
    assert ema_decay(1, 0.999) == 0.5
    assert ema_decay(10**6, 0.999) == 0.999


@pytest.mark.parametrize("burn_in", [0, 1, 3])
def test_teacher_is_the_student_at_the_end_of_burn_in(burn_in):
    student = Vector(np.zeros(2, dtype=np.float32))
    teacher = Teacher(student, 0.9, burn_in)
    for iteration in range(6):
        if iteration == burn_in:  # the first iteration whose pseudo labels are used
            assert torch.equal(teacher.model.weight, student.weight)
        student.weight.data += 1
        teacher.update(student, iteration)
    assert (teacher.model.weight < student.weight).all()


@pytest.mark.parametrize(("average", "expected"), [(False, 4.0), (True, 3.0)])
def test_buffers_are_copied_or_averaged(average, expected):
    student = Vector(np.zeros(1, dtype=np.float32), np.zeros(1, dtype=np.float32))
    teacher = Teacher(student, 0.9, average_buffers=average)
    for iteration, value in enumerate((2.0, 4.0)):  # decays 0 and 0.5
        student.statistic.fill_(value)
        teacher.update(student, iteration)
    assert teacher.model.statistic.item() == expected


def test_teacher_has_no_gradient_and_stays_in_eval_mode():
    student = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    teacher = Teacher(student, 0.9)
    assert not teacher.model.training and student.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


@pytest.mark.parametrize("tau", [-0.1, 1.0])
def test_decay_out_of_range_is_an_error(tau):
    with pytest.raises(ValueError, match=r"SEMI\.TEACHER\.DECAY"):
        Teacher(nn.Linear(1, 1), tau)


def output_of(class_probs: torch.Tensor, mask_probs: torch.Tensor) -> SegmentationOutput:
    masks = mask_probs.clamp(1e-6, 1 - 1e-6).logit()
    return SegmentationOutput(class_probs.log(), masks, torch.zeros(len(masks), 1, *masks.shape[-2:]))


def test_pseudo_label_by_hand():
    class_probs = torch.tensor([[[0.7, 0.1, 0.2], [0.2, 0.6, 0.2]]])
    mask_probs = torch.tensor([[[[1.0, 0.5]], [[0.0, 0.5]]]])
    valid = torch.tensor([[[True, True]]])
    # scores of class 0: 0.7, 0.45; of class 1: 0.1, 0.35
    labels = pseudo_labels(output_of(class_probs, mask_probs), valid)
    assert labels.label_map.tolist() == [[[0, 0]]]
    torch.testing.assert_close(labels.confidence, torch.tensor([[[0.7 / 0.8, 0.45 / 0.8]]]), atol=1e-5, rtol=0)
    labels = pseudo_labels(output_of(class_probs, mask_probs), valid, min_confidence=0.6)
    assert labels.label_map.tolist() == [[[0, 255]]]
    labels = pseudo_labels(output_of(class_probs, mask_probs), ~valid)
    assert labels.label_map.tolist() == [[[255, 255]]] and labels.confidence.sum() == 0


def test_pseudo_labels_have_the_size_of_the_crop():
    generator = torch.Generator().manual_seed(0)
    logits, masks = torch.randn(2, 5, 4, generator=generator), torch.randn(2, 5, 6, 7, generator=generator)
    labels = pseudo_labels(SegmentationOutput(logits, masks, masks), torch.ones(2, 24, 28, dtype=torch.bool))
    assert labels.label_map.shape == labels.confidence.shape == (2, 24, 28)
    assert labels.label_map.dtype == torch.uint8 and labels.label_map.max() < 3
    assert ((labels.confidence >= 1 / 3 - 1e-6) & (labels.confidence <= 1)).all()
    assert semantic_scores(logits, masks.sigmoid()).shape == (2, 3, 6, 7)


def test_small_regions_are_ignored():
    label_map = torch.tensor([[[0, 0, 0, 1]], [[1, 1, 255, 0]]], dtype=torch.uint8)
    assert drop_small_regions(label_map, 2, 2).tolist() == [[[0, 0, 0, 255]], [[1, 1, 255, 255]]]
    assert drop_small_regions(label_map, 0, 2) is label_map
    assert drop_small_regions(label_map, 5, 2).unique().tolist() == [255]


def test_cutmix_boxes_are_inside_and_of_the_asked_share():
    boxes = cutmix_boxes([np.random.default_rng([0, i]) for i in range(2000)], 96, 64, (0.2, 0.5), (0.5, 2.0))
    top, left, bottom, right = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (bottom <= 96).all() and (right <= 64).all()
    share = (bottom - top) * (right - left) / (96 * 64)
    assert 0.17 < share.min() < 0.23 and 0.45 < share.max() < 0.53
    assert 0.33 < share.mean() < 0.37
    assert top.min() == left.min() == 0 and bottom.max() == 96 and right.max() == 64


def test_cutmix_pastes_image_label_and_validity_from_the_next_image():
    boxes = np.array([[0, 0, 1, 2], [1, 1, 2, 2], [0, 0, 2, 2]])
    pasted = box_masks(boxes, 2, 2, torch.device("cpu"))
    assert pasted.tolist() == [[[True, True], [False, False]], [[False, False], [False, True]], [[True] * 2] * 2]
    images = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    labels = torch.arange(10, 13).view(3, 1, 1).expand(3, 2, 2)
    images, labels = paste_from_next(pasted, images, labels)
    assert labels.tolist() == [[[11, 11], [10, 10]], [[11, 11], [11, 12]], [[10, 10], [10, 10]]]
    assert (images.long() == labels[:, None] - 10).all()


def test_scores_of_many_classes_are_made_for_few_images_at_a_time(monkeypatch):
    """Same labels to the bit, and never the scores of all images together."""
    torch.manual_seed(0)
    output = SegmentationOutput(torch.randn(5, 4, 8), torch.randn(5, 4, 6, 6), torch.zeros(5, 1, 6, 6))
    valid = torch.rand(5, 24, 24) > 0.1
    whole = pseudo_labels(output, valid, min_confidence=0.1, with_entropy=True)
    sizes = []
    class_scores = SegmentationOutput.class_scores
    monkeypatch.setattr(
        SegmentationOutput, "class_scores", lambda self, size: sizes.append(len(self)) or class_scores(self, size)
    )
    monkeypatch.setattr(pseudo_label, "_SCORES_AT_ONCE", 2 * 7 * 24 * 24 + 1)
    parts = pseudo_labels(output, valid, min_confidence=0.1, with_entropy=True)
    assert sizes == [2, 2, 1]
    for name in ("label_map", "confidence", "entropy"):
        assert torch.equal(getattr(whole, name), getattr(parts, name)), name
