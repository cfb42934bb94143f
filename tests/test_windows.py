"""Sliding windows, several scales and mirrored images: weights, seams, and the averages that come out."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from rc2l.config import get_rc2l_cfg
from rc2l.data.mapper import EvaluationMapper
from rc2l.engine.config_file import check_config
from rc2l.evaluation.scorer import Scorer, build_scorer, describe_mode
from rc2l.evaluation.window import SlidingWindow, scores_by_rows
from tests.toy_network import PerPixel

K = 3


class Mean(PerPixel):
    """The mean colour everywhere: of all networks the one that windows disturb most."""

    def scores(self, image: torch.Tensor) -> torch.Tensor:
        return image.float().mean((1, 2))[:, None, None].expand(3, *image.shape[1:])


class Column(PerPixel):
    """The first class rises from left to right."""

    def scores(self, image: torch.Tensor) -> torch.Tensor:
        return torch.arange(image.shape[2]).float().expand(K, *image.shape[1:])


def noise(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def scores_of(scorer: Scorer, image: torch.Tensor, **item) -> torch.Tensor:
    size = {"height": image.shape[1], "width": image.shape[2]}
    return scorer.eval()([{"image": image} | size | item])[0]["sem_seg"]


@pytest.mark.parametrize("blending", ["linear", "uniform"])
def test_windows_cover_the_image_and_their_weights_add_up_to_one(blending):
    for length, size, stride in itertools.product((1, 7, 64, 100), (8, 33, 64), (0.3, 0.5, 0.75, 1, 5, 40)):
        window = SlidingWindow((size, size), stride, blending)
        starts, weights = window.axis(length, 0)
        assert starts[0] == 0 and starts[-1] == max(length - size, 0) and starts == sorted(set(starts))
        assert weights.shape == (len(starts), min(size, length)) and (weights > 0).all()
        step = stride if stride > 1 else max(stride * min(size, length), 1)
        assert all(b - a <= min(step, size) + 1 for a, b in itertools.pairwise(starts))
        total = torch.zeros(length)
        for start, weight in zip(starts, weights, strict=True):
            total[start : start + size] += weight
        torch.testing.assert_close(total, torch.ones(length), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(70, 101), (32, 32), (20, 90)])
@pytest.mark.parametrize("stride", [0.6, 17, 1])
def test_a_network_that_sees_single_pixels_gives_the_same_with_and_without_windows(size, stride):
    network, image = PerPixel(K), noise(*size)
    for item in ({}, {"height": 41, "width": 33}):  # at the size of the image, and at another original size
        whole = scores_of(Scorer(network), image, **item)
        for blending in ("linear", "uniform"):
            windowed = scores_of(Scorer(network, window=SlidingWindow((32, 32), stride, blending, 3)), image, **item)
            torch.testing.assert_close(windowed, whole, atol=1e-6, rtol=1e-6)
            assert torch.equal(windowed.argmax(0), whole.argmax(0))
    assert max(len(batch) for batch in network.batches) <= 3
    assert all(h <= 32 and w <= 32 for batch in network.batches[1:2] for h, w in batch) or size == (32, 32)


def test_linear_blending_has_no_seams_and_uniform_has():
    """Where the mean of a window differs from the next one's, the result goes over evenly."""
    image = (torch.arange(96) * 2.5).to(torch.uint8).expand(3, 64, 96)
    window = (64, 32)
    jumps = {}
    for blending in ("linear", "uniform"):
        scores = scores_of(Scorer(Mean(K), window=SlidingWindow(window, 0.5, blending)), image)
        jumps[blending] = scores.diff(dim=2).abs().max().item()
    step_between_windows = 16 * 2.5
    assert jumps["linear"] <= 1.2 * step_between_windows / 16 < 0.4 * jumps["uniform"]


def test_rows_come_once_each_in_order_and_before_the_image_is_through():
    window, image, seen = SlidingWindow((16, 16), 0.5, "linear", 2), noise(50, 40), []

    def score(corners, size):
        seen.append(corners)
        return torch.stack([PerPixel(K).scores(image[:, y : y + size[0], x : x + size[1]]) for y, x in corners])

    rows, number = [], []
    with torch.no_grad():
        for top, scores in scores_by_rows(window, 50, 40, score):
            assert top == sum(len(each[0]) for each in rows)
            rows.append(scores.clone())
            number.append(len(seen))
    torch.testing.assert_close(torch.cat(rows, 1), PerPixel(K).scores(image).detach())
    assert number == sorted(set(number)) and number[0] < number[-1] / 3


def test_mirrored_images_are_averaged_with_the_image():
    scores = scores_of(Scorer(Column(K), mirror=True), noise(4, 9))
    assert torch.equal(scores, torch.full((K, 4, 9), 4.0))
    windowed = scores_of(Scorer(Column(K), mirror=True, window=SlidingWindow((4, 5))), noise(4, 9))
    torch.testing.assert_close(windowed, torch.full((K, 4, 9), 2.0))


def test_scales_follow_the_config_and_are_averaged():
    cfg = get_rc2l_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.INPUT.MIN_SIZE_TEST, cfg.TEST.AUG.ENABLED = 24, True
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE = (16, 0, 64), 80
    check_config(cfg)
    image = noise(32, 48).permute(1, 2, 0).numpy()
    item = EvaluationMapper(cfg).of_image(image)
    sizes = [tuple(each.shape[1:]) for each in item["scales"]]
    assert sizes == [(16, 24), (32, 48), (53, 80)] and item["image"].shape == (3, 24, 36)
    network = PerPixel(K)
    scores = scores_of(build_scorer(cfg, network), **item)
    assert sorted(itertools.chain(*network.batches)) == sorted(2 * sizes)  # each mirrored too
    expected = torch.zeros(K, 32, 48)
    for each in item["scales"]:
        expected += network([{"image": each, "height": 32, "width": 48}])[0]["sem_seg"].detach() / 3
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
    assert describe_mode(cfg).startswith("short edges 16, own size, 64, the long one at most 80, mirrored too")

    cfg.INPUT.BASE_SIZE = [20, 40]  # the aspect ratio of training
    item = EvaluationMapper(cfg).of_image(image)
    assert [tuple(each.shape[1:]) for each in item["scales"]] == [(16, 32), (20, 40), (40, 80)]


def test_the_config_gives_windows_and_half_precision():
    cfg = get_rc2l_cfg()
    cfg.MODEL.DEVICE = "cpu"
    assert build_scorer(cfg, PerPixel(K)).window is None and describe_mode(cfg) == "single scale, original size"
    cfg.TEST.WINDOW.SIZE, cfg.TEST.WINDOW.STRIDE, cfg.TEST.WINDOW.BATCH_SIZE, cfg.TEST.AMP = [32, 64], 20.0, 2, True
    check_config(cfg)
    types = []

    class Recording(PerPixel):
        def scores(self, image):
            product = torch.einsum("kc,chw->khw", self.weight, image.float())
            types.append(product.dtype)
            return product.float().softmax(0)

    network = Recording(K)
    scorer = build_scorer(cfg, network)
    assert scorer.window == SlidingWindow((32, 64), 20.0, "linear", 2)
    scores = scores_of(scorer, noise(40, 40))
    assert scores.dtype == torch.float32 and set(types) == {torch.bfloat16}
    assert network.batches == [[(32, 40)], [(32, 40)]]
    assert describe_mode(cfg) == (
        "single scale, windows 32x64, stride 20 pixels, linear blending, auto autocast, original size"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SIZE", [32]),
        ("SIZE", [0, 0]),
        ("STRIDE", 0.0),
        ("BLENDING", "cubic"),
        ("BATCH_SIZE", 0),
    ],
)
def test_wrong_windows_are_one_line(key, value):
    cfg = get_rc2l_cfg()
    cfg.TEST.WINDOW[key] = value
    with pytest.raises(ValueError, match=rf"^TEST\.WINDOW\.{key} is .*: it must be [^\n]*$"):
        check_config(cfg)


def test_a_scorer_leaves_the_modes_of_the_network_alone():
    network = nn.Sequential(nn.Linear(1, 1), nn.Dropout()).train()
    network[1].eval()  # what is frozen stays so
    scorer = Scorer(network)
    assert scorer.training and network.training and not network[1].training
    assert np.isclose(scorer.device.index or 0, 0)
