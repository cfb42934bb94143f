"""Objectives: what a method wants of a step. One is a loss, with the head, the memory and the metrics it may need."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from detectron2.config import CfgNode
from fvcore.common.registry import Registry
from torch import Tensor, nn

from rc2l.modeling.segmentor import Segmentor
from rc2l.semi.step import Step
from rc2l.structures.needs import Needs

#: Objectives that join any method where their own key says so (:meth:`Objective.enabled`), such as ReCo and DGCL.
OBJECTIVE_REGISTRY = Registry("OBJECTIVE")


class Objective:
    """One or more losses of a step.

    Its config node and the ranges of its keys are declared beside it (:mod:`rc2l.ranges`). Every process calls every
    method alike.

    Args:
        cfg: the full config, already checked.
        network: the student.
        class_names: K names.
    """

    #: Under which its state is saved and its head's output is found in ``SegmentationOutput.representations``.
    name: ClassVar[str]

    def __init__(self, cfg: CfgNode, network: Segmentor, class_names: Sequence[str]) -> None:
        self.network = network
        self.class_names = list(class_names)
        self.num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES

    @classmethod
    def enabled(cls, cfg: CfgNode) -> bool:
        """Whether it joins the method that SEMI.METHOD names; asked of those in :data:`OBJECTIVE_REGISTRY`."""
        return False

    @classmethod
    def needs(cls, cfg: CfgNode) -> Needs:
        """What it asks of a step."""
        return Needs()

    def head(self) -> nn.Module | None:
        """A new module from per-pixel features (B, C, h, w) to what the loss reads, trained with the student.

        ``C`` is ``network.pixel_feature_channels``. It is no part of the student: neither teacher nor export has it.
        """
        return None

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Named 0-d losses, weights included, whose sum is trained on; zeros with a graph where nothing is to learn."""
        raise TypeError(f"{type(self).__name__} has no losses")

    def after_step(self, step: Step) -> None:
        """Keep what later steps need, after the weights have changed; not called where a step was skipped."""

    def metrics(self) -> dict[str, Tensor]:
        """Numbers of the last step worth watching, 0-d."""
        return {}

    def pictures(self, iteration: int) -> dict[str, np.ndarray]:
        """Name -> (3, height, width) uint8, asked for at each evaluation."""
        return {}

    def state_dict(self) -> dict:
        """Everything that the next step depends on, tensors and plain containers; {}: nothing."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Take back :meth:`state_dict`."""
