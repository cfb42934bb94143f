"""Learners, views and steps that are made up for a test."""

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from rc2l.semi.learner import Learner
from rc2l.semi.method import method_of
from rc2l.semi.objective import Objective
from rc2l.semi.objectives.consistency import RegionObjective
from rc2l.semi.step import Step
from rc2l.structures.outputs import SegmentationOutput
from rc2l.structures.training_batch import TrainingBatch
from rc2l.structures.views import View


class StandIn(nn.Module):
    """Stands for the student where a test makes up the outputs."""

    device = torch.device("cpu")

    def __init__(self, pixel_feature_channels: int) -> None:
        super().__init__()
        self.pixel_feature_channels = pixel_feature_channels

    def normalize(self, images: Tensor) -> Tensor:
        return images.float()


def learner_of(cfg: CfgNode, network: nn.Module | None = None) -> Learner:
    """The learner of SEMI.METHOD for a network, or for one that is not there and has 32 channels of pixel features."""
    names = [f"class {k}" for k in range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)]
    return Learner(cfg, method_of(cfg), StandIn(32) if network is None else network, names)


def objective_of(learner: Learner, name: str) -> Objective:
    """The learner's objective of this name."""
    (found,) = (objective for objective in learner.objectives if objective.name == name)
    return found


def view_of(
    targets: Tensor,
    confidence: Tensor | None = None,
    entropy: Tensor | None = None,
    images: Tensor | None = None,
    valid: Tensor | None = None,
) -> View:
    """A view with these pseudo labels (B_u, H, W), by default all certain, without images and padding."""
    return View(
        images=images,
        targets=targets,
        confidence=torch.ones(targets.shape) if confidence is None else confidence,
        valid=torch.ones(targets.shape, dtype=torch.bool) if valid is None else valid,
        entropy=entropy,
    )


def step_of(
    learner: Learner,
    labeled: SegmentationOutput,
    targets: Tensor,
    on_view: SegmentationOutput | None = None,
    view: View | None = None,
    images: Tensor | None = None,
    **more,
) -> Step:
    """A step of a learner with one strong view or none.

    Args:
        learner: whose step it is.
        labeled: outputs on the labelled images.
        targets: (B_l, H, W).
        on_view: outputs on the view.
        view: one strong view.
        images: the labelled images.
        more: other fields of :class:`Step`.
    """
    values = {
        "views": [] if view is None else [view],
        "strong": [] if view is None else [on_view],
        "matching": learner.matching,
        "match_views": any(isinstance(objective, RegionObjective) for objective in learner.objectives),
    }
    batch = TrainingBatch(images, targets, images, images, targets != 255, [], [])
    return Step(batch, labeled, **(values | more))
