"""The images on which a network scores best and worst, as small pictures; all others are forgotten at once."""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ScoredPicture:
    """One image of a test set."""

    #: mIoU of this image alone, in percent.
    score: float
    image_id: str
    #: (height, width, 3) uint8.
    picture: np.ndarray

    @property
    def order(self) -> tuple[float, str]:
        return self.score, self.image_id


class Extremes:
    """Keeps ``count`` pictures of each end.

    Args:
        count: how many, 0 or more.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._best: list[tuple] = []
        self._worst: list[tuple] = []
        self._seen = 0

    def add(self, score: float, image_id: str, draw: Callable[[], np.ndarray]) -> None:
        """Look at one image; it is drawn only where it belongs to the ones to keep so far."""
        picture = None
        for kept, sign in ((self._best, 1), (self._worst, -1)):
            # Of equal scores the earlier one stays.
            if len(kept) < self.count or (self.count and sign * score > kept[0][0]):
                picture = draw() if picture is None else picture
                entry = (sign * score, -self._seen, ScoredPicture(score, image_id, picture))
                (heapq.heappush if len(kept) < self.count else heapq.heapreplace)(kept, entry)
        self._seen += 1

    @property
    def kept(self) -> list[ScoredPicture]:
        """All that are kept, in no order; one that is both best and worst is there twice."""
        return [entry[-1] for entry in (*self._best, *self._worst)]


def best_and_worst(pictures: Iterable[ScoredPicture], count: int) -> tuple[list[ScoredPicture], list[ScoredPicture]]:
    """The ``count`` best, the best first, and the ``count`` worst, the worst first, of what several processes kept."""
    ordered = sorted({each.order: each for each in pictures}.values(), key=lambda each: each.order)
    return ordered[::-1][:count], ordered[:count]
