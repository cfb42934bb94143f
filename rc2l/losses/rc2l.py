"""The region losses of RC²L on unlabelled images: RMC, RFC (contrast), RCC, SMC (consistency).

Letters: ``B`` images, ``Q`` queries, ``K`` classes, ``T`` region slots per image, ``C`` channels, ``h w`` pixels.
Slot i of an image holds pseudo region i with class ``c_i^t`` and mask ``m_i^t`` and, where ``matched``, the student
query sigma(i) that the bipartite matching gave it. Every loss returns one value per slot, (B, T), 0 where it does not
apply; the caller divides their sum by the number of regions. The paper sums over the regions of an image, which would
let crowded images weigh more; the supervised loss takes the mean over regions, and so do we.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from rc2l.losses.mask import dice_loss, focal_loss, focal_loss_of_probabilities

UNIONS = ("sum", "max", "noisy_or", "hard")


def mask_similarity(student_masks: Tensor, pseudo_masks: Tensor, valid: Tensor) -> Tensor:
    """d(m_j^s, m_i^t) = 2 sum(m_j^s m_i^t) / (sum m_j^s + sum m_i^t) for all pairs of an image (RC²L after eq. 5).

    Shape:
        student_masks (B, T, h, w) in [0, 1]; pseudo_masks (B, T, h, w) bool; valid (B, h, w) bool. Result (B, T, T) in
        [0, 1], index [b, j, i]; 0 where both masks are empty.
    """
    student = (student_masks * valid[:, None]).flatten(2)
    pseudo = (pseudo_masks & valid[:, None]).flatten(2).to(student.dtype)
    overlap = student @ pseudo.transpose(1, 2)
    total = student.sum(2)[:, :, None] + pseudo.sum(2)[:, None, :]
    return 2 * overlap / total.clamp(min=torch.finfo(student.dtype).tiny)


def contrast(similarity: Tensor, matched: Tensor, temperature: float, positive_in_denominator: bool) -> Tensor:
    """-log( exp(s_ii / tau) / sum_j exp(s_ji / tau) ) of each slot i (the form shared by RC²L eq. 5 and 8).

    j runs over the other matched slots of the image and, if asked for, over i too. A slot without any other is 0.

    Shape:
        similarity (B, T, T), index [b, j, i]; matched (B, T) bool. Result (B, T).
    """
    scaled = similarity / temperature
    itself = torch.eye(scaled.shape[1], dtype=torch.bool, device=scaled.device)
    negative = matched[:, :, None] & matched[:, None, :] & ~itself
    applies = negative.any(1)
    counted = negative | (itself & applies[:, None, :]) if positive_in_denominator else negative
    # Slots that do not apply get one harmless finite entry, so that neither value nor gradient of the logsumexp is NaN.
    logits = torch.where(counted, scaled, float("-inf"))
    logits = torch.where(applies[:, None, :], logits, torch.zeros_like(scaled))
    loss = logits.logsumexp(1) - scaled.diagonal(dim1=1, dim2=2)
    return torch.where(applies, loss, scaled.diagonal(dim1=1, dim2=2) * 0)


def region_mask_contrast(
    student_masks: Tensor,
    pseudo_masks: Tensor,
    matched: Tensor,
    valid: Tensor,
    temperature: float,
    positive_in_denominator: bool = False,
) -> Tensor:
    """RMC (RC²L eq. 5): pull matched masks together, push the other matched masks of the image away.

    As printed (positive not in the denominator) the loss can be below 0.

    Shape:
        student_masks (B, T, h, w), of query sigma(i), in [0, 1]; pseudo_masks (B, T, h, w) bool; matched (B, T) bool;
        valid (B, h, w) bool. Result (B, T).
    """
    similarity = mask_similarity(student_masks, pseudo_masks, valid)
    return contrast(similarity, matched, temperature, positive_in_denominator)


def region_features(masks: Tensor, pixel_features: Tensor, valid: Tensor) -> Tensor:
    """GAP(m · F^s) (RC²L eq. 6 and 7): mean over all pixels of the features weighted by a mask, ignored pixels as 0.

    Shape:
        masks (B, T, h, w) in [0, 1]; pixel_features (B, C, h, w); valid (B, h, w) bool. Result (B, T, C).
    """
    weights = (masks * valid[:, None]).flatten(2)
    return weights @ pixel_features.flatten(2).transpose(1, 2) / weights.shape[2]


def region_feature_contrast(
    student_masks: Tensor,
    pseudo_masks: Tensor,
    pixel_features: Tensor,
    matched: Tensor,
    valid: Tensor,
    temperature: float,
    positive_in_denominator: bool = False,
    detach_target: bool = True,
) -> Tensor:
    """RFC (RC²L eq. 8): the contrast of RMC on the cosine similarity of region features.

    Both sides use the student's per-pixel features F^s, the target side with the pseudo masks (eq. 7).

    Shape:
        as :func:`region_mask_contrast`; pixel_features (B, C, h, w). Result (B, T).
    """
    source = F.normalize(region_features(student_masks, pixel_features, valid), dim=-1)
    target_features = pixel_features.detach() if detach_target else pixel_features
    target = F.normalize(region_features(pseudo_masks.to(student_masks.dtype), target_features, valid), dim=-1)
    return contrast(source @ target.transpose(1, 2), matched, temperature, positive_in_denominator)


def region_class_consistency(student_logits: Tensor, labels: Tensor, matched: Tensor) -> Tensor:
    """RCC (RC²L eq. 9): -log p^s_sigma(i)(c_i^t), "no object" being one of the K+1 classes.

    Shape:
        student_logits (B, T, K+1), of query sigma(i); labels (B, T) int64 in 0..K-1; matched (B, T) bool. Result
        (B, T).
    """
    loss = F.cross_entropy(student_logits.transpose(1, 2), labels, reduction="none")
    return loss * matched


class _AtMostOne(torch.autograd.Function):
    """min(x, 1), whose gradient still passes above 1 where a step against it lowers x."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x > 1)
        return x.clamp(max=1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (above,) = ctx.saved_tensors
        return torch.where(above, gradient.clamp(min=0), gradient)


class _NoisyOr(torch.autograd.Function):
    """1 - prod_q (1 - w_q m_q), query by query: neither pass holds a (B, T, Q, h, w) tensor."""

    @staticmethod
    def forward(ctx, weights: Tensor, masks: Tensor) -> Tensor:
        ctx.save_for_backward(weights, masks)
        return -torch.expm1(_log_none(weights, masks))

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        weights, masks = ctx.saved_tensors
        gradient = gradient * _log_none(weights, masks).exp()
        of_weights, of_masks = torch.empty_like(weights), torch.empty_like(masks)
        for q in range(masks.shape[1]):
            # The product without q is that of all divided by q's factor, which is never below eps.
            without = gradient / (1 - _claims(weights, masks, q))
            of_weights[:, :, q] = torch.einsum("bthw,bhw->bt", without, masks[:, q])
            of_masks[:, q] = torch.einsum("bthw,bt->bhw", without, weights[:, :, q])
        return of_weights, of_masks


def _claims(weights: Tensor, masks: Tensor, q: int) -> Tensor:
    claims = weights[:, :, q, None, None] * masks[:, None, q]
    return claims.clamp(max=1 - torch.finfo(claims.dtype).eps)


def _log_none(weights: Tensor, masks: Tensor) -> Tensor:
    """log prod_q (1 - w_q m_q)."""
    total = masks.new_zeros(*weights.shape[:2], *masks.shape[2:])
    for q in range(masks.shape[1]):
        total += torch.log1p(-_claims(weights, masks, q))
    return total


def semantic_union(logits: Tensor, masks: Tensor, labels: Tensor, union: str = "sum") -> Tensor:
    """Union({m_q^s}, c) of RC²L eq. 10: all student masks of a class merged into one.

    A plain clamp of ``sum`` and ``hard`` at 1 would have no gradient where several masks claim a pixel, wrongly claimed
    pixels included; here such a pixel is still pushed down where the loss asks for less, and never up. docs/results.md
    has the measurement that made this the default.

    Args:
        logits: (B, Q, K+1).
        masks: (B, Q, h, w) in [0, 1].
        labels: (B, T) int64, the classes to merge.
        union: ``sum``: sum_q p_q(c) m_q, at most 1. ``max``: max_q p_q(c) m_q. ``noisy_or``: 1 - prod_q (1 - p_q(c)
            m_q). ``hard``: sum, at most 1, of the masks of the queries whose most probable class is c.

    Returns:
        (B, T, h, w) in [0, 1].

    Raises:
        ValueError: unknown union.
    """
    num_classes = logits.shape[-1] - 1
    if union == "hard":
        class_probs = F.one_hot(logits[..., :-1].argmax(-1), num_classes).to(masks.dtype)
    elif union in UNIONS:
        class_probs = logits.softmax(-1)[..., :-1]
    else:
        raise ValueError(f"unknown union '{union}': RC2L.UNION must be one of {', '.join(UNIONS)}")
    # (B, T, Q): probability of each slot's class for each query
    weights = class_probs.transpose(1, 2).gather(1, labels[..., None].expand(-1, -1, class_probs.shape[1]))
    if union in ("sum", "hard"):
        return _AtMostOne.apply(torch.einsum("btq,bqhw->bthw", weights, masks))
    if union == "noisy_or":
        return _NoisyOr.apply(weights, masks)
    return (weights[..., None, None] * masks[:, None]).amax(2)


def semantic_mask_consistency(
    union: Tensor, pseudo_masks: Tensor, present: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor]:
    """SMC (RC²L eq. 10): L_mask between the union of a class and its pseudo mask, as (focal, dice), not weighted.

    Shape:
        union (B, T, h, w) in [0, 1] from :func:`semantic_union`; pseudo_masks (B, T, h, w) bool; present (B, T) bool:
        slots that hold a region; valid (B, h, w) bool. Result 2 x (B, T).
    """
    valid = valid[:, None]
    focal = focal_loss_of_probabilities(union, pseudo_masks, valid)
    return focal * present, dice_loss(union, pseudo_masks, valid) * present


def matched_mask_consistency(
    student_mask_logits: Tensor, pseudo_masks: Tensor, matched: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor]:
    """The baseline of RC²L table 3: L_mask between matched masks, no class term, as (focal, dice), not weighted.

    Shape:
        student_mask_logits (B, T, h, w), of query sigma(i); the rest as :func:`semantic_mask_consistency`.
    """
    valid = valid[:, None]
    focal = focal_loss(student_mask_logits, pseudo_masks, valid)
    return focal * matched, dice_loss(student_mask_logits.sigmoid(), pseudo_masks, valid) * matched
