"""ReCo as an auxiliary loss of any method and model (ReCo section 3.3)."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor

from rc2l.data.reading import IGNORE
from rc2l.losses.reco import Reco, RecoOptions, reco_loss
from rc2l.losses.regions import sample_nearest
from rc2l.modeling.outputs import SegmentationOutput
from rc2l.semi.memory_bank import MemoryBank, choose_entries
from rc2l.semi.strong_views import StrongViews
from rc2l.visualization.relations import relation_image


class RecoAuxiliary:
    """Joins labelled and pseudo-labelled pixels of a step and gives their ReCo loss.

    Each process contrasts the pixels of its own share of the batch, as the paper's mini-batch on one GPU. With
    RECO.MEMORY_PER_CLASS its keys come from a bank common to all, which the same pixels fill after the step.

    Args:
        cfg: the full config.
        memory_bank: where RECO.MEMORY_PER_CLASS is above 0; without it losses cannot be computed, only the config
            checked.

    Raises:
        ValueError: a key of RECO is out of its range.
    """

    def __init__(self, cfg: CfgNode, memory_bank: MemoryBank | None = None) -> None:
        reco = cfg.RECO
        if not 0 <= reco.PSEUDO_THRESHOLD <= 1:
            raise ValueError(f"RECO.PSEUDO_THRESHOLD is {reco.PSEUDO_THRESHOLD}: it must be in [0, 1]")
        if reco.DIM < 1:
            raise ValueError(f"RECO.DIM is {reco.DIM}: it must be at least 1")
        if reco.MEMORY_PER_CLASS < 0:
            raise ValueError(
                f"RECO.MEMORY_PER_CLASS is {reco.MEMORY_PER_CLASS}: it must be at least 1, or 0 for no bank"
            )
        if reco.ADDED_PER_CLASS < 1:
            raise ValueError(f"RECO.ADDED_PER_CLASS is {reco.ADDED_PER_CLASS}: it must be at least 1")
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
        self.with_memory = reco.MEMORY_PER_CLASS > 0
        self.memory_bank = memory_bank
        self.added_per_class = reco.ADDED_PER_CLASS
        #: The last step's, for the relation graph, and what it adds to the bank.
        self.last: Reco | None = None
        self._entries: tuple[Tensor, Tensor] | None = None

    def losses(
        self,
        labeled: SegmentationOutput,
        targets: Tensor,
        strong: SegmentationOutput | None,
        views: StrongViews | None,
    ) -> dict[str, Tensor]:
        """``loss_reco`` with its weight. Arguments as :meth:`Method.losses`."""
        size = labeled.representations["reco"].shape[-2:]
        parts = [(labeled, sample_nearest(targets, *size))]
        if views:
            sure = sample_nearest(views.confidence, *size) > self.pseudo_threshold
            parts.append((strong, torch.where(sure, sample_nearest(views.targets, *size), IGNORE)))
        labels = torch.cat([part_labels for _, part_labels in parts])
        own = torch.cat([self._own_probability(output, part_labels) for output, part_labels in parts])
        representation = torch.cat([output.representations["reco"] for output, _ in parts])
        memory = self.memory_bank.memory() if self.with_memory else None
        self.last = reco_loss(representation, labels, own, self.num_classes, self.options, memory=memory)
        if self.with_memory:
            entering = torch.where(labels == IGNORE, self.num_classes, labels.long()).flatten()
            index, valid = choose_entries(entering, self.num_classes, self.added_per_class)
            self._entries = representation.detach().permute(0, 2, 3, 1).flatten(0, 2)[index], valid
        return {"loss_reco": self.weight * self.last.loss}

    def remember(self, gather: Callable[[Tensor], Tensor]) -> None:
        """Put pixels of the last step into the bank, where there is one; every process must call it.

        Args:
            gather: from a tensor to (processes, ...), those of every process in order of rank.
        """
        if not self.with_memory:
            return
        representations, valid = self._entries
        unused = representations.new_zeros(valid.shape)
        self.memory_bank.update(representations[..., :0], representations, unused, unused, valid, gather)
        self._entries = None

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
            **({"reco/memory_entries": self.memory_bank.count.sum()} if self.with_memory else {}),
            **{f"reco/query_share/{name}": share for name, share in zip(class_names, hard_share, strict=True)},
        }

    def relation_picture(self, class_names: Sequence[str], iteration: int) -> np.ndarray | None:
        """The relation graph of the last mini-batch, (3, height, width) uint8; None before the first step."""
        if self.last is None:
            return None
        pair = self.last.present[:, None] & self.last.present
        relations = torch.where(pair, self.last.relations, float("nan")).cpu().numpy()
        return relation_image(relations, class_names, f"class relations, iteration {iteration}").transpose(2, 0, 1)
