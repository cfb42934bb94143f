"""DGCL's density and loss: the official numbers, and what happens at the edges."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rc2l.losses import density as density_module
from rc2l.losses.density import block_density, local_density
from rc2l.losses.dgcl import ANCHORS, POSITIVES, Dgcl, DgclOptions, Memory, dgcl_loss, draw_samples, sampled_contrast
from tests.shared_data import shared_file
from tests.tool_modules import load_tool

K, C = 5, 8
SMALL = DgclOptions(num_anchors=6, num_positives=4, num_negatives=16, neighbors=(2, 4))


@pytest.fixture(scope="module")
def reference() -> dict[str, torch.Tensor]:
    with np.load(shared_file("reference/dgcl.npz")) as file:
        return {key: torch.as_tensor(file[key]) for key in file.files}


class Official:
    """One case of the reference vectors, in our conventions: label K is "not used", 0 is skipped."""

    def __init__(self, reference: dict[str, torch.Tensor], case: str, dtype: torch.dtype = torch.float32) -> None:
        self.values = {key.split("/", 1)[1]: value for key, value in reference.items() if key.startswith(f"{case}/")}
        self.K = int(reference["num_classes"])
        self.used = [k for k in range(self.K) if f"c{k}/pixels" in self.values]
        self.rep = self["rep"].to(dtype).requires_grad_()
        labels = self["label"].flatten()
        self.inputs = (
            self.rep.permute(0, 2, 3, 1).flatten(0, 2),
            self["fts"].to(dtype).permute(0, 2, 3, 1).flatten(0, 2),
            torch.where(labels == 255, self.K, labels),
            torch.rand(len(labels)),
        )
        density = reference["memory/feat_density"].to(dtype)
        self.memory = Memory(
            F.normalize(reference["memory/fts_memory"].to(dtype), dim=2),
            reference["memory/proj_memory"].to(dtype),
            density,
            torch.rand(density.shape),
            torch.full((self.K,), density.shape[1]),
        )
        self.options = DgclOptions(
            num_anchors=int(self["k_low_thresh"]),
            num_positives=int(self["k_high_thresh"]),
            num_negatives=int(reference["negatives_per_class_max"]),
            temperature=float(self["temperature"]),
            neighbors=tuple(reference["k_den_cal"].tolist()),
            skip_classes=(0,),
        )

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.values[key]

    def has_a_choice(self, k: int) -> bool:
        """Whether the official code measures the density of class k; all pixels of smaller ones have 1."""
        return len(self[f"c{k}/pixels"]) > max(self.options.neighbors)

    def loss(self) -> Dgcl:
        return dgcl_loss(*self.inputs, self.memory, self.options)


@pytest.mark.parametrize(("dtype", "name", "tolerance"), [(torch.float32, "", 1e-5), (torch.float64, "_f64", 1e-9)])
def test_density_equals_the_official_one(reference, dtype, name, tolerance):
    bank = F.normalize(reference["density/memo"].to(dtype), dim=1)[None]
    features = reference["density/feat"].to(dtype)
    neighbors = reference["density/k"].tolist()
    found = local_density(
        features, torch.zeros(len(features), dtype=torch.int64), bank, torch.tensor([bank.shape[1]]), neighbors
    )
    torch.testing.assert_close(found, reference[f"density/norm_dot{name}"], atol=tolerance, rtol=0)


@pytest.mark.parametrize("case", ["train", "select", "tiny_class"])
def test_loss_and_gradient_equal_the_official_ones(reference, case):
    official = Official(reference, f"loss_{case}")
    result = official.loss()
    torch.testing.assert_close(result.loss, official["loss"], atol=1e-5, rtol=0)
    assert result.active.nonzero()[:, 0].tolist() == official.used
    assert len(official.used) == int(official["num_classes_used"])
    for k in official.used:
        torch.testing.assert_close(result.class_loss[k].double(), official[f"c{k}/class_loss"], atol=1e-5, rtol=0)
        pixels = official[f"c{k}/pixels"]
        if official.has_a_choice(k):
            torch.testing.assert_close(result.density[pixels], official[f"c{k}/density"], atol=1e-5, rtol=0)
    result.loss.backward()
    torch.testing.assert_close(official.rep.grad, official["grad_rep"], atol=1e-7, rtol=1e-4)


def test_double_precision_differs_by_the_epsilon_in_the_official_logarithm(reference):
    """log(sum + epsilon) is above log(sum) by less than epsilon, as the sum is of 1 and more."""
    official = Official(reference, "loss_train", torch.float64)
    assert -1e-12 < official["loss_f64"] - official.loss().loss < reference["log_eps"]


@pytest.mark.parametrize("case", ["train", "select", "tiny_class", "sampled_neg"])
def test_chosen_sets_equal_the_official_ones(reference, case):
    official = Official(reference, f"loss_{case}")
    _, _, labels, confidence = official.inputs
    samples = draw_samples(labels, official.loss().density, confidence, official.memory, official.options)
    for k in official.used:
        anchors = samples.anchors[k][samples.anchor_valid[k]]
        expected = official[f"c{k}/anchor_pixel"]
        if official.has_a_choice(k):
            assert torch.equal(anchors, expected)
        assert set(anchors.tolist()) == set(expected.tolist())
        positives = samples.positives[k][samples.positive_valid[k]]
        assert set(positives.tolist()) == set(official[f"c{k}/positive_pixel"].tolist())
        of_memory = samples.memory_positives[k][samples.memory_valid[k]]
        assert set(of_memory.tolist()) == set(official[f"c{k}/positive_memory_idx"].tolist())
        negatives = samples.negatives[k][samples.negative_valid[k]]
        if case == "sampled_neg":
            assert (
                len(set(negatives.tolist())) == official.options.num_negatives
                and ((labels != k) & (labels < official.K))[negatives].all()
            )
        else:
            assert set(negatives.tolist()) == set(official[f"c{k}/negative_pixel"].tolist())


def test_loss_and_gradient_for_the_official_negatives(reference):
    official = Official(reference, "loss_sampled_neg")
    projections, _, labels, confidence = official.inputs
    samples = draw_samples(labels, official.loss().density, confidence, official.memory, official.options)
    for k in official.used:
        drawn = official[f"c{k}/negative_pixel"]
        samples.negatives[k, : len(drawn)] = drawn
        samples.negative_valid[k] = torch.arange(samples.negatives.shape[1]) < len(drawn)
    loss, _, _ = sampled_contrast(projections, official.memory.projections, samples, official.options.temperature)
    class_loss = torch.stack([loss[k][samples.anchor_valid[k]].mean() for k in official.used])
    torch.testing.assert_close(class_loss.mean(), official["loss"], atol=1e-5, rtol=0)
    class_loss.mean().backward()
    torch.testing.assert_close(official.rep.grad, official["grad_rep"], atol=1e-7, rtol=1e-4)


def test_drawn_negatives_agree_with_the_official_ones_on_average(reference):
    """The official draw is one of many: no further from the mean of ours than such a draw is."""
    official = Official(reference, "loss_sampled_neg")
    losses = torch.stack([official.loss().loss.detach() for _ in range(20)])
    assert 0 < (losses.mean() - official["loss"]).abs() < 4 * losses.std()


def batch(dtype: torch.dtype = torch.float32, seed: int = 0, pixels: int = 120, size: int = 40):
    """Projections, features, labels, confidence and a full memory; label K is "not used"."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    memory = Memory(
        F.normalize(normal(K, size, C + 2).float(), dim=2),
        normal(K, size, C).float(),
        torch.rand(K, size, generator=generator),
        torch.rand(K, size, generator=generator),
        torch.full((K,), size),
    )
    labels = torch.randint(0, K + 1, (pixels,), generator=generator)
    confidence = torch.rand(pixels, generator=generator)
    return normal(pixels, C).requires_grad_(), normal(pixels, C + 2), labels, confidence, memory


def seeded(*args, **kwargs) -> Dgcl:
    return dgcl_loss(*args, **kwargs, generator=torch.Generator().manual_seed(1))


def brute_density(features, labels, memory, neighbors, own=None):
    """Pixel by pixel, with a full sort."""
    values = []
    for index, (feature, label) in enumerate(zip(F.normalize(features, dim=1), labels.tolist(), strict=True)):
        if label == len(memory.count) or memory.count[label] == 0:
            values.append(0.0)
            continue
        similarity = (memory.features[label, : memory.count[label]] @ feature).tolist()
        if own is not None and own[index] >= 0:
            del similarity[own[index]]
        nearest = sorted(similarity, reverse=True)
        values.append(np.mean([np.mean(nearest[:k]) for k in neighbors]))
    return torch.tensor(values, dtype=torch.float32)


def test_density_with_few_or_no_entries_and_without_itself():
    _, features, labels, _, memory = batch()
    memory = replace(memory, count=torch.tensor([40, 3, 0, 1, 17]))
    found = local_density(features, labels, memory.features, memory.count, (2, 4, 8))
    torch.testing.assert_close(found, brute_density(features, labels, memory, (2, 4, 8)))
    assert (found[labels == 2] == 0).all() and (found[labels == K] == 0).all()

    labels, own = torch.tensor([0, 4, 1]), torch.tensor([[5, 6], [-1, 3], [2, 0]])
    stored = memory.features[labels[:, None], own.clamp(min=0)]
    arguments = (stored, labels, memory.features, memory.count, (2, 4))
    alone, flat = block_density(*arguments, own), (stored.flatten(0, 1), labels.repeat_interleave(2))
    torch.testing.assert_close(alone.flatten(), brute_density(*flat, memory, (2, 4), own.flatten()))
    assert torch.equal(block_density(*arguments) > alone, own >= 0)


def test_density_does_not_depend_on_chunks_order_or_length(monkeypatch):
    _, features, labels, _, memory = batch(pixels=1000)
    expected = local_density(features, labels, memory.features, memory.count, (2, 4))
    torch.testing.assert_close(expected, brute_density(features, labels, memory, (2, 4)))
    shuffled = torch.randperm(1000)
    scaled = features * (torch.rand(1000, 1) + 0.1)
    again = local_density(scaled[shuffled], labels[shuffled], memory.features, memory.count, (2, 4))
    torch.testing.assert_close(again, expected[shuffled])
    for rows, block in ((1, 1), (7, 2000), (4096, 2**25)):
        monkeypatch.setattr(density_module, "_ROWS", rows)
        monkeypatch.setattr(density_module, "_BLOCK", block)
        chunked = local_density(features, labels, memory.features, memory.count, (2, 4))
        torch.testing.assert_close(chunked, expected)


@pytest.mark.whole_run
def test_density_needs_little_memory_at_ten_thousand_features_and_entries():
    """All similarities at once would be 381 MiB, and a mask of them 95 MiB more."""
    peak_memory = load_tool("benchmark_reco").PeakMemory
    features, bank = torch.randn(10_000, 256), F.normalize(torch.randn(1, 10_000, 256), dim=2)
    labels, count = torch.zeros(10_000, dtype=torch.int64), torch.tensor([10_000])
    with peak_memory(torch.device("cpu")) as peak:
        local_density(features, labels, bank, count, (8, 16, 32))
    assert peak.mebibytes < 250


def one_class(labels, memory):
    return torch.zeros_like(labels), memory, []


def all_ignored(labels, memory):
    return torch.full_like(labels, K), memory, []


def empty_memory(labels, memory):
    return labels, replace(memory, count=torch.zeros(K, dtype=torch.int64)), []


def short_memory(labels, memory):
    return labels, replace(memory, count=torch.tensor([3, 4, 40, 0, 5])), [1, 2, 4]


def unknown_densities(labels, memory):
    return labels, replace(memory, density=torch.full_like(memory.density, float("-inf"))), [0, 1, 2, 3, 4]


def one_pixel(labels, memory):
    labels = torch.where(labels == 3, K, labels)
    labels[17] = 3
    return labels, memory, [0, 1, 2, 3, 4]


@pytest.mark.parametrize("edge", [one_class, all_ignored, empty_memory, short_memory, unknown_densities, one_pixel])
@pytest.mark.parametrize("positives", POSITIVES)
def test_edges_are_finite_and_have_a_graph(edge, positives):
    projections, features, labels, confidence, memory = batch()
    labels, memory, active = edge(labels, memory)
    result = seeded(projections, features, labels, confidence, memory, replace(SMALL, positives=positives))
    result.loss.backward()
    assert torch.isfinite(result.loss) and torch.isfinite(projections.grad).all()
    assert result.active.nonzero()[:, 0].tolist() == active
    assert (result.loss > 0) == (projections.grad.abs().sum() > 0) == bool(active)
    for name, values in vars(result).items():
        assert torch.isfinite(values).all(), name


def test_hand_computed_loss():
    """Two classes, one anchor each; the positive is the mean of one batch and one memory projection."""
    projections = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]], requires_grad=True)
    features = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    memory = Memory(
        features=torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]),
        projections=torch.tensor([[[1.0, 0.0]], [[0.0, -1.0]]]),
        density=torch.ones(2, 1),
        confidence=torch.ones(2, 1),
        count=torch.ones(2, dtype=torch.int64),
    )
    options = DgclOptions(num_anchors=1, num_positives=1, temperature=0.5, neighbors=(1,))
    result = dgcl_loss(projections, features, torch.tensor([0, 0, 1]), torch.rand(3), memory, options)
    torch.testing.assert_close(result.density, torch.tensor([1.0, 0.6, 1.0]))
    # Class 0: anchor (0, 1), positive along (1, 0), negative (-1, 0): both similarities are 0.
    # Class 1: anchor (-1, 0), positive along (-1, -1), negatives (1, 0) and (0, 1): similarities 0.5 ** 0.5, -1, 0.
    p, n = np.exp(2 * 0.5**0.5), np.exp(-2.0) + 1
    expected = torch.tensor([np.log(2), np.log((p + n) / p)], dtype=torch.float32)
    torch.testing.assert_close(result.class_loss, expected)
    torch.testing.assert_close(result.loss.detach(), expected.mean())
    torch.testing.assert_close(result.positive_similarity, torch.tensor([0.0, 0.5**0.5]))
    torch.testing.assert_close(result.negative_similarity, torch.tensor([0.0, -0.5]))
    torch.testing.assert_close(result.anchor_density, torch.tensor([0.6, 1.0]))


@pytest.mark.parametrize("anchors", ANCHORS)
@pytest.mark.parametrize("positives", POSITIVES)
def test_gradient_flows_into_anchors_only(anchors, positives):
    projections, features, labels, confidence, memory = batch()
    for tensor in (memory.projections, memory.features, features):
        tensor.requires_grad_()
    options = replace(SMALL, anchors=anchors, positives=positives, skip_classes=(2,))
    result = seeded(projections, features, labels, confidence, memory, options)
    result.loss.backward()
    touched = projections.grad.abs().sum(1) > 0
    assert memory.projections.grad is None and memory.features.grad is None and features.grad is None
    for k in range(K):
        members = (labels == k).nonzero()[:, 0]
        chosen = set(touched.nonzero()[:, 0].tolist()) & set(members.tolist())
        assert len(chosen) == (0 if k == 2 else 6)
        if k != 2 and anchors != "random":
            score = result.density if anchors == "low_density" else confidence
            assert chosen == set(members[score[members].argsort()[:6]].tolist())
    assert not touched[labels == K].any()


def test_skipped_classes_stay_negatives():
    _, _, labels, confidence, memory = batch()
    options = replace(SMALL, num_negatives=1000, skip_classes=(0, 3))
    samples = draw_samples(labels, torch.rand(len(labels)), confidence, memory, options)
    assert not samples.anchor_valid[[0, 3]].any() and samples.anchor_valid[[1, 2, 4]].any()
    for k in range(K):
        expected = ((labels != k) & (labels < K)).nonzero()[:, 0].tolist()
        assert sorted(samples.negatives[k][samples.negative_valid[k]].tolist()) == expected


def test_positives_of_the_ablation():
    _, _, labels, confidence, memory = batch()
    memory = replace(memory, count=torch.tensor([40, 40, 40, 40, 3]))
    density = torch.rand(len(labels))
    for positives, of_batch, of_memory in (
        ("high_density", density, memory.density),
        ("high_confidence", confidence, memory.confidence),
    ):
        samples = draw_samples(labels, density, confidence, memory, replace(SMALL, positives=positives))
        for k in range(K):
            members = (labels == k).nonzero()[:, 0]
            best = members[of_batch[members].argsort(descending=True)[:4]]
            assert torch.equal(samples.positives[k][samples.positive_valid[k]], best)
            stored = of_memory[k, : memory.count[k]].argsort(descending=True)[:4]
            assert torch.equal(samples.memory_positives[k][samples.memory_valid[k]], stored)
    drawn = [draw_samples(labels, density, confidence, memory, replace(SMALL, positives="average")) for _ in range(300)]
    seen = torch.cat([samples.memory_positives[0] for samples in drawn]).bincount(minlength=40)
    assert (seen > 10).all() and (seen < 60).all()  # 30 each on average
    assert all(samples.memory_valid[4].sum() == 3 for samples in drawn)


def test_drawn_negatives_are_even_and_without_repetition():
    _, _, labels, confidence, memory = batch()
    others = (labels != 1) & (labels < K)
    seen = torch.zeros(len(labels))
    for _ in range(400):
        samples = draw_samples(labels, torch.zeros(len(labels)), confidence, memory, SMALL)
        drawn = samples.negatives[1]
        assert len(set(drawn.tolist())) == 16 and samples.negative_valid[1].all()
        seen[drawn] += 1
    expected = 400 * 16 / others.sum()
    assert (seen[~others] == 0).all()
    assert (seen[others] - expected).abs().max() < 5 * expected**0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    projections, features, *rest = batch(dtype)
    projections = (projections.detach() * 1000).requires_grad_()  # sums of it overflow float16
    result = seeded(projections, features, *rest, SMALL)
    exact = seeded(projections.detach().float(), features.float(), *rest, SMALL)
    assert result.loss.dtype == torch.float32
    torch.testing.assert_close(result.loss, exact.loss)
    result.loss.backward()
    assert projections.grad.dtype == dtype and torch.isfinite(projections.grad).all()


def test_gradcheck():
    projections, features, labels, confidence, memory = batch(torch.float64, pixels=30)
    memory = replace(memory, features=memory.features.double(), projections=memory.projections.double())
    with torch.no_grad():
        density = dgcl_loss(projections, features, labels, confidence, memory, SMALL).density
        samples = draw_samples(labels, density, confidence, memory, replace(SMALL, num_anchors=2, num_positives=1))
    # Positives and negatives are constants of the loss, so no anchor may be among them.
    fixed = torch.ones(len(labels), dtype=torch.bool)
    fixed[samples.anchors[samples.anchor_valid]] = False
    samples.negative_valid &= fixed[samples.negatives]
    samples.positive_valid &= fixed[samples.positives]
    assert samples.negative_valid.any(1).all() and samples.anchor_valid.all() and samples.positive_valid.any()

    constants = projections.detach().clone()

    def loss(leaf: torch.Tensor) -> torch.Tensor:
        moved = torch.where(fixed[:, None], constants, leaf)
        return sampled_contrast(moved, memory.projections, samples, 0.5)[0]

    assert torch.autograd.gradcheck(loss, projections)


def test_loss_does_not_depend_on_unused_pixels_or_the_length_of_vectors():
    projections, features, labels, confidence, memory = batch()
    options = replace(SMALL, num_negatives=1000, num_positives=1)
    expected = seeded(projections, features, labels, confidence, memory, options).loss
    unused = (labels == K)[:, None]
    moved = torch.where(unused, 100.0, projections), torch.where(unused, -7.0, features * 3)
    torch.testing.assert_close(seeded(*moved, labels, confidence, memory, options).loss, expected)
    kept = labels < K
    short = (projections[kept], features[kept], labels[kept], confidence[kept])
    torch.testing.assert_close(seeded(*short, memory, options).loss, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_anchors": 0}, r"DgclOptions\.num_anchors is 0: it must be a whole number in \[1, "),
        ({"temperature": 0.0}, r"DgclOptions\.temperature is 0\.0: it must be a number above 0"),
        ({"neighbors": (0, 8)}, r"DgclOptions\.neighbors is \(0, 8\)"),
        ({"neighbors": ()}, r"DgclOptions\.neighbors is \(\)"),
        ({"skip_classes": (-1,)}, r"DgclOptions\.skip_classes is \(-1,\)"),
        ({"anchors": "dense"}, r"DgclOptions\.anchors is 'dense'.*low_density, random or low_confidence"),
        ({"positives": "dense"}, r"DgclOptions\.positives is 'dense'.*high_density, average or high_confidence"),
    ],
)
def test_bad_options_are_one_error(options, message):
    with pytest.raises(ValueError, match=message):
        DgclOptions(**options)


def test_lengths_that_do_not_fit_are_one_error():
    projections, features, labels, confidence, memory = batch()
    with pytest.raises(ValueError, match=r"there are 120 projections.*they have 120, 119 and 120"):
        dgcl_loss(projections, features, labels[:-1], confidence, memory)
