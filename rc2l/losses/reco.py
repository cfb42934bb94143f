"""ReCo, regional contrast (eq. 1 to 4): pixels of a class towards its mean, away from those of confusable classes.

Letters: ``B`` images, ``K`` classes, ``C`` channels, ``h w`` pixels, ``P = B h w`` pixels of the mini-batch as one list
in row-major order, ``Q`` queries and ``N`` keys for each class.

All K classes are always computed, and those that are absent or have no query are masked: shapes never depend on the
data, so a GPU never waits for the host. Only sampled pixels are gathered.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rc2l.structures.class_groups import ClassGroups, class_counts
from rc2l.structures.class_ring import ClassRing
from rc2l.structures.label_map import with_ignored_as
from rc2l.structures.ranges import MOST_THINGS, SHARE, check_fields, integer, number, one_of

QUERIES = ("active", "random", "easy")
KEYS = ("active", "random")
KEY_SETS = ("class", "query")
#: What each field of :class:`RecoOptions` may be.
OPTIONS = {
    "num_queries": integer(at_least=1, at_most=MOST_THINGS),
    "num_keys": integer(at_least=1, at_most=MOST_THINGS),
    "temperature": number(above=0),
    "relation_temperature": number(above=0),
    "hard_threshold": SHARE,
    "queries": one_of(*QUERIES),
    "keys": one_of(*KEYS),
    "key_sets": one_of(*KEY_SETS),
}
#: Largest number of similarities held at once where every query has keys of its own.
_BLOCK = 2**23


@dataclass(frozen=True)
class RecoOptions:
    """Settings of :func:`reco_loss`; the defaults are the paper's (appendix A)."""

    #: Q and N, queries and negative keys for each class.
    num_queries: int = 256
    num_keys: int = 512
    #: tau of eq. 1.
    temperature: float = 0.5
    #: Divides the similarities of classes before their softmax. The paper has none (1.0), its authors' code uses tau.
    relation_temperature: float = 0.5
    #: delta_s of eq. 4, in [0, 1]: a pixel is hard where the probability of its own class is below.
    hard_threshold: float = 0.97
    #: Which pixels are queries (Fig. 7e): ``active`` hard ones, ``easy`` the others, ``random`` any of the class.
    queries: str = "active"
    #: Which classes keys come from (Fig. 7e): ``active`` by the relation graph, ``random`` any pixel of another class.
    keys: str = "active"
    #: ``class``: one key set R_k^c for all queries of a class, as eq. 1 has it. ``query``: a set for each query, as the
    #: authors' code does. Each query's keys have the same distribution, so the expected loss and gradient are equal;
    #: ``query`` has less variance and costs P / N times as much.
    key_sets: str = "class"

    def __post_init__(self) -> None:
        check_fields(self, OPTIONS)


@dataclass
class Reco:
    """The loss of a mini-batch and what is worth watching about it; all but the loss without gradient."""

    #: () eq. 1 as a mean over queries and over the classes present; 0, with a graph, where nothing can be learned.
    loss: Tensor
    #: (K,) contribution of each class before the mean over classes.
    class_loss: Tensor
    #: (K,) mean cosine similarity of the class's queries with its mean, and with the keys; 0 where not active.
    positive_similarity: Tensor
    negative_similarity: Tensor
    #: (K,) int64 number of usable pixels, and of those that may be queries.
    usable: Tensor
    candidates: Tensor
    #: (K,) bool: has a query, and another class to tell it from.
    active: Tensor
    #: (K, K) relation graph of eq. 3, cosine similarities; 0 for absent classes and on the diagonal.
    relations: Tensor

    @property
    def present(self) -> Tensor:
        """(K,) bool."""
        return self.usable > 0


def class_means(representation: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """r^{c,+} of eq. 2: mean representation of each class over its pixels, 0 for absent classes; no gradient.

    Shape:
        representation (B, C, h, w); labels (B, h, w) int64 in 0..num_classes, the last for pixels that are not used.
        Result (K, C), at least float32.
    """
    features = representation.detach().flatten(2)
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    classes = torch.arange(num_classes, device=labels.device)
    member = (labels.flatten(1)[:, :, None] == classes).to(features.dtype)
    return (features @ member).sum(0).T / member.sum((0, 1))[:, None].clamp(min=1)


def memory_means(memory: ClassRing) -> Tensor:
    """(K, C) mean projection of each class over the entries of a bank, 0 where it holds none."""
    filled = torch.arange(memory.projections.shape[1], device=memory.count.device) < memory.count[:, None]
    sums = torch.einsum("kmc,km->kc", memory.projections, filled.to(memory.projections.dtype))
    return sums / memory.count[:, None].clamp(min=1)


def class_relations(means: Tensor, present: Tensor) -> Tensor:
    """Relation graph G of eq. 3: cosine similarity of class means; 0 on the diagonal and for absent classes.

    Shape:
        means (K, C); present (K,) bool. Result (K, K) in [-1, 1].
    """
    unit = F.normalize(means, dim=1)
    pair = present[:, None] & present & ~torch.eye(len(present), dtype=torch.bool, device=present.device)
    return torch.where(pair, unit @ unit.T, 0)


def key_probabilities(relations: Tensor, usable: Tensor, options: RecoOptions) -> Tensor:
    """Probability that a key for class c (row) comes from class j (column); section 3.2.

    ``active`` keys: softmax over the present j != c of the relation graph. ``random`` keys: share of the pixels.

    Shape:
        relations (K, K); usable (K,) pixel counts. Result (K, K); rows sum to 1, or to 0 where there is no other class.
    """
    itself = torch.eye(len(usable), dtype=torch.bool, device=usable.device)
    allowed = (usable > 0) & ~itself
    if options.keys == "random":
        weights = torch.where(allowed, usable.to(relations.dtype), 0)
        return weights / weights.sum(1, keepdim=True).clamp(min=1)
    scaled = torch.where(allowed, relations / options.relation_temperature, float("-inf"))
    # A row without any other class is uniform for the softmax, which must not see only -inf, and then 0.
    scaled = torch.where(allowed.any(1, keepdim=True), scaled, 0)
    return torch.where(allowed, scaled.softmax(1), 0)


def sampled_contrast(queries: Tensor, positives: Tensor, keys: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Eq. 1 for given samples, with one key set for each class; gradient to the queries only.

    Shape:
        queries (K, Q, C), positives (K, C), keys (K, N, C), of any length. Results: loss of each query (K, Q), and mean
        similarity of each query with its keys (K, Q).
    """
    queries = F.normalize(queries, dim=-1)
    similarity = queries @ F.normalize(keys.detach(), dim=-1).transpose(1, 2)
    return _contrast(_positive_similarity(queries, positives), similarity, temperature), similarity.detach().mean(-1)


def sampled_contrast_per_query(
    queries: Tensor, positives: Tensor, pixels: Tensor, key_pixels: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Eq. 1 for given samples, with keys of its own for every query; gradient to the queries only.

    Similarities with all P pixels, of a block of queries at a time, are cheaper than gathered keys: those would be
    K Q N C numbers.

    Shape:
        queries (K, Q, C), positives (K, C), pixels (P, C), key_pixels (K, Q, N) int64. Results as
        :func:`sampled_contrast`.
    """
    queries = F.normalize(queries, dim=-1)
    K, Q, C = queries.shape
    positive = _positive_similarity(queries, positives).flatten()
    unit = F.normalize(pixels.detach(), dim=-1).T
    rows, chosen = queries.reshape(K * Q, C), key_pixels.reshape(K * Q, -1)
    size = max(1, _BLOCK // unit.shape[1])
    losses, means = [], []
    for row, own, index in zip(rows.split(size), positive.split(size), chosen.split(size), strict=True):
        similarity = (row @ unit).gather(1, index)
        losses.append(_contrast(own, similarity, temperature))
        means.append(similarity.detach().mean(-1))
    return torch.cat(losses).view(K, Q), torch.cat(means).view(K, Q)


def _positive_similarity(unit_queries: Tensor, positives: Tensor) -> Tensor:
    return (unit_queries @ F.normalize(positives.detach(), dim=-1)[:, :, None])[..., 0]


def _contrast(positive: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """-log( e^p / (e^p + sum e^n) ) = softplus(logsumexp(n) - p)."""
    return F.softplus((negatives / temperature).logsumexp(-1) - positive / temperature)


def reco_loss(
    representation: Tensor,
    labels: Tensor,
    own_probability: Tensor,
    num_classes: int,
    options: RecoOptions = RecoOptions(),  # noqa: B008  frozen
    generator: torch.Generator | None = None,
    memory: ClassRing | None = None,
) -> Reco:
    """ReCo loss of a mini-batch of labelled and pseudo-labelled pixels (eq. 1 to 4).

    The loss is the mean over a class's queries, then over all classes present, those without a query counting as 0 (as
    the authors' code does). Fewer than two classes or no query at all give 0 with a graph. Half precision is computed
    in float32.

    Args:
        representation: (B, C, h, w) output of the projection head.
        labels: (B, h, w) integers in 0..num_classes-1; 255 where a pixel is not used: no label, or a
            pseudo label below delta_w.
        own_probability: (B, h, w) in [0, 1], the predicted probability of the pixel's own label; no gradient.
        num_classes: K.
        options: sampling and temperatures.
        generator: source of randomness, on the tensors' device; torch's own by default.
        memory: a bank whose projections take the place of the mini-batch's pixels in class means, relation graph and
            keys (appendix B, "feature bank methods"); a class of which it holds nothing is not active.

    Raises:
        ValueError: shapes do not fit.
    """
    B, C, h, w = representation.shape
    if labels.shape != (B, h, w) or own_probability.shape != (B, h, w):
        raise ValueError(
            f"representation is {tuple(representation.shape)}, so labels and own_probability must be {(B, h, w)}, but "
            f"they are {tuple(labels.shape)} and {tuple(own_probability.shape)}"
        )
    labels = with_ignored_as(labels, num_classes)
    flat, candidate = labels.flatten(), query_candidates(own_probability, options).flatten()
    groups = ClassGroups.of(flat, num_classes, ~candidate)  # candidates first
    candidates = class_counts(torch.where(candidate, flat, num_classes), num_classes)
    pixels = representation.permute(0, 2, 3, 1).reshape(B * h * w, C)
    with torch.no_grad():
        if memory is None:
            sources, source_pixels = groups, pixels.detach()
            means = class_means(representation, labels, num_classes)
        else:
            sources = ClassGroups.of_rings(memory.count, memory.projections.shape[1])
            source_pixels = memory.projections.flatten(0, 1)
            means = memory_means(memory)
        known = sources.count > 0
        relations = class_relations(means, known)
        probabilities = key_probabilities(relations, sources.count, options)
    query_pixels = groups.draw_own(candidates, options.num_queries, generator)
    queries = pixels[query_pixels].to(means.dtype)
    if options.key_sets == "query":
        key_pixels = sources.draw_any(probabilities, options.num_queries * options.num_keys, generator)
        key_pixels = key_pixels.view(num_classes, options.num_queries, options.num_keys)
        all_pixels = source_pixels.to(means.dtype)
        loss, negative = sampled_contrast_per_query(queries, means, all_pixels, key_pixels, options.temperature)
    else:
        key_pixels = sources.draw_any(probabilities, options.num_keys, generator)
        keys = source_pixels[key_pixels].to(means.dtype)
        loss, negative = sampled_contrast(queries, means, keys, options.temperature)

    present = groups.count > 0
    active = (candidates > 0) & known & (known.sum() > 1)
    class_loss = torch.where(active, loss.mean(1), 0)
    with torch.no_grad():
        positive = _positive_similarity(F.normalize(queries, dim=-1), means).mean(1)
    return Reco(
        loss=class_loss.sum() / present.sum().clamp(min=1),
        class_loss=class_loss.detach(),
        positive_similarity=torch.where(active, positive, 0),
        negative_similarity=torch.where(active, negative.mean(1), 0),
        usable=groups.count,
        candidates=candidates,
        active=active,
        relations=relations,
    )


def query_candidates(own_probability: Tensor, options: RecoOptions) -> Tensor:
    """Which pixels may be queries (eq. 4): hard where the probability is below delta_s. Shape: any, bool alike."""
    if options.queries == "random":
        return torch.ones_like(own_probability, dtype=torch.bool)
    hard = own_probability < options.hard_threshold
    return hard if options.queries == "active" else ~hard
