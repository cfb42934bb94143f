"""A loss of one's own, with a head and a memory: labelled pixels are classified by the mean projections of the classes.

    python train_net.py --import examples.prototype_loss --config-file configs/shapes/rc2l.yaml PROTOTYPE.ENABLED True

It joins any method on any network, as ReCo and DGCL do.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor, nn

from rc2l.modeling.segmentor import Segmentor
from rc2l.modeling.training_network import ProjectionHead
from rc2l.ranges import config_node, declare, flag, integer, number
from rc2l.semi.objective import OBJECTIVE_REGISTRY, Objective
from rc2l.semi.step import Step
from rc2l.structures.class_ring import ClassRing, choose_entries
from rc2l.structures.label_map import sample_nearest, with_ignored_as


@config_node
def add_prototype_config(cfg: CfgNode) -> None:
    """Add the keys of the loss."""
    cfg.PROTOTYPE = CfgNode()
    # Add the loss to the method that SEMI.METHOD names.
    cfg.PROTOTYPE.ENABLED = False
    # Weight of the loss; temperature, above 0, that divides cosine similarities.
    cfg.PROTOTYPE.WEIGHT = 0.1
    cfg.PROTOTYPE.TEMPERATURE = 0.1
    # Channels of the projections; entries of each class in the memory.
    cfg.PROTOTYPE.DIM = 32
    cfg.PROTOTYPE.MEMORY_PER_CLASS = 64


declare(
    "PROTOTYPE",
    {
        "ENABLED": flag(),
        "WEIGHT": number(at_least=0),
        "TEMPERATURE": number(above=0),
        "DIM": integer(at_least=1),
        "MEMORY_PER_CLASS": integer(at_least=1),
    },
)


def prototype_cross_entropy(pixels: Tensor, labels: Tensor, ring: ClassRing, temperature: float) -> Tensor:
    """Mean cross-entropy of pixels (P, C), labels (P,) in 0..K (K: none), over the classes that the ring holds."""
    filled = torch.arange(ring.size, device=ring.count.device) < ring.count[:, None]
    means = F.normalize(torch.einsum("kmc,km->kc", ring.projections, filled.float()), dim=1)
    logits = F.normalize(pixels, dim=1) @ means.T / temperature
    known = ring.count > 0
    valid = F.pad(known, (0, 1))[labels]
    logits = logits.masked_fill(~known & known.any(), float("-inf"))
    target = torch.where(valid, labels, known.int().argmax())
    loss = F.cross_entropy(logits, target, reduction="none")
    return torch.where(valid, loss, 0 * loss).sum() / valid.sum().clamp(min=1)


@OBJECTIVE_REGISTRY.register()
class PrototypeLoss(Objective):
    """``loss_prototype`` of the labelled pixels, at the size of the per-pixel features."""

    name = "prototype"

    def __init__(self, cfg: CfgNode, network: Segmentor, class_names: Sequence[str]) -> None:
        super().__init__(cfg, network, class_names)
        self.options = cfg.PROTOTYPE
        size = self.options.MEMORY_PER_CLASS
        self.ring = ClassRing(self.num_classes, size, {"projections": self.options.DIM}).to(network.device)

    @classmethod
    def enabled(cls, cfg: CfgNode) -> bool:
        return cfg.PROTOTYPE.ENABLED

    def head(self) -> nn.Module:
        return ProjectionHead(self.network.pixel_feature_channels, self.options.DIM)

    def losses(self, step: Step) -> dict[str, Tensor]:
        maps = step.labeled.representations[self.name]
        self._pixels = maps.permute(0, 2, 3, 1).flatten(0, 2)
        self._labels = with_ignored_as(sample_nearest(step.targets, *maps.shape[-2:]), self.num_classes).flatten()
        loss = prototype_cross_entropy(self._pixels, self._labels, self.ring, self.options.TEMPERATURE)
        return {"loss_prototype": self.options.WEIGHT * loss}

    def after_step(self, step: Step) -> None:
        index, valid = choose_entries(self._labels, self.num_classes, 8)
        self.ring.update({"projections": self._pixels.detach()[index]}, valid, step.gather)

    def metrics(self) -> dict[str, Tensor]:
        return {"prototype/entries": self.ring.count.sum()}

    def state_dict(self) -> dict:
        return self.ring.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.ring.load_state_dict(state)
