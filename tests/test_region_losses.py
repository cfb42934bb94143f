"""RMC, RFC, RCC, SMC: against small cases computed by hand, gradcheck, invariances, and nothing-there cases."""

import math

import pytest
import torch

from rc2l.losses import rc2l as region

HALF = torch.tensor([[1.0, 1.0, 0.0, 0.0]])  # masks of a 1x4 image
OTHER = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
QUARTER = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
ALL_VALID = torch.ones(1, 1, 4, dtype=torch.bool)


def masks(*rows: torch.Tensor) -> torch.Tensor:
    """(1, T, 1, 4) masks of one image."""
    return torch.stack(rows)[None]


def both_matched(slots: int = 2) -> torch.Tensor:
    return torch.ones(1, slots, dtype=torch.bool)


def test_mask_similarity_by_hand():
    similarity = region.mask_similarity(masks(HALF, QUARTER), masks(HALF, OTHER).bool(), ALL_VALID)
    # [j, i]: student j against pseudo i; 2 * overlap / (area + area)
    expected = torch.tensor([[[1.0, 0.0], [2 * 1 / 3, 0.0]]])
    torch.testing.assert_close(similarity, expected)
    half_valid = torch.tensor([[[True, False, True, True]]])
    similarity = region.mask_similarity(masks(HALF, QUARTER), masks(HALF, OTHER).bool(), half_valid)
    torch.testing.assert_close(similarity, torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]))


@pytest.mark.parametrize("positive_in_denominator", [False, True])
def test_rmc_by_hand(positive_in_denominator):
    tau = 0.5
    student, pseudo = masks(HALF * 0.8, OTHER * 0.5 + QUARTER * 0.1), masks(HALF, OTHER).bool()
    loss = region.region_mask_contrast(student, pseudo, both_matched(), ALL_VALID, tau, positive_in_denominator)
    d = {
        (0, 0): 2 * 1.6 / (1.6 + 2),
        (0, 1): 0.0,
        (1, 0): 2 * 0.1 / (1.1 + 2),
        (1, 1): 2 * 1.0 / (1.1 + 2),
    }
    for i, j in ((0, 1), (1, 0)):  # positive pair (i, i), the only negative is query j against pseudo region i
        denominator = math.exp(d[j, i] / tau) + (math.exp(d[i, i] / tau) if positive_in_denominator else 0)
        assert loss[0, i].item() == pytest.approx(-math.log(math.exp(d[i, i] / tau) / denominator), abs=1e-6)


def test_rfc_by_hand():
    tau = 0.2
    features = torch.tensor([[[[1.0, 0.0, 0.0, 2.0]], [[0.0, 3.0, 1.0, 0.0]]]])  # (1, 2, 1, 4)
    student, pseudo = masks(QUARTER, OTHER), masks(HALF, OTHER).bool()
    loss = region.region_feature_contrast(student, pseudo, features, both_matched(), ALL_VALID, tau)
    r_s = [(1.0, 0.0), (2.0, 1.0)]  # summed features under each student mask; the mean's factor leaves cosines alone
    r_t = [(1.0, 3.0), (2.0, 1.0)]

    def cosine(u, v):
        return (u[0] * v[0] + u[1] * v[1]) / math.hypot(*u) / math.hypot(*v)

    for i, j in ((0, 1), (1, 0)):
        expected = -cosine(r_s[i], r_t[i]) / tau + cosine(r_s[j], r_t[i]) / tau
        assert loss[0, i].item() == pytest.approx(expected, abs=1e-5)


def test_rfc_region_features_are_means_over_all_pixels():
    features = torch.tensor([[[[4.0, 8.0, 0.0, 0.0]]]])
    torch.testing.assert_close(region.region_features(masks(HALF), features, ALL_VALID), torch.tensor([[[3.0]]]))


def test_rfc_gradient_stops_at_the_target_unless_asked_for():
    student = masks(QUARTER, OTHER)
    pseudo = masks(HALF, OTHER).bool()
    gradients = []
    for detach_target in (True, False):
        features = torch.randn(1, 3, 1, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
        loss = region.region_feature_contrast(
            student, pseudo, features, both_matched(), ALL_VALID, 0.5, detach_target=detach_target
        )
        loss.sum().backward()
        gradients.append(features.grad)
    # Pixel 1 is in no student mask: it takes part in the target features only.
    assert gradients[0][..., 1].abs().sum() == 0
    assert gradients[1][..., 1].abs().sum() > 0


def test_rcc_by_hand():
    logits = torch.log(torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]]))
    labels = torch.tensor([[1, 0]])
    loss = region.region_class_consistency(logits, labels, torch.tensor([[True, False]]))
    torch.testing.assert_close(loss, torch.tensor([[-math.log(0.3), 0.0]]))


@pytest.mark.parametrize(
    ("union", "expected"),
    [
        ("sum", [min(0.6 * 0.5 + 0.9 * 1.0, 1.0), 0.6 * 0.2]),
        ("max", [0.9, 0.6 * 0.2]),
        ("noisy_or", [1 - (1 - 0.6 * 0.5) * (1 - 0.9), 0.6 * 0.2]),
        ("hard", [1.0, 0.2]),
    ],
)
def test_semantic_union_by_hand(union, expected):
    # Two queries of class 0 (p = 0.6, 0.9), one of class 1; "no object" is not the most probable class of any.
    probs = torch.tensor([[[0.6, 0.1, 0.3], [0.9, 0.05, 0.05], [0.0, 1.0, 0.0]]])
    query_masks = torch.tensor([[[[0.5, 0.2]], [[1.0, 0.0]], [[0.0, 0.0]]]])
    merged = region.semantic_union(probs.clamp(min=1e-12).log(), query_masks, torch.tensor([[0]]), union)
    torch.testing.assert_close(merged, torch.tensor(expected).view(1, 1, 1, 2), atol=1e-6, rtol=0)


def claimed_twice(union: str, target: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """SMC's value and gradient at the mask logits of a pixel that two queries of class 0 claim, 0.9 and 0.8."""
    logits = torch.tensor([[[0.99, 0.01], [0.99, 0.01]]]).log()
    mask_logits = torch.tensor([0.9, 0.8]).logit().view(1, 2, 1, 1).requires_grad_()
    merged = region.semantic_union(logits, mask_logits.sigmoid(), torch.tensor([[0]]), union)
    everywhere = torch.ones(1, 1, 1, dtype=torch.bool)
    pseudo = torch.full((1, 1, 1, 1), target)
    loss = sum(region.semantic_mask_consistency(merged, pseudo, everywhere[0], everywhere)).sum()
    loss.backward()
    return merged.detach(), mask_logits.grad.flatten()


@pytest.mark.parametrize("union", region.UNIONS)
def test_a_false_positive_that_several_masks_claim_is_pushed_down(union):
    merged, gradient = claimed_twice(union, target=False)
    assert 0.85 < merged <= 1
    assert (gradient >= 0).all() and gradient.sum() > 0.01
    if union != "max":
        assert (gradient > 0).all()
    _, gradient = claimed_twice(union, target=True)  # right already: never pushed down, a sum above 1 nor up
    assert (gradient <= 0).all() and (union in ("max", "noisy_or") or (gradient == 0).all())


@pytest.mark.parametrize("union", region.UNIONS)
def test_unions_are_finite_where_masks_and_classes_are_certain(union):
    mask_logits = torch.tensor([[200.0, 200.0, -200.0], [200.0, -200.0, -200.0], [0.0, 0.5, 1.0]]).view(1, 3, 1, 3)
    mask_logits.requires_grad_()
    logits = torch.tensor([[[300.0, 0.0], [300.0, 0.0], [0.0, 300.0]]], requires_grad=True)
    merged = region.semantic_union(logits, mask_logits.sigmoid(), torch.tensor([[0]]), union)
    for target in (True, False):
        pseudo = torch.full((1, 1, 1, 3), target)
        valid = torch.ones(1, 1, 3, dtype=torch.bool)
        loss = sum(region.semantic_mask_consistency(merged, pseudo, valid[:, 0, :1], valid)).sum()
        for gradient in torch.autograd.grad(loss, (logits, mask_logits), retain_graph=True, allow_unused=True):
            assert torch.isfinite(loss) and (gradient is None or torch.isfinite(gradient).all())


def test_noisy_or_has_its_exact_gradient_at_a_claim_of_one():
    weights_logits = torch.tensor([[[800.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)  # p = 1 and 0.5
    masks = torch.tensor([1.0, 0.4], dtype=torch.float64).view(1, 2, 1, 1).requires_grad_()
    region.semantic_union(weights_logits, masks, torch.tensor([[0]]), "noisy_or").sum().backward()
    # d/dm_0 = p_0 (1 - p_1 m_1); d/dm_1 = p_1 (1 - p_0 m_0) = 0
    torch.testing.assert_close(masks.grad.flatten(), torch.tensor([0.8, 0.0], dtype=torch.float64))


def test_unknown_union_is_an_error():
    with pytest.raises(ValueError, match=r"RC2L\.UNION must be one of sum, max, noisy_or, hard"):
        region.semantic_union(torch.zeros(1, 1, 2), torch.zeros(1, 1, 1, 1), torch.zeros(1, 1).long(), "mean")


def test_smc_by_hand():
    union, pseudo = torch.tensor([[[[0.8, 0.3]]]]), torch.tensor([[[[True, False]]]])
    valid = torch.ones(1, 1, 2, dtype=torch.bool)
    focal, dice = region.semantic_mask_consistency(union, pseudo, torch.ones(1, 1, dtype=torch.bool), valid)
    expected = (0.25 * 0.2**2 * -math.log(0.8) + 0.75 * 0.3**2 * -math.log(0.7)) / 2
    assert focal.item() == pytest.approx(expected, rel=1e-5)
    assert dice.item() == pytest.approx(1 - (2 * 0.8 + 1) / (1.1 + 1 + 1), rel=1e-5)


def test_consistency_by_hand():
    p = torch.tensor([[[[0.8, 0.3]]]])
    valid = torch.ones(1, 1, 2, dtype=torch.bool)
    pseudo = torch.tensor([[[[True, False]]]])
    focal, dice = region.matched_mask_consistency(p.logit(), pseudo, torch.ones(1, 1, dtype=torch.bool), valid)
    assert focal.item() == pytest.approx(
        (0.25 * 0.2**2 * -math.log(0.8) + 0.75 * 0.3**2 * -math.log(0.7)) / 2, rel=1e-5
    )
    assert dice.item() == pytest.approx(1 - 2.6 / 3.1, rel=1e-5)


def random_case(dtype=torch.float64, T: int = 3, Q: int = 5, K: int = 4, C: int = 6, size: int = 5):
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(-1, T, (2, size, size), generator=generator)
    index[:, 0, :T] = torch.arange(T)  # every region has a pixel
    return {
        "logits": torch.randn(2, Q, K + 1, generator=generator, dtype=dtype),
        "masks": torch.randn(2, Q, size, size, generator=generator, dtype=dtype),
        "features": torch.randn(2, C, size, size, generator=generator, dtype=dtype),
        "query": torch.stack([torch.randperm(Q, generator=generator)[:T] for _ in range(2)]),
        "labels": torch.stack([torch.randperm(K, generator=generator)[:T] for _ in range(2)]),
        "pseudo": index[:, None] == torch.arange(T)[:, None, None],
        "valid": torch.rand(2, size, size, generator=generator) > 0.1,
    }


def all_losses(case, logits, masks, features, matched, present) -> dict[str, torch.Tensor]:
    image = torch.arange(2)[:, None]
    picked = masks[image, case["query"]]
    pseudo, valid = case["pseudo"], case["valid"]
    result = {
        "rmc": region.region_mask_contrast(picked.sigmoid(), pseudo, matched, valid, 0.3),
        "rmc_infonce": region.region_mask_contrast(picked.sigmoid(), pseudo, matched, valid, 0.3, True),
        "rfc": region.region_feature_contrast(picked.sigmoid(), pseudo, features, matched, valid, 0.3),
        "rfc_full": region.region_feature_contrast(
            picked.sigmoid(), pseudo, features, matched, valid, 0.3, True, False
        ),
        "rcc": region.region_class_consistency(logits[image, case["query"]], case["labels"], matched),
        "consistency": sum(region.matched_mask_consistency(picked, pseudo, matched, valid)),
    }
    for union in region.UNIONS:
        merged = region.semantic_union(logits, masks.sigmoid(), case["labels"], union)
        result[f"smc_{union}"] = sum(region.semantic_mask_consistency(merged, pseudo, present, valid))
    return result


def everything(shape=(2, 3)) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.bool)


#: Names of losses -> what is added to the masks. Where a sum exceeds 1 the gradient of `smc_hard` is, on purpose, not
#: that of the clamped value.
CHECKED = {
    ("rmc", "rmc_infonce", "rfc_full", "rcc", "consistency", "smc_sum", "smc_max", "smc_noisy_or"): 0,
    ("smc_hard",): -3,
}


@pytest.mark.parametrize("names", CHECKED)
def test_gradients_are_those_of_the_function(names):
    """All but RFC with its stopped target, whose gradient is not that of its value; `rfc_full` stands for it."""
    case = random_case(size=3)
    case["masks"] += CHECKED[names]
    inputs = [case[key].clone().requires_grad_() for key in ("logits", "masks", "features")]
    matched = torch.tensor([[True, True, True], [True, False, True]])

    def losses(logits, masks, features):
        # A fixed hard choice of class would jump under gradcheck's steps only at ties, which random logits don't have.
        values = all_losses(case, logits, masks, features, matched, everything())
        return tuple(values[name].sum() for name in names)

    assert torch.autograd.gradcheck(losses, inputs, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_matched_or_nothing_valid_gives_zero_with_a_graph(dtype):
    case = random_case(dtype)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    for valid in (case["valid"], torch.zeros_like(case["valid"])):
        inputs = [case[key].clone().requires_grad_() for key in ("logits", "masks", "features")]
        losses = all_losses(case | {"valid": valid}, *inputs, nothing, nothing)
        for name, value in losses.items():
            assert torch.equal(value, torch.zeros_like(value)), name
        sum(value.sum() for value in losses.values()).backward()
        for tensor in inputs:
            assert tensor.grad is None or torch.isfinite(tensor.grad).all()


def test_one_region_has_no_contrast_but_a_graph():
    case = random_case(torch.float32)
    one = torch.tensor([[True, False, False], [True, True, True]])
    inputs = [case[key].clone().requires_grad_() for key in ("logits", "masks", "features")]
    losses = all_losses(case, *inputs, one, everything())
    for name in ("rmc", "rmc_infonce", "rfc"):
        assert torch.equal(losses[name][0], torch.zeros(3)), name
        assert (losses[name][1] != 0).all(), name
    (losses["rmc"][0].sum() + losses["rfc"][0].sum()).backward()
    assert all(torch.isfinite(tensor.grad).all() for tensor in inputs if tensor.grad is not None)


def test_losses_do_not_depend_on_the_order_of_regions_images_or_queries():
    case = random_case()
    inputs = [case[key] for key in ("logits", "masks", "features")]
    reference = all_losses(case, *inputs, everything(), everything())
    order = torch.tensor([2, 0, 1])
    shuffled = case | {key: case[key][:, order] for key in ("query", "labels", "pseudo")}
    for name, value in all_losses(shuffled, *inputs, everything(), everything()).items():
        torch.testing.assert_close(value, reference[name][:, order], msg=name)
    swapped = {key: value.flip(0) for key, value in case.items()}
    swapped_inputs = [swapped[key] for key in ("logits", "masks", "features")]
    for name, value in all_losses(swapped, *swapped_inputs, everything(), everything()).items():
        torch.testing.assert_close(value, reference[name].flip(0), msg=name)


def test_ignored_pixels_do_not_count():
    case = random_case()
    ignored = ~case["valid"][:, None]
    inputs = [case[key] for key in ("logits", "masks", "features")]
    changed = [case["logits"], case["masks"] + 3 * ignored, case["features"] - 2 * ignored]
    flipped = case | {"pseudo": case["pseudo"] ^ ignored}
    reference = all_losses(case, *inputs, everything(), everything())
    for name, value in all_losses(flipped, *changed, everything(), everything()).items():
        torch.testing.assert_close(value, reference[name], msg=name)


def test_perfect_masks_beat_shuffled_ones():
    """The contrast terms are lowest for the right pairing: they pull towards sigma."""
    case = random_case(torch.float32)
    perfect = case["pseudo"].float() * 20 - 10
    image = torch.arange(2)[:, None]
    masks = case["masks"].clone()
    for query, name in ((case["query"], "right"), (case["query"].roll(1, 1), "wrong")):
        filled = masks.clone()
        filled[image, query] = perfect
        losses = all_losses(case, case["logits"], filled, case["features"], everything(), everything())
        if name == "right":
            right = losses
    assert right["rmc"].sum() < losses["rmc"].sum()
    assert right["rfc"].sum() < losses["rfc"].sum()
    assert right["consistency"].sum() < losses["consistency"].sum()
