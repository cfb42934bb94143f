"""Metrics that a resumed run continues without gaps or doubles: metrics.json, TensorBoard, smoothing windows."""

import json
import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from detectron2.engine import hooks
from detectron2.utils.events import CommonMetricPrinter, EventWriter, TensorboardXWriter, get_event_storage

from rc2l.engine.checkpoint_file import write_text

logger = logging.getLogger(__name__)

#: Values over which detectron2's writers take a median.
WINDOW = 20
#: What depends on the clock and the machine. Restored after a break, such a value would make a row of its own at its
#: old iteration.
CLOCK = {"time", "data_time", "eta_seconds", "rank_data_time", "memory_mib"}


def new_rows(last: int) -> list[tuple[int, dict[str, float]]]:
    """(iteration, its scalars) of the event storage, in the order of iterations, for those above ``last``."""
    rows = defaultdict(dict)
    for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(WINDOW).items():
        if iteration > last:
            rows[iteration][name] = value
    # One with times alone is of a step that failed.
    return [(iteration, rows[iteration]) for iteration in sorted(rows) if not rows[iteration].keys() <= CLOCK]


class RowWriter(EventWriter):
    """Appends to metrics.json a row for each iteration with new scalars, in the order of iterations.

    Args:
        path: the file; made where it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a")
        self._last = -1

    def write(self) -> None:
        for iteration, row in new_rows(self._last):
            self._file.write(json.dumps(row | {"iteration": iteration}, sort_keys=True) + "\n")
            self._last = iteration
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class MetricHistory(hooks.HookBase):
    """detectron2's writers every ``period`` steps and after each evaluation, able to go back to a checkpoint's step.

    Rows are written after steps ``period - 1``, ``2 period - 1``, ..., after each step with an evaluation (which writes
    no line into the log) and after the last. A checkpoint of iteration i
    holds what may be missing in the files as they were before step i: on resume, later rows are cut off, and what the
    checkpoint holds is written as if there had been no break.

    Args:
        folder: OUTPUT_DIR.
        period: steps between two rows.
        writers: more of them, such as a tracker's; they say by themselves what they have already.
    """

    def __init__(self, folder: str, period: int, writers: Sequence[EventWriter] = ()) -> None:
        self.folder, self.period, self.writers = Path(folder), period, writers
        self._restored: dict | None = None

    def state_dict(self) -> dict:
        """``written``: last row that is surely in the files; ``pending``: scalars after it; ``histories``: windows."""
        storage, iteration = self.trainer.storage, min(self.trainer.iter, self.trainer.max_iter - 1)
        periods = [self.period, *([self.trainer.evaluation.period] if self.trainer.evaluation.period else [])]
        written = max(iteration // period * period for period in periods) - 1
        hints = storage.smoothing_hints()
        latest = {name: (value, at, hints[name]) for name, (value, at) in storage.latest().items()}
        return {
            "written": written,
            "pending": {
                name: list(scalar) for name, scalar in latest.items() if scalar[1] > written and name not in CLOCK
            },
            "histories": {
                name: [list(pair) for pair in history.values()[-WINDOW:]]
                for name, history in storage.histories().items()
                if len(history.values())
            },
        }

    def load_state_dict(self, state: dict) -> None:
        self._restored = state

    def before_train(self) -> None:
        written = -1 if self._restored is None else self._restored["written"]
        path = self.folder / "metrics.json"
        cut_rows(path, written)
        if self._restored is not None:
            self._restore(self._restored)
        # A proxy of detectron2's hook, since TensorBoard must know where to cut before its file is opened.
        self._files = [
            RowWriter(path),
            *self.writers,
            TensorboardXWriter(str(self.folder), purge_step=written + 1),
        ]
        self._writer = hooks.PeriodicWriter([CommonMetricPrinter(self.trainer.max_iter), *self._files], self.period)
        self._writer.trainer = self.trainer

    def _restore(self, state: dict) -> None:
        storage = self.trainer.storage
        for name, pairs in state["histories"].items():
            for value, iteration in pairs[:-1] if name in state["pending"] else pairs:
                storage.histories()[name].update(value, iteration)
        for name, (value, iteration, smoothing) in state["pending"].items():
            storage.iter = iteration
            storage.put_scalar(name, value, smoothing_hint=smoothing)
        storage.iter = self.trainer.start_iter

    def catch_up(self) -> None:
        """Write the row of the checkpoint's own step, if one was due."""
        if self._restored is not None:
            trainer = self.trainer
            trainer.iter = trainer.storage.iter = trainer.start_iter - 1
            self.after_step()
            trainer.iter = trainer.storage.iter = trainer.start_iter

    def after_step(self) -> None:
        self._writer.after_step()
        if self.trainer.evaluation.due(self.trainer.iter + 1):
            # Else the next evaluation would take its place before the row is due. Where it was due, nothing is new.
            for writer in self._files:
                writer.write()

    def after_train(self) -> None:
        self._writer.after_train()


def cut_rows(path: Path, last: int) -> None:
    """Drop the rows of iterations above ``last`` from a metrics.json, and, with a warning, lines that are damaged."""
    if not path.exists():
        if last >= 0:
            logger.warning(f"{path} is missing: the metrics up to iteration {last} are lost")
        return
    lines = path.read_bytes().splitlines(keepends=True)
    iterations = [_iteration(line) for line in lines]
    # A run that was killed may have torn its last line, which is done again.
    damaged = sum(iteration is None for iteration in iterations[:-1])
    if damaged:
        logger.warning(f"{path} is damaged: {damaged} of its {len(lines)} rows cannot be read and are dropped")
    kept = [line for line, i in zip(lines, iterations, strict=True) if i is not None and i <= last]
    if kept != lines:
        write_text(path, b"".join(kept).decode())


def _iteration(line: bytes) -> int | None:
    """Of a row; None for what is no whole row."""
    try:
        return json.loads(line)["iteration"] if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return None
