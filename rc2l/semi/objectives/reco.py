"""ReCo, regional contrast of pixels, beside any method and on any network (ReCo section 3.3)."""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from rc2l.losses.reco import OPTIONS, Reco, RecoOptions, reco_loss
from rc2l.modeling.segmentor import Segmentor
from rc2l.modeling.training_network import ProjectionHead
from rc2l.ranges import MOST_CHANNELS, MOST_THINGS, SHARE, config_node, declare, flag, integer, number
from rc2l.semi.objective import OBJECTIVE_REGISTRY, Objective
from rc2l.semi.step import Step
from rc2l.structures.class_ring import ClassRing, choose_entries
from rc2l.structures.label_map import IGNORE, sample_nearest, with_ignored_as
from rc2l.structures.outputs import SegmentationOutput
from rc2l.visualization.relations import relation_image

logger = logging.getLogger(__name__)


@config_node
def add_reco_config(cfg: CfgNode) -> None:
    """Add the keys of ReCo."""
    cfg.RECO = CfgNode()
    # Add the ReCo loss on a projection head, which exists in training only, to the method that SEMI.METHOD names.
    cfg.RECO.ENABLED = False
    # Weight of the ReCo loss; 1 in ReCo eq. 5.
    cfg.RECO.WEIGHT = 1.0
    # m, the channels of the representation; ReCo appendix A.
    cfg.RECO.DIM = 256
    # Queries and negative keys for each class of a mini-batch of a process; appendix A.
    cfg.RECO.NUM_QUERIES = 256
    cfg.RECO.NUM_KEYS = 512
    # tau of eq. 1, above 0; appendix A.
    cfg.RECO.TEMPERATURE = 0.5
    # Divides class similarities before the softmax that says where keys come from. 1.0 is the paper as printed, 0.5
    # (its tau) the authors' code.
    cfg.RECO.RELATION_TEMPERATURE = 0.5
    # delta_s of eq. 4, in [0, 1]: hard pixels, the queries, have a lower probability of their own class.
    cfg.RECO.HARD_THRESHOLD = 0.97
    # delta_w of section 3.3, in [0, 1]: pseudo-labelled pixels are used where the teacher is more confident.
    cfg.RECO.PSEUDO_THRESHOLD = 0.7
    # active (hard pixels) | random | easy; Fig. 7e.
    cfg.RECO.QUERIES = "active"
    # active (by class similarity) | random; Fig. 7e.
    cfg.RECO.KEYS = "active"
    # class: one key set for all queries of a class (eq. 1) | query: one for each query, as the authors' code; the
    # expected loss is the same, with less variance at several times the cost.
    cfg.RECO.KEY_SETS = "class"
    # Entries of each class in a feature bank that class means, relation graph and keys come from instead of the
    # mini-batch (appendix B), in every process and every checkpoint, 4 RECO.DIM bytes each; 0: no bank, as the paper's
    # method.
    cfg.RECO.MEMORY_PER_CLASS = 0
    # Pixels of each class that a process adds to the bank after a step, at most; drawn evenly where there are more.
    cfg.RECO.ADDED_PER_CLASS = 128


declare(
    "RECO",
    {option.upper(): allowed for option, allowed in OPTIONS.items()}
    | {
        "ENABLED": flag(),
        "WEIGHT": number(at_least=0),
        "DIM": integer(at_least=1, at_most=MOST_CHANNELS),
        "PSEUDO_THRESHOLD": SHARE,
        "MEMORY_PER_CLASS": integer(at_least=0, at_most=MOST_THINGS),
        "ADDED_PER_CLASS": integer(at_least=1, at_most=MOST_THINGS),
    },
)


@OBJECTIVE_REGISTRY.register()
class RegionalContrast(Objective):
    """``loss_reco`` of the labelled and pseudo-labelled pixels of a step together.

    Each process contrasts the pixels of its own share of the batch, as the paper's mini-batch on one GPU. With
    RECO.MEMORY_PER_CLASS its keys come from a bank common to all, which the same pixels fill after the step.
    """

    name = "reco"

    def __init__(self, cfg: CfgNode, network: Segmentor, class_names: Sequence[str]) -> None:
        super().__init__(cfg, network, class_names)
        reco = cfg.RECO
        self.options = RecoOptions(**{option: reco[option.upper()] for option in OPTIONS})
        self.weight = reco.WEIGHT
        self.dim = reco.DIM
        self.pseudo_threshold = reco.PSEUDO_THRESHOLD
        self.added_per_class = reco.ADDED_PER_CLASS
        self.bank: ClassRing | None = None
        if reco.MEMORY_PER_CLASS:
            self.bank = ClassRing(self.num_classes, reco.MEMORY_PER_CLASS, {"projections": reco.DIM}).to(network.device)
            logger.info(f"ReCo's {self.bank}")
        #: The last step's, for the relation graph, and what it adds to the bank.
        self.last: Reco | None = None
        self._entries: tuple[Tensor, Tensor] | None = None

    @classmethod
    def enabled(cls, cfg: CfgNode) -> bool:
        return cfg.RECO.ENABLED

    def head(self) -> nn.Module:
        return ProjectionHead(self.network.pixel_feature_channels, self.dim)

    def losses(self, step: Step) -> dict[str, Tensor]:
        size = step.labeled.representations[self.name].shape[-2:]
        parts = [(step.labeled, sample_nearest(step.targets, *size))]
        for output, view in zip(step.strong, step.views, strict=True):
            sure = sample_nearest(view.confidence, *size) > self.pseudo_threshold
            parts.append((output, torch.where(sure, sample_nearest(view.targets, *size), IGNORE)))
        labels = torch.cat([part_labels for _, part_labels in parts])
        own = torch.cat([self._own_probability(output, part_labels) for output, part_labels in parts])
        representation = torch.cat([output.representations[self.name] for output, _ in parts])
        self.last = reco_loss(representation, labels, own, self.num_classes, self.options, memory=self.bank)
        if self.bank:
            entering = with_ignored_as(labels, self.num_classes).flatten()
            index, valid = choose_entries(entering, self.num_classes, self.added_per_class)
            self._entries = representation.detach().permute(0, 2, 3, 1).flatten(0, 2)[index], valid
        return {"loss_reco": self.weight * self.last.loss}

    def after_step(self, step: Step) -> None:
        """Put pixels of the step into the bank, where there is one."""
        if self.bank:
            projections, valid = self._entries
            self.bank.update({"projections": projections}, valid, step.gather)
            self._entries = None

    def state_dict(self) -> dict:
        return self.bank.state_dict() if self.bank else {}

    def load_state_dict(self, state: dict) -> None:
        if self.bank:
            names = self.bank.state_dict().keys()
            # Files of before hold the empty parts of a bank that was also DGCL's.
            self.bank.load_state_dict({name: value for name, value in state.items() if name in names})

    @torch.no_grad()
    def _own_probability(self, output: SegmentationOutput, labels: Tensor) -> Tensor:
        """(B, h, w): the student's probability of each pixel's own label; of any class where it is ignored."""
        index = torch.where(labels == IGNORE, 0, labels.long())
        return output.class_probabilities(labels.shape[-2:]).gather(1, index[:, None])[:, 0]

    def metrics(self) -> dict[str, Tensor]:
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
            **({"reco/memory_entries": self.bank.count.sum()} if self.bank else {}),
            **{f"reco/query_share/{name}": share for name, share in zip(self.class_names, hard_share, strict=True)},
        }

    def pictures(self, iteration: int) -> dict[str, np.ndarray]:
        """The relation graph of the last mini-batch; none before the first step."""
        if self.last is None:
            return {}
        pair = self.last.present[:, None] & self.last.present
        relations = torch.where(pair, self.last.relations, float("nan")).cpu().numpy()
        picture = relation_image(relations, self.class_names, f"class relations, iteration {iteration}")
        return {"reco/class_relations": picture.transpose(2, 0, 1)}
