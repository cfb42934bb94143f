"""Numbers worth watching, kept on the device and fetched once every few iterations."""

import math
import sys

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor

from rc2l.structures.label_map import with_ignored_as
from rc2l.structures.views import PseudoLabels

try:
    import resource
except ImportError:  # Windows has none
    resource = None


def pseudo_label_metrics(pseudo: PseudoLabels, mixed_label_map: Tensor, class_names: list[str]) -> dict[str, Tensor]:
    """How a batch of pseudo labels looks: a collapsing teacher shows here long before it shows in the mIoU.

    Args:
        pseudo: the teacher's pseudo labels of the weak views.
        mixed_label_map: (B, H, W) uint8, what the student is trained on.
        class_names: K names.

    Returns:
        0-d tensors: share of pixels kept, mean confidence of all pixels, regions per image, and for each class its
        share of the kept pixels.
    """
    K = len(class_names)
    slots = with_ignored_as(mixed_label_map, K).flatten(1)
    pixels = torch.zeros(len(slots), K + 1, device=slots.device)
    pixels = pixels.scatter_add_(1, slots, torch.ones_like(slots, dtype=pixels.dtype))[:, :K]
    counts = pixels.sum(0)
    metrics = {
        "pseudo/kept_share": counts.sum() / slots.numel(),
        "pseudo/confidence": pseudo.confidence.mean(),
        "pseudo/regions_per_image": (pixels > 0).sum(1).float().mean(),
    }
    shares = counts / counts.sum().clamp(min=1)
    return metrics | {f"pseudo/class_share/{name}": share for name, share in zip(class_names, shares, strict=True)}


def peak_memory() -> float | None:
    """MiB that this process had at most: of its GPU where it uses one, else of the machine; None: nobody knows."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def write_metrics(storage: EventStorage, metrics: dict[str, Tensor], data_time: float) -> dict[str, float]:
    """Put the mean over processes of 0-d tensors, if finite, into the event storage with one device-to-host copy.

    With them go ``data_time``, the seconds of this step that were spent waiting for images, and ``memory_mib``, the
    most memory so far, each of the process that has most.

    Returns:
        This process's own values.
    """
    values = torch.stack([value.detach().float() for value in metrics.values()]).cpu().tolist()
    own = dict(zip(metrics, values, strict=True))
    gathered = comm.gather(own | {"data_time": data_time, "memory_mib": peak_memory()})
    if comm.is_main_process():
        for name in own:
            mean = sum(process[name] for process in gathered) / len(gathered)
            # The norm of a gradient that overflowed under fp16 is no number that a file could hold.
            if math.isfinite(mean):
                storage.put_scalar(name, mean)
        storage.put_scalar("data_time", max(process["data_time"] for process in gathered))
        if all(process["memory_mib"] for process in gathered):
            storage.put_scalar("memory_mib", max(process["memory_mib"] for process in gathered))
    return own
