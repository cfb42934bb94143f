"""DGCL, density-guided contrast: sparse features of a class towards its dense ones, away from other classes.

Letters: ``P`` pixels of the mini-batch as one list, ``K`` classes, ``C`` channels, ``m`` places of a class's memory,
``A`` anchors, ``H`` positives of either source and ``N`` negatives for each class.

All K classes are always computed, and those that are absent, skipped, or without memory are masked: shapes never depend
on the data, so a GPU never waits for the host.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rc2l.losses.density import local_density
from rc2l.structures.class_groups import ClassGroups
from rc2l.structures.ranges import MOST_THINGS, check_fields, integer, number, one_of, several

ANCHORS = ("low_density", "random", "low_confidence")
POSITIVES = ("high_density", "average", "high_confidence")
#: What each field of :class:`DgclOptions` may be.
OPTIONS = {
    "num_anchors": integer(at_least=1, at_most=MOST_THINGS),
    "num_positives": integer(at_least=1, at_most=MOST_THINGS),
    "num_negatives": integer(at_least=1, at_most=MOST_THINGS),
    "temperature": number(above=0),
    "neighbors": several(integer(at_least=1, at_most=MOST_THINGS), at_least=1),
    "skip_classes": several(integer(at_least=0, at_most=254)),
    "anchors": one_of(*ANCHORS),
    "positives": one_of(*POSITIVES),
}


@dataclass(frozen=True)
class DgclOptions:
    """Settings of :func:`dgcl_loss`; the defaults are the poster's and its authors' code's."""

    #: k_low and k_high, pixels of each class at most: anchors, and positives from the batch and again from the memory.
    num_anchors: int = 200
    num_positives: int = 50
    #: Negatives for each class at most.
    num_negatives: int = 512
    #: tau, which divides similarities.
    temperature: float = 0.5
    #: Numbers of nearest neighbours over which density is averaged.
    neighbors: tuple[int, ...] = (8, 16, 32)
    #: Classes that give no anchors, such as background; their pixels are negatives all the same.
    skip_classes: tuple[int, ...] = ()
    #: Which pixels are anchors and of which the positive is the mean (ablation of the poster): by density, by the
    #: student's confidence, or drawn evenly, which for positives estimates the ``average`` of the class.
    anchors: str = "low_density"
    positives: str = "high_density"

    def __post_init__(self) -> None:
        check_fields(self, OPTIONS)

    def without_skipped(self, labels: Tensor, num_classes: int) -> Tensor:
        """Labels 0..K with those of skipped classes set to K, no class."""
        for k in self.skip_classes:
            labels = torch.where(labels == k, num_classes, labels)
        return labels


@dataclass(frozen=True)
class Memory:
    """What the memory bank holds, as the loss reads it (see :class:`rc2l.semi.density_memory.MemoryBank`)."""

    #: (K, m, C_f) of length 1 each, and (K, m, C) as the projection head gave them.
    features: Tensor
    projections: Tensor
    #: (K, m) density, -inf where it is not known or the place is empty.
    density: Tensor
    #: (K, m) the student's probability of the pixel's class, in [0, 1].
    confidence: Tensor
    #: (K,) int64 filled places, from the first on.
    count: Tensor


@dataclass
class Samples:
    """Which pixels are contrasted: indices into the list of pixels or the class's memory, and which of them count."""

    #: (K, A)
    anchors: Tensor
    anchor_valid: Tensor
    #: (K, H)
    positives: Tensor
    positive_valid: Tensor
    #: (K, min(H, m))
    memory_positives: Tensor
    memory_valid: Tensor
    #: (K, N)
    negatives: Tensor
    negative_valid: Tensor


@dataclass
class Dgcl:
    """The loss of a mini-batch and what is worth watching about it; all but the loss without gradient."""

    #: () mean over anchors, then over the active classes; 0, with a graph, where no class is active.
    loss: Tensor
    #: (K,) contribution of each class before the mean over classes; 0 where not active.
    class_loss: Tensor
    #: (K,) mean cosine similarity of the class's anchors with its positive, and with the negatives; 0 where not active.
    positive_similarity: Tensor
    negative_similarity: Tensor
    #: (K,) mean density of the class's anchors and of its positives in the batch; 0 where not active.
    anchor_density: Tensor
    positive_density: Tensor
    #: (K,) bool: present, not skipped, with enough memory, and with another class to tell it from.
    active: Tensor
    #: (P,) density of each pixel; 0 for those of no class, of a skipped one, or of one without memory.
    density: Tensor


def draw_samples(
    labels: Tensor,
    density: Tensor,
    confidence: Tensor,
    memory: Memory,
    options: DgclOptions,
    generator: torch.Generator | None = None,
) -> Samples:
    """Anchors, positives of batch and memory, and negatives of every class; arguments as :func:`dgcl_loss`.

    All of a kind are taken where a class has no more than the options ask for. More negatives than that are drawn
    without repetition, each pixel of another class being as likely as any.
    """
    K, device = len(memory.count), labels.device

    def drawn(shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, device=device, generator=generator)

    def rank_by(choice: str) -> Tensor:
        if choice.endswith("density"):
            return density
        return confidence if choice.endswith("confidence") else drawn(labels.shape)

    own = options.without_skipped(labels, K)
    anchors = ClassGroups.of(own, K, rank_by(options.anchors)).first(options.num_anchors)
    positives = ClassGroups.of(own, K, rank_by(options.positives)).last(options.num_positives)

    if options.positives == "average":
        score = drawn(memory.density.shape)
    else:
        score = memory.density if options.positives == "high_density" else memory.confidence
    empty = torch.arange(score.shape[1], device=device) >= memory.count[:, None]
    best = score.masked_fill(empty, float("-inf")).topk(min(options.num_positives, score.shape[1]), dim=1)

    shuffled = ClassGroups.of(labels, K, drawn(labels.shape))
    negatives = shuffled.others(options.num_negatives, drawn((K, 1)))
    return Samples(*anchors, *positives, best.indices, best.values.isfinite(), *negatives)


def sampled_contrast(
    projections: Tensor, memory_projections: Tensor, samples: Samples, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of every anchor for given samples: -log of the positive's share among it and the negatives.

    The positive is the mean of the projections, not of their directions, of all positives of batch and memory. Gradient
    to the anchors only.

    Shape:
        projections (P, C), memory_projections (K, m, C), float32. Results, each (K, A): loss, cosine similarity with
        the positive, mean of those with the negatives; where an anchor or its negatives are not valid: finite.
    """
    fixed = projections.detach()
    rows = torch.arange(len(memory_projections), device=projections.device)[:, None]
    members = torch.cat([fixed[samples.positives], memory_projections.detach()[rows, samples.memory_positives]], 1)
    weights = torch.cat([samples.positive_valid, samples.memory_valid], 1).to(members.dtype)
    positive = (weights[:, None] @ members)[:, 0]  # its length is of no consequence
    anchors = F.normalize(projections[samples.anchors], dim=-1)
    positive_similarity = (anchors @ F.normalize(positive, dim=-1)[..., None])[..., 0]
    similarity = anchors @ F.normalize(fixed[samples.negatives], dim=-1).transpose(1, 2)
    valid = samples.negative_valid[:, None]
    # Without any negative the sum would be that of an empty set, whose gradient is NaN; such a class is not active.
    scaled = (similarity / temperature).masked_fill(~valid & valid.any(2, keepdim=True), float("-inf"))
    loss = F.softplus(scaled.logsumexp(2) - positive_similarity / temperature)
    negative_similarity = _mean(similarity.detach(), valid.expand_as(similarity))
    return loss, positive_similarity.detach(), negative_similarity


def dgcl_loss(
    projections: Tensor,
    features: Tensor,
    labels: Tensor,
    confidence: Tensor,
    memory: Memory,
    options: DgclOptions = DgclOptions(),  # noqa: B008  frozen
    generator: torch.Generator | None = None,
) -> Dgcl:
    """DGCL's loss of the labelled and pseudo-labelled pixels of a mini-batch.

    A class takes part once its memory holds as many entries as the largest of ``options.neighbors``; the authors' code
    waits until the memory of every class is full. Unlike there, a class with few pixels has densities like any other
    (theirs are all 1 up to 32 pixels), the logarithm has no 1e-6 in it, and where no class is active the loss is a 0
    with a graph. Half precision is computed in float32.

    Args:
        projections: (P, C) output of the projection head; only anchors get a gradient.
        features: (P, C_f) the features whose density guides the choice; no gradient.
        labels: (P,) integers in 0..K-1, K for pixels that are not used.
        confidence: (P,) in [0, 1], the predicted probability of the pixel's own label; no gradient. Only read by the
            choices ``low_confidence`` and ``high_confidence``.
        memory: entries of each class.
        options: sampling and temperature.
        generator: source of randomness, on the tensors' device; torch's own by default.

    Raises:
        ValueError: shapes do not fit.
    """
    P, K = len(projections), len(memory.count)
    if any(len(tensor) != P for tensor in (features, labels, confidence)):
        raise ValueError(
            f"there are {P} projections, so features, labels and confidence must have this length, but they have "
            f"{len(features)}, {len(labels)} and {len(confidence)}"
        )
    labels = labels.long()
    projections = projections.to(torch.promote_types(projections.dtype, torch.float32))
    own = options.without_skipped(labels, K)
    density = local_density(features.detach(), own, memory.features, memory.count, options.neighbors)
    with torch.no_grad():
        samples = draw_samples(labels, density, confidence, memory, options, generator)
    loss, positive_similarity, negative_similarity = sampled_contrast(
        projections, memory.projections, samples, options.temperature
    )

    ready = memory.count >= max(options.neighbors)
    active = samples.anchor_valid.any(1) & samples.negative_valid.any(1) & ready

    def of_active(values: Tensor, valid: Tensor) -> Tensor:
        return torch.where(active, _mean(values, valid), 0)

    class_loss = of_active(loss, samples.anchor_valid)
    return Dgcl(
        loss=class_loss.sum() / active.sum().clamp(min=1),
        class_loss=class_loss.detach(),
        positive_similarity=of_active(positive_similarity, samples.anchor_valid),
        negative_similarity=of_active(negative_similarity, samples.anchor_valid),
        anchor_density=of_active(density[samples.anchors], samples.anchor_valid),
        positive_density=of_active(density[samples.positives], samples.positive_valid),
        active=active,
        density=density,
    )


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean over the valid values of the last axis, 0 where there is none."""
    return torch.where(valid, values, 0).sum(-1) / valid.sum(-1).clamp(min=1)
