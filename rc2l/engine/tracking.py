"""Services that follow runs, such as Weights & Biases: TRACKER.NAME names one of :data:`TRACKER_REGISTRY`."""

import importlib.util
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter
from fvcore.common.registry import Registry

from rc2l.engine.checkpoint_file import write_text
from rc2l.engine.history import new_rows
from rc2l.ranges import config_check

logger = logging.getLogger(__name__)

#: Functions cfg -> :class:`Tracker`, or such classes, by the name that TRACKER.NAME gives.
TRACKER_REGISTRY = Registry("TRACKER")
#: In OUTPUT_DIR: which tracker, the id of its run, and the last iteration that it has.
RECORD = "tracker.json"
#: Failures one after the other that a tracker is let go for: each may have waited minutes for a server.
_MOST_FAILURES = 3


@config_check
def check_tracker_name(cfg: CfgNode) -> None:
    name = cfg.TRACKER.NAME
    if name and name not in TRACKER_REGISTRY:
        choices = ", ".join(each for each, _ in TRACKER_REGISTRY)
        raise ValueError(f"TRACKER.NAME is '{name}': it must be {choices}, or '' for none")


class Tracker:
    """One service. All is called in the main process only; what it raises is warned of, except by :meth:`start`.

    Args:
        cfg: the full config.
    """

    #: The package that it imports, and what installs it.
    package: ClassVar[str] = ""
    install: ClassVar[str] = ""

    def __init__(self, cfg: CfgNode) -> None:
        self.options = cfg.TRACKER
        self.folder = Path(cfg.OUTPUT_DIR)
        self.run_name = cfg.TRACKER.RUN_NAME or self.folder.resolve().name

    def start(self, run_id: str, settings: dict[str, Any]) -> str:
        """Begin a run, or go on with one.

        Args:
            run_id: of the run to go on with; "": a new one.
            settings: dotted key of the config -> value.

        Returns:
            The id of the run, by which a later process goes on with it.
        """
        raise NotImplementedError

    def log(self, numbers: dict[str, float], iteration: int) -> None:
        """Finite numbers by their names in metrics.json; iterations ascend."""
        raise NotImplementedError

    def picture(self, name: str, picture: np.ndarray, iteration: int) -> None:
        """A picture (height, width, 3) uint8; no earlier than the numbers logged last."""

    def finish(self, status: str) -> None:
        """Close the run: "finished", "stopped" (on request; it may go on), or "failed"."""


class Tracking(EventWriter):
    """Hands new rows of metrics and pictures to a tracker; a failure of it never ends a training.

    ``OUTPUT_DIR/tracker.json`` remembers the run of the tracker and its last iteration, so that a resumed training goes
    on with the same run, and the steps that it does again are not logged twice.

    Args:
        cfg: the full config; TRACKER.NAME is not empty.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.name = cfg.TRACKER.NAME
        self.tracker: Tracker = TRACKER_REGISTRY.get(self.name)(cfg)
        self._path = Path(cfg.OUTPUT_DIR) / RECORD
        self._id, self._last = "", -1
        self._failures = 0
        self._running = False

    def start(self, settings: dict[str, Any]) -> None:
        """Begin, or go on with the run that OUTPUT_DIR names.

        Raises:
            ValueError: the service refuses; one line says why.
        """
        record = self._read_record()
        try:
            self._id = self.tracker.start(record.get("id", ""), settings)
        except Exception as error:  # each service has its own
            again = f" (to begin a new run there, delete {self._path})" if record else ""
            raise ValueError(
                f"TRACKER.NAME is {self.name}, which cannot be started: {type(error).__name__}: "
                f"{' '.join(str(error).split())[:300]}{again}. Correct what it says, or set TRACKER.OFFLINE True or "
                "TRACKER.NAME ''"
            ) from error
        self._last = record.get("last", -1)
        self._running = True
        self._write_record()
        logger.info(f"{self.name}: {'going on with' if record else 'this is'} run {self._id}")

    def write(self) -> None:
        for iteration, row in new_rows(self._last):
            numbers = {name: value for name, value in row.items() if math.isfinite(value)}
            if self._guarded(lambda: self.tracker.log(numbers, iteration)):  # noqa: B023  called at once
                self._last = iteration
        if self._running:
            self._write_record()

    def picture(self, name: str, picture: np.ndarray, iteration: int) -> None:
        """A picture of an iteration, unless the run has that iteration already."""
        if iteration > self._last:
            self._guarded(lambda: self.tracker.picture(name, picture, iteration))

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        status = "finished" if kind is None else "failed"
        if kind is not None and issubclass(kind, SystemExit | KeyboardInterrupt):
            status = "stopped"
        self._guarded(lambda: self.tracker.finish(status))
        self._running = False

    def _guarded(self, call: Callable[[], None]) -> bool:
        if not self._running:
            return False
        try:
            call()
        except Exception as error:
            self._failures += 1
            self._running = self._failures < _MOST_FAILURES
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            then = "the run goes on" if self._running else f"the run goes on without {self.name}"
            logger.warning(f"{self.name} failed ({reason}); {then}, and metrics.json has everything")
            return False
        self._failures = 0
        return True

    def _read_record(self) -> dict[str, Any]:
        try:
            record = json.loads(self._path.read_text())
            if record["name"] == self.name:
                return {"id": str(record["id"]), "last": int(record["last"])}
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError):
            logger.warning(f"{self._path} is damaged: {self.name} begins a new run")
        return {}

    def _write_record(self) -> None:
        write_text(self._path, json.dumps({"name": self.name, "id": self._id, "last": self._last}) + "\n")


def check_tracker(cfg: CfgNode) -> None:
    """Check that the package of the tracker is there, without importing it.

    Raises:
        ValueError: it is missing.
    """
    if not cfg.TRACKER.NAME:
        return
    tracker = TRACKER_REGISTRY.get(cfg.TRACKER.NAME)(cfg)
    if tracker.package and importlib.util.find_spec(tracker.package) is None:
        raise ValueError(
            f"TRACKER.NAME is {cfg.TRACKER.NAME}, but the package {tracker.package} is not installed: "
            f"{tracker.install or f'pip install {tracker.package}'}, or set TRACKER.NAME ''"
        )
