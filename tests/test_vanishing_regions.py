"""Pseudo regions that have no pixel left at SEMI.LOSS_RESOLUTION take part in nothing."""

import pytest
import torch

from rc2l.config import get_rc2l_cfg
from rc2l.modeling.matcher import HungarianMatcher
from rc2l.structures.outputs import SegmentationOutput
from rc2l.structures.regions import Regions
from tests.steps import learner_of, step_of, view_of

K, Q, SIZE, STRIDE = 4, 6, 32, 4


def losses_of(label_map: torch.Tensor, perfect: torch.Tensor, resolution: str):
    """Losses of a student whose queries 0 and 1 are the two halves of ``perfect``, and its mask gradient."""
    cfg = get_rc2l_cfg()
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.SEMI.LOSS_RESOLUTION = K, resolution
    cfg.MODEL.META_ARCHITECTURE = "MaskFormer"
    learner = learner_of(cfg)
    logits = torch.full((1, Q, K + 1), -4.0)
    logits[0, :, K] = 4.0
    logits[0, :2, K] = -4.0
    logits[0, 0, 0] = logits[0, 1, 1] = 4.0
    small = perfect[:, ::STRIDE, ::STRIDE]
    masks = torch.full((1, Q, SIZE // STRIDE, SIZE // STRIDE), -12.0)
    for k in range(2):
        masks[:, k] = torch.where(small == k, 12.0, -12.0)
    masks.requires_grad_()
    features = torch.randn(1, 8, SIZE // STRIDE, SIZE // STRIDE, generator=torch.Generator().manual_seed(0))
    output = SegmentationOutput(logits.requires_grad_(), masks, features)
    losses = learner.losses(step_of(learner, output, perfect, output, view_of(label_map)))
    unsupervised = {name: losses[name] for name in ("loss_rcc", "loss_smc", "loss_rmc", "loss_rfc")}
    gradient = torch.autograd.grad(sum(unsupervised.values()), masks)[0]
    return {name: value.detach() for name, value in unsupervised.items()}, gradient, learner.metrics()


def halves_and_speck() -> tuple[torch.Tensor, torch.Tensor]:
    perfect = torch.zeros(1, SIZE, SIZE, dtype=torch.uint8)
    perfect[:, :, SIZE // 2 :] = 1
    specked = perfect.clone()
    specked[0, 5, 6] = 2  # no multiple of the stride: it vanishes
    return perfect, specked


def test_a_speck_that_vanishes_changes_nothing():
    perfect, specked = halves_and_speck()
    clean, clean_gradient, _ = losses_of(perfect, perfect, "mask")
    losses, gradient, watched = losses_of(specked, perfect, "mask")
    assert losses["loss_rcc"] < 0.005 and watched["pseudo/regions_per_image"] == 2
    for name, value in clean.items():
        assert torch.equal(losses[name], value), name
    assert torch.equal(gradient, clean_gradient)


def test_at_the_crops_resolution_a_speck_counts_everywhere():
    perfect, specked = halves_and_speck()
    losses, gradient, watched = losses_of(specked, perfect, "crop")
    assert watched["pseudo/regions_per_image"] == 3
    assert losses["loss_rcc"] > 1 and all(torch.isfinite(value) for value in losses.values())
    assert torch.isfinite(gradient).all()


def test_at_the_crops_resolution_a_speck_is_matched_by_what_it_looks_like_there():
    """At the masks' resolution both queries look alike to a region that vanishes there."""
    label_map = torch.zeros(1, 8, 8, dtype=torch.uint8)
    label_map[0, 2, 5] = 1
    regions = Regions.from_label_map(label_map, 2)
    masks = torch.full((1, 2, 2, 2), -9.0)
    masks[0, 1, 0, 1] = -1.0  # over the speck, and unsure: most of these pixels are not its own
    matcher = HungarianMatcher()
    raised = matcher.cost(torch.zeros(1, 2, 3), masks, regions, at_regions=True)[0]
    sampled = matcher.cost(torch.zeros(1, 2, 3), masks, regions)[0]
    assert raised[1, 1] - raised[0, 1] < sampled[1, 1] - sampled[0, 1]
    at_own_size = matcher.cost(torch.zeros(1, 2, 3), masks, regions.resized(2, 2), at_regions=True)[0]
    torch.testing.assert_close(at_own_size, sampled)


@pytest.mark.parametrize("resolution", ["mask", "crop"])
def test_no_region_left_is_zero_with_a_graph(resolution):
    perfect, _ = halves_and_speck()
    losses, gradient, _ = losses_of(torch.full_like(perfect, 255), perfect, resolution)
    assert all(value == 0 for value in losses.values()) and (gradient == 0).all()
