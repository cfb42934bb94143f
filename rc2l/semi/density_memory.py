"""The memory of DGCL: features and projections of each class seen lately, with their density."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rc2l.losses.density import block_density
from rc2l.losses.dgcl import Memory
from rc2l.structures.class_ring import ClassRing


class DensityMemory(ClassRing):
    """A ring for each class whose entries know their density.

    The density of a new entry is measured against the memory before it enters, as in DGCL's authors' code, but as soon
    as its class has as many entries as the largest of ``neighbors`` (there: more than 1000); until then it is not
    known, and the entry is no positive (there it stays 0 for ever). Each update also measures anew, against the memory
    as it is then, the ``refresh`` entries of each class whose density is not known or was measured longest ago:
    features drift as the network learns (there: never).

    Args:
        num_classes: K.
        size: m, places of each class; a class with less than the largest of ``neighbors`` never takes part.
        feature_channels: C_f, of the features that density is measured on; they are stored with length 1.
        projection_channels: C, of the projections; they are stored as they are, since positives are means of them.
        neighbors: numbers of nearest neighbours over which density is averaged.
        refresh: entries of each class whose density an update measures anew, at least 0.
    """

    def __init__(
        self,
        num_classes: int,
        size: int,
        feature_channels: int,
        projection_channels: int,
        neighbors: Sequence[int],
        refresh: int,
    ) -> None:
        values = {"features": feature_channels, "projections": projection_channels, "density": None, "confidence": None}
        super().__init__(num_classes, size, values)
        self.neighbors = tuple(neighbors)
        self.refresh = min(refresh, size)
        #: The update that measured the density of each entry; -1: it is not known.
        self.register_buffer("measured", torch.full((num_classes, size), -1))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def memory(self) -> Memory:
        """The entries as the loss reads them: views of the buffers, which the next update writes to."""
        density = self.density.masked_fill(self.measured < 0, float("-inf"))
        return Memory(self.features, self.projections, density, self.confidence, self.count)

    @torch.no_grad()
    def update(
        self,
        entries: dict[str, Tensor],
        valid: Tensor,
        gather: Callable[[Tensor], Tensor] = lambda tensor: tensor[None],
    ) -> None:
        """See :meth:`ClassRing.update`.

        Args:
            entries: ``features`` (K, n, C_f), of any length; ``projections`` (K, n, C); ``density`` (K, n), measured
                against the memory as it is before the update; ``confidence`` (K, n) in [0, 1].
            valid: (K, n) bool, the slots that hold an entry.
            gather: from a tensor to (processes, ...), those of every process in order of rank.
        """
        entries = entries | {"features": F.normalize(entries["features"].float(), dim=2)}
        valid, entries = self.gathered(entries, valid, gather)
        ready = self.count >= max(self.neighbors)
        measured = torch.where(ready, self.updates, -1)[:, None].expand(-1, valid.shape[1])
        density = torch.where(ready[:, None], entries["density"], 0)
        self.write(valid, entries | {"density": density, "measured": measured})
        if self.refresh:
            self._measure_anew()
        self.updates += 1

    def _measure_anew(self) -> None:
        K, m = self.density.shape
        rows = torch.arange(K, device=self.count.device)[:, None]
        filled = torch.arange(m, device=self.count.device) < self.count[:, None]
        age_order = self.measured.masked_fill(~filled, torch.iinfo(torch.int64).max).argsort(dim=1, stable=True)
        place = age_order[:, : self.refresh]
        # An entry is not its own neighbour, so one more is needed than for a new one.
        known = filled.gather(1, place) & (self.count > max(self.neighbors))[:, None]
        density = block_density(
            self.features[rows, place],
            rows[:, 0],
            self.features,
            self.count,
            self.neighbors,
            own=torch.where(known, place, -1),
        )
        self.density[rows, place] = torch.where(known, density, self.density[rows, place])
        self.measured[rows, place] = torch.where(known, self.updates, self.measured[rows, place])
