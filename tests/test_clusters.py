"""Cluster scores and the sample that they are computed on."""

import numpy as np
import pytest
import torch
from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score, silhouette_score
from torch.nn import functional as F

from rc2l.evaluation.clusters import PixelSample, cluster_scores


def test_scores_of_two_pairs_on_the_unit_circle():
    """Angles 0 and 60 degrees, 180 and 240: chords of 1 inside a class, of 2 and √3 between them."""
    angle = torch.deg2rad(torch.tensor([0.0, 60.0, 180.0, 240.0]))
    vectors = torch.stack([angle.cos(), angle.sin()], 1) * torch.tensor([1.0, 5.0, 0.1, 2.0])[:, None]
    scores = cluster_scores(vectors, torch.tensor([0, 0, 1, 1]))
    between = (2 + 3**0.5) / 2
    assert scores["silhouette"] == pytest.approx((between - 1) / between)
    # Centres at distance √3/2 from the origin on opposite sides, every pixel 1/2 from its own.
    assert scores["calinski_harabasz"] == pytest.approx((4 * 3 / 4 / 1) / (4 / 4 / 2))
    assert scores["davies_bouldin"] == pytest.approx((0.5 + 0.5) / 3**0.5)


def test_tight_blobs_score_best():
    generator = torch.Generator().manual_seed(0)
    centers, classes = 4 * torch.eye(5), torch.arange(5).repeat_interleave(20)
    noise = torch.randn(100, 5, generator=generator)
    tight, loose = (cluster_scores(centers[classes] + width * noise, classes) for width in (0.1, 2))
    assert tight["silhouette"] > 0.9 > loose["silhouette"]
    assert tight["calinski_harabasz"] > loose["calinski_harabasz"]
    assert tight["davies_bouldin"] < 0.2 < loose["davies_bouldin"]


def test_without_sampling_scores_are_those_of_all_pixels():
    generator = torch.Generator().manual_seed(1)
    vectors, classes = torch.randn(90, 4, generator=generator), torch.randint(0, 6, (90,), generator=generator)
    sample = PixelSample(7, 1000)
    for part in range(0, 90, 40):
        sample.add(vectors[part : part + 40], classes[part : part + 40])
    drawn, drawn_classes = sample.pixels()
    assert len(drawn) == 90 and torch.equal(drawn_classes, classes.sort().values)
    unit = F.normalize(vectors, dim=1).numpy()
    expected = (silhouette_score, calinski_harabasz_score, davies_bouldin_score)
    np.testing.assert_allclose(
        list(cluster_scores(drawn, drawn_classes).values()),
        [score(unit, classes.numpy()) for score in expected],
        rtol=1e-4,
    )


def test_sample_is_bounded_even_and_the_same_however_pixels_arrive():
    number, K = 4000, 3
    vectors = torch.arange(number, dtype=torch.float32)[:, None]
    classes = (torch.arange(number) % 400 == 0).long()  # class 1 has ten pixels, class 2 none
    samples = []
    for size in (number, 7, 500):
        sample = PixelSample(K, 200, seed=3)
        for part in range(0, number, size):
            sample.add(vectors[part : part + size], classes[part : part + size])
            assert sum(len(held[1]) for held in sample._parts) <= max(2 * K * 200, size)
        samples.append(sample.pixels())
    drawn, drawn_classes = samples[0]
    assert torch.bincount(drawn_classes, minlength=K).tolist() == [200, 10, 0]
    assert len(drawn.unique()) == 210 and torch.equal((drawn[:, 0] % 400 == 0).long(), drawn_classes)
    # Even: the mean of 200 of 0..3999 has a standard error of 80.
    assert abs(drawn[:200].mean() - 2000) < 3 * 80
    for other, other_classes in samples[1:]:
        assert torch.equal(drawn, other) and torch.equal(drawn_classes, other_classes)
    other = PixelSample(K, 200, seed=4)
    other.add(vectors, classes)
    assert not torch.equal(drawn, other.pixels()[0])


@pytest.mark.parametrize("width", [0.0, 1.0])
def test_collapsed_features_have_finite_scores(width):
    scores = cluster_scores(torch.full((6, 3), width), torch.tensor([0, 0, 1, 1, 2, 2]))
    assert np.isfinite(list(scores.values())).all() and scores["silhouette"] == 0


@pytest.mark.parametrize(
    ("vectors", "classes", "message"),
    [
        (torch.rand(5, 3), torch.zeros(5, dtype=torch.int64), "there are 1 classes in 5 pixels"),
        (torch.rand(3, 3), torch.arange(3), "there are 3 classes in 3 pixels"),
        (torch.rand(0, 3), torch.zeros(0, dtype=torch.int64), "there are 0 classes in 0 pixels"),
        (torch.tensor([[1.0], [float("nan")], [2.0]]), torch.tensor([0, 0, 1]), "not finite"),
    ],
)
def test_what_has_no_scores_is_one_error(vectors, classes, message):
    with pytest.raises(ValueError, match=message):
        cluster_scores(vectors, classes)


def test_bad_samples_are_one_error():
    with pytest.raises(ValueError, match="pixels per class is 1: it must be at least 2"):
        PixelSample(3, 1)
    with pytest.raises(ValueError, match="no pixel of a known class"):
        PixelSample(3, 2).pixels()
