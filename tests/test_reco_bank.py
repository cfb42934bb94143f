"""ReCo with a feature bank: what comes from it, what enters it, and runs through train_net.py."""

import pytest
import torch

from rc2l.losses.reco import RecoOptions, class_means, memory_means, reco_loss
from rc2l.semi.method import method_of
from rc2l.structures.class_ring import ClassRing
from rc2l.structures.outputs import SegmentationOutput
from tests.steps import learner_of, objective_of, step_of, view_of
from tests.test_dgcl_training import config
from tests.test_reco import batch

K = 5
WITH_BANK = ["RECO.MEMORY_PER_CLASS", "20", "RECO.ADDED_PER_CLASS", "6"]


def bank_of(representation, labels, size: int, classes) -> ClassRing:
    """A bank of all pixels of the given classes."""
    bank = ClassRing(K, size, {"projections": representation.shape[1]})
    pixels, flat = representation.detach().permute(0, 2, 3, 1).flatten(0, 2), labels.flatten()
    entries, valid = torch.zeros(K, size, pixels.shape[1]), torch.zeros(K, size, dtype=torch.bool)
    for k in classes:
        own = pixels[flat == k]
        entries[k, : len(own)], valid[k, : len(own)] = own, True
    bank.update({"projections": entries}, valid)
    return bank


@pytest.mark.parametrize("key_sets", ["class", "query"])
@pytest.mark.parametrize("keys", ["active", "random"])
def test_a_bank_of_the_same_pixels_gives_the_same_loss(key_sets, keys):
    """Where every pixel may be a query, the mini-batch has its pixels in the order of the bank: draws are the same."""
    representation, labels, own = batch()
    memory = bank_of(representation, labels, 90, range(K))
    torch.testing.assert_close(memory_means(memory), class_means(representation, labels, K))
    options = RecoOptions(8, 16, queries="random", keys=keys, key_sets=key_sets)
    results = [
        reco_loss(representation, labels, own, K, options, generator=torch.Generator().manual_seed(0), memory=source)
        for source in (None, memory)
    ]
    for name in ("loss", "class_loss", "positive_similarity", "negative_similarity", "relations", "active"):
        torch.testing.assert_close(*(getattr(result, name) for result in results))
    gradients = [torch.autograd.grad(result.loss, representation)[0] for result in results]
    torch.testing.assert_close(*gradients)
    assert results[0].active.all() and gradients[0].abs().sum() > 0


@pytest.mark.parametrize("key_sets", ["class", "query"])
@pytest.mark.parametrize(("held", "active"), [([], []), ([2], []), ([1, 3], [1, 3])])
def test_only_classes_that_the_bank_holds_are_active(key_sets, held, active):
    representation, labels, own = batch()
    bank = bank_of(representation, labels, 90, held)
    bank.projections.requires_grad_()
    result = reco_loss(representation, labels, own, K, RecoOptions(8, 16, key_sets=key_sets), memory=bank)
    result.loss.backward()
    assert result.active.nonzero()[:, 0].tolist() == active and torch.isfinite(result.loss)
    assert (result.loss > 0) == bool(active) and representation.grad.isfinite().all()
    touched = labels[representation.grad.abs().sum(1) > 0]
    assert set(touched.tolist()) == set(active) and bank.projections.grad is None


def test_keys_come_from_the_bank():
    """With opposite representations in the bank, the similarities with keys and with the own mean change sign."""
    representation, labels, own = batch()
    representation = (representation.detach() + 3).requires_grad_()
    options = RecoOptions(8, 16)
    near = reco_loss(representation, labels, own, K, options, memory=bank_of(representation, labels, 90, range(K)))
    far = reco_loss(representation, labels, own, K, options, memory=bank_of(-representation, labels, 90, range(K)))
    assert (near.negative_similarity > 0.5).all() and (far.negative_similarity < -0.5).all()
    assert (near.positive_similarity > 0.5).all() and (far.positive_similarity < -0.5).all()


def test_labeled_and_confident_pixels_enter_the_bank_after_the_step():
    cfg = config("classmix-reco_deeplab", *WITH_BANK)
    learner = learner_of(cfg)
    bank = objective_of(learner, "reco").bank
    assert bank.projections.shape == (9, 20, 16)
    outputs = [
        SegmentationOutput(
            None,
            None,
            torch.zeros(1, 1, 4, 4),
            pixel_logits=torch.randn(1, 9, 4, 4),
            representations={"reco": torch.randn(1, 16, 4, 4, requires_grad=True)},
        )
        for _ in range(2)
    ]
    targets, pseudo = torch.zeros(1, 4, 4, dtype=torch.uint8), torch.full((1, 4, 4), 3, dtype=torch.uint8)
    targets[0, 1:] = 255
    confidence = torch.full((1, 4, 4), 0.7)
    confidence[0, :2] = 0.71
    for number in range(1, 3):
        step = step_of(learner, outputs[0], targets, outputs[1], view_of(pseudo, confidence))
        loss = learner.losses(step)["loss_reco"]
        assert (loss > 0) == (number > 1) and loss.requires_grad
        learner.after_step(step)
        # 4 labelled pixels of class 0; of 8 confident ones of class 3 at most ADDED_PER_CLASS.
        assert bank.count.tolist() == [4 * number, 0, 0, 6 * number, 0, 0, 0, 0, 0]
    torch.testing.assert_close(bank.projections[0, :4], outputs[0].representations["reco"][0, :, 0].T)
    sure = outputs[1].representations["reco"][0, :, :2].flatten(1).T
    assert (bank.projections[3, :12, None] == sure).all(2).any(1).all()
    assert learner.metrics()["reco/memory_entries"] == 20


@pytest.mark.parametrize(("key", "value", "lowest"), [("MEMORY_PER_CLASS", -1, 0), ("ADDED_PER_CLASS", 0, 1)])
def test_bad_values_are_one_error(key, value, lowest):
    with pytest.raises(ValueError, match=rf"RECO\.{key} is {value}: it must be a whole number in \[{lowest}, "):
        method_of(config("rc2l-reco", f"RECO.{key}", value))


def test_without_the_key_there_is_no_bank():
    assert objective_of(learner_of(config("rc2l-reco")), "reco").bank is None
    assert "reco" not in {objective.name for objective in learner_of(config("rc2l", *WITH_BANK)).objectives}
