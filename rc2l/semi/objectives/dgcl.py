"""DGCL, density-guided contrast of pixels, beside any method and on any network, with its memory."""

import logging
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from rc2l.losses.dgcl import OPTIONS, Dgcl, DgclOptions, dgcl_loss
from rc2l.modeling.segmentor import Segmentor
from rc2l.modeling.training_network import ProjectionHead
from rc2l.ranges import (
    MOST_CHANNELS,
    MOST_THINGS,
    SHARE,
    config_check,
    config_node,
    declare,
    exactly,
    flag,
    integer,
    number,
)
from rc2l.semi.density_memory import DensityMemory
from rc2l.semi.objective import OBJECTIVE_REGISTRY, Objective
from rc2l.semi.objectives.self_training import share_at
from rc2l.semi.pseudo_label import most_certain
from rc2l.semi.step import Step
from rc2l.structures.class_ring import choose_entries
from rc2l.structures.label_map import IGNORE, sample_nearest, with_ignored_as
from rc2l.structures.needs import Needs

logger = logging.getLogger(__name__)


@config_node
def add_dgcl_config(cfg: CfgNode) -> None:
    """Add the keys of DGCL, density-guided contrast."""
    cfg.DGCL = CfgNode()
    # Add the DGCL loss on a projection head of its own, which exists in training only, to the method that SEMI.METHOD
    # names; RECO may be ENABLED too.
    cfg.DGCL.ENABLED = False
    # Weight of the DGCL loss; the poster prints none.
    cfg.DGCL.WEIGHT = 1.0
    # Channels of the projections; the poster prints none, ReCo has as many.
    cfg.DGCL.DIM = 256
    # tau, above 0, which divides similarities; the authors' code.
    cfg.DGCL.TEMPERATURE = 0.5
    # k_low and k_high of the authors' training script: anchors of each class in a step of a process, and pixels of the
    # batch (and again entries of the memory) whose mean is the positive.
    cfg.DGCL.NUM_ANCHORS = 200
    cfg.DGCL.NUM_POSITIVES = 50
    # Pixels of other classes that the anchors of a class are contrasted with, at most; the authors' code.
    cfg.DGCL.NUM_NEGATIVES = 512
    # Numbers of nearest neighbours in the memory over which density is averaged; the poster's "multi-scale KNN", values
    # of the authors' code. A class takes part once its memory holds as many entries as the largest.
    cfg.DGCL.NEIGHBORS = [8, 16, 32]
    # Class ids without anchors and memory; their pixels are negatives all the same. The authors' code: background, [0]
    # on VOC. Cityscapes has none.
    cfg.DGCL.SKIP_CLASSES = []
    # low_density | random | low_confidence; which pixels are anchors (ablation of the poster).
    cfg.DGCL.ANCHORS = "low_density"
    # high_density | average (drawn evenly) | high_confidence; what the positive is the mean of (ablation of the
    # poster).
    cfg.DGCL.POSITIVES = "high_density"
    # Share of the pseudo-labeled pixels of a process and step, in [0, 1], that are left out, those of the highest
    # entropy of the teacher: at the first and at the last iteration, linear between.
    cfg.DGCL.DROPPED_SHARE = [0.8, 0.1]
    # Pixels of a process and step that are looked at, drawn evenly where there are more. It bounds the cost.
    cfg.DGCL.MAX_PIXELS = 16384
    # Entries of each class in the memory bank, which is in every process and in every checkpoint: with 256 + 256
    # channels 2 KiB each. At least the largest of NEIGHBORS.
    cfg.DGCL.MEMORY_PER_CLASS = 5000
    # Pixels of each class that a process adds to the memory in a step, at most; drawn evenly where there are more.
    cfg.DGCL.ADDED_PER_CLASS = 128
    # Pseudo-labeled pixels enter the memory where the teacher's confidence, in [0, 1], is above this.
    cfg.DGCL.MEMORY_CONFIDENCE = 0.7
    # Entries of each class whose density is measured anew in a step, those first whose density is not known or oldest;
    # 0: never, as in the authors' code.
    cfg.DGCL.REFRESHED_PER_CLASS = 64


declare(
    "DGCL",
    {option.upper(): allowed for option, allowed in OPTIONS.items()}
    | {
        "ENABLED": flag(),
        "WEIGHT": number(at_least=0),
        "DIM": integer(at_least=1, at_most=MOST_CHANNELS),
        "DROPPED_SHARE": exactly(SHARE, SHARE),
        "MAX_PIXELS": integer(at_least=1, at_most=MOST_THINGS),
        "MEMORY_PER_CLASS": integer(at_least=1, at_most=MOST_THINGS),
        "ADDED_PER_CLASS": integer(at_least=1, at_most=MOST_THINGS),
        "MEMORY_CONFIDENCE": SHARE,
        "REFRESHED_PER_CLASS": integer(at_least=0, at_most=MOST_THINGS),
    },
)


@config_check
def check_dgcl(cfg: CfgNode) -> None:
    """A memory that holds the neighbours asked for, and classes that exist."""
    dgcl, num_classes = cfg.DGCL, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if not dgcl.ENABLED:
        return
    if max(dgcl.NEIGHBORS) > dgcl.MEMORY_PER_CLASS:
        raise ValueError(
            f"DGCL.MEMORY_PER_CLASS is {dgcl.MEMORY_PER_CLASS}: it must be at least {max(dgcl.NEIGHBORS)}, the "
            "largest of DGCL.NEIGHBORS"
        )
    if any(k >= num_classes for k in dgcl.SKIP_CLASSES):
        raise ValueError(
            f"DGCL.SKIP_CLASSES is {list(dgcl.SKIP_CLASSES)}: MODEL.SEM_SEG_HEAD.NUM_CLASSES is "
            f"{num_classes}, so class ids are at most {num_classes - 1}"
        )


@OBJECTIVE_REGISTRY.register()
class DensityGuidedContrast(Objective):
    """``loss_dgcl`` of the labelled and pseudo-labelled pixels of a step together, which then fill the memory.

    Labelled pixels all take part, as their class is certain; of the pseudo-labelled ones those whose entropy is not
    among the highest DGCL.DROPPED_SHARE of this process and view. Each process contrasts the pixels of its own share of
    the batch; the memory is common to all.
    """

    name = "dgcl"

    def __init__(self, cfg: CfgNode, network: Segmentor, class_names: Sequence[str]) -> None:
        super().__init__(cfg, network, class_names)
        dgcl = cfg.DGCL
        options = {option: dgcl[option.upper()] for option in OPTIONS}
        lists = {option: tuple(value) for option, value in options.items() if isinstance(value, list)}
        self.options = DgclOptions(**options | lists)
        self.weight = dgcl.WEIGHT
        self.dim = dgcl.DIM
        self.dropped_share = tuple(dgcl.DROPPED_SHARE)
        self.max_pixels = dgcl.MAX_PIXELS
        self.added_per_class = dgcl.ADDED_PER_CLASS
        self.memory_confidence = dgcl.MEMORY_CONFIDENCE
        self.memory = DensityMemory(
            self.num_classes,
            dgcl.MEMORY_PER_CLASS,
            network.pixel_feature_channels,
            dgcl.DIM,
            dgcl.NEIGHBORS,
            dgcl.REFRESHED_PER_CLASS,
        ).to(network.device)
        logger.info(f"DGCL's {self.memory}")
        #: The last step's loss, the number of pixels in it, and what it adds to the memory.
        self.last: Dgcl | None = None
        self._used: Tensor | None = None
        self._entries: tuple[dict[str, Tensor], Tensor] | None = None

    @classmethod
    def enabled(cls, cfg: CfgNode) -> bool:
        return cfg.DGCL.ENABLED

    @classmethod
    def needs(cls, cfg: CfgNode) -> Needs:
        return Needs(entropy=True)

    def head(self) -> nn.Module:
        return ProjectionHead(self.network.pixel_feature_channels, self.dim)

    def losses(self, step: Step) -> dict[str, Tensor]:
        size = step.labeled.pixel_features.shape[-2:]
        outputs = [step.labeled, *step.strong]
        labels = [with_ignored_as(sample_nearest(step.targets, *size), self.num_classes)]
        sure = [torch.ones_like(labels[0], dtype=torch.bool)]
        for view in step.views:
            pseudo_labels = sample_nearest(view.targets, *size)
            share = 1 - share_at(self.dropped_share, step.progress)
            kept = most_certain(sample_nearest(view.entropy, *size), pseudo_labels != IGNORE, share)
            labels.append(torch.where(kept, with_ignored_as(pseudo_labels, self.num_classes), self.num_classes))
            sure.append(sample_nearest(view.confidence, *size) > self.memory_confidence)
        labels, sure = torch.cat(labels), torch.cat(sure)

        chosen = self._chosen_pixels(labels)
        own_label = labels.clamp(max=self.num_classes - 1)[:, None]
        with torch.no_grad():
            probabilities = torch.cat([output.class_probabilities(size) for output in outputs])
            confidence = probabilities.gather(1, own_label).flatten()[chosen]
            features = _pixels([output.pixel_features for output in outputs])[chosen]
        projections = _pixels([output.representations[self.name] for output in outputs])[chosen]
        labels, sure = labels.flatten()[chosen], sure.flatten()[chosen]
        self.last = dgcl_loss(projections, features, labels, confidence, self.memory.memory(), self.options)
        self._used = (labels < self.num_classes).sum()
        entering = torch.where(sure, self.options.without_skipped(labels, self.num_classes), self.num_classes)
        index, valid = choose_entries(entering, self.num_classes, self.added_per_class)
        entries = {
            "features": features[index],
            "projections": projections.detach()[index],
            "density": self.last.density[index],
            "confidence": confidence[index],
        }
        self._entries = entries, valid
        return {"loss_dgcl": self.weight * self.last.loss}

    def after_step(self, step: Step) -> None:
        """Put pixels of the step into the memory."""
        self.memory.update(*self._entries, step.gather)
        self._entries = None

    def state_dict(self) -> dict:
        return self.memory.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.memory.load_state_dict(state)

    def _chosen_pixels(self, labels: Tensor) -> Tensor:
        """Indices of at most ``max_pixels`` pixels, ascending; those that are used are preferred, and drawn evenly."""
        labels = labels.flatten()
        if len(labels) <= self.max_pixels:
            return torch.arange(len(labels), device=labels.device)
        drawn = torch.rand(len(labels), device=labels.device).masked_fill(labels == self.num_classes, 2)
        return drawn.argsort()[: self.max_pixels].sort().values

    def metrics(self) -> dict[str, Tensor]:
        """Numbers of the last step: means over active classes, counts, and how full the memory of each class is."""
        last, count = self.last, self.memory.count
        active = last.active.sum()
        filled = count / self.memory.size
        return {
            "dgcl/positive_similarity": last.positive_similarity.sum() / active.clamp(min=1),
            "dgcl/negative_similarity": last.negative_similarity.sum() / active.clamp(min=1),
            "dgcl/anchor_density": last.anchor_density.sum() / active.clamp(min=1),
            "dgcl/positive_density": last.positive_density.sum() / active.clamp(min=1),
            "dgcl/classes_active": active,
            "dgcl/used_pixels": self._used,
            "dgcl/memory_entries": count.sum(),
            **{
                f"dgcl/memory_filled/{name}": share
                for k, (name, share) in enumerate(zip(self.class_names, filled, strict=True))
                if k not in self.options.skip_classes
            },
        }


def _pixels(maps: Sequence[Tensor]) -> Tensor:
    """(P, C): the pixels of maps (B_i, C, h, w) as one list in row-major order."""
    return torch.cat(list(maps)).permute(0, 2, 3, 1).flatten(0, 2)
