"""S4GAN, the adversarial baseline of ReCo table 1: a discriminator beside the student."""

from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from torch import Tensor

from rc2l.data.reading import IGNORE
from rc2l.losses.adversarial import discriminator_loss, feature_matching_loss, one_hot_targets
from rc2l.losses.self_training import pixel_cross_entropy
from rc2l.modeling.discriminator import Discriminator
from rc2l.modeling.outputs import SegmentationOutput


class Adversary:
    """The discriminator, its optimizer, and what it asks of the student.

    The student's loss on unlabelled images is feature matching, and cross-entropy on its own predictions in those
    images whose prediction the discriminator takes for a person's with a score of at least S4GAN.SCORE_THRESHOLD.

    Raises:
        ValueError: a key of S4GAN is out of its range.
    """

    def __init__(self, cfg: CfgNode) -> None:
        options = cfg.S4GAN
        if not 0 <= options.SCORE_THRESHOLD <= 1:
            raise ValueError(f"S4GAN.SCORE_THRESHOLD is {options.SCORE_THRESHOLD}: it must be in [0, 1]")
        self.options = options
        self.unsupervised_weight = cfg.SEMI.UNSUPERVISED_WEIGHT
        num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        self.discriminator = Discriminator(num_classes, options.DISCRIMINATOR_WIDTH).to(cfg.MODEL.DEVICE)
        self.optimizer = torch.optim.Adam(
            self.discriminator.parameters(), lr=options.DISCRIMINATOR_LR, betas=(0.9, 0.99)
        )
        self._seen: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
        self.watched: dict[str, Tensor] = {}

    def losses(
        self,
        images: Tensor,
        output: SegmentationOutput,
        targets: Tensor,
        unlabeled_valid: Tensor,
        average: Callable[[Tensor], Tensor],
    ) -> dict[str, Tensor]:
        """``loss_feature_matching`` and ``loss_self_training``, weighted, for the student.

        Args:
            images: (B_l + B_u, 3, H, W) normalized, the labelled ones first.
            output: the student's, float32, on these images.
            targets: (B_l, H, W) label maps.
            unlabeled_valid: (B_u, H, W) bool, False in padding, which self-training leaves out.
            average: mean of a tensor over processes.
        """
        num_labeled, size = len(targets), targets.shape[-2:]
        unlabeled_images, unlabeled_output = images[num_labeled:], output[num_labeled:]
        images, output = images[:num_labeled], output[:num_labeled]
        predicted = unlabeled_output.class_probabilities(size)
        real = one_hot_targets(targets, output.class_probabilities(size))
        self._seen = (images, real, unlabeled_images, predicted.detach())
        self.discriminator.requires_grad_(False)
        with torch.no_grad():
            _, real_features = self.discriminator(images, real)
        logits, fake_features = self.discriminator(unlabeled_images, predicted)

        score = logits.detach().sigmoid()
        chosen = score >= self.options.SCORE_THRESHOLD
        pseudo = torch.where(chosen[:, None, None] & unlabeled_valid, predicted.detach().argmax(1), IGNORE)
        self_training = pixel_cross_entropy(unlabeled_output.class_logits(size), pseudo, None, average=average)
        self.watched = {"s4gan/score": score.mean(), "s4gan/chosen_share": chosen.float().mean()}
        matching = feature_matching_loss(real_features, fake_features)
        weight = self.unsupervised_weight
        return {
            "loss_feature_matching": weight * self.options.FEATURE_MATCHING_WEIGHT * matching,
            "loss_self_training": weight * self.options.SELF_TRAINING_WEIGHT * self_training,
        }

    def update(self, schedule: float, average: Callable[[Tensor], Tensor]) -> None:
        """One step of the discriminator on what :meth:`losses` saw; nothing if that was not called since.

        Args:
            schedule: current learning rate of the student relative to its base; the discriminator's follows.
            average: mean of a tensor over processes.
        """
        if self._seen is None:
            return
        images, real, unlabeled_images, predicted = self._seen
        self._seen = None
        self.discriminator.requires_grad_(True)
        loss = discriminator_loss(
            self.discriminator(images, real)[0], self.discriminator(unlabeled_images, predicted)[0]
        )
        self.optimizer.zero_grad()
        loss.backward()
        for parameter in self.discriminator.parameters():
            parameter.grad = average(parameter.grad)
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.DISCRIMINATOR_LR * schedule
        self.optimizer.step()
        self.watched["s4gan/discriminator_loss"] = loss.detach()

    def state_dict(self) -> dict:
        return {"discriminator": self.discriminator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        self.discriminator.load_state_dict(state_dict["discriminator"])
        self.optimizer.load_state_dict(state_dict["optimizer"])
