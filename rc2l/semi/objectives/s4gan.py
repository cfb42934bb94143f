"""S4GAN, the adversarial baseline of ReCo table 1: a discriminator beside the student."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from torch import Tensor

from rc2l.losses.s4gan import discriminator_loss, feature_matching_loss, one_hot_targets
from rc2l.losses.self_training import pixel_cross_entropy
from rc2l.modeling.discriminator import Discriminator
from rc2l.modeling.segmentor import Segmentor
from rc2l.ranges import MOST_CHANNELS, SHARE, config_node, declare, integer, number
from rc2l.semi.method import METHOD_REGISTRY, Method
from rc2l.semi.objective import Objective
from rc2l.semi.objectives.pixels import supervised_objective
from rc2l.semi.step import Step
from rc2l.semi.teacher import EmaTeacher
from rc2l.structures.label_map import IGNORE
from rc2l.structures.needs import Needs


@config_node
def add_s4gan_config(cfg: CfgNode) -> None:
    """Add the keys of S4GAN."""
    cfg.S4GAN = CfgNode()
    # Weights of feature matching and of self-training on predictions that the discriminator trusts (S4GAN: 0.1, 1).
    cfg.S4GAN.FEATURE_MATCHING_WEIGHT = 0.1
    cfg.S4GAN.SELF_TRAINING_WEIGHT = 1.0
    # gamma of S4GAN, in [0, 1]: discriminator score from which a prediction is trained on.
    cfg.S4GAN.SCORE_THRESHOLD = 0.6
    # Base learning rate of the discriminator (Adam); it follows the student's schedule.
    cfg.S4GAN.DISCRIMINATOR_LR = 0.0001
    # Channels of the discriminator's first convolution; the fourth has eight times as many.
    cfg.S4GAN.DISCRIMINATOR_WIDTH = 64


declare(
    "S4GAN",
    {
        "FEATURE_MATCHING_WEIGHT": number(at_least=0),
        "SELF_TRAINING_WEIGHT": number(at_least=0),
        "SCORE_THRESHOLD": SHARE,
        "DISCRIMINATOR_LR": number(at_least=0),
        "DISCRIMINATOR_WIDTH": integer(at_least=1, at_most=MOST_CHANNELS),
    },
)


class S4Gan(Objective):
    """``loss_feature_matching`` and ``loss_self_training``, with the discriminator and its optimiser.

    The student's loss on unlabelled images is feature matching, and cross-entropy on its own predictions in those
    images whose prediction the discriminator takes for a person's with a score of at least S4GAN.SCORE_THRESHOLD.
    """

    name = "s4gan"

    def __init__(self, cfg: CfgNode, network: Segmentor, class_names: Sequence[str]) -> None:
        super().__init__(cfg, network, class_names)
        self.options = cfg.S4GAN
        self.weight = cfg.SEMI.UNSUPERVISED_WEIGHT
        self.discriminator = Discriminator(self.num_classes, self.options.DISCRIMINATOR_WIDTH).to(network.device)
        self.optimizer = torch.optim.Adam(
            self.discriminator.parameters(), lr=self.options.DISCRIMINATOR_LR, betas=(0.9, 0.99)
        )
        self._seen: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
        self._metrics: dict[str, Tensor] = {}

    @classmethod
    def needs(cls, cfg: CfgNode) -> Needs:
        return Needs(unlabeled=True, strong_views=1, unmixed=True)

    def losses(self, step: Step) -> dict[str, Tensor]:
        if not step.views:
            return {}
        view, unlabeled_output, output = step.views[0], step.strong[0], step.labeled
        size = step.targets.shape[-2:]
        images = self.network.normalize(step.batch.labeled_images)
        unlabeled_images = self.network.normalize(view.images)
        predicted = unlabeled_output.class_probabilities(size)
        real = one_hot_targets(step.targets, output.class_probabilities(size))
        self._seen = (images, real, unlabeled_images, predicted.detach())
        self.discriminator.requires_grad_(False)
        with torch.no_grad():
            _, real_features = self.discriminator(images, real)
        logits, fake_features = self.discriminator(unlabeled_images, predicted)

        score = logits.detach().sigmoid()
        chosen = score >= self.options.SCORE_THRESHOLD
        pseudo = torch.where(chosen[:, None, None] & view.valid, predicted.detach().argmax(1), IGNORE)
        self_training = pixel_cross_entropy(unlabeled_output.class_logits(size), pseudo, None, average=step.average)
        self._metrics = {"s4gan/score": score.mean(), "s4gan/chosen_share": chosen.float().mean()}
        matching = feature_matching_loss(real_features, fake_features)
        return {
            "loss_feature_matching": self.weight * self.options.FEATURE_MATCHING_WEIGHT * matching,
            "loss_self_training": self.weight * self.options.SELF_TRAINING_WEIGHT * self_training,
        }

    def after_step(self, step: Step) -> None:
        """One step of the discriminator on what :meth:`losses` saw; its rate follows the student's schedule."""
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
            parameter.grad = step.average(parameter.grad)
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.DISCRIMINATOR_LR * step.schedule
        self.optimizer.step()
        self._metrics["s4gan/discriminator_loss"] = loss.detach()

    def metrics(self) -> dict[str, Tensor]:
        return self._metrics

    def state_dict(self) -> dict:
        return {"discriminator": self.discriminator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])


@METHOD_REGISTRY.register()
def s4gan(cfg: CfgNode) -> Method:
    """S4GAN (Mittal et al. 2019), on unmixed images."""
    return Method((supervised_objective(cfg), S4Gan), EmaTeacher)
