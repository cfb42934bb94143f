"""Bipartite matching of queries and regions (RC²L section 3.1, MaskFormer)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rc2l.losses.mask import FOCAL_ALPHA, FOCAL_GAMMA
from rc2l.losses.regions import Regions

#: Stands for a cost that is not finite: lower than any other.
_NOT_FINITE = -1e6


@dataclass
class Matches:
    """Matched pairs of one group of images, for one or more decoder layers."""

    #: Per layer, the last decoder layer first: (image, query, slot), each (M,) int64 on the device, by image and query.
    pairs: list[tuple[Tensor, Tensor, Tensor]]
    #: Number of regions present in each image, on the host; those beyond the number of queries stay unmatched.
    counts: list[int]

    @property
    def num_regions(self) -> int:
        """Regions of the whole group."""
        return sum(self.counts)


def mask_cost(masks: Tensor, regions: Regions, mask_weight: float, dice_weight: float) -> Tensor:
    """Focal and dice cost of every query and slot, over the valid pixels.

    Shape:
        masks (B, Q, h, w) logits; regions at the same resolution. Result (B, Q, T).
    """
    x = masks.flatten(2)
    valid = regions.valid.flatten(1)
    target = (regions.masks().flatten(2) & valid[:, None]).to(x.dtype).transpose(1, 2)  # (B, hw, T)
    valid = valid.to(x.dtype)[..., None]
    p = x.sigmoid()
    softplus = F.softplus(x)
    positive = FOCAL_ALPHA * (1 - p).pow(FOCAL_GAMMA) * (softplus - x)
    negative = (1 - FOCAL_ALPHA) * p.pow(FOCAL_GAMMA) * softplus
    focal = ((positive - negative) @ target + negative @ valid) / valid.sum(1, keepdim=True).clamp(min=1)
    dice = 1 - (2 * (p @ target) + 1) / (p @ valid + target.sum(1, keepdim=True) + 1)
    return mask_weight * focal + dice_weight * dice


class HungarianMatcher:
    """Matches queries and regions at the lowest total cost: -p(class), focal and dice.

    Masks are compared at the masks' resolution, to which regions are sampled (MaskFormer), or at the regions'.
    Everything runs in float32 (float64 stays), without gradient, for all images and layers together, with a single
    device-to-host copy.
    """

    def __init__(self, class_weight: float = 1.0, mask_weight: float = 20.0, dice_weight: float = 1.0) -> None:
        if class_weight == mask_weight == dice_weight == 0:
            raise ValueError("the matcher needs at least one weight above 0")
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight

    @torch.no_grad()
    def cost(self, logits: Tensor, masks: Tensor, regions: Regions, at_regions: bool = False) -> Tensor:
        """(B, Q, T) cost of giving a query to a region slot.

        Args:
            logits: (B, Q, K+1).
            masks: (B, Q, h, w) logits.
            regions: at any resolution.
            at_regions: raise the masks to the regions' resolution, instead of sampling the regions to h x w.
        """
        with torch.autocast(logits.device.type, enabled=False):
            logits, masks = (x if x.dtype == torch.float64 else x.float() for x in (logits, masks))
            probs = logits.softmax(-1)
            slots = regions.labels[:, None].expand(-1, probs.shape[1], -1)
            if at_regions and masks.shape[-2:] != regions.index.shape[-2:]:
                cost = self._raised_mask_cost(masks, regions)
            else:
                cost = mask_cost(masks, regions.resized(*masks.shape[-2:]), self.mask_weight, self.dice_weight)
            return cost - self.class_weight * probs.gather(2, slots)

    def _raised_mask_cost(self, masks: Tensor, regions: Regions) -> Tensor:
        """:func:`mask_cost` at the regions' resolution, image by image: all masks of a batch would fill the memory."""
        size = regions.index.shape[-2:]
        costs = []
        for b in range(len(masks)):
            raised = F.interpolate(masks[b : b + 1], size=size, mode="bilinear", align_corners=False)
            costs.append(mask_cost(raised, regions[b : b + 1], self.mask_weight, self.dice_weight))
        return torch.cat(costs)

    @torch.no_grad()
    def __call__(
        self, groups: Sequence[tuple[Sequence[tuple[Tensor, Tensor]], Regions]], at_regions: Sequence[bool] = ()
    ) -> list[Matches]:
        """Match several groups of images at once.

        Args:
            groups: per group ``layers``, (logits (B, Q, K+1), mask logits (B, Q, h, w)) of each decoder layer to match,
                and the ``regions`` of its B images.
            at_regions: per group, whether masks are compared at the regions' resolution (:meth:`cost`); default False.
        """
        costs, shapes = [], []
        for (layers, regions), raised in zip_longest(groups, at_regions[: len(groups)], fillvalue=False):
            group_costs = torch.stack([self.cost(logits, masks, regions, raised) for logits, masks in layers])
            shapes.append(group_costs.shape)
            costs += [group_costs.flatten(), regions.present().to(group_costs.dtype).flatten()]
        on_host = torch.cat(costs).cpu().numpy()
        # A query whose cost is not finite is surely matched, and so seen by the losses: the trainer finds it there, in
        # all processes together, where an error here would leave the others waiting.
        np.nan_to_num(on_host, copy=False, nan=_NOT_FINITE, posinf=_NOT_FINITE, neginf=_NOT_FINITE)
        matches, start = [], 0
        for (_, regions), (L, B, Q, T) in zip(groups, shapes, strict=True):
            cost = on_host[start : start + L * B * Q * T].reshape(L, B, Q, T)
            start += L * B * Q * T
            present = on_host[start : start + B * T].reshape(B, T) > 0
            start += B * T
            matches.append(_assign(cost, present, regions.index.device))
        return matches


def _assign(cost: np.ndarray, present: np.ndarray, device: torch.device) -> Matches:
    from scipy.optimize import linear_sum_assignment  # imported here: half a second that predictions need not pay

    slots = [np.flatnonzero(image) for image in present]
    triples, sizes = [], []
    for layer in cost:
        layer_triples = [np.empty((3, 0), dtype=np.int64)]
        for image, image_slots in enumerate(slots):
            query, column = linear_sum_assignment(layer[image][:, image_slots])
            layer_triples.append(np.stack([np.full_like(query, image), query, image_slots[column]]))
        triples += layer_triples
        sizes.append(sum(triple.shape[1] for triple in layer_triples))
    on_device = torch.from_numpy(np.concatenate(triples, axis=1)).to(device, non_blocking=True)
    pairs = [tuple(layer) for layer in on_device.split(sizes, dim=1)]
    return Matches(pairs, [len(image_slots) for image_slots in slots])
