"""The memory bank of DGCL: features and projections of each class seen lately, with their density."""

import logging
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor, nn

from rc2l.losses.class_groups import ClassGroups
from rc2l.losses.density import block_density
from rc2l.losses.dgcl import Memory
from rc2l.modeling.segmentor import Segmentor

logger = logging.getLogger(__name__)


class MemoryBank(nn.Module):
    """A ring for each class, in which the newest entries take the places of the oldest.

    All processes hold the same bank: an update gathers the new entries of every process and stores them in order of
    rank. The buffers are the whole state.

    The density of a new entry is measured against the bank before it enters, as in DGCL's authors' code, but as soon as
    its class has as many entries as the largest of ``neighbors`` (there: more than 1000); until then it is not known,
    and the entry is no positive (there it stays 0 for ever). Each update also measures anew, against the bank as it is
    then, the ``refresh`` entries of each class whose density is not known or was measured longest ago: features drift
    as the network learns (there: never).

    Args:
        num_classes: K.
        size: m, places of each class; a class with less than the largest of ``neighbors`` never takes part.
        feature_channels: C_f, of the features that density is measured on; they are stored with length 1.
        projection_channels: C, of the projections; they are stored as they are, since positives are means of them.
        neighbors: numbers of nearest neighbors over which density is averaged.
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
        super().__init__()
        self.neighbors = tuple(neighbors)
        self.refresh = min(refresh, size)
        self.register_buffer("features", torch.zeros(num_classes, size, feature_channels))
        self.register_buffer("projections", torch.zeros(num_classes, size, projection_channels))
        self.register_buffer("density", torch.zeros(num_classes, size))
        self.register_buffer("confidence", torch.zeros(num_classes, size))
        #: The update that measured the density of each entry; -1: it is not known.
        self.register_buffer("measured", torch.full((num_classes, size), -1))
        #: Filled places of each class, and the place that is written next.
        self.register_buffer("count", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("position", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @property
    def num_bytes(self) -> int:
        """Bytes of all buffers, which every process holds and every checkpoint contains."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def __str__(self) -> str:
        K, m, C_f = self.features.shape
        return (
            f"memory bank: {K} classes x {m} entries of {C_f} + {self.projections.shape[2]} channels, "
            f"{self.num_bytes / 2**20:.0f} MiB in each process and in each checkpoint"
        )

    def memory(self) -> Memory:
        """The entries as the loss reads them: views of the buffers, which the next update writes to."""
        density = self.density.masked_fill(self.measured < 0, float("-inf"))
        return Memory(self.features, self.projections, density, self.confidence, self.count)

    @torch.no_grad()
    def update(
        self,
        features: Tensor,
        projections: Tensor,
        density: Tensor,
        confidence: Tensor,
        valid: Tensor,
        gather: Callable[[Tensor], Tensor] = lambda tensor: tensor[None],
    ) -> None:
        """Store new entries of every class, the same number of slots for all; every process must call it.

        If a class gets more entries than it has places, the last ones stay. Entries that are not finite, as mixed
        precision can give in a step that it then skips, are left out.

        Args:
            features: (K, n, C_f), of any length.
            projections: (K, n, C).
            density: (K, n), measured against the bank as it is before the update.
            confidence: (K, n) in [0, 1].
            valid: (K, n) bool, the slots that hold an entry.
            gather: from a tensor to (processes, ...), those of every process in order of rank.
        """
        features = F.normalize(features.float(), dim=2)
        slots = [density[..., None], confidence[..., None], valid[..., None], features, projections]
        packed = gather(torch.cat([slot.to(features.dtype) for slot in slots], 2)).transpose(0, 1).flatten(1, 2)
        finite = packed.isfinite().all(2)
        density, confidence, valid, features, projections = packed.split(
            [1, 1, 1, features.shape[2], projections.shape[2]], dim=2
        )
        ready = self.count >= max(self.neighbors)
        measured = torch.where(ready, self.updates, -1)[:, None].expand(-1, valid.shape[1])
        self._write(
            finite & (valid[..., 0] > 0),
            [
                (self.features, features),
                (self.projections, projections),
                (self.density, torch.where(ready[:, None], density[..., 0], 0)),
                (self.confidence, confidence[..., 0]),
                (self.measured, measured),
            ],
        )
        if self.refresh:
            self._measure_anew()
        self.updates += 1

    def _write(self, valid: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Put the valid slots of each new tensor (K, n, ...), in their order, into its buffer (K, m, ...)."""
        (K, n), m = valid.shape, self.features.shape[1]
        rows = torch.arange(K, device=valid.device)[:, None]
        number = valid.sum(1, keepdim=True)
        written = min(n, m)
        rank = (number - written).clamp(min=0) + torch.arange(written, device=valid.device)
        slot = (~valid).int().argsort(dim=1, stable=True).gather(1, rank)
        place = (self.position[:, None] + rank) % m
        for buffer, new in pairs:
            # Slots without an entry write back what their places hold: no two slots of a class have the same place.
            keep = (rank >= number).view(K, written, *[1] * (buffer.dim() - 2))
            buffer[rows, place] = torch.where(keep, buffer[rows, place], new[rows, slot].to(buffer.dtype))
        self.position.copy_((self.position + number[:, 0]) % m)
        self.count.copy_((self.count + number[:, 0]).clamp(max=m))

    def _measure_anew(self) -> None:
        K, m = self.density.shape
        rows = torch.arange(K, device=self.count.device)[:, None]
        filled = torch.arange(m, device=self.count.device) < self.count[:, None]
        age_order = self.measured.masked_fill(~filled, torch.iinfo(torch.int64).max).argsort(dim=1, stable=True)
        place = age_order[:, : self.refresh]
        # An entry is not its own neighbor, so one more is needed than for a new one.
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


def build_memory_bank(cfg: CfgNode, network: Segmentor) -> MemoryBank | None:
    """The empty bank for a network's per-pixel features, on its device; None where DGCL.ENABLED is False."""
    dgcl = cfg.DGCL
    if not dgcl.ENABLED:
        return None
    bank = MemoryBank(
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        dgcl.MEMORY_PER_CLASS,
        network.pixel_feature_channels,
        dgcl.DIM,
        dgcl.NEIGHBORS,
        dgcl.REFRESHED_PER_CLASS,
    )
    logger.info(str(bank))
    return bank.to(network.device)


def build_reco_bank(cfg: CfgNode) -> MemoryBank | None:
    """The empty bank of ReCo's representations, on the model's device; None where RECO uses none.

    It is that of DGCL without what density needs: entries have no features.
    """
    reco = cfg.RECO
    if not reco.ENABLED or reco.MEMORY_PER_CLASS == 0:
        return None
    bank = MemoryBank(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, reco.MEMORY_PER_CLASS, 0, reco.DIM, neighbors=(1,), refresh=0)
    logger.info(f"ReCo's {bank}")
    return bank.to(cfg.MODEL.DEVICE)


def choose_entries(
    labels: Tensor, num_classes: int, per_class: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Pixels that enter the bank: all of a class where they are at most ``per_class``, else so many drawn evenly.

    Args:
        labels: (P,) int64 in 0..K, K for pixels that do not enter.
        num_classes: K.
        per_class: n, above 0.
        generator: source of randomness; torch's own by default.

    Returns:
        (K, n) int64 indices, ascending in each class, and (K, n) bool, which of them count, those first.
    """
    drawn = torch.rand(len(labels), device=labels.device, generator=generator)
    pixel, valid = ClassGroups.of(labels, num_classes, drawn).first(per_class)
    order = torch.where(valid, pixel, len(labels)).argsort(dim=1)
    return pixel.gather(1, order), valid
