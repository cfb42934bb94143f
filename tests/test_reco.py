"""ReCo's loss: the official numbers, and what happens at the edges."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rc2l.losses.reco import (
    RecoOptions,
    class_means,
    class_relations,
    key_probabilities,
    query_candidates,
    reco_loss,
    sampled_contrast,
    sampled_contrast_per_query,
)
from rc2l.structures.class_groups import ClassGroups, class_counts
from tests.shared_data import shared_file

CASES = ("plain", "edge_case")
SMALL = RecoOptions(num_queries=8, num_keys=16)


class Official:
    """One case of the reference vectors, in our conventions."""

    def __init__(self, case: str) -> None:
        with np.load(shared_file("reference/reco_deterministic.npz")) as file:
            for key in file.files:
                if "/" not in key or key.startswith(f"{case}/"):
                    setattr(self, key.split("/")[-1], torch.as_tensor(file[key]))
        self.K, temperature = int(self.num_classes), float(self.temp)
        self.options = RecoOptions(
            int(self.num_queries), int(self.num_negatives), temperature, temperature, float(self.strong_threshold)
        )
        self.labels = torch.where(self.mask[:, 0] == 1, self.label, 255)
        self.own = self.prob.gather(1, self.label.clamp(min=0)[:, None])[:, 0]
        self.index = torch.where(self.labels == 255, self.K, self.labels)
        candidate = query_candidates(self.own, self.options)
        self.groups = ClassGroups.of(self.index.flatten(), self.K, ~candidate.flatten())
        self.candidates = class_counts(torch.where(candidate, self.index, self.K).flatten(), self.K)
        self.means = class_means(self.rep, self.index, self.K)


@pytest.fixture(params=CASES)
def official(request) -> Official:
    return Official(request.param)


def test_groups_and_means_equal_the_official_ones(official):
    classes = official.valid_classes
    assert torch.equal((official.groups.count > 0).nonzero()[:, 0], classes)
    assert torch.equal(official.groups.count[classes], official.seg_num)
    assert torch.equal(official.candidates[classes], official.hard_num)
    torch.testing.assert_close(official.means[classes], official.proto, atol=1e-5, rtol=0)
    for k in range(official.K):  # hard pixels of a class, in the order that the official indices count them in
        start, count = official.groups.start[k], official.candidates[k]
        hard = official.hard_mask[:, k].flatten().nonzero()[:, 0]
        assert torch.equal(official.groups.order[start : start + count], hard)


def test_relations_and_key_probabilities_equal_the_official_ones(official):
    classes, active = official.valid_classes, official.active
    relations = class_relations(official.means, official.groups.count > 0)
    probabilities = key_probabilities(relations, official.groups.count, official.options)
    torch.testing.assert_close(relations[classes][:, classes][active], official.proto_sim[active], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        probabilities[classes][:, classes][active], official.proto_prob[active], atol=1e-5, rtol=0
    )


def test_loss_and_gradient_for_the_official_samples(official):
    representation = official.rep.clone().requires_grad_()
    pixels = representation.permute(0, 2, 3, 1).flatten(0, 2)
    queries = pixels[official.anchor_pixel.long().clamp(min=0)]
    keys = official.negative_pixel.long().clamp(min=0)
    means = official.means[official.valid_classes]
    loss, _ = sampled_contrast_per_query(queries, means, pixels, keys, official.options.temperature)
    class_loss = torch.where(official.active, loss.mean(1), 0)
    torch.testing.assert_close(class_loss.double(), official.class_loss, atol=1e-5, rtol=0)
    total = class_loss.sum() / len(class_loss)
    torch.testing.assert_close(total, official.loss, atol=1e-5, rtol=0)
    total.backward()
    torch.testing.assert_close(representation.grad, official.grad_rep, atol=1e-6, rtol=0)


@pytest.mark.whole_run
@pytest.mark.parametrize(("key_sets", "draws"), [("class", 2000), ("query", 300)])
def test_sampled_loss_agrees_with_the_official_mean(official, key_sets, draws):
    """Within 4 standard errors of the official mean.

    Both ways to share keys have the same expectation, since a query's keys have the same distribution in both;
    ``class`` varies more from draw to draw, so it needs more of them.
    """
    options = replace(official.options, key_sets=key_sets)
    generator = torch.Generator().manual_seed(0)
    losses = torch.stack(
        [
            reco_loss(official.rep, official.labels, official.own, official.K, options, generator=generator).loss
            for _ in range(draws)
        ]
    ).double()
    own_error, official_error = losses.std() / draws**0.5, official.stat_std / len(official.stat_losses) ** 0.5
    assert own_error < 1.5 * official_error
    assert (losses.mean() - official.stat_mean).abs() < 4 * (own_error**2 + official_error**2).sqrt()
    if key_sets == "query":  # the official sampling, so also the official spread
        assert losses.std() == pytest.approx(float(official.stat_std), rel=0.3)


def batch(num_classes: int = 5, dtype: torch.dtype = torch.float32, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    representation = torch.randn(2, 8, 12, 10, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(0, num_classes, (2, 12, 10), generator=generator)
    return representation, labels, torch.rand(2, 12, 10, generator=generator)


def seeded(*args, **kwargs):
    return reco_loss(*args, **kwargs, generator=torch.Generator().manual_seed(1))


def one_class(labels, own):
    return torch.zeros_like(labels), own, []


def no_hard_query(labels, own):
    return labels, torch.ones_like(own), []


def all_ignored(labels, own):
    return torch.full_like(labels, 255), own, []


def one_pixel(labels, own):
    labels = torch.where(labels == 3, 255, labels)
    labels[1, 5, 5], own[1, 5, 5] = 3, 0.1
    return labels, own, [0, 1, 2, 3, 4]


def an_easy_class(labels, own):
    return labels, torch.where(labels == 2, 1.0, own * 0.9), [0, 1, 3, 4]


@pytest.mark.parametrize("edge", [one_class, no_hard_query, all_ignored, one_pixel, an_easy_class])
@pytest.mark.parametrize("key_sets", ["class", "query"])
def test_edges_are_finite_and_have_a_graph(edge, key_sets):
    representation, labels, own = batch()
    labels, own, active = edge(labels, own)
    result = seeded(representation, labels, own, 5, RecoOptions(8, 16, key_sets=key_sets))
    result.loss.backward()
    assert torch.isfinite(result.loss) and torch.isfinite(representation.grad).all()
    assert result.active.nonzero()[:, 0].tolist() == active
    assert (result.loss > 0) == (representation.grad.abs().sum() > 0) == bool(active)
    assert torch.isfinite(result.relations).all() and result.positive_similarity.isfinite().all()


@pytest.mark.parametrize("queries", ["active", "random", "easy"])
@pytest.mark.parametrize("key_sets", ["class", "query"])
def test_gradient_flows_into_queries_only(queries, key_sets):
    representation, labels, own = batch()
    labels[0, :3] = 255
    options = RecoOptions(4, 16, hard_threshold=0.5, queries=queries, key_sets=key_sets)
    seeded(representation, labels, own, 5, options).loss.backward()
    touched = representation.grad.abs().sum(1) > 0
    allowed = (labels != 255) & query_candidates(own, options)
    assert touched.any() and not (touched & ~allowed).any()
    assert touched.sum() <= 4 * 5


def test_positives_and_keys_get_no_gradient():
    queries, positives, keys = (torch.randn(shape, requires_grad=True) for shape in ((3, 4, 8), (3, 8), (3, 6, 8)))
    sampled_contrast(queries, positives, keys, 0.5)[0].sum().backward()
    assert queries.grad.abs().sum() > 0 and positives.grad is None and keys.grad is None


def test_shared_and_own_key_sets_agree_for_equal_keys():
    pixels = torch.randn(50, 8)
    queries, positives, index = torch.randn(3, 4, 8), torch.randn(3, 8), torch.randint(0, 50, (3, 6))
    shared = sampled_contrast(queries, positives, pixels[index], 0.3)
    own = sampled_contrast_per_query(queries, positives, pixels, index[:, None].expand(3, 4, 6), 0.3)
    for first, second in zip(shared, own, strict=True):
        torch.testing.assert_close(first, second)


def test_keys_are_never_of_the_query_class_and_follow_the_probabilities():
    _, labels, own = batch()
    labels[labels == 4] = 255
    index = torch.where(labels == 255, 5, labels)
    groups = ClassGroups.of(index.flatten(), 5, ~query_candidates(own, SMALL).flatten())
    relations = torch.rand(5, 5)
    for keys in ("active", "random"):
        probabilities = key_probabilities(relations, groups.count, RecoOptions(keys=keys))
        drawn = index.flatten()[groups.draw_any(probabilities, 20000, torch.Generator().manual_seed(0))]
        share = torch.stack([(drawn == k).float().mean(1) for k in range(5)], 1)
        torch.testing.assert_close(share[:4], probabilities[:4], atol=0.02, rtol=0)
        assert (probabilities.diagonal() == 0).all() and (share[:4].diagonal() == 0).all()
    assert (groups.count[:4] > 0).all() and groups.count[4] == 0


def test_loss_does_not_depend_on_the_length_of_vectors_or_on_unused_pixels():
    representation, labels, own = batch()
    labels[0, :4] = 255
    scale = torch.rand(2, 1, 12, 10) + 0.5
    queries, positives, keys = torch.randn(2, 3, 8), torch.randn(2, 8), torch.randn(2, 5, 8)
    expected = sampled_contrast(queries, positives, keys, 0.5)[0]
    torch.testing.assert_close(sampled_contrast(queries * 3, positives * 0.1, keys * 7, 0.5)[0], expected)
    first = seeded(representation, labels, own, 5, SMALL).loss
    noise = torch.where(labels[:, None] == 255, 100 * scale, 0)
    torch.testing.assert_close(seeded(representation + noise, labels, own, 5, SMALL).loss, first)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    representation, labels, own = batch(dtype=dtype)
    representation = (representation.detach() * 1000).requires_grad_()  # sums of it overflow float16
    result = seeded(representation, labels, own, 5, SMALL)
    exact = seeded(representation.detach().float().requires_grad_(), labels, own, 5, SMALL)
    assert result.loss.dtype == torch.float32
    torch.testing.assert_close(result.loss, exact.loss)
    result.loss.backward()
    assert representation.grad.dtype == dtype and torch.isfinite(representation.grad).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_queries": 0}, r"RecoOptions\.num_queries is 0"),
        ({"temperature": 0.0}, r"RecoOptions\.temperature is 0\.0"),
        ({"hard_threshold": 1.5}, r"RecoOptions\.hard_threshold is 1\.5"),
        ({"queries": "hard"}, r"RecoOptions\.queries is 'hard'.*active, random or easy"),
    ],
)
def test_bad_options_are_one_error(options, message):
    with pytest.raises(ValueError, match=message):
        RecoOptions(**options)


def test_shapes_that_do_not_fit_are_one_error():
    representation, labels, own = batch()
    with pytest.raises(ValueError, match=r"labels and own_probability must be \(2, 12, 10\)"):
        reco_loss(representation, labels[:, :-1], own, 5)
