"""Label maps: (B, H, W) integers, a class id or :data:`IGNORE` at each pixel."""

import torch
from torch import Tensor

#: The label of pixels that nothing is learned from or scored on. Every label map here has it, whatever the files had.
IGNORE = 255


def sample_nearest(maps: Tensor, height: int, width: int) -> Tensor:
    """Nearest neighbours: source row floor(i * H / height), columns alike. Shape: (B, H, W) -> (B, height, width)."""
    if maps.shape[-2:] == (height, width):
        return maps
    H, W = maps.shape[-2:]
    rows = torch.arange(height, device=maps.device) * H // height
    columns = torch.arange(width, device=maps.device) * W // width
    return maps[:, rows[:, None], columns]


def with_ignored_as(label_map: Tensor, num_classes: int) -> Tensor:
    """int64 labels whose ignored pixels are class ``num_classes``, one beyond the last: for scatters and sorts."""
    return torch.where(label_map == IGNORE, num_classes, label_map.long())
