"""Bipartite matching of queries and regions (RC²L section 3.1, MaskFormer)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rc2l.losses.mask import FOCAL_ALPHA
from rc2l.structures.regions import Regions

#: Stands for a cost that is not finite: lower than any other.
_NOT_FINITE = -1e6
#: Pixels of masks that a CPU works on together, so that they stay in its cache.
_PIXELS_AT_ONCE = 400_000


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

    On a GPU one batch of all images, whatever the number of slots; on a CPU image by image, which fits its cache.
    Slots without a pixel are all compared with an empty mask: a region may vanish at this resolution and be one still.

    Shape:
        masks (B, Q, h, w) logits; regions at the same resolution. Result (B, Q, T).
    """
    return (mask_cost_by_image if masks.device.type == "cpu" else mask_cost_batched)(
        masks, regions, mask_weight, dice_weight
    )


def mask_cost_batched(masks: Tensor, regions: Regions, mask_weight: float, dice_weight: float) -> Tensor:
    """:func:`mask_cost` of all images and slots in one go."""
    valid = regions.valid.flatten(1)
    target = (regions.masks().flatten(2) & valid[:, None]).to(masks.dtype)  # (B, T, hw)
    target = torch.cat([target, valid[:, None].to(masks.dtype)], 1).transpose(1, 2)
    return _mask_cost(masks.flatten(2), target, mask_weight, dice_weight)


def mask_cost_by_image(masks: Tensor, regions: Regions, mask_weight: float, dice_weight: float) -> Tensor:
    """:func:`mask_cost` of one image after the other, slots without a pixel taken together."""
    at_once = max(1, _PIXELS_AT_ONCE // max(1, masks.shape[2] * masks.shape[3]))
    cost = masks.new_zeros(*masks.shape[:2], regions.labels.shape[1])
    for b, present in enumerate(regions.present()):
        slots = present.nonzero()[:, 0]
        # The column of each slot below, that of the empty ones coming after all others.
        column = torch.where(present, present.cumsum(0) - 1, len(slots))
        valid = regions.valid[b].flatten()
        inside = (regions.index[b].flatten() == slots[:, None]) & valid
        target = torch.cat([inside, torch.zeros_like(valid)[None], valid[None]]).to(masks.dtype).T
        for first in range(0, masks.shape[1], at_once):
            queries = slice(first, first + at_once)
            cost[b, queries] = _mask_cost(masks[b, queries].flatten(1), target, mask_weight, dice_weight)[:, column]
    return cost


def _mask_cost(x: Tensor, target: Tensor, mask_weight: float, dice_weight: float) -> Tensor:
    """Cost (*, Q, T) of logits (*, Q, P) and targets (*, P, T + 1), of which the last is that of the valid pixels."""
    p = x.sigmoid()
    # log(1 - p) is log p - x, and log p is x itself where p is too small for a float.
    log_p = p.clamp(min=torch.finfo(p.dtype).tiny).log_()
    torch.minimum(log_p, x, out=log_p)
    overlap = p @ target
    negative = (log_p - x).mul_(p).mul_(p)  # p^2 log(1 - p)
    positive = log_p.mul_(p.sub_(1).square_())  # (1 - p)^2 log p
    negative = negative @ target
    focal = FOCAL_ALPHA * (positive @ target) - (1 - FOCAL_ALPHA) * negative
    focal = -(focal[..., :-1] + (1 - FOCAL_ALPHA) * negative[..., -1:])
    count = target.sum(-2, keepdim=True)
    focal = focal / count[..., -1:].clamp(min=1)
    dice = 1 - (2 * overlap[..., :-1] + 1) / (overlap[..., -1:] + count[..., :-1] + 1)
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

    def cost_of_layers(
        self, layers: Sequence[tuple[Tensor, Tensor]], regions: Regions, at_regions: bool = False
    ) -> Tensor:
        """(L, B, Q, T) :meth:`cost` of each layer; on a GPU in one call, with the layers' queries side by side."""
        if layers[0][1].device.type == "cpu":
            return torch.stack([self.cost(logits, masks, regions, at_regions) for logits, masks in layers])
        logits, masks = (torch.cat(tensors, dim=1) for tensors in zip(*layers, strict=True))
        return self.cost(logits, masks, regions, at_regions).unflatten(1, (len(layers), -1)).transpose(0, 1)

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
            group_costs = self.cost_of_layers(layers, regions, raised)
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
