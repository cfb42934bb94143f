"""A student and all that it is trained with."""

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from torch import Tensor, nn

from rc2l.modeling.segmentor import Segmentor
from rc2l.modeling.training_network import ProjectionHeads
from rc2l.semi.method import Method
from rc2l.semi.region_matching import RegionMatching
from rc2l.semi.step import Step


class Learner:
    """One student, its objectives, and their heads.

    Args:
        cfg: the full config.
        method: which objectives.
        network: the student.
        class_names: K names.
    """

    def __init__(self, cfg: CfgNode, method: Method, network: Segmentor, class_names: Sequence[str]) -> None:
        self.network = network
        self.objectives = [objective(cfg, network, class_names) for objective in method.objectives]
        heads = {objective.name: objective.head() for objective in self.objectives}
        self.heads = ProjectionHeads({name: head for name, head in heads.items() if head}).to(network.device)
        self.matching = RegionMatching(cfg) if method.needs.masks else None

    @property
    def trained(self) -> list[nn.Module]:
        """The modules that the run's optimiser trains."""
        return [self.network, self.heads]

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Of all objectives, weights included; names are unique in a method, equal ones are added."""
        losses: dict[str, Tensor] = {}
        for objective in self.objectives:
            for name, value in objective.losses(step).items():
                losses[name] = losses[name] + value if name in losses else value
        return losses

    def after_step(self, step: Step) -> None:
        """To be called in every process after the weights have changed."""
        for objective in self.objectives:
            objective.after_step(step)

    def metrics(self) -> dict[str, Tensor]:
        """Numbers of the last step worth watching, 0-d."""
        return {name: value for objective in self.objectives for name, value in objective.metrics().items()}

    def pictures(self, iteration: int) -> dict[str, Any]:
        """Name -> (3, height, width) uint8."""
        return {name: picture for each in self.objectives for name, picture in each.pictures(iteration).items()}

    def state_dict(self) -> dict:
        """The state of each objective that has one, by its name; networks and heads are saved apart."""
        states = {objective.name: objective.state_dict() for objective in self.objectives}
        return {name: state for name, state in states.items() if state}

    def load_state_dict(self, states: Mapping[str, dict]) -> None:
        """Take back :meth:`state_dict`.

        Raises:
            KeyError: an objective's state is missing.
        """
        for objective in self.objectives:
            if objective.state_dict():
                objective.load_state_dict(states[objective.name])
