"""What the DGCL loss and its memory bank cost; run it as ``python tools/benchmark.py dgcl``."""

import statistics
from dataclasses import dataclass
from itertools import pairwise

import torch
from benchmark_reco import PeakMemory, now
from tabulate import tabulate
from torch import Tensor

from rc2l.losses.dgcl import DgclOptions, dgcl_loss
from rc2l.semi.density_memory import DensityMemory
from rc2l.structures.class_ring import choose_entries

#: As the defaults of DGCL.ADDED_PER_CLASS and DGCL.REFRESHED_PER_CLASS.
ADDED, REFRESHED = 128, 64


@dataclass(frozen=True)
class Setting:
    """The sizes that cost depends on; the defaults are a VOC mini-batch at crop 513, all of its pixels used."""

    batch: int = 4
    channels: int = 256
    size: int = 65
    memory: int = 5000
    num_classes: int = 21

    @property
    def pixels(self) -> int:
        return self.batch * self.size**2


GROWTH = {
    "as above": Setting(),
    "half the pixels": Setting(batch=2),
    "twice the pixels": Setting(batch=8),
    "half the memory": Setting(memory=2500),
    "twice the memory": Setting(memory=10000),
    "half the classes": Setting(num_classes=10),
    "twice the classes": Setting(num_classes=42),
}


class Case:
    """Inputs of one setting and a full bank."""

    def __init__(self, setting: Setting, device: torch.device) -> None:
        torch.manual_seed(0)
        self.setting, self.device = setting, device
        K, C, P = setting.num_classes, setting.channels, setting.pixels
        self.representation = torch.randn(setting.batch, C, setting.size, setting.size, device=device)
        self.representation.requires_grad_()
        self.features = torch.randn(P, C, device=device)
        # Patches of a class, as label maps have them.
        patches = torch.randint(0, K, (setting.batch, 13, 13), device=device)
        self.labels = patches.repeat_interleave(5, 1).repeat_interleave(5, 2).flatten()
        self.confidence = torch.rand(P, device=device)
        self.options = DgclOptions()
        self.bank = DensityMemory(K, setting.memory, C, C, self.options.neighbors, REFRESHED).to(device)
        for name in ("features", "projections", "density"):
            getattr(self.bank, name).normal_()
        self.bank.features /= self.bank.features.norm(dim=2, keepdim=True)
        self.bank.measured.zero_()
        self.bank.count.fill_(setting.memory)

    def run(self) -> tuple[list[float], float]:
        """Seconds of forward, backward and update of the bank, and the peak memory of all three in MiB."""
        self.representation.grad = None
        with PeakMemory(self.device) as peak:
            times = [now(self.device)]
            projections = self.representation.permute(0, 2, 3, 1).flatten(0, 2)
            result = dgcl_loss(
                projections, self.features, self.labels, self.confidence, self.bank.memory(), self.options
            )
            times.append(now(self.device))
            result.loss.backward()
            times.append(now(self.device))
            self._update(projections.detach(), result.density)
            times.append(now(self.device))
        return [end - start for start, end in pairwise(times)], peak.mebibytes

    def _update(self, projections: Tensor, density: Tensor) -> None:
        index, valid = choose_entries(self.labels, self.setting.num_classes, ADDED)
        values = {
            "features": self.features,
            "projections": projections,
            "density": density,
            "confidence": self.confidence,
        }
        self.bank.update({name: value[index] for name, value in values.items()}, valid)


def benchmark_dgcl(repeats: int, device: torch.device, warmup: int = 1) -> None:
    """Print time and peak memory, and how they grow with pixels, memory and classes; medians over the repeats."""
    base = Setting()
    print(
        f"representation {(base.batch, base.channels, base.size, base.size)}, {base.num_classes} classes, memory of "
        f"{base.memory} per class, {device}, {torch.get_num_threads()} threads, median of {repeats}\n"
    )
    rows, base_row = [], None
    for name, setting in GROWTH.items():
        case = Case(setting, device)
        runs = [case.run() for _ in range(warmup + repeats)][warmup:]
        forward, backward, update = (
            1000 * statistics.median(column) for column in zip(*(t for t, _ in runs), strict=True)
        )
        total, peak = forward + backward + update, max(memory for _, memory in runs)
        base_row = base_row or (total, peak)
        bank = case.bank.num_bytes / 2**20
        rows.append([name, forward, backward, update, total, total / base_row[0], peak, peak / base_row[1], bank])
        del case
    headers = ["", "forward [ms]", "backward [ms]", "update [ms]", "all [ms]", "ratio", "peak beyond the input [MiB]"]
    headers += ["ratio", "bank [MiB]"]
    print(
        tabulate(rows, headers, tablefmt="pipe", floatfmt=("", ".0f", ".0f", ".0f", ".0f", ".2f", ".0f", ".2f", ".0f"))
    )
