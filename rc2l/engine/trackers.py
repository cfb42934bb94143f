"""Weights & Biases and MLflow. Their packages are imported where a run begins: nobody else pays for them."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from rc2l.engine.tracking import TRACKER_REGISTRY, Tracker

#: What MLflow takes in one request.
_PARAMS, _METRICS = 100, 1000
#: Characters of a parameter that every version of MLflow takes.
_LONGEST_PARAM = 500
_OF_MLFLOW = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class WandbTracker(Tracker):
    """Weights & Biases."""

    package, install = "wandb", "pip install 'rc2l[wandb]'"

    def start(self, run_id: str, settings: dict[str, Any]) -> str:
        import wandb

        entity, _, project = self.options.PROJECT.rpartition("/")
        more = {"mode": "offline"} if self.options.OFFLINE else {}
        if self.options.URI:
            more["settings"] = wandb.Settings(base_url=self.options.URI)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=project,
            entity=entity or None,
            name=self.run_name,
            id=run_id or None,
            resume="allow" if run_id else None,
            dir=str(self.folder),
            config=settings,
            **more,
        )
        return self._run.id

    def log(self, numbers: dict[str, float], iteration: int) -> None:
        self._run.log(numbers, step=iteration)

    def picture(self, name: str, picture: np.ndarray, iteration: int) -> None:
        import wandb

        self._run.log({name: wandb.Image(picture)}, step=iteration)

    def finish(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == "finished" else 1)


class MlflowTracker(Tracker):
    """MLflow, by its client: the process's own active run, if it has one, is left alone."""

    package, install = "mlflow", "pip install 'rc2l[mlflow]'"

    def start(self, run_id: str, settings: dict[str, Any]) -> str:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        # MLflow's own default today; newer versions refuse the older store of plain files.
        local = f"sqlite:///{Path.cwd().as_posix()}/mlflow.db" if self.options.OFFLINE else None
        self._client = MlflowClient(tracking_uri=self.options.URI or local)
        if run_id:
            self._client.update_run(run_id, status="RUNNING")
            self._id = run_id
            return run_id
        experiment = self._client.get_experiment_by_name(self.options.PROJECT)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(self.options.PROJECT)
        self._id = self._client.create_run(experiment_id, run_name=self.run_name).info.run_id
        params = [Param(key, str(value)[:_LONGEST_PARAM]) for key, value in settings.items()]
        for part in _parts(params, _PARAMS):
            self._client.log_batch(self._id, params=part)
        return self._id

    def log(self, numbers: dict[str, float], iteration: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_mlflow_name(name), value, now, iteration) for name, value in numbers.items()]
        for part in _parts(metrics, _METRICS):
            self._client.log_batch(self._id, metrics=part)

    def picture(self, name: str, picture: np.ndarray, iteration: int) -> None:
        self._client.log_image(self._id, picture, key=_mlflow_name(name), step=iteration)

    def finish(self, status: str) -> None:
        self._client.set_terminated(self._id, _OF_MLFLOW[status])


@TRACKER_REGISTRY.register()
def wandb(cfg: CfgNode) -> Tracker:
    """What TRACKER.NAME "wandb" means."""
    return WandbTracker(cfg)


@TRACKER_REGISTRY.register()
def mlflow(cfg: CfgNode) -> Tracker:
    """What TRACKER.NAME "mlflow" means."""
    return MlflowTracker(cfg)


def _parts(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _mlflow_name(name: str) -> str:
    """Without the characters that MLflow refuses in names, such as those of a class "on/off (left)"."""
    parts = (re.sub(r"[^\w.\- :]", "_", part).strip(".") or "_" for part in name.split("/"))
    return "/".join(parts)
