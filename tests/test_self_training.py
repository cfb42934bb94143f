"""Self-training on pixels: mixing and loss against the official numbers."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rc2l.data.mixing import classmix_masks, half_area_boxes, mix_views, paste_from_next
from rc2l.losses.self_training import confident_share, pixel_cross_entropy
from tests.shared_data import shared_file


@pytest.fixture(scope="module")
def official() -> dict[str, torch.Tensor]:
    with np.load(shared_file("reference/reco_deterministic.npz")) as file:
        return {key: torch.as_tensor(file[key]) for key in file.files if not key.endswith("json")}


def to_ours(target: torch.Tensor) -> torch.Tensor:
    return torch.where(target < 0, 255, target.long())


@pytest.mark.parametrize("case", [0, 1, 2])
def test_unsupervised_loss_equals_the_official_one(official, case):
    data = {name: official[f"unsup{case}/{name}"] for name in ("predict", "target", "confidence", "loss", "grad")}
    target, confidence = to_ours(data["target"]), data["confidence"]
    share = confident_share(confidence, target, float(official["strong_threshold"]))
    logits = data["predict"].clone().requires_grad_()
    loss = pixel_cross_entropy(logits, target, share)
    if case == 2:
        # Ignored pixels that keep their confidence count in the official share, not in ours.
        assert (share < official["unsup2/image_weight"]).any() and loss < data["loss"]
        return
    torch.testing.assert_close(share, official[f"unsup{case}/image_weight"].to(share.dtype), atol=1e-6, rtol=0)
    torch.testing.assert_close(loss, data["loss"], atol=1e-5, rtol=0)
    loss.backward()
    torch.testing.assert_close(logits.grad, data["grad"], atol=1e-6, rtol=0)


def test_supervised_cross_entropy_equals_the_official_one(official):
    loss = pixel_cross_entropy(official["unsup2/predict"], to_ours(official["unsup2/target"]))
    torch.testing.assert_close(loss, official["sup/loss"], atol=1e-5, rtol=0)


def test_pixels_of_zero_loss_count_and_ignored_ones_do_not(official):
    """In ``unsup_zero`` a valid pixel has a cross-entropy of exactly 0, and an ignored one is confident. The official
    mean leaves the first out, the official share counts the second; ours does neither."""
    logits, confidence = official["unsup_zero/predict"], official["unsup_zero/confidence"]
    target = to_ours(official["unsup_zero/target"])
    threshold = float(official["strong_threshold"])
    valid, confident = target != 255, confidence >= threshold
    entropy = F.cross_entropy(logits, target, ignore_index=255, reduction="none")
    assert (valid & (entropy == 0)).any() and (confident & ~valid).any()
    counts = valid.flatten(1).sum(1)
    official_share = confident.flatten(1).sum(1) / counts
    official_loss = (official_share[:, None, None] * entropy).sum() / (entropy > 0).sum()
    torch.testing.assert_close(official_loss, official["unsup_zero/loss"], atol=1e-6, rtol=0)
    share = confident_share(confidence, target, threshold)
    torch.testing.assert_close(share, (confident & valid).flatten(1).sum(1) / counts)
    loss = pixel_cross_entropy(logits, target, share)
    torch.testing.assert_close(loss, (share[:, None, None] * entropy).sum() / counts.sum(), atol=1e-6, rtol=0)


def test_everything_ignored_is_zero_with_a_graph():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    targets = torch.full((2, 4, 4), 255, dtype=torch.uint8)
    share = confident_share(torch.ones(2, 4, 4), targets, 0.9)
    loss = pixel_cross_entropy(logits, targets, share)
    loss.backward()
    assert loss == 0 and torch.equal(share, torch.zeros(2)) and (logits.grad == 0).all()


def test_share_of_confident_pixels_is_at_most_one():
    targets = torch.tensor([[[0, 255, 255, 255]]])
    assert confident_share(torch.ones(1, 1, 4), targets, 0.97).item() == 1


def generators(count: int) -> list[np.random.Generator]:
    """One for each image."""
    return [np.random.default_rng([0, i]) for i in range(count)]


@pytest.mark.parametrize("name", ["cutout", "cutmix", "classmix"])
def test_mixed_views_equal_the_official_ones(official, name, monkeypatch):
    data = {key.rsplit("/", 1)[1]: value for key, value in official.items() if key.startswith(f"mix/{name}/")}
    pasted = data["mask"] == 0
    monkeypatch.setattr("rc2l.data.mixing.box_masks", lambda *_: pasted)
    monkeypatch.setattr("rc2l.data.mixing.classmix_masks", lambda *_: pasted)
    # An official cutout writes into its input; the target before it is what the rest of the mask kept.
    target = to_ours(data["target"])
    before = target.clone()
    mixed = mix_views(
        name,
        data["data"],
        target,
        data["confidence"],
        num_classes=int(official["num_classes"]),
        fill=[0.0, 0.0, 0.0],
        boxes=None,
        generators=generators(1),
    )
    for value, key in zip(mixed, ("data", "target", "confidence"), strict=True):
        expected = next(data[k] for k in data if k.startswith("out_") and k.endswith(key))
        expected = to_ours(expected) if key == "target" else expected
        torch.testing.assert_close(value, expected, atol=0, rtol=0)
    assert torch.equal(target, before)


def test_boxes_follow_the_official_distribution(official):
    H, W = official["mix/boxes_image_hw"].tolist()
    official_boxes = official["mix/boxes"].double()
    count = len(official_boxes)
    boxes = half_area_boxes(generators(count), H, W)
    top, left, bottom, right = torch.from_numpy(boxes).double().T
    assert (top >= 0).all() and (left >= 0).all() and (bottom <= H).all() and (right <= W).all()
    width, height = right - left, bottom - top
    for widths in (width, official_boxes[:, 3]):
        assert widths.min() >= int(W / 2 + 1) and widths.max() <= W - 1
    official_area = official_boxes[:, 2] * official_boxes[:, 3]
    pairs = [(own, official_boxes[:, column]) for column, own in enumerate((top, left, height, width))]
    for own, expected in (*pairs, (height * width, official_area)):
        error = ((own.var() + expected.var()) / count).sqrt()
        assert (own.mean() - expected.mean()).abs() < 4 * error


@pytest.mark.parametrize(("H", "W"), [(1, 1), (2, 2), (3, 2)])
def test_boxes_of_tiny_images_are_inside(H, W):
    top, left, bottom, right = half_area_boxes(generators(20), H, W).T
    assert (top < bottom).all() and (left < right).all() and (bottom <= H).all() and (right <= W).all()


def test_classmix_keeps_half_of_the_classes_and_no_ignored_pixel():
    labels = torch.randint(0, 6, (8, 16, 16))
    labels[0], labels[1] = 3, 255
    labels[:, :4] = 255
    pasted = classmix_masks(labels, 6, generators(8))
    for label, mask in zip(labels, pasted, strict=True):
        own, kept = set(label.unique().tolist()) - {255}, set(label[~mask].unique().tolist())
        assert len(kept) == len(own) // 2 and kept <= own
        assert all((~mask[label == k]).all() for k in kept)


def test_classmix_draws_every_class_equally_often():
    labels = torch.arange(4).view(1, 4, 1).expand(2000, 4, 2)
    kept = ~classmix_masks(labels, 4, generators(2000))[:, :, 0]
    torch.testing.assert_close(kept.float().mean(0), torch.full((4,), 0.5), atol=0.05, rtol=0)


def test_pasting_is_cyclic():
    values = torch.arange(3.0).view(3, 1, 1).expand(3, 2, 2)
    (mixed,) = paste_from_next(torch.ones(3, 2, 2, dtype=torch.bool), values)
    assert mixed[:, 0, 0].tolist() == [1, 2, 0]


def test_cutout_fills_with_the_mean_color_and_ignores():
    images = torch.full((1, 3, 4, 4), 200, dtype=torch.uint8)
    boxes = np.array([[0, 0, 2, 4]])
    mixed, labels, confidence = mix_views(
        "cutout",
        images,
        torch.zeros(1, 4, 4, dtype=torch.uint8),
        torch.ones(1, 4, 4),
        num_classes=2,
        fill=[123.675, 116.28, 103.53],
        boxes=boxes,
        generators=generators(1),
    )
    assert mixed[0, :, 0, 0].tolist() == [124, 116, 104] and mixed[0, :, 3, 3].tolist() == [200] * 3
    assert (labels[0, :2] == 255).all() and (labels[0, 2:] == 0).all()
    assert (confidence[0, :2] == 0).all() and (confidence[0, 2:] == 1).all()


@pytest.mark.parametrize("name", ["none", "cutout", "cutmix", "classmix"])
def test_further_maps_are_mixed_like_the_confidence(name):
    labels, confidence = torch.randint(0, 4, (3, 8, 8)), torch.rand(3, 8, 8)
    boxes = half_area_boxes(generators(3), 8, 8)
    settings = {"num_classes": 4, "fill": [0.0, 0.0, 0.0], "boxes": boxes}

    def mixed(*more: torch.Tensor):
        images = torch.rand(3, 3, 8, 8)
        return mix_views(name, images, labels, confidence, *more, **settings, generators=generators(3))

    _, mixed_labels, mixed_confidence, mixed_map = mixed(confidence)
    assert len(mixed()) == 3 and torch.equal(mixed()[2], mixed_confidence)
    kept = mixed_labels != 255
    assert torch.equal(mixed_map[kept], mixed_confidence[kept])
    assert torch.equal(mixed_map, confidence) == (name in ("none", "cutout"))
