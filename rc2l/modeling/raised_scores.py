"""Class scores at a larger size than a network's masks have, strip by strip: the same values in half of the time."""

import torch
from torch import Tensor
from torch.nn import functional as F

from rc2l.structures.outputs import SegmentationOutput, semantic_scores

#: Elements of a strip of masks: what stays in the cache of a core, or gives a GPU enough to do at once.
_CPU_STRIP, _GPU_STRIP = 1 << 20, 1 << 26


def own_scores(output: SegmentationOutput) -> Tensor:
    """Scores at the size of the masks or logits, (B, K, h, w), at least 0."""
    if output.pixel_logits is not None:
        return output.pixel_logits.softmax(1)
    return semantic_scores(output.pred_logits, output.pred_masks.sigmoid())


def raised_scores(output: SegmentationOutput, size: tuple[int, int]) -> Tensor:
    """Masks or logits are raised bilinearly to a size, then turned into scores.

    As ``F.interpolate``, then sigmoid and semantic inference, or softmax; but Q masks of the whole size, hundreds of
    megabytes, are never there.

    Shape:
        output of B images; result (B, K, *size) float32, at least 0.
    """
    pixels = output.pixel_logits is not None
    maps = output.pixel_logits if pixels else output.pred_masks
    class_probs = None if pixels else output.pred_logits.softmax(-1)[..., :-1].transpose(1, 2).contiguous()
    (B, C, h, _), (height, width) = maps.shape, size
    result = maps.new_empty(B, C if pixels else class_probs.shape[1], height, width)
    budget = _CPU_STRIP if maps.device.type == "cpu" else _GPU_STRIP
    rows = max(budget // (B * C * width), 1)
    for top in range(0, height, rows):
        first, second, share = _neighbours(h, height, top, min(top + rows, height), maps)
        lines = torch.lerp(maps[:, :, first], maps[:, :, second], share[:, None])
        strip = F.interpolate(lines.flatten(1, 2), size=width, mode="linear", align_corners=False)
        strip = strip.view(B, C, len(share), width)
        if pixels:
            result[:, :, top : top + rows] = strip.softmax(1)
        else:
            scores = torch.bmm(class_probs, strip.sigmoid_().flatten(2))
            result[:, :, top : top + rows] = scores.view(B, -1, len(share), width)
    return result


def _neighbours(length: int, size: int, start: int, end: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The two source rows of each row from ``start`` to ``end`` of ``size``, and the share of the second."""
    place = (torch.arange(start, end, dtype=like.dtype, device=like.device) + 0.5) * (length / size) - 0.5
    place = place.clamp_(min=0)
    first = place.long().clamp_(max=length - 1)
    return first, (first + 1).clamp_(max=length - 1), place - first
