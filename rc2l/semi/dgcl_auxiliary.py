"""DGCL as an auxiliary loss of any method and model, with its memory bank."""

from collections.abc import Callable, Sequence

import torch
from detectron2.config import CfgNode
from torch import Tensor

from rc2l.data.reading import IGNORE
from rc2l.losses.dgcl import Dgcl, DgclOptions, dgcl_loss
from rc2l.losses.regions import sample_nearest
from rc2l.modeling.outputs import SegmentationOutput
from rc2l.semi.memory_bank import MemoryBank, choose_entries
from rc2l.semi.pixel_losses import share_at, shares_over_training
from rc2l.semi.pseudo_label import most_certain
from rc2l.semi.strong_views import StrongViews


class DgclAuxiliary:
    """Joins labelled and pseudo-labelled pixels of a step, gives their DGCL loss, and fills the memory bank with them.

    Labelled pixels all take part, as their class is certain; of the pseudo-labelled ones those whose entropy is not
    among the highest DGCL.DROPPED_SHARE of this process and step. Each process contrasts the pixels of its own share of
    the batch; the bank is common to all.

    Args:
        cfg: the full config.
        memory_bank: the bank; None only checks the config.

    Raises:
        ValueError: a key of DGCL is out of its range.
    """

    def __init__(self, cfg: CfgNode, memory_bank: MemoryBank | None) -> None:
        dgcl = cfg.DGCL
        self.options = DgclOptions(
            num_anchors=dgcl.NUM_ANCHORS,
            num_positives=dgcl.NUM_POSITIVES,
            num_negatives=dgcl.NUM_NEGATIVES,
            temperature=dgcl.TEMPERATURE,
            neighbors=tuple(dgcl.NEIGHBORS),
            skip_classes=tuple(dgcl.SKIP_CLASSES),
            anchors=dgcl.ANCHORS,
            positives=dgcl.POSITIVES,
        )
        self.num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        for key, smallest in (("DIM", 1), ("MAX_PIXELS", 1), ("ADDED_PER_CLASS", 1), ("REFRESHED_PER_CLASS", 0)):
            if dgcl[key] < smallest:
                raise ValueError(f"DGCL.{key} is {dgcl[key]}: it must be at least {smallest}")
        if not 0 <= dgcl.MEMORY_CONFIDENCE <= 1:
            raise ValueError(f"DGCL.MEMORY_CONFIDENCE is {dgcl.MEMORY_CONFIDENCE}: it must be in [0, 1]")
        if max(dgcl.NEIGHBORS) > dgcl.MEMORY_PER_CLASS:
            raise ValueError(
                f"DGCL.MEMORY_PER_CLASS is {dgcl.MEMORY_PER_CLASS}: it must be at least {max(dgcl.NEIGHBORS)}, the "
                "largest of DGCL.NEIGHBORS"
            )
        if any(k >= self.num_classes for k in dgcl.SKIP_CLASSES):
            raise ValueError(
                f"DGCL.SKIP_CLASSES is {list(dgcl.SKIP_CLASSES)}: MODEL.SEM_SEG_HEAD.NUM_CLASSES is "
                f"{self.num_classes}, so class ids are at most {self.num_classes - 1}"
            )
        self.dropped_share = shares_over_training("DGCL.DROPPED_SHARE", dgcl.DROPPED_SHARE)
        self.weight = dgcl.WEIGHT
        self.max_pixels = dgcl.MAX_PIXELS
        self.added_per_class = dgcl.ADDED_PER_CLASS
        self.memory_confidence = dgcl.MEMORY_CONFIDENCE
        self.memory_bank = memory_bank
        #: The last step's loss, the number of pixels in it, and what it adds to the bank.
        self.last: Dgcl | None = None
        self._used: Tensor | None = None
        self._entries: dict[str, Tensor] = {}

    def losses(
        self,
        labeled: SegmentationOutput,
        targets: Tensor,
        strong: SegmentationOutput | None,
        views: StrongViews | None,
        progress: float,
    ) -> dict[str, Tensor]:
        """``loss_dgcl`` with its weight. Arguments as :meth:`Method.losses`."""
        size = labeled.pixel_features.shape[-2:]
        labels = self._classes(sample_nearest(targets, *size))
        outputs, sure = [labeled], torch.ones_like(labels, dtype=torch.bool)
        if views:
            outputs.append(strong)
            pseudo_labels = sample_nearest(views.targets, *size)
            kept = most_certain(
                sample_nearest(views.entropy, *size),
                pseudo_labels != IGNORE,
                1 - share_at(self.dropped_share, progress),
            )
            labels = torch.cat([labels, torch.where(kept, self._classes(pseudo_labels), self.num_classes)])
            sure = torch.cat([sure, sample_nearest(views.confidence, *size) > self.memory_confidence])

        chosen = self._chosen_pixels(labels)
        own_label = labels.clamp(max=self.num_classes - 1)[:, None]
        with torch.no_grad():
            probabilities = torch.cat([output.class_probabilities(size) for output in outputs])
            confidence = probabilities.gather(1, own_label).flatten()[chosen]
            features = _pixels([output.pixel_features for output in outputs])[chosen]
        projections = _pixels([output.representations["dgcl"] for output in outputs])[chosen]
        labels, sure = labels.flatten()[chosen], sure.flatten()[chosen]
        self.last = dgcl_loss(projections, features, labels, confidence, self.memory_bank.memory(), self.options)
        self._used = (labels < self.num_classes).sum()
        entering = torch.where(sure, self.options.without_skipped(labels, self.num_classes), self.num_classes)
        index, valid = choose_entries(entering, self.num_classes, self.added_per_class)
        self._entries = {
            "features": features[index],
            "projections": projections.detach()[index],
            "density": self.last.density[index],
            "confidence": confidence[index],
            "valid": valid,
        }
        return {"loss_dgcl": self.weight * self.last.loss}

    def remember(self, gather: Callable[[Tensor], Tensor]) -> None:
        """Put the pixels of the last step into the bank; every process must call it.

        Args:
            gather: from a tensor to (processes, ...), those of every process in order of rank.
        """
        self.memory_bank.update(**self._entries, gather=gather)
        self._entries = {}

    def _classes(self, label_map: Tensor) -> Tensor:
        return torch.where(label_map == IGNORE, self.num_classes, label_map.long())

    def _chosen_pixels(self, labels: Tensor) -> Tensor:
        """Indices of at most ``max_pixels`` pixels, ascending; those that are used are preferred, and drawn evenly."""
        labels = labels.flatten()
        if len(labels) <= self.max_pixels:
            return torch.arange(len(labels), device=labels.device)
        drawn = torch.rand(len(labels), device=labels.device).masked_fill(labels == self.num_classes, 2)
        return drawn.argsort()[: self.max_pixels].sort().values

    def watched(self, class_names: Sequence[str]) -> dict[str, Tensor]:
        """Numbers of the last step: means over active classes, counts, and how full the memory of each class is."""
        last, count = self.last, self.memory_bank.count
        active = last.active.sum()
        filled = count / self.memory_bank.density.shape[1]
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
                for k, (name, share) in enumerate(zip(class_names, filled, strict=True))
                if k not in self.options.skip_classes
            },
        }


def _pixels(maps: Sequence[Tensor]) -> Tensor:
    """(P, C): the pixels of maps (B_i, C, h, w) as one list in row-major order."""
    return torch.cat(list(maps)).permute(0, 2, 3, 1).flatten(0, 2)
