"""Evaluation during training, and the best network that it found: the score and its weights change together."""

import logging
import math
from collections.abc import Callable
from pathlib import Path

from detectron2.engine import hooks
from detectron2.utils import comm

from rc2l.data.errors import DatasetError
from rc2l.engine.checkpoint import RunCheckpointer
from rc2l.engine.entry_point import message_of
from rc2l.engine.signals import save_to_continue

logger = logging.getLogger(__name__)

#: Name of the checkpoint of the best evaluation, without suffix.
BEST = "model_best"


class EvaluationHook(hooks.HookBase):
    """Evaluates every ``period`` steps and after the last one; the best result so far becomes model_best.pth.

    That file is written within the evaluation, before the next step changes a weight, and holds the score, the
    iteration and the weights in one: a kill leaves the file before or the file after. The checkpoint of a step is
    written before its evaluation, so a resumed run cannot know whether the evaluation came to its end, and repeats it
    (:meth:`catch_up`) as of the step that it belongs to.

    Args:
        period: steps between two evaluations; 0: after the last step only.
        evaluate: gives the scores by name, the same ones in every process; called by all.
        checkpointer: writes the file, in the main process.
        result: the network whose mIoU says which is best, such as "teacher".
    """

    def __init__(
        self, period: int, evaluate: Callable[[], dict[str, float]], checkpointer: RunCheckpointer, result: str
    ) -> None:
        self.period, self.evaluate, self.checkpointer, self.result = period, evaluate, checkpointer, result
        #: mIoU of the result in percent, on the first test set.
        self.best = -math.inf

    def state_dict(self) -> dict:
        return {"best": self.best}

    def load_state_dict(self, state: dict) -> None:
        self.best = state["best"]

    def forget_best_without_file(self, folder: Path) -> None:
        """After a resume: a best score whose weights are gone would keep all later ones from being saved."""
        missing = comm.all_gather(not (folder / f"{BEST}.pth").is_file())[0]
        if missing and self.best > -math.inf:
            logger.warning(f"{folder / BEST}.pth is missing: the best score so far, {self.best:.2f}, is forgotten")
            self.best = -math.inf

    def due(self, steps: int) -> bool:
        """Is there an evaluation after so many steps of the run?"""
        return steps == self.trainer.max_iter or (self.period > 0 and steps > 0 and steps % self.period == 0)

    def catch_up(self) -> None:
        """Repeat the evaluation of the step that the run was resumed from, if there is one."""
        steps = self.trainer.start_iter
        if not self.due(steps):
            return
        self.trainer.iter = self.trainer.storage.iter = steps - 1
        self._run()
        self.trainer.iter = self.trainer.storage.iter = steps

    def after_step(self) -> None:
        if self.due(self.trainer.iter + 1):
            self._run()

    def _run(self) -> None:
        try:
            scores = self.evaluate()
        except DatasetError as error:  # a file that was whole when the run began; the step must not be lost by it
            raise DatasetError(f"{message_of(error)}. {save_to_continue(self.trainer)}") from error
        self.trainer.storage.put_scalars(**scores, smoothing_hint=False)
        score = next(value for name, value in scores.items() if name.endswith(f"{self.result}/mIoU"))
        if score > self.best:
            self.best = score
            self.checkpointer.save(BEST, tag=False)
        logger.info(f"{self.result} mIoU {score:.2f} now, {self.best:.2f} at best ({BEST}.pth)")
        comm.synchronize()  # none begins the next step while the main process still writes
