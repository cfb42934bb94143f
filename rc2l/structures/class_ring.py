"""A memory with a ring for each class, in which the newest entries take the places of the oldest.

Letters: ``K`` classes, ``m`` places of each, ``n`` new entries of each, ``C`` channels.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from rc2l.structures.class_groups import ClassGroups


class ClassRing(nn.Module):
    """Named values of the pixels of each class seen lately. The buffers are the whole state.

    All processes hold the same entries: an update gathers the new ones of every process and stores them in order of
    rank.

    Args:
        num_classes: K.
        size: m.
        values: name -> channels of what an entry holds, each kept as a buffer (K, m, C) of that name; None: a single
            number, (K, m).
    """

    def __init__(self, num_classes: int, size: int, values: Mapping[str, int | None]) -> None:
        super().__init__()
        self.values = dict(values)
        for name, channels in values.items():
            shape = (num_classes, size) if channels is None else (num_classes, size, channels)
            self.register_buffer(name, torch.zeros(shape))
        #: Filled places of each class, and the place that is written next.
        self.register_buffer("count", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("position", torch.zeros(num_classes, dtype=torch.int64))
        self.size = size

    @property
    def num_bytes(self) -> int:
        """Bytes of all buffers, which every process holds and every checkpoint contains."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def __str__(self) -> str:
        channels = " + ".join(str(number) for number in self.values.values() if number)
        return (
            f"memory bank: {len(self.count)} classes x {self.size} entries of {channels} channels, "
            f"{self.num_bytes / 2**20:.0f} MiB in each process and in each checkpoint"
        )

    @torch.no_grad()
    def update(
        self,
        entries: Mapping[str, Tensor],
        valid: Tensor,
        gather: Callable[[Tensor], Tensor] = lambda tensor: tensor[None],
    ) -> None:
        """Store new entries of every class, the same number of slots for all; every process must call it.

        If a class gets more entries than it has places, the last ones stay. Entries that are not finite, as mixed
        precision can give in a step that it then skips, are left out.

        Args:
            entries: name -> (K, n, C), or (K, n) for single numbers, of every value.
            valid: (K, n) bool, the slots that hold an entry.
            gather: from a tensor to (processes, ...), those of every process in order of rank.
        """
        valid, entries = self.gathered(entries, valid, gather)
        self.write(valid, entries)

    def gathered(
        self, entries: Mapping[str, Tensor], valid: Tensor, gather: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Slots of all processes, (K, n of all): which hold a finite entry, and their values; one message."""
        columns = [entries[name] if entries[name].dim() == 3 else entries[name][..., None] for name in entries]
        widths = [column.shape[2] for column in columns]
        packed = torch.cat([column.float() for column in [valid[..., None], *columns]], 2)
        packed = gather(packed).transpose(0, 1).flatten(1, 2)
        finite = packed.isfinite().all(2)
        held, *columns = packed.split([1, *widths], dim=2)
        values = {
            name: column if entries[name].dim() == 3 else column[..., 0]
            for name, column in zip(entries, columns, strict=True)
        }
        return finite & (held[..., 0] > 0), values

    def write(self, valid: Tensor, entries: Mapping[str, Tensor]) -> None:
        """Put the valid slots of new tensors (K, n, ...), in their order, into the buffers of their names."""
        (K, n), m = valid.shape, self.size
        rows = torch.arange(K, device=valid.device)[:, None]
        number = valid.sum(1, keepdim=True)
        written = min(n, m)
        rank = (number - written).clamp(min=0) + torch.arange(written, device=valid.device)
        slot = (~valid).int().argsort(dim=1, stable=True).gather(1, rank)
        place = (self.position[:, None] + rank) % m
        for name, new in entries.items():
            buffer = getattr(self, name)
            # Slots without an entry write back what their places hold: no two slots of a class have the same place.
            keep = (rank >= number).view(K, written, *[1] * (buffer.dim() - 2))
            buffer[rows, place] = torch.where(keep, buffer[rows, place], new[rows, slot].to(buffer.dtype))
        self.position.copy_((self.position + number[:, 0]) % m)
        self.count.copy_((self.count + number[:, 0]).clamp(max=m))


def choose_entries(
    labels: Tensor, num_classes: int, per_class: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Pixels that enter a memory: all of a class where they are at most ``per_class``, else so many drawn evenly.

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
