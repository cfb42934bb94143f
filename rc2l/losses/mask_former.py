"""The supervised loss of mask classification (RC²L eq. 1, MaskFormer)."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rc2l.losses.points import PointSampling, sampled_mask_losses
from rc2l.losses.upsampled_mask import upsampled_mask_losses
from rc2l.structures.regions import Regions


def set_criterion(
    layers: Sequence[tuple[Tensor, Tensor]],
    regions: Regions,
    pairs: Sequence[tuple[Tensor, Tensor, Tensor]],
    num_regions: int,
    no_object_weight: float,
    average: Callable[[Tensor], Tensor] = lambda totals: totals,
    sampling: PointSampling | None = None,
) -> dict[str, Tensor]:
    """Classification, focal and dice loss of every decoder layer, not weighted.

    Classification counts every query of an image that has a valid pixel: its region's class where it is matched, "no
    object" with weight ``no_object_weight`` elsewhere. Focal and dice count the matched pairs, at the resolution of
    ``regions``, without ignored pixels, divided by the number of regions. Normalisers are averaged over processes, so
    that N processes give the gradient of one process with the joined batch. Nothing to learn from gives zeros with a
    graph.

    Args:
        layers: (logits (B, Q, K+1), mask logits (B, Q, h, w)) of each decoder layer, the last one first.
        regions: targets of the B images.
        pairs: for each layer the matched (image, query, slot), each (M,) int64.
        num_regions: regions of this process's batch, matched or not.
        no_object_weight: weight of the "no object" class, at least 0.
        average: mean of a tensor over processes.
        sampling: binary cross-entropy instead of focal, and dice, on points instead of all pixels (Mask2Former).

    Returns:
        ``loss_ce``, ``loss_mask`` (focal or cross-entropy), ``loss_dice`` for the last layer, and ``..._<i>`` for the
        others, ``i`` counting from the first decoder layer.
    """
    device = regions.index.device
    logits = torch.stack([layer_logits for layer_logits, _ in layers])
    L, B, Q, num_classes = logits.shape[0], *logits.shape[1:3], logits.shape[3] - 1

    target = torch.full((L, B, Q), num_classes, device=device)
    weight = torch.full((L, B, Q), no_object_weight, dtype=logits.dtype, device=device)
    for layer, (image, query, slot) in enumerate(pairs):
        target[layer, image, query] = regions.labels[image, slot]
        weight[layer, image, query] = 1.0
    weight = weight * regions.valid.flatten(1).any(1)[:, None]
    cross_entropy = (F.cross_entropy(logits.permute(0, 3, 1, 2), target, reduction="none") * weight).flatten(1).sum(1)

    totals = average(torch.stack([weight.new_tensor(float(num_regions)), weight[0].sum()]))
    region_count, weight_sum = torch.where(totals[0] > 0, totals[0], 1), totals[1]
    loss_ce = cross_entropy / torch.where(weight_sum > 0, weight_sum, 1)

    sizes = [len(image) for image, _, _ in pairs]
    image, slot = torch.cat([pair[0] for pair in pairs]), torch.cat([pair[2] for pair in pairs])
    predicted = torch.cat([masks[image, query] for (_, masks), (image, query, _) in zip(layers, pairs, strict=True)])
    if sampling is None:
        mask, dice = upsampled_mask_losses(predicted, regions, image, slot)
    else:
        mask, dice = sampled_mask_losses(predicted, regions, image, slot, sampling)
    mask, dice = mask.split(sizes), dice.split(sizes)

    losses = {}
    for layer in range(L):
        suffix = "" if layer == 0 else f"_{layer - 1}"
        losses[f"loss_ce{suffix}"] = loss_ce[layer]
        losses[f"loss_mask{suffix}"] = mask[layer].sum() / region_count
        losses[f"loss_dice{suffix}"] = dice[layer].sum() / region_count
    return losses
