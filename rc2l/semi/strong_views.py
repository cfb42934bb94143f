"""Strong views: mixed images of the unlabelled batch, with the pseudo labels mixed alike (RC²L section 3.1)."""

from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor

from rc2l.data.mixing import cutmix_boxes, half_area_boxes, mix_views
from rc2l.semi.pseudo_label import PseudoLabels, drop_small_regions


@dataclass
class StrongViews:
    """What the student sees of the unlabelled batch, and what it must predict there."""

    #: (B_u, 3, H, W) 0..255.
    images: Tensor
    #: (B_u, H, W) uint8, 255 = ignored.
    targets: Tensor
    #: (B_u, H, W) float32 in [0, 1], the teacher's.
    confidence: Tensor
    #: (B_u, H, W) float32, the teacher's, in nats, where the pseudo labels have one.
    entropy: Tensor | None = None


@torch.no_grad()
def strong_views(cfg: CfgNode, images: Tensor, pseudo: PseudoLabels, generator: np.random.Generator) -> StrongViews:
    """Mix images and pseudo labels as SEMI.MIXING says; classes left with too few pixels are ignored.

    Args:
        cfg: the full config.
        images: (B_u, 3, H, W) 0..255, strongly augmented but not mixed.
        pseudo: the teacher's pseudo labels of the weak views.
        generator: source of randomness.
    """
    mixing, num_classes = cfg.SEMI.MIXING, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    B, H, W = pseudo.label_map.shape
    if mixing.BOX == "half":
        boxes = half_area_boxes(B, H, W, generator)
    else:
        boxes = cutmix_boxes(B, H, W, mixing.AREA, mixing.ASPECT_RATIO, generator)
    entropy = [] if pseudo.entropy is None else [pseudo.entropy]
    mixed, label_map, *maps = mix_views(
        mixing.NAME,
        images,
        pseudo.label_map,
        pseudo.confidence,
        *entropy,
        num_classes=num_classes,
        fill=cfg.MODEL.PIXEL_MEAN,
        boxes=boxes,
        generator=generator,
    )
    return StrongViews(mixed, drop_small_regions(label_map, cfg.SEMI.PSEUDO_LABEL.MIN_AREA, num_classes), *maps)
