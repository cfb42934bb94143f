"""Class relation graphs as pictures: the pairwise matrix and the dendrogram of ReCo section 5.

matplotlib and scipy.cluster are imported where they are used: they take two seconds, which every start would pay.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 100
_CELL = 0.28  # inches for each class


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def relation_figure(relations: np.ndarray, class_names: Sequence[str], title: str = "") -> Figure:
    """The matrix of pairwise class similarities; brighter is closer.

    Args:
        relations: (K, K) cosine similarities; the diagonal and NaN (absent classes) stay blank.
        class_names: K names.
        title: above the matrix.
    """
    relations = np.where(np.eye(len(relations), dtype=bool), np.nan, relations)
    side = 2.5 + _CELL * len(class_names)
    figure = _figure(side + 1, side)
    axes = figure.add_subplot()
    picture = axes.imshow(np.ma.masked_invalid(relations), cmap="viridis")
    axes.set_xticks(range(len(class_names)), class_names, rotation=90)
    axes.set_yticks(range(len(class_names)), class_names)
    axes.set_title(title)
    figure.colorbar(picture, ax=axes, shrink=0.8)
    return figure


def relation_image(relations: np.ndarray, class_names: Sequence[str], title: str = "") -> np.ndarray:
    """:func:`relation_figure` as (height, width, 3) uint8, for TensorBoard."""
    figure = relation_figure(relations, class_names, title)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def class_linkage(relations: np.ndarray) -> np.ndarray:
    """SciPy's average-linkage clustering of classes by 1 - similarity.

    Args:
        relations: (K, K) symmetric cosine similarities of at least two classes, no NaN.

    Returns:
        (K-1, 4) as :func:`scipy.cluster.hierarchy.linkage`.
    """
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    distance = np.clip(1 - (relations + relations.T) / 2, 0, None)
    np.fill_diagonal(distance, 0)
    return linkage(squareform(distance, checks=False), method="average", optimal_ordering=True)


def dendrogram_figure(relations: np.ndarray, class_names: Sequence[str], title: str = "") -> Figure:
    """The dendrogram of :func:`class_linkage`; arguments as there."""
    from scipy.cluster.hierarchy import dendrogram

    figure = _figure(6, 1.5 + _CELL * len(class_names))
    axes = figure.add_subplot()
    dendrogram(class_linkage(relations), labels=list(class_names), orientation="right", ax=axes, color_threshold=0)
    axes.set_xlabel("1 - cosine similarity")
    axes.set_title(title)
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG; its folder is made if missing."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
