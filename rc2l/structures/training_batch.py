"""What one process trains on in one step."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass
class TrainingBatch:
    """``B_l`` labelled and ``B_u`` unlabelled images of one crop size (H, W); ``V`` strong views of each unlabelled."""

    #: (B_l, 3, H, W) uint8, channels as INPUT.FORMAT.
    labeled_images: Tensor
    #: (B_l, H, W) uint8 train ids; 255 = ignore.
    labeled_targets: Tensor
    #: (B_u, 3, H, W) uint8, the weak view; B_u = 0 where the method is supervised and during burn-in.
    unlabeled_images: Tensor
    #: (V, B_u, 3, H, W) uint8, the strong views of the same crops, before mixing, each drawn independently.
    strong_images: Tensor
    #: (B_u, H, W) bool, False in the padding.
    unlabeled_valid: Tensor
    labeled_files: list[str]
    unlabeled_files: list[str]

    def to(self, device: torch.device | str) -> "TrainingBatch":
        """The batch on ``device``; copies from pinned memory don't block."""
        return self._map_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "TrainingBatch":
        """The batch in page-locked memory; torch's DataLoader calls this."""
        return self._map_tensors(lambda tensor: tensor.pin_memory())

    def _map_tensors(self, function: Callable[[Tensor], Tensor]) -> "TrainingBatch":
        tensors = {
            field.name: function(value)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **tensors)
