"""The closed form of the mask losses against PyTorch's operators, and the two ways to the matching costs."""

import pytest
import torch
import torch.nn.functional as F

from rc2l.losses import upsampled_mask
from rc2l.losses.mask import dice_loss, focal_loss
from rc2l.losses.upsampled_mask import upsampled_mask_losses
from rc2l.modeling import matcher
from rc2l.modeling.matcher import HungarianMatcher, mask_cost_batched, mask_cost_by_image
from rc2l.structures.regions import Regions

K, B = 4, 3


def problem(small: tuple[int, int], large: tuple[int, int], ignored: float, scale: float = 6.0):
    """Seven random masks and their targets; with ignored pixels, the last image has no other."""
    torch.manual_seed(0)
    label_map = torch.randint(0, K, (B, *large))
    label_map[torch.rand(B, *large) < ignored] = 255
    if ignored:
        label_map[2] = 255
    logits = (torch.randn(7, *small, dtype=torch.float64) * scale).requires_grad_()
    image, slot = torch.tensor([0, 0, 1, 1, 2, 0, 1]), torch.tensor([1, 3, 0, 2, 1, 1, 0])
    return logits, Regions.from_label_map(label_map, K), image, slot


def plain(logits, regions, image, slot):
    up = F.interpolate(logits[:, None], size=regions.index.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    masks, valid = regions.select(image, slot), regions.valid[image]
    return focal_loss(up, masks, valid), dice_loss(up.sigmoid(), masks, valid)


def values_and_gradient(function, logits, *targets):
    """Losses, and the gradient of a sum in which every mask weighs differently."""
    focal, dice = function(logits, *targets)
    weight = torch.arange(1, len(focal) + 1, dtype=focal.dtype)
    (gradient,) = torch.autograd.grad((focal * weight + dice / weight).sum(), logits)
    return focal, dice, gradient


@pytest.mark.parametrize("way", ["by mask", "in chunks"])
@pytest.mark.parametrize("ignored", [0.0, 0.3])
@pytest.mark.parametrize(
    ("small", "large"),
    [((4, 6), (16, 24)), ((4, 6), (4, 6)), ((4, 6), (12, 6)), ((5, 1), (10, 3)), ((4, 6), (17, 23)), ((8, 6), (4, 3))],
)
def test_losses_and_gradients_equal_those_of_the_plain_operators(small, large, ignored, way, monkeypatch):
    if way == "in chunks":
        monkeypatch.setattr(upsampled_mask, "_targets_by_mask", upsampled_mask._targets_in_chunks)
        monkeypatch.setattr(upsampled_mask, "_PIXELS_AT_ONCE", 3 * large[0] * large[1])
    arguments = problem(small, large, ignored)
    expected = values_and_gradient(plain, *arguments)
    for actual, wanted in zip(values_and_gradient(upsampled_mask_losses, *arguments), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-7, atol=1e-9)
    logits = arguments[0].detach().float().requires_grad_()
    for actual, wanted in zip(
        values_and_gradient(upsampled_mask_losses, logits, *arguments[1:]), expected, strict=True
    ):
        torch.testing.assert_close(actual, wanted.float(), rtol=3e-6, atol=3e-7 * wanted.detach().abs().max().item())


def test_gradients_pass_gradcheck_and_a_second_derivative_says_that_there_is_none():
    logits, *targets = problem((3, 4), (6, 8), ignored=0.2, scale=2.0)
    assert torch.autograd.gradcheck(lambda x: upsampled_mask_losses(x, *targets), (logits,))
    focal, _ = upsampled_mask_losses(logits, *targets)
    (gradient,) = torch.autograd.grad((focal**2).sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_extreme_logits_and_half_precision():
    logits = torch.tensor([[-200.0, 200.0], [-90.0, 100.0]])[None].requires_grad_()
    regions = Regions.from_label_map(torch.tensor([[[0, 1], [1, 0]]]), 2)
    arguments = regions, torch.tensor([0]), torch.tensor([0])
    focal, _ = upsampled_mask_losses(logits, *arguments)
    # Softplus of 200, 200 and 0, 0; the second is not the region's, weight 0.75, the first is, weight 0.25.
    assert focal.item() == pytest.approx((0.25 * 200 + 0.75 * 200) / 4)
    (gradient,) = torch.autograd.grad(focal.sum(), logits)
    torch.testing.assert_close(gradient, torch.tensor([[[-0.25, 0.75], [0.0, 0.0]]]) / 4)

    half = logits.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        focal, dice = upsampled_mask_losses(half, *arguments)
    assert focal.dtype == dice.dtype == torch.float32
    (focal + dice).sum().backward()
    assert half.grad.dtype == torch.bfloat16


def test_no_mask_at_all_gives_losses_of_length_zero_with_a_graph():
    logits, regions, *_ = problem((4, 4), (8, 8), 0.0)
    nothing = torch.empty(0, dtype=torch.int64)
    focal, dice = upsampled_mask_losses(logits[:0], regions, nothing, nothing)
    (focal.sum() + dice.sum()).backward()
    assert focal.shape == dice.shape == (0,) and not logits.grad.any()


@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_costs_of_both_ways_are_equal(ignored, monkeypatch):
    _, regions, *_ = problem((1, 1), (9, 11), ignored)
    regions.index[0] = torch.where(regions.index[0] == 2, -1, regions.index[0])  # image 0 has no region 2
    masks = torch.randn(B, 7, 9, 11, dtype=torch.float64) * 20
    masks[0, 0], masks[0, 1] = 120.0, -120.0  # float32 would have no digit of p or 1 - p left
    monkeypatch.setattr(matcher, "_PIXELS_AT_ONCE", 3 * 9 * 11)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        batched = mask_cost_batched(masks.to(dtype), regions, 20.0, 1.0)
        one_by_one = mask_cost_by_image(masks.to(dtype), regions, 20.0, 1.0)
        torch.testing.assert_close(one_by_one, batched, rtol=tolerance, atol=tolerance)


def test_costs_of_layers_in_one_call_are_those_of_each_layer(monkeypatch):
    _, regions, *_ = problem((1, 1), (8, 8), 0.2)
    layers = [(torch.randn(B, 5, K + 1), torch.randn(B, 5, 8, 8)) for _ in range(3)]
    matching = HungarianMatcher()
    costs = matching.cost_of_layers(layers, regions)
    calls = []
    one_call = matching.cost_of_layers
    monkeypatch.setattr(matching, "cost", lambda *args: calls.append(args) or HungarianMatcher.cost(matching, *args))

    class OnGpu(tuple):
        """A layer whose masks say that they are on a GPU."""

        def __getitem__(self, item):
            value = super().__getitem__(item)
            return type("Masks", (), {"device": torch.device("cuda")}) if item == 1 else value

    assert torch.allclose(one_call([OnGpu(layer) for layer in layers], regions), costs, atol=1e-5)
    assert len(calls) == 1
