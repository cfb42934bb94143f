"""FixMatch and UniMatch: the loss by hand, feature dropout, weights of the views, and what the methods ask for."""

import math

import pytest
import torch

from rc2l.losses.unimatch import confident_cross_entropy
from rc2l.modeling.feature_dropout import FeatureDropout
from rc2l.semi.labeler import CurrentStudent
from rc2l.semi.method import method_of
from rc2l.semi.teacher import EmaTeacher
from rc2l.structures.needs import Needs
from rc2l.structures.outputs import SegmentationOutput
from tests.steps import learner_of, objective_of, step_of, view_of
from tests.test_per_pixel import config


def test_confident_cross_entropy_by_hand():
    """One sure pixel, one unsure, one ignored, one just at the threshold: three count, two add."""
    probabilities = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8], [0.25, 0.75]])
    logits = probabilities.log().T.view(1, 2, 1, 4).requires_grad_()
    targets = torch.tensor([[[0, 0, 255, 1]]], dtype=torch.uint8)
    confidence = torch.tensor([[[0.97, 0.5, 1.0, 0.75]]])
    loss = confident_cross_entropy(logits, targets, confidence, 0.75)
    assert loss.item() == pytest.approx(-(math.log(0.5) + math.log(0.75)) / 3)
    loss.backward()
    assert (logits.grad != 0).any(1).flatten().tolist() == [True, False, False, True]


@pytest.mark.parametrize("kind", ["nothing valid", "nothing sure"])
def test_no_pixel_is_zero_with_a_graph(kind):
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    targets = torch.full((2, 4, 4), 255 if kind == "nothing valid" else 1)
    loss = confident_cross_entropy(logits, targets, torch.full((2, 4, 4), 0.5), 0.9)
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


def test_the_share_of_a_process_is_of_all_valid_pixels():
    logits, targets = torch.randn(1, 3, 4, 4), torch.ones(1, 4, 4).long()
    sure = torch.ones(1, 4, 4)
    alone = confident_cross_entropy(logits, targets, sure, 0.9)
    of_two = confident_cross_entropy(logits, targets, sure, 0.9, average=lambda valid: valid / 2)  # another has none
    torch.testing.assert_close(of_two, 2 * alone)


def features(number: int) -> dict[str, torch.Tensor]:
    return {"res2": torch.ones(number, 64, 4, 4), "res5": torch.ones(number, 128, 2, 2)}


def test_dropped_images_lose_whole_channels_and_the_rest_doubles():
    torch.manual_seed(0)
    for feature in FeatureDropout(3, dropped=2)(features(5)).values():
        assert (feature[:3] == 1).all()
        channels = feature[3:, :, 0, 0]
        assert (feature[3:] == channels[:, :, None, None]).all()
        assert set(channels.unique().tolist()) == {0.0, 2.0} and 0.3 < (channels == 0).float().mean() < 0.7
        assert not torch.equal(*channels)


@pytest.mark.parametrize("paired", [1, 4, 5])
def test_complementary_masks_add_up_to_two_and_half_of_the_images_stay_whole(paired):
    torch.manual_seed(0)
    dropped = FeatureDropout(2, paired=paired)(features(2 + 2 * paired))
    whole = []
    for feature in dropped.values():
        kept, first, second = feature.split([2, paired, paired])
        assert (kept == 1).all() and torch.equal(first + second, torch.full_like(first, 2))
        whole.append((first == 1).flatten(1).all(1))
        assert torch.equal(whole[-1], (second == 1).flatten(1).all(1))
        assert set(first[~whole[-1]].unique().tolist()) == {0.0, 2.0}
    assert torch.equal(*whole) and whole[0].sum() == paired // 2


def outputs(seed: int) -> SegmentationOutput:
    logits = torch.randn(2, 9, 8, 8, generator=torch.Generator().manual_seed(seed))
    return SegmentationOutput(None, None, torch.zeros(2, 32, 8, 8), pixel_logits=logits)


def losses_of(method: str, *overrides) -> tuple[dict[str, torch.Tensor], list[torch.Tensor], dict]:
    """Losses of two strong views and a perturbed one, the plain cross-entropy of each, and the metrics."""
    cfg = config(
        "cutmix_deeplab", "SEMI.METHOD", method, "SEMI.UNSUPERVISED_WEIGHT", 3.0,
        "UNIMATCH.CONFIDENCE_THRESHOLD", 0.5, *overrides,
    )  # fmt: skip
    learner, needs = learner_of(cfg), method_of(cfg).needs
    targets = torch.randint(0, 9, (3, 2, 8, 8), generator=torch.Generator().manual_seed(9), dtype=torch.uint8)
    confidence = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(8))
    views = [view_of(*values) for values in zip(targets, confidence, strict=True)]
    step = step_of(
        learner,
        outputs(0),
        targets[0],
        views=views[: needs.strong_views],
        strong=[outputs(1), outputs(2)][: needs.strong_views],
        weak=views[2],
        perturbed=outputs(3) if needs.perturbed else None,
    )
    each = [
        confident_cross_entropy(outputs(1 + i).pixel_logits, targets[i], confidence[i], 0.5, lambda totals: totals)
        for i in range(3)
    ]
    return objective_of(learner, method).losses(step), each, learner.metrics()


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_weights_of_version_1(share):
    """By default 1/4, 1/4 and 1/2 of the unsupervised loss."""
    losses, (first, second, perturbed), metrics = losses_of("unimatch", "UNIMATCH.FEATURE_SHARE", share)
    assert losses.keys() == {"loss_strong", "loss_feature"}
    torch.testing.assert_close(losses["loss_strong"], 3 * (1 - share) * (first + second) / 2)
    torch.testing.assert_close(losses["loss_feature"], 3 * share * perturbed)
    assert 0.3 < metrics["unimatch/confident_share"] < 0.7


def test_weights_of_version_2_and_of_fixmatch():
    losses, (first, second, _), _ = losses_of("unimatch", "UNIMATCH.VERSION", 2)
    assert losses.keys() == {"loss_strong"}
    torch.testing.assert_close(losses["loss_strong"], 3 * (first + second) / 2)
    losses, (first, *_), _ = losses_of("fixmatch")
    assert losses.keys() == {"loss_strong"}
    torch.testing.assert_close(losses["loss_strong"], 3 * first)


def test_during_burn_in_there_is_no_unsupervised_loss():
    learner = learner_of(config("cutmix_deeplab", "SEMI.METHOD", "unimatch"))
    assert objective_of(learner, "unimatch").losses(step_of(learner, outputs(0), torch.zeros(2, 8, 8))) == {}


@pytest.mark.parametrize(
    ("overrides", "needs", "labeler"),
    [
        (["fixmatch"], Needs(unlabeled=True, strong_views=1), CurrentStudent),
        (["unimatch"], Needs(unlabeled=True, strong_views=2, perturbed=True), CurrentStudent),
        (
            ["unimatch", "UNIMATCH.VERSION", 2],
            Needs(unlabeled=True, strong_views=2, complementary=True),
            EmaTeacher,
        ),
    ],
)
def test_what_the_methods_ask_for(overrides, needs, labeler):
    method = method_of(config("cutmix_deeplab", "SEMI.METHOD", *overrides))
    assert method.needs == needs and method.labeler is labeler
    on_masks = method_of(config("rc2l", "SEMI.METHOD", *overrides))
    assert on_masks.needs == needs | Needs(masks=True)
