"""Regions: the common currency of ground truth and pseudo labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rc2l.structures.label_map import IGNORE, sample_nearest


@dataclass
class Regions:
    """The non-overlapping regions of a batch of images, kept as one index map per image.

    Letters: ``B`` images, ``T`` region slots per image (some may be empty), ``H W`` pixels.
    """

    #: (B, H, W) int64: slot of the region that a pixel belongs to, -1 for none.
    index: Tensor
    #: (B, T) int64: class of each slot.
    labels: Tensor
    #: (B, H, W) bool: False where a pixel is ignored, by every mask loss and by the matching.
    valid: Tensor

    @classmethod
    def from_label_map(cls, label_map: Tensor, num_classes: int) -> "Regions":
        """One slot per class: slot k holds the pixels of class k.

        Shape:
            label_map (B, H, W), integers in 0..num_classes-1 or 255.
        """
        valid = label_map != IGNORE
        index = torch.where(valid, label_map.long(), -1)
        labels = torch.arange(num_classes, device=label_map.device).expand(len(label_map), -1)
        return cls(index, labels, valid)

    @classmethod
    def from_masks(cls, labels: Sequence[Tensor], masks: Sequence[Tensor]) -> "Regions":
        """Any segments, several of a class too; pixels in no mask are valid background of all of them.

        Shape:
            labels: per image (T_b,) int; masks: per image (T_b, H, W) bool or 0/1, not overlapping.
        """
        num_slots = max(1, max(len(image_labels) for image_labels in labels))
        padded = torch.stack([torch.nn.functional.pad(x.long(), (0, num_slots - len(x))) for x in labels])
        index = torch.stack(
            [
                torch.where(m.bool().any(0), m.int().argmax(0), -1) if len(m) else m.new_full(m.shape[1:], -1).long()
                for m in (m.long() for m in masks)
            ]
        )
        return cls(index, padded, torch.ones_like(index, dtype=torch.bool))

    def __getitem__(self, images: slice) -> "Regions":
        """The regions of a range of images (views, no copies)."""
        return Regions(self.index[images], self.labels[images], self.valid[images])

    def present(self) -> Tensor:
        """(B, T) bool: slots that hold at least one pixel."""
        B, T = self.labels.shape
        seen = torch.zeros(B, 1 + T, dtype=torch.bool, device=self.index.device)
        return seen.scatter_(1, (self.index + 1).flatten(1), True)[:, 1:]

    def resized(self, height: int, width: int) -> "Regions":
        """The same regions at another size; see :func:`sample_nearest`."""
        return Regions(
            sample_nearest(self.index, height, width), self.labels, sample_nearest(self.valid, height, width)
        )

    def masks(self) -> Tensor:
        """(B, T, H, W) bool: every slot's mask."""
        slots = torch.arange(self.labels.shape[1], device=self.index.device)
        return self.index[:, None] == slots[:, None, None]

    def select(self, image: Tensor, slot: Tensor) -> Tensor:
        """(*, H, W) bool: masks of chosen slots, ``image`` and ``slot`` being integer tensors of one shape."""
        return self.index[image] == slot[..., None, None]
