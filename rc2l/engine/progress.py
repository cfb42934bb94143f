"""On a terminal, one line at the bottom that says how far the run is; log lines stay above it."""

import logging
import sys
from contextlib import ExitStack

from detectron2.engine import hooks
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from rc2l.engine.run_log import LOGGERS


class _Bar(tqdm):
    """Without the thread that tqdm watches its bars with: worker processes are forked from here."""

    monitor_interval = 0


class ProgressBar(hooks.HookBase):
    """The bar takes the place of the lines of metrics, which go to log.txt as ever.

    For the main process, and only where standard output is a terminal (:meth:`fits`).

    Args:
        period: steps after which the numbers in it are renewed, as often as there are new ones.
        result: the network whose mIoU it shows.
    """

    def __init__(self, period: int, result: str) -> None:
        self.period, self.result = period, result

    @staticmethod
    def fits() -> bool:
        """Whether standard output is a terminal."""
        return sys.stdout.isatty()

    def before_train(self) -> None:
        trainer = self.trainer
        self._stack = ExitStack()
        self._bar = self._stack.enter_context(
            _Bar(total=trainer.max_iter, initial=trainer.start_iter, dynamic_ncols=True, file=sys.stdout, unit="it")
        )
        loggers = [logging.getLogger(name) for name in LOGGERS]
        self._stack.enter_context(logging_redirect_tqdm(loggers))
        for log in loggers:
            for handler in log.handlers:
                if not isinstance(handler, logging.FileHandler):
                    handler.addFilter(_is_no_line_of_metrics)

    def after_step(self) -> None:
        self._bar.update()
        if (self.trainer.iter + 1) % self.period == 0 or self.trainer.evaluation.due(self.trainer.iter + 1):
            latest = {name: value for name, (value, _) in self.trainer.storage.latest().items()}
            shown = [f"{key} {latest[name]:{form}}" for name, key, form in self._numbers if name in latest]
            self._bar.set_postfix_str(", ".join(shown), refresh=False)

    @property
    def _numbers(self) -> tuple[tuple[str, str, str], ...]:
        return ("total_loss", "loss", ".3g"), ("lr", "lr", ".2g"), (f"{self.result}/mIoU", "mIoU", ".2f")

    def after_train(self) -> None:
        self._stack.close()


def _is_no_line_of_metrics(record: logging.LogRecord) -> bool:
    return record.name != "detectron2.utils.events"
