"""How well features form a cluster for each class: three scores of a sample of pixels (DGCL's table of clusters)."""

import torch
import torch.nn.functional as F
from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score, silhouette_score
from torch import Tensor

#: Higher is better for the first two, lower for the last.
CLUSTER_SCORES = {
    "silhouette": silhouette_score,
    "calinski_harabasz": calinski_harabasz_score,
    "davies_bouldin": davies_bouldin_score,
}


class PixelSample:
    """Up to ``per_class`` pixels of each class, drawn evenly from all that were added, in bounded memory.

    Every pixel gets a random number, and those of a class with the smallest numbers stay. The sample depends on the
    seed and the order of pixels, not on how they are split into calls of :meth:`add`.

    Args:
        num_classes: K.
        per_class: at least 2; a class of fewer pixels is kept whole.
        seed: of the draw.

    Raises:
        ValueError: ``per_class`` is below 2.
    """

    def __init__(self, num_classes: int, per_class: int, seed: int = 0) -> None:
        if per_class < 2:
            raise ValueError(f"pixels per class is {per_class}: it must be at least 2, for distances inside a class")
        self.num_classes, self.per_class = num_classes, per_class
        self._generator = torch.Generator().manual_seed(seed)
        #: Pixels of a class with a larger number can no longer be in the sample.
        self._limit = torch.full((num_classes,), float("inf"), dtype=torch.float64)
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, vectors: Tensor, classes: Tensor) -> None:
        """Shape: vectors (P, C), on any device; classes (P,) integers in 0..K-1."""
        classes = classes.long().cpu()
        numbers = torch.rand(len(classes), dtype=torch.float64, generator=self._generator)
        near = numbers < self._limit[classes]
        self._parts.append((vectors[near.to(vectors.device)].float().cpu(), classes[near], numbers[near]))
        if sum(len(part[1]) for part in self._parts) > 2 * self.num_classes * self.per_class:
            self._thin_out()

    def pixels(self) -> tuple[Tensor, Tensor]:
        """The sample: vectors (n, C) float32 and classes (n,) int64, in order of class.

        Raises:
            ValueError: nothing was added.
        """
        if not self._parts:
            raise ValueError("no pixel of a known class was added")
        self._thin_out()
        vectors, classes, _ = self._parts[0]
        return vectors, classes

    def _thin_out(self) -> None:
        vectors, classes, numbers = (torch.cat(parts) for parts in zip(*self._parts, strict=True))
        order = numbers.argsort(stable=True)
        order = order[classes[order].argsort(stable=True)]
        counts = torch.bincount(classes, minlength=self.num_classes)
        rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[classes[order]]
        kept = order[rank < self.per_class]
        self._parts = [(vectors[kept], classes[kept], numbers[kept])]
        last = order[rank == self.per_class - 1]
        self._limit[classes[last]] = numbers[last]


def cluster_scores(vectors: Tensor, classes: Tensor) -> dict[str, float]:
    """Silhouette, Calinski-Harabasz and Davies-Bouldin score (scikit-learn's) with classes as clusters.

    Vectors are divided by their length first, and distances are Euclidean, for all three: on the unit sphere these rise
    with the cosine distance, which contrast is trained in (DGCL's poster names no metric). The silhouette, in [-1, 1],
    is a mean over pixels and takes n² distances. Calinski-Harabasz, at least 0, grows with n: compare it between
    samples of one size. Davies-Bouldin is at least 0.

    Shape:
        vectors (n, C); classes (n,) integers.

    Raises:
        ValueError: a value is not finite, there are fewer than two classes, or no class has two pixels.
    """
    if not vectors.isfinite().all():
        raise ValueError("features are not finite, so they have no cluster scores: the network has diverged")
    present = classes.unique()
    if not 2 <= len(present) < len(classes):
        raise ValueError(
            f"cluster scores need at least 2 classes and a class of 2 pixels; there are {len(present)} classes in "
            f"{len(classes)} pixels"
        )
    unit, names = F.normalize(vectors.double(), dim=1).numpy(), classes.numpy()
    return {name: float(score(unit, names)) for name, score in CLUSTER_SCORES.items()}
