"""Mixing of images and everything that belongs to their pixels."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def cutmix_boxes(
    batch_size: int,
    height: int,
    width: int,
    area: Sequence[float],
    aspect_ratio: Sequence[float],
    generator: np.random.Generator,
) -> np.ndarray:
    """Random boxes of CutMix.

    Args:
        batch_size: number of boxes.
        height, width: size of the image in pixels.
        area: range of the box's share of the image, in (0, 1].
        aspect_ratio: range of the box's height/width ratio relative to the image's, drawn evenly in its logarithm.
        generator: source of randomness.

    Returns:
        (batch_size, 4) int64: top, left, bottom, right; inside the image.
    """
    share = generator.uniform(*area, batch_size)
    ratio = np.exp(generator.uniform(*np.log(aspect_ratio), batch_size))
    box_height = np.clip(np.rint(height * np.sqrt(share * ratio)), 1, height).astype(np.int64)
    box_width = np.clip(np.rint(width * np.sqrt(share / ratio)), 1, width).astype(np.int64)
    top = np.floor(generator.uniform(size=batch_size) * (height - box_height + 1)).astype(np.int64)
    left = np.floor(generator.uniform(size=batch_size) * (width - box_width + 1)).astype(np.int64)
    return np.stack([top, left, top + box_height, left + box_width], axis=1)


def box_masks(boxes: np.ndarray, height: int, width: int, device: torch.device) -> Tensor:
    """(B, height, width) bool: True inside each image's box."""
    top, left, bottom, right = torch.from_numpy(boxes).to(device).T[:, :, None]
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    inside_rows = (rows >= top) & (rows < bottom)
    inside_columns = (columns >= left) & (columns < right)
    return inside_rows[:, :, None] & inside_columns[:, None, :]


def paste_from_next(pasted: Tensor, *tensors: Tensor) -> list[Tensor]:
    """Where ``pasted``, take the pixels of image (i + 1) mod B: CutMix on images, labels, confidences alike.

    Shape:
        pasted (B, H, W) bool; tensors (B, H, W) or (B, C, H, W). Results alike.
    """
    return [
        torch.where(pasted if tensor.dim() == 3 else pasted[:, None], tensor.roll(-1, 0), tensor) for tensor in tensors
    ]
