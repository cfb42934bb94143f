"""S4GAN: its losses, its discriminator, a run through train_net.py."""

import json
import math

import pytest
import torch

import train_net
from rc2l.data.datasets.shapes import generate_shapes
from rc2l.engine.run import argument_parser
from rc2l.losses.s4gan import discriminator_loss, feature_matching_loss, one_hot_targets
from rc2l.semi.method import method_of
from rc2l.structures.outputs import SegmentationOutput
from tests.shared_data import REPO
from tests.steps import learner_of, objective_of, step_of, view_of
from tests.test_per_pixel import TINY, config


def test_discriminator_loss_is_binary_cross_entropy():
    loss = discriminator_loss(torch.zeros(3), torch.zeros(5))
    assert loss.item() == pytest.approx(2 * math.log(2))
    assert discriminator_loss(torch.full((2,), 50.0), torch.full((2,), -50.0)) < 1e-6


def test_feature_matching_moves_predictions_only():
    real, fake = torch.ones(2, 4, requires_grad=True), torch.zeros(3, 4, requires_grad=True)
    loss = feature_matching_loss(real, fake)
    loss.backward()
    assert loss.item() == 1 and real.grad is None and (fake.grad < 0).all()


def test_ignored_pixels_show_the_prediction():
    targets = torch.tensor([[[0, 2, 255]]])
    probabilities = torch.full((1, 3, 1, 3), 1 / 3, requires_grad=True)
    real = one_hot_targets(targets, probabilities)
    assert real[0, :, 0, 0].tolist() == [1, 0, 0] and real[0, :, 0, 1].tolist() == [0, 0, 1]
    torch.testing.assert_close(real[0, :, 0, 2], torch.full((3,), 1 / 3))
    assert not real.requires_grad


def objective_and_step(threshold: float):
    torch.manual_seed(0)
    learner = learner_of(config("s4gan_deeplab", "S4GAN.SCORE_THRESHOLD", threshold, "S4GAN.DISCRIMINATOR_WIDTH", 16))
    logits = torch.randn(4, 9, 8, 8, requires_grad=True)
    output = SegmentationOutput(None, None, torch.zeros(4, 1, 8, 8), pixel_logits=logits)
    images, targets = torch.randn(4, 3, 32, 32), torch.randint(0, 9, (2, 32, 32))
    view = view_of(targets, images=images[2:])
    step = step_of(learner, output[:2], targets, output[2:], view, images=images[:2])
    return objective_of(learner, "s4gan"), logits, step


@pytest.mark.parametrize(("threshold", "trusted"), [(0.0, True), (1.0, False)])
def test_only_trusted_predictions_are_trained_on(threshold, trusted):
    objective, logits, step = objective_and_step(threshold)
    losses = objective.losses(step)
    assert (losses["loss_self_training"] > 0) == trusted
    sum(losses.values()).backward()
    assert logits.grad[2:].abs().sum() > 0 and (logits.grad[:2] == 0).all()
    assert all(parameter.grad is None for parameter in objective.discriminator.parameters())


def test_self_training_leaves_padding_out():
    objective, logits, step = objective_and_step(0.0)
    step.views[0].valid[:, :, 16:] = False
    objective.losses(step)["loss_self_training"].backward()
    # Logits are raised bilinearly, so the fifth of eight columns still reaches into the valid half.
    assert (logits.grad[2:, :, :, :5] != 0).any(1).all() and (logits.grad[2:, :, :, 5:] == 0).all()
    half = logits.grad.clone()
    step.views[0].valid[:, :, 16:] = True
    logits.grad = None
    objective.losses(step)["loss_self_training"].backward()
    assert (logits.grad[2:, :, :, 5:] != 0).any() and not torch.equal(half, logits.grad)


def test_discriminator_learns_and_resumes():
    objective, logits, step = objective_and_step(0.6)
    before = [parameter.clone() for parameter in objective.discriminator.parameters()]
    objective.after_step(step)  # saw nothing yet
    assert all(torch.equal(a, b) for a, b in zip(before, objective.discriminator.parameters(), strict=True))
    history = []
    step.schedule = 10.0
    for _ in range(30):
        objective.losses(step)
        objective.after_step(step)
        history.append(objective.metrics()["s4gan/discriminator_loss"].item())
    assert sum(history[-5:]) < sum(history[:5]) and logits.grad is None
    other, _, _ = objective_and_step(0.6)
    other.load_state_dict(objective.state_dict())
    for a, b in zip(objective.discriminator.parameters(), other.discriminator.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.whole_run
def test_a_run_has_its_losses_in_the_metrics_and_the_discriminator_in_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    generate_shapes(tmp_path, num_train=16, num_val=4, size=64)
    arguments = ["--config-file", str(REPO / "configs/shapes/s4gan_deeplab.yaml"), *TINY, "OUTPUT_DIR", str(tmp_path)]
    train_net.main(argument_parser("").parse_args(arguments))
    last = [row for row in map(json.loads, (tmp_path / "metrics.json").read_text().splitlines()) if "total_loss" in row]
    assert last[-1].keys() >= {"loss_ce", "loss_feature_matching", "s4gan/score", "s4gan/discriminator_loss"}
    file = torch.load(tmp_path / "model_final.pth", weights_only=True)
    for tensor in [*file["model"].values(), *file["objectives"]["s4gan"]["discriminator"].values()]:
        assert torch.isfinite(tensor).all()


def test_mixed_images_are_refused():
    with pytest.raises(ValueError, match=r"SEMI\.MIXING\.NAME is 'cutmix': s4gan"):
        method_of(config("s4gan_deeplab", "SEMI.MIXING.NAME", "cutmix"))
