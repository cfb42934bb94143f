"""Point-sampled losses and matching: parity with the official Mask2Former, ignored pixels, nothing to learn from."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rc2l.losses.mask_former import set_criterion
from rc2l.losses.points import (
    PointSampling,
    RegionPoints,
    point_costs,
    point_losses,
    sample_maps,
    sampled_mask_losses,
    select_points,
)
from rc2l.modeling.point_matcher import PointMatcher
from rc2l.structures.regions import Regions
from tests.shared_data import shared_file
from tests.test_matching_and_criterion import layer_names


def load(name: str) -> dict[str, torch.Tensor]:
    with np.load(shared_file(f"reference/{name}")) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files if file[key].dtype.kind in "fiu"}


class Recorded:
    """Gives recorded coordinates in the order in which they are asked for."""

    def __init__(self, *draws: torch.Tensor) -> None:
        self.draws = list(draws)

    def __call__(self, count: int, num_points: int, like: torch.Tensor) -> torch.Tensor:
        draw = self.draws.pop(0)
        assert draw.shape == (count, num_points, 2)
        return draw.to(like)


def run_recorded(layers, regions, draws, data, names, eos_coef, costs, points):
    """(matches, losses) of the official draws.

    ``draws`` is their prefix, ``costs`` the weights of class, mask and dice in matching, ``points`` the number of
    points, how many times as many are candidates, and the share of uncertain ones.
    """
    B = len(regions.index)
    matching = [torch.stack([data[f"{draws}{name}match{b}"] for b in range(B)]) for name in names]
    sampling = PointSampling(*points, Recorded(*matching))
    (matches,) = PointMatcher(*costs, sampling)([(layers, regions)])
    joined = [torch.cat([data[f"{draws}{name}{kind}"] for name in names]) for kind in ("oversampled", "random")]
    sampling = replace(sampling, draw=Recorded(*joined))
    losses = set_criterion(layers, regions, matches.pairs, matches.num_regions, eos_coef, sampling=sampling)
    return matches, losses


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["", "empty/", "all_empty/", "more/"])
def test_criterion_losses_gradients_and_assignments_equal_the_official_ones(case, dtype):
    data = load("mask2former_criterion.npz")
    B = len(data["counts"])
    labels = [data[f"target{b}/labels"] for b in range(B)]
    masks = [data[f"target{b}/masks"] for b in range(B)]
    for b in {"empty/": [0], "all_empty/": range(B)}.get(case, []):
        labels[b], masks[b] = labels[b][:0], masks[b][:0]
    names = [""] if case == "more/" else layer_names(data)
    chosen, queries = slice(None), slice(None)
    if case == "more/":
        image = int(data["more/image"])
        chosen, queries = slice(image, image + 1), slice(int(data["more/num_queries"]))
        labels, masks, B = labels[chosen], masks[chosen], 1
    regions = Regions.from_masks(labels, masks)
    inputs = {
        name + kind: data[name + kind][chosen, queries].to(dtype).requires_grad_()
        for name in names
        for kind in ("pred_logits", "pred_masks")
    }
    layers = [(inputs[name + "pred_logits"], inputs[name + "pred_masks"]) for name in names]
    costs = tuple(float(data[f"cost_{name}"]) for name in ("class", "mask", "dice"))
    ratios = float(data["oversample_ratio"]), float(data["importance_sample_ratio"])
    points = int(data["num_points"]), *ratios
    matches, losses = run_recorded(layers, regions, f"{case}draw/", data, names, float(data["eos_coef"]), costs, points)
    for pairs, name in zip(matches.pairs, names, strict=True):
        for b in range(B):
            of_image = pairs[0] == b
            assert torch.equal(pairs[1][of_image], data[f"{case}match/{name}src{b}"])
            assert torch.equal(pairs[2][of_image], data[f"{case}match/{name}tgt{b}"])
    suffix, tolerance = ("_f64", 1e-7) if dtype == torch.float64 else ("", 1e-5)
    for name, value in losses.items():
        np.testing.assert_allclose(value.item(), data[f"{case}loss/{name}{suffix}"], rtol=tolerance, atol=1e-12)
    weights = {name: float(data[f"weight_{name}"]) for name in ("ce", "mask", "dice")}
    sum(weights[name.split("_")[1]] * value for name, value in losses.items()).backward()
    for name, tensor in inputs.items():
        expected = data.get(f"{case}grad/{name}{suffix}", data[f"{case}grad/{name}"]).to(dtype)
        torch.testing.assert_close(tensor.grad, expected, rtol=1e-4, atol=1e-6)


def test_sampling_losses_costs_and_selection_equal_the_official_ones():
    data = load("mask2former_criterion.npz")
    maps = data["sample/input"].clone().requires_grad_()
    output = sample_maps(maps, data["sample/coords"])
    (output * data["sample/cotangent"]).sum().backward()
    torch.testing.assert_close(output, data["sample/output"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(maps.grad, data["sample/grad_input"], rtol=1e-5, atol=1e-5)
    for kind in (0, 1):
        logits = data["unit/logits"].clone().requires_grad_()
        name = ("mask", "dice")[kind]
        loss = point_losses(logits, data["unit/labels"].float())[kind].sum() / data["unit/num_masks"]
        loss.backward()
        torch.testing.assert_close(loss, data[f"unit/loss_{name}"].view(()), rtol=1e-5, atol=0)
        torch.testing.assert_close(logits.grad, data[f"unit/grad_{name}"], rtol=1e-4, atol=1e-7)
    mask, dice = point_costs(data["cost/logits"], data["cost/labels"].float())
    torch.testing.assert_close(mask, data["cost/mask"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dice, data["cost/dice"], rtol=1e-5, atol=1e-5)
    case = 0
    while f"select{case}/logits" in data:
        part = {name.split("/")[1]: value for name, value in data.items() if name.startswith(f"select{case}/")}
        logits = sample_maps(part["logits"], part["oversampled"])[:, 0]
        torch.testing.assert_close(logits, part["logits_at_oversampled"], rtol=1e-5, atol=1e-5)
        num_points = int(part["num_points"])
        assert logits.shape[1] == int(part["oversample_ratio"].item() * num_points)
        uncertain = int(part["importance_sample_ratio"].item() * num_points)
        assert part["random"].shape[1] == num_points - uncertain
        selected = select_points(logits, part["oversampled"], part["random"], uncertain)
        torch.testing.assert_close(selected, part["selected"], rtol=0, atol=1e-6)
        case += 1
    assert case > 0


def test_sampled_labels_are_bilinear_samples_of_the_masks():
    regions = Regions.from_label_map(torch.randint(0, 4, (2, 9, 13)), 4)
    coords = torch.rand(2, 200, 2)
    expected = sample_maps(regions.masks().float(), coords)
    points = RegionPoints(regions)
    torch.testing.assert_close(points.all_labels(coords), expected, rtol=1e-5, atol=1e-5)
    for slot in range(4):
        labels = points.labels(coords, torch.arange(2), torch.full((2,), slot))
        torch.testing.assert_close(labels, expected[:, slot], rtol=1e-5, atol=1e-5)


def test_points_spread_evenly_over_the_valid_pixels():
    valid = torch.rand(3, 8, 10) < 0.3
    valid[1], valid[2] = True, False
    valid[2, 5, 7] = True
    label_map = torch.where(valid, 0, 255)
    coords = torch.rand(3, 60_000, 2)
    moved = RegionPoints(Regions.from_label_map(label_map, 2)).to_valid(coords, torch.arange(3))
    assert torch.equal(moved[1], coords[1])
    pixels = (moved[..., 1] * 8).long() * 10 + (moved[..., 0] * 10).long()
    for image in range(3):
        counts = pixels[image].bincount(minlength=80).view(8, 10)
        assert (counts[~valid[image]] == 0).all()
        share = counts[valid[image]] / 60_000
        assert (share - 1 / valid[image].sum()).abs().max() < 0.01


@pytest.mark.parametrize("labeled", [0.01, 0.4])
def test_ignored_pixels_change_nothing(labeled):
    torch.manual_seed(0)
    label_map = torch.where(torch.rand(2, 32, 40) < labeled, torch.randint(0, 3, (2, 32, 40)), 255)
    regions = Regions.from_label_map(label_map, 3)
    other = replace(regions, index=torch.where(regions.valid, regions.index, torch.randint(-1, 3, (2, 32, 40))))
    logits, masks = torch.randn(2, 6, 4), torch.randn(2, 6, 8, 10)
    results = []
    for each in (regions, other):
        torch.manual_seed(1)
        matcher = PointMatcher(2, 5, 5, PointSampling(64))
        present = each.present() & regions.present()
        cost = matcher.cost_of_layers([(logits, masks)], each)[0]
        image, slot = present.nonzero().unbind(1)
        loss = sampled_mask_losses(masks[image, slot], each, image, slot, PointSampling(64))
        results.append((cost, *loss))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_a_mask_of_the_valid_pixels_alone_is_perfect():
    """Fractional labels beside ignored pixels count their valid neighbours only."""
    label_map = torch.full((1, 16, 16), 255)
    label_map[:, 4:12, 5:11] = 1
    coords = RegionPoints(Regions.from_label_map(label_map, 2)).to_valid(torch.rand(1, 500, 2), torch.zeros(1).long())
    labels = RegionPoints(Regions.from_label_map(label_map, 2)).all_labels(coords)
    torch.testing.assert_close(labels[0, 1], torch.ones(500))
    assert (labels[0, 0] == 0).all()


@pytest.mark.parametrize("targets", ["all ignored", "one class"])
def test_nothing_to_learn_from_gives_finite_losses_with_a_graph(targets):
    label_map = torch.full((2, 16, 16), 255 if targets == "all ignored" else 1)
    regions = Regions.from_label_map(label_map, 3)
    layers = [(torch.randn(2, 4, 4, requires_grad=True), torch.randn(2, 4, 4, 4, requires_grad=True)) for _ in range(2)]
    sampling = PointSampling(20)
    (matches,) = PointMatcher(2, 5, 5, sampling)([(layers, regions)])
    losses = set_criterion(layers, regions, matches.pairs, matches.num_regions, 0.1, sampling=sampling)
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(tensor.grad.isfinite().all() for layer in layers for tensor in layer)
    if targets == "all ignored":
        assert all(value == 0 for value in losses.values())


def test_few_masks_at_once_or_many_are_the_same(monkeypatch):
    torch.manual_seed(0)
    regions = Regions.from_label_map(torch.randint(0, 3, (2, 16, 16)), 3)
    image, slot, masks = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 2, 0, 1, 2]), torch.randn(5, 4, 4)
    sampling = PointSampling(
        10, draw=lambda count, points, like: torch.linspace(0, 1, 2 * points).view(1, points, 2).expand(count, -1, -1)
    )
    whole = sampled_mask_losses(masks, regions, image, slot, sampling)
    monkeypatch.setattr("rc2l.losses.points._MASKS_AT_ONCE", 2)
    for one, two in zip(whole, sampled_mask_losses(masks, regions, image, slot, sampling), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("values", [{"num_points": 0}, {"oversample_ratio": 0.5}, {"importance_ratio": 1.5}])
def test_sampling_outside_its_range_is_refused(values):
    with pytest.raises(ValueError, match="num_points and oversample_ratio are 1 or more"):
        PointSampling(**values)
