"""ReCo as an auxiliary loss of any method and model (ReCo section 3.3)."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from torch import Tensor

from rc2l.data.reading import IGNORE
from rc2l.losses.reco import Reco, RecoOptions, reco_loss
from rc2l.losses.regions import sample_nearest
from rc2l.modeling.outputs import SegmentationOutput


class RecoAuxiliary:
    """Joins labelled and pseudo-labelled pixels of a step and gives their ReCo loss.

    Each process contrasts the pixels of its own share of the batch, as the paper's mini-batch on one GPU.

    Raises:
        ValueError: a key of RECO is out of its range.
    """

    def __init__(self, cfg: CfgNode) -> None:
        reco = cfg.RECO
        if not 0 <= reco.PSEUDO_THRESHOLD <= 1:
            raise ValueError(f"RECO.PSEUDO_THRESHOLD is {reco.PSEUDO_THRESHOLD}: it must be in [0, 1]")
        if reco.DIM < 1:
            raise ValueError(f"RECO.DIM is {reco.DIM}: it must be at least 1")
        self.options = RecoOptions(
            num_queries=reco.NUM_QUERIES,
            num_keys=reco.NUM_KEYS,
            temperature=reco.TEMPERATURE,
            relation_temperature=reco.RELATION_TEMPERATURE,
            hard_threshold=reco.HARD_THRESHOLD,
            queries=reco.QUERIES,
            keys=reco.KEYS,
            key_sets=reco.KEY_SETS,
        )
        self.weight = reco.WEIGHT
        self.pseudo_threshold = reco.PSEUDO_THRESHOLD
        self.num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        #: The last step's, for the relation graph.
        self.last: Reco | None = None

    def losses(
        self,
        labeled: SegmentationOutput,
        targets: Tensor,
        strong: SegmentationOutput | None,
        pseudo_targets: Tensor | None,
        pseudo_confidence: Tensor | None,
    ) -> dict[str, Tensor]:
        """``loss_reco`` with its weight. Arguments as :meth:`Method.losses`."""
        size = labeled.representation.shape[-2:]
        parts = [(labeled, sample_nearest(targets, *size))]
        if strong is not None:
            sure = sample_nearest(pseudo_confidence, *size) > self.pseudo_threshold
            parts.append((strong, torch.where(sure, sample_nearest(pseudo_targets, *size), IGNORE)))
        labels = torch.cat([part_labels for _, part_labels in parts])
        own = torch.cat([self._own_probability(output, part_labels) for output, part_labels in parts])
        representation = torch.cat([output.representation for output, _ in parts])
        self.last = reco_loss(representation, labels, own, self.num_classes, self.options)
        return {"loss_reco": self.weight * self.last.loss}

    @torch.no_grad()
    def _own_probability(self, output: SegmentationOutput, labels: Tensor) -> Tensor:
        """(B, h, w): the student's probability of each pixel's own label; of any class where it is ignored."""
        index = torch.where(labels == IGNORE, 0, labels.long())
        return output.class_probabilities(labels.shape[-2:]).gather(1, index[:, None])[:, 0]

    def watched(self, class_names: Sequence[str]) -> dict[str, Tensor]:
        """Numbers of the last step: mean similarities over active classes, counts, hard share of each class."""
        last = self.last
        active = last.active.sum()
        hard_share = last.candidates / last.usable.clamp(min=1)
        return {
            "reco/positive_similarity": last.positive_similarity.sum() / active.clamp(min=1),
            "reco/negative_similarity": last.negative_similarity.sum() / active.clamp(min=1),
            "reco/classes_present": last.present.sum(),
            "reco/classes_active": active,
            "reco/usable_pixels": last.usable.sum(),
            "reco/valid_queries": last.candidates.sum(),
            **{f"reco/query_share/{name}": share for name, share in zip(class_names, hard_share, strict=True)},
        }
