"""The views of the unlabelled batch: images mixed, with the pseudo labels alike (RC²L section 3.1), and plain ones."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor

from rc2l.data.mixing import cutmix_boxes, half_area_boxes, mix_views
from rc2l.semi.pseudo_label import drop_small_regions
from rc2l.structures.views import PseudoLabels, View


@torch.no_grad()
def strong_view(
    cfg: CfgNode,
    images: Tensor,
    valid: Tensor,
    pseudo: PseudoLabels,
    generators: Sequence[np.random.Generator],
    exchange: Callable[[list[Tensor]], list[Tensor]] = list,
) -> View:
    """Mix images and pseudo labels as SEMI.MIXING says; classes left with too few pixels are ignored.

    Args:
        cfg: the full config.
        images: (B_u, 3, H, W) 0..255, strongly augmented but not mixed.
        valid: (B_u, H, W) bool, False in the padding.
        pseudo: the teacher's pseudo labels of the weak views.
        generators: source of randomness of each image.
        exchange: gives the next process's first image and what belongs to it, for this process's own
            (:func:`rc2l.data.mixing.paste_from_next`).
    """
    mixing, num_classes = cfg.SEMI.MIXING, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    H, W = pseudo.label_map.shape[1:]
    if mixing.BOX == "half":
        boxes = half_area_boxes(generators, H, W)
    else:
        boxes = cutmix_boxes(generators, H, W, mixing.AREA, mixing.ASPECT_RATIO)
    if mixing.PROB < 1:
        boxes[[generator.uniform() >= mixing.PROB for generator in generators]] = 0
    entropy = [] if pseudo.entropy is None else [pseudo.entropy]
    mixed, label_map, confidence, valid, *entropy = mix_views(
        mixing.NAME,
        images,
        pseudo.label_map,
        pseudo.confidence,
        valid,
        *entropy,
        num_classes=num_classes,
        fill=cfg.MODEL.PIXEL_MEAN,
        boxes=boxes,
        generators=generators,
        exchange=exchange,
    )
    targets = drop_small_regions(label_map, cfg.SEMI.PSEUDO_LABEL.MIN_AREA, num_classes)
    return View(mixed, targets, confidence, valid, *entropy)


def weak_view(images: Tensor, valid: Tensor, pseudo: PseudoLabels) -> View:
    """The images that were labelled, as they were. Arguments as :func:`strong_view`."""
    return View(images, pseudo.label_map, pseudo.confidence, valid, pseudo.entropy)
