"""Pixels sorted by class, so that what is asked of every class is one gather of static shape.

Letters: ``P`` pixels, ``K`` classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def class_counts(labels: Tensor, num_classes: int) -> Tensor:
    """(K,) int64, pixels of each class. Shape: labels (P,) int64 in 0..num_classes, the last for those of no class."""
    count = torch.zeros(num_classes + 1, dtype=torch.int64, device=labels.device)
    return count.scatter_add_(0, labels, torch.ones_like(labels))[:-1]


@dataclass
class ClassGroups:
    """The pixels of a list sorted by class."""

    #: (P,) int64 pixel indices, class after class; those of no class last.
    order: Tensor
    #: (K,) int64 where each class begins in ``order``, and its number of pixels.
    start: Tensor
    count: Tensor

    @classmethod
    def of(cls, labels: Tensor, num_classes: int, sort_by: Tensor | None = None) -> "ClassGroups":
        """Groups whose pixels ascend by ``sort_by`` (P,), ties and None: by their place in the list.

        Shape:
            labels (P,) int64 in 0..num_classes, the last for pixels of no class.
        """
        if sort_by is None:
            order = labels.argsort(stable=True)
        elif sort_by.dtype == torch.bool:
            order = (2 * labels + sort_by).argsort(stable=True)
        else:
            order = sort_by.argsort(stable=True)
            order = order[labels[order].argsort(stable=True)]
        count = class_counts(labels, num_classes)
        return cls(order, count.cumsum(0) - count, count)

    @classmethod
    def of_rings(cls, count: Tensor, size: int) -> "ClassGroups":
        """The entries of a memory of K rings with ``size`` places each as one list, ``count`` (K,) of them filled, the
        first ones."""
        places = torch.arange(len(count) * size, device=count.device)
        return cls(places, places[::size], count)

    def first(self, number: int) -> tuple[Tensor, Tensor]:
        """The first pixels of every class: indices (K, number) int64, and (K, number) bool, whether there are so many.

        Indices where there are not are in 0..P-1 and mean nothing.
        """
        rank = torch.arange(number, device=self.order.device)
        return self._pixel(self.start[:, None] + rank), rank < self.count[:, None]

    def last(self, number: int) -> tuple[Tensor, Tensor]:
        """The last pixels of every class, the very last first. Results as :meth:`first`."""
        rank = torch.arange(number, device=self.order.device)
        return self._pixel((self.start + self.count - 1)[:, None] - rank), rank < self.count[:, None]

    def others(self, number: int, offset: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels of other classes: all of them where they are at most ``number``, else so many, evenly spread.

        The spread runs over ``order``, so groups in random order give a random choice without repetition in which every
        pixel of another class is as likely as any, and every class has its share.

        Shape:
            offset (K, 1) in [0, 1), where the spread begins. Results as :meth:`first`.
        """
        rank = torch.arange(number, device=self.order.device)
        others = (self.count.sum() - self.count)[:, None]
        spread = ((rank + offset.double()) * (others / number)).long()
        place = torch.where(others > number, torch.minimum(spread, others - 1), rank)
        place = place + torch.where(place >= self.start[:, None], self.count[:, None], 0)
        return self._pixel(place), rank < others

    def draw_own(self, among: Tensor, number: int, generator: torch.Generator | None = None) -> Tensor:
        """(K, number) indices, evenly and with replacement among the first ``among`` (K,) pixels of each class.

        What is drawn for a class without any means nothing; so for :meth:`draw_any`.
        """
        u = torch.rand(len(self.start), number, device=self.order.device, generator=generator)
        return self._drawn(self.start[:, None], among[:, None], u)

    def draw_any(self, probabilities: Tensor, number: int, generator: torch.Generator | None = None) -> Tensor:
        """(K, number) indices: a class by ``probabilities`` (K, K), rows summing to 1, then any pixel of it."""
        shape, device = (len(self.start), number), self.order.device
        u = torch.rand(shape, device=device, generator=generator)
        cumulative = probabilities.cumsum(1)
        # Scaled by the row's sum, so that rounding can never lead past the last class of positive probability.
        chosen = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True).clamp(max=len(self.start) - 1)
        u = torch.rand(shape, device=device, generator=generator)
        return self._drawn(self.start[chosen], self.count[chosen], u)

    def _drawn(self, start: Tensor, count: Tensor, u: Tensor) -> Tensor:
        # A product rounded up to the count itself would be another class's pixel.
        return self._pixel(start + torch.minimum((u.double() * count).long(), (count - 1).clamp(min=0)))

    def _pixel(self, place: Tensor) -> Tensor:
        return self.order[place.clamp(0, len(self.order) - 1)]
