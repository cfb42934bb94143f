"""Mixing of images and everything that belongs to their pixels."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MIXINGS = ("cutmix", "classmix", "cutout", "none")
BOXES = ("free", "half")


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


def half_area_boxes(batch_size: int, height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """Random boxes of half the image's area, as French et al. and ReCo cut them.

    The width is drawn evenly from more than half the image's width to less than all of it. Arguments and result as
    :func:`cutmix_boxes`.
    """
    smallest = max(min(width // 2 + 1, width - 1), 1)  # one pixel at least, whatever the image
    box_width = generator.integers(smallest, max(width, 2), batch_size)
    box_height = np.clip(np.rint(height * width / 2 / box_width), 1, height).astype(np.int64)
    top = generator.integers(0, height - box_height + 1)
    left = generator.integers(0, width - box_width + 1)
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


def classmix_masks(
    label_map: Tensor, num_classes: int, generator: np.random.Generator, ignore_value: int = 255
) -> Tensor:
    """Where ClassMix pastes the next image: everywhere but on floor(n/2) of the image's own n classes, drawn evenly.

    Ignored pixels are no class: they are never kept (the official code may draw the ignore label as one).

    Shape:
        label_map (B, H, W) integers in 0..num_classes-1 or ``ignore_value``. Result (B, H, W) bool.
    """
    B, device = len(label_map), label_map.device
    slots = torch.where(label_map == ignore_value, num_classes, label_map.long()).flatten(1)
    present = torch.zeros(B, num_classes + 1, dtype=torch.bool, device=device).scatter_(1, slots, True)
    present[:, num_classes] = False
    scores = torch.from_numpy(generator.uniform(size=(B, num_classes + 1))).to(device)
    rank = torch.where(present, scores, 2).argsort(1).argsort(1)
    kept = rank < present.sum(1, keepdim=True) // 2
    return ~kept.gather(1, slots).view_as(label_map)


def mix_views(
    name: str,
    images: Tensor,
    label_map: Tensor,
    confidence: Tensor,
    *more: Tensor,
    num_classes: int,
    fill: Sequence[float],
    boxes: np.ndarray,
    generator: np.random.Generator,
    ignore_value: int = 255,
) -> tuple[Tensor, ...]:
    """Images, pseudo labels, confidences and further maps of the strong view.

    ``cutmix`` and ``classmix`` paste from image (i + 1) mod B; ``cutout`` removes a box: its pixels get the colour
    ``fill``, confidence 0, and are ignored; ``none`` changes nothing. Inputs are never written to.

    Args:
        name: one of :data:`MIXINGS`.
        images: (B, 3, H, W).
        label_map: (B, H, W).
        confidence: (B, H, W).
        more: (B, H, W) maps that are mixed alike; cutout leaves them as they are.
        num_classes: K.
        fill: what the network takes for 0, the mean colour of the dataset.
        boxes: (B, 4), of cutmix and cutout.
        generator: source of randomness of classmix.
        ignore_value: label of ignored pixels.
    """
    if name == "none":
        return images, label_map, confidence, *more
    if name == "classmix":
        mask = classmix_masks(label_map, num_classes, generator, ignore_value)
    else:
        mask = box_masks(boxes, *label_map.shape[1:], label_map.device)
    if name != "cutout":
        return tuple(paste_from_next(mask, images, label_map, confidence, *more))
    color = torch.tensor(fill, device=images.device).view(-1, 1, 1)
    color = color if images.is_floating_point() else color.round()
    return (
        torch.where(mask[:, None], color.to(images.dtype), images),
        label_map.masked_fill(mask, ignore_value),
        confidence.masked_fill(mask, 0),
        *more,
    )
