"""CPS (Chen et al., CVPR 2021): two students of different initial weights, each trained on the labels of the other.

    python train_net.py --import examples.cross_pseudo_supervision --config-file examples/cross_pseudo_supervision.yaml

There is no teacher. Both students are evaluated, saved and resumed; the first is the result of the run.
"""

from collections.abc import Callable

from detectron2.config import CfgNode

from rc2l.modeling.segmentor import Segmentor
from rc2l.semi.labeler import STUDENT, Labeler
from rc2l.semi.method import METHOD_REGISTRY, Method
from rc2l.semi.objectives.pixels import supervised_objective
from rc2l.semi.objectives.self_training import SelfTraining

SECOND = "second"


class TwoStudents(Labeler):
    """Each student labels for the other."""

    def __init__(self, cfg: CfgNode, build: Callable[[], Segmentor]) -> None:
        super().__init__(cfg, build)
        self.students[SECOND] = build()

    def labels_for(self, student: str) -> Segmentor:
        return self.students[SECOND if student == STUDENT else STUDENT]


@METHOD_REGISTRY.register()
def cross_pseudo_supervision(cfg: CfgNode) -> Method:
    """SEMI.METHOD cross_pseudo_supervision."""
    return Method((supervised_objective(cfg), SelfTraining), TwoStudents)
