"""Losses of regions beside other methods (RC2L.ENABLED), and weighted by the teacher's confidence."""

import pytest
import torch

from rc2l.semi.method import method_of
from rc2l.semi.objectives.consistency import region_confidence
from rc2l.structures.outputs import SegmentationOutput
from tests.steps import learner_of, step_of, view_of
from tests.test_per_pixel import config

TARGETS = torch.ones(2, 16, 16, dtype=torch.uint8)
TARGETS[..., 8:] = 2


def output(seed: int) -> SegmentationOutput:
    generator = torch.Generator().manual_seed(seed)
    shapes = (2, 5, 10), (2, 5, 16, 16), (2, 32, 16, 16)
    return SegmentationOutput(*(torch.randn(shape, generator=generator) for shape in shapes))


def losses_of(confidence: torch.Tensor | None, *overrides, method: str = "rc2l") -> dict[str, torch.Tensor]:
    """Of one step with one strong view, whose pseudo labels are class 1 on the left and class 2 on the right."""
    learner = learner_of(config("rc2l", "SEMI.METHOD", method, "SEMI.PSEUDO_LABEL.MIN_AREA", 0, *overrides))
    return learner.losses(step_of(learner, output(0), TARGETS, output(1), view_of(TARGETS, confidence)))


def test_confidence_of_regions_by_hand():
    targets = torch.tensor([[[0, 0, 2, 255]]], dtype=torch.uint8)
    confidence = torch.tensor([[[0.5, 0.7, 0.9, 0.1]]])
    torch.testing.assert_close(region_confidence(view_of(targets, confidence), 3), torch.tensor([[0.6, 0.0, 0.9]]))


@pytest.mark.parametrize("method", ["rc2l", "consistency"])
def test_regions_weigh_their_confidence(method):
    sure, power = torch.ones(TARGETS.shape), ("SEMI.REGION_CONFIDENCE_POWER", 2.0)
    plain = losses_of(sure * 0.5, method=method)
    torch.testing.assert_close(losses_of(sure, *power, method=method), plain)
    quarter = losses_of(sure * 0.5, *power, method=method)
    unsupervised = {name for name in plain if name.split("_")[1] in ("rcc", "smc", "rmc", "rfc", "consistency")}
    assert len(unsupervised) == (4 if method == "rc2l" else 1)
    for name, value in plain.items():
        torch.testing.assert_close(quarter[name], value / 4 if name in unsupervised else value)

    left, right = sure.clone(), sure.clone()
    left[..., 8:], right[..., :8] = 0, 0
    both, first, second = (losses_of(each, *power, method=method) for each in (sure, left, right))
    for name in unsupervised:  # one region of each image weighs nothing, and the divisor stays
        torch.testing.assert_close(first[name] + second[name], both[name])
        assert first[name] > 0


def test_losses_of_regions_join_another_method():
    regions = losses_of(None)
    pixels = losses_of(None, method="self_training")
    joined = losses_of(None, "RC2L.ENABLED", True, method="self_training")
    assert joined.keys() == regions.keys() | pixels.keys() and "loss_self_training" in joined
    torch.testing.assert_close(joined, regions | pixels)
    assert losses_of(None, "RC2L.ENABLED", True).keys() == regions.keys()  # not twice
    needs = method_of(config("rc2l", "SEMI.METHOD", "unimatch", "RC2L.ENABLED", True)).needs
    assert (needs.strong_views, needs.matches, needs.perturbed) == (2, True, True)


def test_networks_of_pixels_have_no_regions():
    with pytest.raises(ValueError, match=r"RC2L\.ENABLED is True, but it matches masks, which .* has none of") as error:
        method_of(config("cutmix_deeplab", "RC2L.ENABLED", True))
    assert "\n" not in str(error.value)
