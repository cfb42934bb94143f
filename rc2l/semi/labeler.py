"""Who labels the unlabelled images: the contract, and the student itself."""

from collections.abc import Callable

from detectron2.config import CfgNode

from rc2l.modeling.segmentor import Segmentor

#: The name of the one student that most methods have; its weights are the entry ``model`` of checkpoints.
STUDENT = "student"


class Labeler:
    """The networks of a run: which are trained, which label, which are saved and evaluated.

    Args:
        cfg: the full config.
        build: gives a network with its initial weights, another one at each call.
    """

    def __init__(self, cfg: CfgNode, build: Callable[[], Segmentor]) -> None:
        #: Those that are trained, by name; :data:`STUDENT` among them.
        self.students: dict[str, Segmentor] = {STUDENT: build()}

    @property
    def networks(self) -> dict[str, Segmentor]:
        """Those that are saved and evaluated, by name; the first one is the result of the run."""
        return self.students

    def labels_for(self, student: str) -> Segmentor:
        """The network whose predictions a student is trained on."""
        return self.students[student]

    def after_step(self, iteration: int) -> dict[str, float]:
        """Follow the students after their step of ``iteration``, from 0 on; returns numbers worth watching."""
        return {}


class CurrentStudent(Labeler):
    """The student labels for itself, in evaluation mode (UniMatch, FixMatch)."""
