"""From teacher outputs to pseudo labels: a label map and a confidence map (RC²L section 3.1, z^t)."""

import torch
from torch import Tensor

from rc2l.structures.label_map import IGNORE, with_ignored_as
from rc2l.structures.outputs import SegmentationOutput
from rc2l.structures.views import PseudoLabels

#: Class scores at crop resolution that exist at one time, at most, but for those of a single image: 256 MiB.
_SCORES_AT_ONCE = 2**26


@torch.no_grad()
def pseudo_labels(
    output: SegmentationOutput,
    valid: Tensor,
    min_confidence: float = 0.0,
    with_entropy: bool = False,
) -> PseudoLabels:
    """Class scores of every pixel of the crop, normalised over classes: argmax and maximum.

    Scores of many classes are made for a few images at a time, so that memory does not grow with classes times images.

    Args:
        output: the teacher's outputs on the weak views.
        valid: (B, H, W) bool, False where the crop is padding; such pixels are ignored.
        min_confidence: pixels below it, in [0, 1], are ignored.
        with_entropy: compute the entropy too.
    """
    size, num_classes = valid.shape[-2:], output.num_classes
    at_once = max(1, _SCORES_AT_ONCE // (num_classes * size.numel()))
    parts = [_of_images(output[start : start + at_once], size, with_entropy) for start in range(0, len(valid), at_once)]
    label_map, confidence, entropy = (None if part[0] is None else torch.cat(part) for part in zip(*parts, strict=True))
    keep = valid & (confidence >= min_confidence)
    return PseudoLabels(torch.where(keep, label_map, IGNORE).to(torch.uint8), confidence * valid, entropy)


def _of_images(
    output: SegmentationOutput, size: tuple[int, int], with_entropy: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Label map, confidence and entropy, (B, *size) each."""
    scores = output.class_scores(size)
    best, label_map = scores.max(1)
    total = scores.sum(1).clamp(min=torch.finfo(scores.dtype).tiny)
    entropy = torch.special.entr(scores / total[:, None]).sum(1) if with_entropy else None
    return label_map, best / total, entropy


def most_certain(entropy: Tensor, candidates: Tensor, share: float) -> Tensor:
    """The share of the candidates with the lowest entropy, at least one of them; of equal ones all (DGCL).

    Shape:
        entropy, of any shape; candidates bool alike; share in [0, 1]. Result bool alike.
    """
    if share >= 1:
        return candidates
    ordered = entropy.masked_fill(~candidates, float("inf")).flatten().sort().values
    kept = (candidates.sum() * share).ceil().long().clamp(min=1)
    return candidates & (entropy <= ordered.gather(0, kept.view(1) - 1))


def drop_small_regions(label_map: Tensor, min_area: int, num_classes: int) -> Tensor:
    """Ignore the classes that cover fewer than ``min_area`` pixels of an image.

    Shape:
        label_map (B, H, W) uint8. Result alike.
    """
    if min_area <= 1:
        return label_map
    B = len(label_map)
    slots = with_ignored_as(label_map, num_classes).flatten(1)
    area = torch.zeros(B, num_classes + 1, dtype=torch.int64, device=label_map.device)
    area.scatter_add_(1, slots, torch.ones_like(slots))
    small = (area < min_area).gather(1, slots).view_as(label_map)
    return torch.where(small, IGNORE, label_map)
