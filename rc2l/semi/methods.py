"""The training methods: which losses a batch gives, with which weights.

On labelled images RC²L eq. 1 (mask classification) or cross-entropy (per-pixel classification). On unlabelled ones
``supervised`` has nothing, ``consistency`` matched-mask consistency (RC²L table 3, row 1), ``rc2l`` RCC, SMC, RMC and
RFC (eq. 2 and 3), ``self_training`` cross-entropy on pseudo labels (ReCo eq. 5), ``s4gan`` what its discriminator asks
(see :mod:`rc2l.semi.adversary`; the trainer adds it). RECO.ENABLED adds regional contrast to any of them, DGCL.ENABLED
density-guided contrast.
"""

from collections.abc import Callable, Sequence

import numpy as np
from detectron2.config import CfgNode
from torch import Tensor

from rc2l.data.mixing import BOXES, MIXINGS, PARTNERED
from rc2l.modeling.outputs import SegmentationOutput
from rc2l.semi.dgcl_auxiliary import DgclAuxiliary
from rc2l.semi.memory_bank import MemoryBank
from rc2l.semi.pixel_losses import PixelLosses
from rc2l.semi.reco_auxiliary import RecoAuxiliary
from rc2l.semi.region_losses import RegionLosses
from rc2l.semi.strong_views import StrongViews

METHODS = ("supervised", "consistency", "rc2l", "self_training", "s4gan")
#: Methods made of regions, which only mask classification has.
REGION_METHODS = ("consistency", "rc2l")


class Method:
    """Turns student outputs, labels and pseudo labels into named, weighted losses, whose sum is trained on.

    Args:
        cfg: the full config.
        memory_bank, reco_bank: those of DGCL and of ReCo, where they have one; without them losses cannot be computed,
            only the config checked.

    Raises:
        ValueError: unknown method or mixing, a method that does not fit the model, or a bad value of a loss's key.
    """

    def __init__(
        self, cfg: CfgNode, memory_bank: MemoryBank | None = None, reco_bank: MemoryBank | None = None
    ) -> None:
        self.name = cfg.SEMI.METHOD
        if self.name not in METHODS:
            raise ValueError(f"unknown method '{self.name}': SEMI.METHOD must be one of {', '.join(METHODS)}")
        self.per_pixel = cfg.MODEL.META_ARCHITECTURE == "PerPixelSegmentor"
        if self.per_pixel and self.name in REGION_METHODS:
            raise ValueError(
                f"SEMI.METHOD '{self.name}' matches masks, which PerPixelSegmentor has none of: set "
                "MODEL.META_ARCHITECTURE to MaskFormer, or SEMI.METHOD to self_training or supervised"
            )
        if cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE != 255:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE}: it must be 255, as "
                "ignored pixels are in every label map here; map another one to 255 by the dataset's label_map"
            )
        mixing = cfg.SEMI.MIXING
        for key, choices in (("NAME", MIXINGS), ("BOX", BOXES)):
            if mixing[key] not in choices:
                raise ValueError(f"SEMI.MIXING.{key} is '{mixing[key]}': it must be one of {', '.join(choices)}")
        if self.name == "s4gan" and mixing.NAME != "none":
            raise ValueError(
                f"SEMI.MIXING.NAME is '{mixing.NAME}': s4gan compares predictions of whole images with labels, so it "
                "must be none"
            )
        if self.semi_supervised and mixing.NAME in PARTNERED and cfg.SOLVER.IMS_PER_BATCH_UNLABELED == 1:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH_UNLABELED is 1, but {mixing.NAME} pastes from another unlabelled image of the "
                "step: set it to 2 or more (of all processes together), or SEMI.MIXING.NAME to cutout or none"
            )
        self.num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        self.regions = RegionLosses(cfg)
        self.pixels = PixelLosses(cfg)
        self.reco = RecoAuxiliary(cfg, reco_bank) if cfg.RECO.ENABLED else None
        self.dgcl = DgclAuxiliary(cfg, memory_bank) if cfg.DGCL.ENABLED else None
        self._watched: dict[str, Tensor] = {}

    @property
    def semi_supervised(self) -> bool:
        """Whether the method uses unlabelled images and a teacher's pseudo labels."""
        return self.name != "supervised"

    @property
    def needs_entropy(self) -> bool:
        """Whether the entropy of pseudo labels is asked for."""
        return self.dgcl is not None or (self.name == "self_training" and self.pixels.needs_entropy)

    def losses(
        self,
        labeled: SegmentationOutput,
        targets: Tensor,
        strong: SegmentationOutput | None = None,
        views: StrongViews | None = None,
        average: Callable[[Tensor], Tensor] = lambda totals: totals,
        progress: float = 1.0,
    ) -> dict[str, Tensor]:
        """Named losses, weights included: their sum is the loss of RC²L eq. 3 or ReCo eq. 5.

        Args:
            labeled: float32 student outputs on the labelled images.
            targets: (B_l, H, W) label maps.
            strong: float32 student outputs on the strong views; None leaves the unsupervised loss out (burn-in).
            views: the strong views; with entropies where :attr:`needs_entropy`.
            average: mean of a tensor over processes.
            progress: iteration over SOLVER.MAX_ITER, in [0, 1].
        """
        self._watched = {}
        of_regions = self.name in REGION_METHODS
        if self.per_pixel:
            losses = self.pixels.supervised(labeled, targets, average)
        else:
            regions_of = (strong, views.targets) if views and of_regions else (None, None)
            losses = self.regions.losses(labeled, targets, *regions_of, average)
            self._watched |= self.regions.watched
        if views and self.name == "self_training":
            more, watched = self.pixels.self_training(strong, views, average, progress)
            losses |= more
            self._watched |= watched
        if self.reco:
            losses |= self.reco.losses(labeled, targets, strong, views)
        if self.dgcl:
            losses |= self.dgcl.losses(labeled, targets, strong, views, progress)
        return losses

    def remember(self, gather: Callable[[Tensor], Tensor]) -> None:
        """Keep what later steps need of this one: memories. Every process must call it after each step.

        Args:
            gather: from a tensor to (processes, ...), those of every process in order of rank.
        """
        for auxiliary in (self.reco, self.dgcl):
            if auxiliary:
                auxiliary.remember(gather)

    def watched(self, class_names: Sequence[str]) -> dict[str, Tensor]:
        """Further numbers of the last step worth watching, as 0-d tensors."""
        watched = dict(self._watched)
        for auxiliary in (self.reco, self.dgcl):
            watched |= auxiliary.watched(class_names) if auxiliary else {}
        return watched

    def relation_picture(self, class_names: Sequence[str], iteration: int) -> np.ndarray | None:
        """ReCo's relation graph of the last mini-batch, (3, height, width) uint8, where there is one."""
        return self.reco.relation_picture(class_names, iteration) if self.reco else None
