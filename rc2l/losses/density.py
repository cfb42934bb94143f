"""Multi-scale local density of features (DGCL): how close a feature is to its nearest ones of the same class.

Letters: ``P`` pixels, ``K`` classes, ``C`` channels, ``m`` places of a class's memory.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rc2l.structures.class_groups import ClassGroups

#: Rows of one class that are compared with its memory at once.
_ROWS = 128
#: Largest number of floats gathered and computed at once: 64 MiB.
_BLOCK = 2**24


@torch.no_grad()
def local_density(
    features: Tensor, labels: Tensor, memory_features: Tensor, memory_count: Tensor, neighbors: Sequence[int]
) -> Tensor:
    """Density of every pixel among the memory features of its own class, see :func:`block_density`.

    Pixels are sorted into blocks of one class, whose number does not depend on the labels.

    Args:
        features: (P, C), of any length.
        labels: (P,) int64 in 0..K, K for pixels of no class.
        memory_features: (K, m, C) of length 1 each.
        memory_count: (K,) int64, filled places; those after them are not looked at.
        neighbors: numbers of neighbours, each at least 1.

    Returns:
        (P,) in [-1, 1], at least float32; 0 for pixels of no class and where the class has no entry.
    """
    P, K = len(features), len(memory_count)
    groups = ClassGroups.of(labels, K)
    blocks = -(-groups.count // _ROWS)
    end = blocks.cumsum(0)
    block = torch.arange(P // _ROWS + K, device=labels.device)
    block_class = torch.searchsorted(end, block, right=True).clamp(max=K - 1)
    rank = ((block - (end - blocks)[block_class]) * _ROWS)[:, None] + torch.arange(_ROWS, device=labels.device)
    pixel = groups.order[(groups.start[block_class][:, None] + rank).clamp(max=P - 1)]
    density = block_density(features[pixel], block_class, memory_features, memory_count, neighbors)
    # Rows beyond a block's class go to a place of their own, which is cut off.
    valid = rank < groups.count[block_class][:, None]
    result = torch.zeros(P + 1, dtype=density.dtype, device=density.device)
    result[torch.where(valid, pixel, P)] = density
    return result[:P]


@torch.no_grad()
def block_density(
    features: Tensor,
    block_class: Tensor,
    memory_features: Tensor,
    memory_count: Tensor,
    neighbors: Sequence[int],
    own: Tensor | None = None,
) -> Tensor:
    """Mean over ``k`` in ``neighbors`` of the mean cosine similarity to the k nearest memory features of the class.

    Where a class has fewer than k entries, the mean is over those there are. As many blocks as memory allows are
    compared at once: what is needed beyond the inputs is bounded whatever their sizes.

    Args:
        features: (G, R, C), G blocks of R rows of one class each, of any length.
        block_class: (G,) int64 in 0..K-1.
        memory_features, memory_count, neighbours: as of :func:`local_density`.
        own: (G, R) int64, the place of a feature that is in the memory itself, not its own neighbour; -1: it is
            not in the memory.

    Returns:
        (G, R) in [-1, 1], at least float32; 0 where the class has no (other) entry.
    """
    (_, R, C), m = features.shape, memory_features.shape[1]
    place = torch.arange(m, device=features.device)
    scales = torch.tensor(neighbors, device=features.device)
    nearest = min(max(neighbors), m)
    at_once = max(1, _BLOCK // (m * (R + C)))
    densities = []
    for part, rows in enumerate(features.split(at_once)):
        row_class = block_class[part * at_once : (part + 1) * at_once]
        count = memory_count[row_class][:, None]
        unit = F.normalize(rows.to(memory_features.dtype), dim=2)
        similarity = unit @ memory_features[row_class].transpose(1, 2)
        similarity.masked_fill_((place >= count)[:, None], float("-inf"))
        if own is not None:
            itself = own[part * at_once : (part + 1) * at_once]
            column, stored = itself.clamp(min=0)[..., None], itself >= 0
            similarity.scatter_(2, column, similarity.gather(2, column).masked_fill(stored[..., None], float("-inf")))
            count = count - stored.long()
        top = similarity.topk(nearest, dim=2).values
        sums = torch.where(top.isfinite(), top, 0).cumsum(2)
        used = torch.minimum(scales, count[..., None])
        densities.append((sums[..., scales.clamp(max=nearest) - 1] / used.clamp(min=1)).mean(2))
    return torch.cat(densities)
