"""What the ReCo loss costs; run it as ``python tools/benchmark.py reco``."""

import statistics
import threading
import time
from pathlib import Path

import torch
from tabulate import tabulate

from rc2l.losses.reco import KEY_SETS, RecoOptions, reco_loss

#: Representation (B, C, h, w) and classes of a VOC mini-batch of ReCo at crop 321.
SHAPE, NUM_CLASSES = (4, 256, 81, 81), 21


class PeakMemory:
    """Peak of the memory used inside the ``with`` block beyond what was used at its start, in MiB."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
        else:
            self.start = self.peak = _resident()
            self.running = True
            self.thread = threading.Thread(target=self._watch)
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated()
        else:
            self.running = False
            self.thread.join()
        self.mebibytes = (self.peak - self.start) / 2**20

    def _watch(self) -> None:
        while self.running:
            self.peak = max(self.peak, _resident())
            time.sleep(0.0005)


def _resident() -> int:
    """Bytes of this process in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def benchmark_reco(repeats: int, device: torch.device, warmup: int = 1) -> None:
    """Print time and peak memory of forward and backward for each way to share keys, medians over the repeats."""
    torch.manual_seed(0)
    B, _, h, w = SHAPE
    representation = torch.randn(SHAPE, device=device, requires_grad=True)
    # Patches of a class, as label maps have them; a third of the pixels is sure of its class.
    labels = torch.randint(0, NUM_CLASSES, (B, 9, 9), device=device).repeat_interleave(9, 1).repeat_interleave(9, 2)
    own = torch.rand(B, h, w, device=device) * 1.5
    rows = []
    for key_sets in KEY_SETS:
        seconds, memory = [], []
        for repeat in range(warmup + repeats):
            representation.grad = None
            with PeakMemory(device) as peak:
                start = now(device)
                loss = reco_loss(representation, labels, own, NUM_CLASSES, RecoOptions(key_sets=key_sets)).loss
                middle = now(device)
                loss.backward()
                end = now(device)
            if repeat >= warmup:
                seconds.append((middle - start, end - middle, end - start))
                memory.append(peak.mebibytes)
        medians = [1000 * statistics.median(column) for column in zip(*seconds, strict=True)]
        rows.append([f"RECO.KEY_SETS {key_sets}", *medians, max(memory)])
    headers = ["", "forward [ms]", "backward [ms]", "both [ms]", "peak memory beyond the input [MiB]"]
    setting = f"representation {SHAPE}, {NUM_CLASSES} classes, 256 queries, 512 keys"
    print(f"{setting}, {device}, {torch.get_num_threads()} threads, {repeats} repeats\n")
    print(tabulate(rows, headers, tablefmt="pipe", floatfmt=".0f"))


def now(device: torch.device) -> float:
    """Seconds of a clock, once the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
