"""The pixels of a mini-batch by class, and draws among them, for ReCo.

Letters: ``K`` classes, ``P`` pixels as one list, ``B h w`` images and their pixels, ``Q`` queries for each class.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class PixelGroups:
    """The pixels of a mini-batch sorted by class, in each class those that may be queries first."""

    #: (P,) int64 pixel indices in sorted order; inside a group in row-major order.
    order: Tensor
    #: (K,) int64 where each class begins in ``order``, its pixels, and how many of these may be queries.
    start: Tensor
    usable: Tensor
    candidates: Tensor

    @classmethod
    def of(cls, labels: Tensor, candidate: Tensor, num_classes: int) -> "PixelGroups":
        """Shape: labels (B, h, w) int64 in 0..num_classes, the last for pixels that are not used; candidate (B, h, w)
        bool."""
        group = 2 * labels.flatten() + ~candidate.flatten()
        sizes = torch.zeros(2 * num_classes + 2, dtype=torch.int64, device=labels.device)
        sizes = sizes.scatter_add_(0, group, torch.ones_like(group)).view(-1, 2)[:-1]
        usable = sizes.sum(1)
        return cls(group.argsort(stable=True), usable.cumsum(0) - usable, usable, sizes[:, 0])

    @classmethod
    def of_rings(cls, count: Tensor, size: int) -> "PixelGroups":
        """The entries of a memory of K rings with ``size`` places each as one list, ``count`` (K,) of them filled, the
        first ones; none may be a query."""
        places = torch.arange(len(count) * size, device=count.device)
        return cls(places, places[::size], count, torch.zeros_like(count))

    def draw_queries(self, num_queries: int, generator: torch.Generator | None = None) -> Tensor:
        """(K, Q) pixel indices, evenly and with replacement among the candidates of each class."""
        u = torch.rand(len(self.start), num_queries, device=self.order.device, generator=generator)
        return self._pixel(self.start[:, None], self.candidates[:, None], u)

    def draw_keys(self, probabilities: Tensor, num_keys: int, generator: torch.Generator | None = None) -> Tensor:
        """(K, num_keys) pixel indices: a class by ``probabilities`` (K, K), rows summing to 1, then any pixel of it."""
        shape, device = (len(self.start), num_keys), self.order.device
        u = torch.rand(shape, device=device, generator=generator)
        cumulative = probabilities.cumsum(1)
        # Scaled by the row's sum, so that rounding can never lead past the last class of positive probability.
        chosen = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True).clamp(max=len(self.start) - 1)
        u = torch.rand(shape, device=device, generator=generator)
        return self._pixel(self.start[chosen], self.usable[chosen], u)

    def _pixel(self, start: Tensor, count: Tensor, u: Tensor) -> Tensor:
        # A product rounded up to the count itself would be another class's pixel. Empty groups give any pixel: masked.
        offset = torch.minimum((u.double() * count).long(), (count - 1).clamp(min=0))
        return self.order[(start + offset).clamp(max=len(self.order) - 1)]
