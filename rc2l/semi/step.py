"""All that one training step knows, once: what objectives compute their losses from."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from rc2l.semi.region_matching import RegionMatching, StepMatches
from rc2l.structures.outputs import SegmentationOutput
from rc2l.structures.training_batch import TrainingBatch
from rc2l.structures.views import View


@dataclass
class Step:
    """One student's step, after its forward pass.

    Letters: ``B_l`` labelled and ``B_u`` unlabelled images of this process, crops of (H, W).
    """

    #: The images as they came from the loader, and the label maps.
    batch: TrainingBatch
    #: The student's outputs, float32, on the labelled images.
    labeled: SegmentationOutput
    #: The strong views, none during burn-in and for methods without unlabelled images, and the outputs on each.
    views: list[View] = field(default_factory=list)
    strong: list[SegmentationOutput] = field(default_factory=list)
    #: The weak view, and the outputs on it with dropped feature channels, where an objective needs them.
    weak: View | None = None
    perturbed: SegmentationOutput | None = None
    #: Iteration from 0 on; its share of SOLVER.MAX_ITER, in [0, 1]; current learning rate relative to its base.
    iteration: int = 0
    progress: float = 1.0
    schedule: float = 1.0
    #: Matches queries and regions, where the network predicts masks; whether those of the strong views too.
    matching: RegionMatching | None = None
    match_views: bool = False
    #: Mean of a tensor over processes; (processes, ...) of a tensor of every process, in order of rank.
    average: Callable[[Tensor], Tensor] = lambda totals: totals
    gather: Callable[[Tensor], Tensor] = lambda tensor: tensor[None]

    @property
    def targets(self) -> Tensor:
        """(B_l, H, W) uint8 label maps of the labelled images."""
        return self.batch.labeled_targets

    @cached_property
    def matches(self) -> StepMatches:
        """Queries and regions of the labelled images and, where an objective needs it, of the strong views.

        Computed once, with one device-to-host copy, by whoever asks first.
        """
        strong = [(output, view.targets) for output, view in zip(self.strong, self.views, strict=True)]
        with torch.no_grad():
            return self.matching(self.labeled, self.targets, strong if self.match_views else [])
