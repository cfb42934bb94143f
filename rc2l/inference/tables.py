"""What was predicted, in tables: one row an image, and one a class."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tabulate import tabulate

from rc2l.structures.label_map import IGNORE

#: Columns of images.csv before the share of each class.
_IMAGE_COLUMNS = ("image", "path", "width", "height", "seconds", "mean_confidence")


@dataclass
class Tally:
    """How many pixels have each label, and how sure the network was of them."""

    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, dtype=np.int64))
    #: Sum of the confidence of the pixels of each label.
    confidence: np.ndarray = field(default_factory=lambda: np.zeros(256))

    def add(self, label_map: np.ndarray, confidence: np.ndarray) -> None:
        """Shape: both (H, W); labels uint8, confidence in [0, 1]."""
        labels = label_map.ravel()
        self.pixels += np.bincount(labels, minlength=256)
        self.confidence += np.bincount(labels, weights=confidence.ravel(), minlength=256)

    def join(self, other: "Tally") -> None:
        self.pixels += other.pixels
        self.confidence += other.confidence

    def share(self, label: int) -> float:
        """Share of the pixels with a label, in [0, 1]."""
        return float(self.pixels[label] / max(self.pixels.sum(), 1))

    def mean_confidence(self, label: int | None = None) -> float:
        """Of the pixels with a label, or of all; NaN where there are none."""
        pixels, total = (
            (self.pixels.sum(), self.confidence.sum())
            if label is None
            else (self.pixels[label], self.confidence[label])
        )
        return float(total / pixels) if pixels else float("nan")


class ImageTable:
    """images.csv, a row as soon as an image is labelled.

    Columns: image (name of its results), path, width and height in pixels, seconds, mean_confidence in [0, 1], and the
    share of each class and of the pixels left open ("unsure"), in [0, 1].

    Args:
        path: of the file, which is replaced.
        class_names: K names.
    """

    def __init__(self, path: Path, class_names: Sequence[str]) -> None:
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)
        self._labels = [*range(len(class_names)), IGNORE]
        self._writer.writerow([*_IMAGE_COLUMNS, *(f"share of {name}" for name in class_names), "share of unsure"])
        self.rows = 0
        self.total = Tally()
        self.seconds = 0.0

    def add(self, name: str, path: Path, size: tuple[int, int], seconds: float, tally: Tally) -> None:
        """Size: (height, width)."""
        numbers = [f"{seconds:.3f}", f"{tally.mean_confidence():.4f}"]
        shares = [f"{tally.share(label):.5f}" for label in self._labels]
        self._writer.writerow([name, path, size[1], size[0], *numbers, *shares])
        self._file.flush()
        self.rows, self.seconds = self.rows + 1, self.seconds + seconds
        self.total.join(tally)

    def close(self) -> None:
        self._file.close()


def write_class_table(path: Path, class_names: Sequence[str], colors: Sequence[Sequence[int]], tally: Tally) -> None:
    """classes.csv: id, class, color (#rrggbb), share of the pixels in [0, 1], mean_confidence in [0, 1] or empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "class", "color", "share", "mean_confidence"])
        named = [(k, name, colors[k]) for k, name in enumerate(class_names)]
        for label, name, color in [*named, (IGNORE, "unsure", None)]:
            sure = f"{tally.mean_confidence(label):.4f}" if tally.pixels[label] else ""
            code = "#{:02x}{:02x}{:02x}".format(*map(int, color)) if color is not None else ""
            writer.writerow([label, name, code, f"{tally.share(label):.6f}", sure])


def class_report(class_names: Sequence[str], tally: Tally) -> str:
    """Share and confidence of each class, and of what was left open, if anything was, for people."""
    rows = [
        (name, f"{tally.share(k):.1%}", f"{tally.mean_confidence(k):.2f}" if tally.pixels[k] else "")
        for k, name in [*enumerate(class_names), (IGNORE, "unsure (255)")]
        if k != IGNORE or tally.pixels[k]
    ]
    return tabulate(rows, headers=("class", "share of pixels", "mean confidence"), tablefmt="github")
