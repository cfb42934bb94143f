"""Parity of matcher and criterion with the official MaskFormer, and the cases where there is nothing to match."""

import json

import numpy as np
import pytest
import torch

from rc2l.losses.mask_former import set_criterion
from rc2l.modeling.matcher import HungarianMatcher, mask_cost
from rc2l.structures.regions import Regions
from tests.shared_data import shared_file


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(shared_file(f"reference/{name}")) as file:
        return {key: file[key] for key in file.files}


def reference_regions(data, batch_size: int, empty: tuple[int, ...] = ()) -> Regions:
    labels = [torch.from_numpy(data[f"target{b}/labels"]) for b in range(batch_size)]
    masks = [torch.from_numpy(data[f"target{b}/masks"]) for b in range(batch_size)]
    for b in empty:
        labels[b], masks[b] = labels[b][:0], masks[b][:0]
    return Regions.from_masks(labels, masks)


def layer_names(data) -> list[str]:
    """What the names of each layer's arrays begin with: nothing for the last layer, then aux0_, aux1_, ..."""
    return ["", *(f"aux{i}_" for i in range(len(data)) if f"aux{i}_pred_logits" in data)]


def assignment(matches, layer: int, image: int) -> tuple[list[int], list[int]]:
    images, queries, slots = matches.pairs[layer]
    return queries[images == image].tolist(), slots[images == image].tolist()


def test_matcher_costs_and_assignments_equal_the_official_ones():
    data = load("matcher.npz")
    B = len(data["counts"])
    regions = reference_regions(data, B)
    logits, masks = torch.from_numpy(data["pred_logits"]), torch.from_numpy(data["pred_masks"])
    matcher = HungarianMatcher(float(data["cost_class"]), float(data["cost_mask"]), float(data["cost_dice"]))
    cost = matcher.cost(logits, masks, regions)
    cost_f64 = matcher.cost(logits.double(), masks.double(), regions)
    small = regions.resized(*masks.shape[-2:])
    focal, dice = mask_cost(masks, small, 1.0, 0.0), mask_cost(masks, small, 0.0, 1.0)
    (matches,) = matcher([([(logits, masks)], regions)])
    assert matches.counts == data["counts"].tolist()
    for b, count in enumerate(data["counts"]):
        np.testing.assert_allclose(cost[b, :, :count], data[f"cost{b}"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(cost_f64[b, :, :count], data[f"cost{b}_f64"], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(focal[b, :, :count], data[f"cost_mask{b}"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(dice[b, :, :count], data[f"cost_dice{b}"], rtol=1e-5, atol=1e-6)
        assert assignment(matches, 0, b) == (data[f"src{b}"].tolist(), data[f"tgt{b}"].tolist())
    names = sorted({key.split("/")[0] for key in data if key.startswith("w_")})  # w_<class>_<mask>_<dice>
    assert names
    for name in names:
        (matches,) = HungarianMatcher(*map(float, name.split("_")[1:]))([([(logits, masks)], regions)])
        for b in range(B):
            assert assignment(matches, 0, b) == (data[f"{name}/src{b}"].tolist(), data[f"{name}/tgt{b}"].tolist())


def test_a_region_that_vanishes_at_the_masks_resolution_goes_to_the_emptiest_mask():
    """As in the official code, where its cost is that of an empty mask, not none at all."""
    label_map = torch.zeros(1, 8, 8, dtype=torch.uint8)
    label_map[0, 1, 1] = 1  # sampling to 4x4 takes even rows and columns
    regions = Regions.from_label_map(label_map, 2)
    logits = torch.zeros(1, 3, 3)
    masks = torch.tensor([4.0, 2.0, -6.0])[None, :, None, None].expand(1, 3, 4, 4)
    (matches,) = HungarianMatcher()([([(logits, masks)], regions)])
    assert assignment(matches, 0, 0) == ([0, 2], [0, 1])
    p = masks[0, :, 0, 0].sigmoid()
    expected = 20 * 0.75 * p**2 * -(1 - p).log() + 1 - 1 / (16 * p + 1) - 1 / 3
    torch.testing.assert_close(HungarianMatcher().cost(logits, masks, regions)[0, :, 1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["", "empty/", "all_empty/"])
def test_criterion_losses_and_gradients_equal_the_official_ones(case, dtype):
    data = load("criterion.npz")
    B = len(data["counts"])
    regions = reference_regions(data, B, empty={"": (), "empty/": (0,), "all_empty/": tuple(range(B))}[case])
    names = layer_names(data)
    inputs = {
        name + kind: torch.from_numpy(data[name + kind]).to(dtype).requires_grad_()
        for name in names
        for kind in ("pred_logits", "pred_masks")
    }
    layers = [(inputs[name + "pred_logits"], inputs[name + "pred_masks"]) for name in names]
    matcher = HungarianMatcher(*(float(data[f"cost_{name}"]) for name in ("class", "mask", "dice")))
    (matches,) = matcher([(layers, regions)])
    if case == "":
        assert matches.num_regions == float(data["num_masks"])
        for layer, name in enumerate(names):
            for b in range(B):
                expected = (data[f"match/{name}src{b}"].tolist(), data[f"match/{name}tgt{b}"].tolist())
                assert assignment(matches, layer, b) == expected
    losses = set_criterion(layers, regions, matches.pairs, matches.num_regions, float(data["eos_coef"]))
    suffix = "_f64" if dtype == torch.float64 and f"{case}loss/loss_ce_f64" in data else ""
    tolerance = 1e-8 if suffix else 1e-5  # the official run kept "no object" 0.1 in float32
    prefix = f"{case}loss/" if f"{case}loss/loss_ce" in data else case
    weights = json.loads(str(data["weight_dict_json"]))
    assert losses.keys() == weights.keys()
    for name, value in losses.items():
        np.testing.assert_allclose(value.item(), data[f"{prefix}{name}{suffix}"], rtol=tolerance, atol=1e-12)
    total = sum(weights[name] * value for name, value in losses.items())
    total.backward()
    compared = [key.removeprefix(f"{case}grad/") for key in data if key.startswith(f"{case}grad/")]
    compared = [name for name in compared if not name.endswith("_f64")]
    assert compared or case == "all_empty/"  # the reference has none of these
    for name in compared:
        expected = torch.from_numpy(data[f"{case}grad/{name}"])
        error = (inputs[name].grad - expected).norm() / expected.norm()
        assert error < 1e-5, (name, error)


def random_layers(num_layers: int, B: int, Q: int, K: int, size: int):
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(B, Q, K + 1, generator=generator, requires_grad=True),
            torch.randn(B, Q, size, size, generator=generator, requires_grad=True),
        )
        for _ in range(num_layers)
    ]


def test_all_ignored_images_give_zero_losses_with_a_graph():
    layers = random_layers(2, B=2, Q=4, K=3, size=4)
    regions = Regions.from_label_map(torch.full((2, 8, 8), 255, dtype=torch.uint8), 3)
    (matches,) = HungarianMatcher()([(layers, regions)])
    losses = set_criterion(layers, regions, matches.pairs, matches.num_regions, 0.1)
    assert len(losses) == 6
    for value in losses.values():
        assert value.item() == 0
    sum(losses.values()).backward()
    assert all(torch.equal(x.grad, torch.zeros_like(x)) for layer in layers for x in layer)


def test_ignored_pixels_change_neither_matching_nor_losses():
    """The same images with other predictions under the ignored pixels give the same result."""
    label_map = torch.randint(0, 3, (2, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    label_map[:, :, 4:] = 255
    regions = Regions.from_label_map(label_map, 3)
    ((logits, masks),) = random_layers(1, B=2, Q=4, K=3, size=8)
    changed = masks.detach().clone()
    changed[..., 4:] += 5
    results = []
    for m in (masks, changed):
        (matches,) = HungarianMatcher()([([(logits, m)], regions)])
        losses = set_criterion([(logits, m)], regions, matches.pairs, matches.num_regions, 0.1)
        results.append((matches.pairs[0], losses))
    assert all(torch.equal(a, b) for a, b in zip(results[0][0], results[1][0], strict=True))
    for name, value in results[0][1].items():
        torch.testing.assert_close(value, results[1][1][name])


def test_more_regions_than_queries_count_all_regions():
    label_map = torch.arange(4, dtype=torch.uint8).repeat_interleave(16).view(1, 8, 8)
    regions = Regions.from_label_map(label_map, 4)
    layers = random_layers(1, B=1, Q=2, K=4, size=8)
    (matches,) = HungarianMatcher()([(layers, regions)])
    assert matches.counts == [4] and len(matches.pairs[0][0]) == 2


def test_groups_are_matched_as_if_alone():
    layers = random_layers(2, B=3, Q=5, K=4, size=4)
    label_map = torch.randint(0, 4, (3, 8, 8), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    regions = Regions.from_label_map(label_map, 4)
    (alone,) = HungarianMatcher()([(layers, regions)])
    first = [(logits[:1], masks[:1]) for logits, masks in layers]
    rest = [(logits[1:], masks[1:]) for logits, masks in layers[:1]]
    one, two = HungarianMatcher()(
        [(first, Regions.from_label_map(label_map[:1], 4)), (rest, Regions.from_label_map(label_map[1:], 4))]
    )
    for layer in range(2):
        assert assignment(one, layer, 0) == assignment(alone, layer, 0)
    for b in range(2):
        assert assignment(two, 0, b) == assignment(alone, 0, b + 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_query_that_is_not_finite_is_matched_so_that_the_losses_see_it(value):
    """No error here: it would stop one process of several, and the others would wait for it."""
    logits, masks = (tensor.detach() for tensor in random_layers(1, B=1, Q=5, K=2, size=4)[0])
    masks[0, 3, 0, 0] = value
    regions = Regions.from_label_map(torch.zeros(1, 8, 8, dtype=torch.uint8), 2)
    (matches,) = HungarianMatcher()([([(logits, masks)], regions)])
    assert assignment(matches, 0, 0) == ([3], [0])
