"""Mixing of images and everything that belongs to their pixels."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from rc2l.structures.label_map import IGNORE, with_ignored_as

MIXINGS = ("cutmix", "classmix", "cutout", "none")
BOXES = ("free", "half")
#: Mixings that paste from another image of the step.
PARTNERED = ("cutmix", "classmix")


def cutmix_boxes(
    generators: Sequence[np.random.Generator],
    height: int,
    width: int,
    area: Sequence[float],
    aspect_ratio: Sequence[float],
) -> np.ndarray:
    """Random boxes of CutMix.

    Args:
        generators: source of randomness of each box, so that none depends on the others of a batch.
        height, width: size of the image in pixels.
        area: range of the box's share of the image, in (0, 1].
        aspect_ratio: range of the box's height/width ratio relative to the image's, drawn evenly in its logarithm.

    Returns:
        (B, 4) int64: top, left, bottom, right; inside the image.
    """
    share, ratio, row, column = _uniform(generators, 4)
    share = area[0] + (area[1] - area[0]) * share
    low, high = np.log(aspect_ratio)
    ratio = np.exp(low + (high - low) * ratio)
    box_height = np.clip(np.rint(height * np.sqrt(share * ratio)), 1, height).astype(np.int64)
    box_width = np.clip(np.rint(width * np.sqrt(share / ratio)), 1, width).astype(np.int64)
    return _placed(row, column, box_height, box_width, height, width)


def half_area_boxes(generators: Sequence[np.random.Generator], height: int, width: int) -> np.ndarray:
    """Random boxes of half the image's area, as French et al. and ReCo cut them.

    The width is drawn evenly from more than half the image's width to less than all of it. Arguments and result as
    :func:`cutmix_boxes`.
    """
    share, row, column = _uniform(generators, 3)
    smallest = max(min(width // 2 + 1, width - 1), 1)  # one pixel at least, whatever the image
    box_width = smallest + np.floor(share * (max(width, 2) - smallest)).astype(np.int64)
    box_height = np.clip(np.rint(height * width / 2 / box_width), 1, height).astype(np.int64)
    return _placed(row, column, box_height, box_width, height, width)


def _uniform(generators: Sequence[np.random.Generator], count: int) -> np.ndarray:
    """(count, B) numbers in [0, 1)."""
    return np.stack([generator.uniform(size=count) for generator in generators], axis=1)


def _placed(row, column, box_height, box_width, height: int, width: int) -> np.ndarray:
    top = np.floor(row * (height - box_height + 1)).astype(np.int64)
    left = np.floor(column * (width - box_width + 1)).astype(np.int64)
    return np.stack([top, left, top + box_height, left + box_width], axis=1)


def box_masks(boxes: np.ndarray, height: int, width: int, device: torch.device) -> Tensor:
    """(B, height, width) bool: True inside each image's box."""
    top, left, bottom, right = torch.from_numpy(boxes).to(device).T[:, :, None]
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    inside_rows = (rows >= top) & (rows < bottom)
    inside_columns = (columns >= left) & (columns < right)
    return inside_rows[:, :, None] & inside_columns[:, None, :]


def paste_from_next(
    pasted: Tensor, *tensors: Tensor, exchange: Callable[[list[Tensor]], list[Tensor]] = list
) -> list[Tensor]:
    """Where ``pasted``, take the pixels of the image at the next position of the step's batch, the first after the
    last: CutMix on images, labels, confidences alike.

    Args:
        pasted: (B, H, W) bool.
        tensors: (B, H, W) or (B, C, H, W).
        exchange: gives, for the tensors of this process's first image, those of the next process's; the default is
            right for one process. Every process must call it.

    Returns:
        As ``tensors``.
    """
    following = exchange([tensor[:1] for tensor in tensors])
    return [
        torch.where(pasted if tensor.dim() == 3 else pasted[:, None], torch.cat([tensor[1:], first]), tensor)
        for tensor, first in zip(tensors, following, strict=True)
    ]


def classmix_masks(label_map: Tensor, num_classes: int, generators: Sequence[np.random.Generator]) -> Tensor:
    """Where ClassMix pastes the next image: everywhere but on floor(n/2) of the image's own n classes, drawn evenly.

    Ignored pixels are no class: they are never kept (the official code may draw the ignore label as one).

    Shape:
        label_map (B, H, W) integers in 0..num_classes-1 or 255; one generator for each image. Result
        (B, H, W) bool.
    """
    B, device = len(label_map), label_map.device
    slots = with_ignored_as(label_map, num_classes).flatten(1)
    present = torch.zeros(B, num_classes + 1, dtype=torch.bool, device=device).scatter_(1, slots, True)
    present[:, num_classes] = False
    scores = torch.from_numpy(_uniform(generators, num_classes + 1).T).to(device)
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
    generators: Sequence[np.random.Generator],
    exchange: Callable[[list[Tensor]], list[Tensor]] = list,
) -> tuple[Tensor, ...]:
    """Images, pseudo labels, confidences and further maps of the strong view.

    ``cutmix`` and ``classmix`` paste from the image at the next position (:func:`paste_from_next`); ``cutout`` removes
    a box: its pixels get the colour ``fill``, confidence 0, and are ignored; ``none`` changes nothing. Inputs are never
    written to.

    Args:
        name: one of :data:`MIXINGS`.
        images: (B, 3, H, W).
        label_map: (B, H, W).
        confidence: (B, H, W).
        more: (B, H, W) maps that are mixed alike; cutout leaves them as they are.
        num_classes: K.
        fill: what the network takes for 0, the mean colour of the dataset.
        boxes: (B, 4), of cutmix and cutout.
        generators: source of randomness of each image, of classmix.
        exchange: see :func:`paste_from_next`.
    """
    if name == "none":
        return images, label_map, confidence, *more
    if name == "classmix":
        mask = classmix_masks(label_map, num_classes, generators)
    else:
        mask = box_masks(boxes, *label_map.shape[1:], label_map.device)
    if name in PARTNERED:
        return tuple(paste_from_next(mask, images, label_map, confidence, *more, exchange=exchange))
    color = torch.tensor(fill, device=images.device).view(-1, 1, 1)
    color = color if images.is_floating_point() else color.round()
    return (
        torch.where(mask[:, None], color.to(images.dtype), images),
        label_map.masked_fill(mask, IGNORE),
        confidence.masked_fill(mask, 0),
        *more,
    )
