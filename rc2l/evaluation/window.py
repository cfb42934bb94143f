"""Sliding window: large images are scored in overlapping pieces, which are blended without seams."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import torch
from detectron2.config import CfgNode
from torch import Tensor

#: Scores of some windows of one size, by their (top, left) corners: (K, height, width) each.
ScoreWindows = Callable[[list[tuple[int, int]], tuple[int, int]], Sequence[Tensor]]


@dataclass(frozen=True)
class SlidingWindow:
    """How an image is cut into windows.

    Attributes:
        size: (height, width) in pixels of the image that the network sees.
        stride: from window to window, as a share of the size in (0, 1], or in pixels where it is above 1.
        blending: "linear": the weight of a window falls from its overlap on towards its border; "uniform": all its
            pixels have the same weight.
        batch_size: windows that the network sees at once.
    """

    size: tuple[int, int]
    stride: float = 0.75
    blending: str = "linear"
    batch_size: int = 4

    def covers(self, height: int, width: int) -> bool:
        """Whether one window is the whole image."""
        return height <= self.size[0] and width <= self.size[1]

    def axis(self, length: int, dim: int) -> tuple[list[int], Tensor]:
        """Where windows begin along one side of an image, and what they weigh there.

        Args:
            length: of the side, in pixels.
            dim: 0: its height, 1: its width.

        Returns:
            n starts, ascending, evenly spaced from 0 to the last that fits, and weights (n, s) float32 above 0 of the
            ``s = min(size, length)`` pixels of each window. At every pixel the weights of all windows add up to 1.
        """
        size = min(self.size[dim], length)
        step = min(max(round(self.stride * size if self.stride <= 1 else self.stride), 1), size)
        count = ceil((length - size) / step) + 1
        starts = [round(i * (length - size) / max(count - 1, 1)) for i in range(count)]
        weights = torch.ones(count, size, dtype=torch.float64)
        if self.blending == "linear":
            inner = torch.arange(size, dtype=torch.float64) + 0.5
            for i, start in enumerate(starts):
                before = starts[i - 1] + size - start if i else 0
                after = start + size - starts[i + 1] if i + 1 < count else 0
                if before > 0:
                    weights[i] *= (inner / before).clamp(max=1)
                if after > 0:
                    weights[i] *= (inner.flip(0) / after).clamp(max=1)
        total = torch.zeros(length, dtype=torch.float64)
        for start, weight in zip(starts, weights, strict=True):
            total[start : start + size] += weight
        for start, weight in zip(starts, weights, strict=True):
            weight /= total[start : start + size]
        return starts, weights.float()


def build_window(cfg: CfgNode) -> SlidingWindow | None:
    """What ``TEST.WINDOW`` asks for; None: whole images."""
    options = cfg.TEST.WINDOW
    if not options.SIZE:
        return None
    return SlidingWindow(tuple(options.SIZE), options.STRIDE, options.BLENDING, options.BATCH_SIZE)


def scores_by_rows(window: SlidingWindow, height: int, width: int, score: ScoreWindows) -> Iterator[tuple[int, Tensor]]:
    """Blended scores of an image of any size, from top to bottom, each row as soon as no window below touches it.

    Memory is that of the windows of one row: K x window height x image width x 4 bytes, whatever the image's height.

    Args:
        window: how the image is cut.
        height, width: of the image, in pixels.
        score: called with up to ``batch_size`` corners and the size of these windows.

    Yields:
        The first row, and scores (K, rows, width) float32; valid until the next ones are asked for.
    """
    (tops, row_weights), (lefts, column_weights) = window.axis(height, 0), window.axis(width, 1)
    size = row_weights.shape[1], column_weights.shape[1]
    strip = None
    for i, top in enumerate(tops):
        for first in range(0, len(lefts), window.batch_size):
            batch = lefts[first : first + window.batch_size]
            scores = score([(top, left) for left in batch], size)
            if strip is None:
                strip = scores[0].new_zeros(len(scores[0]), size[0], width, dtype=torch.float32)
            for left, weight, piece in zip(batch, column_weights[first:], scores, strict=False):
                weights = (row_weights[i][:, None] * weight).to(piece.device)
                strip[:, :, left : left + size[1]].addcmul_(piece.float(), weights)
        done = (tops[i + 1] if i + 1 < len(tops) else height) - top
        yield top, strip[:, :done]
        if i + 1 < len(tops):
            for plane in strip:  # one class after the other: no second strip is needed
                plane[: size[0] - done] = plane[done:].clone()
                plane[size[0] - done :] = 0
