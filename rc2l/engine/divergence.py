"""Steps that went wrong: non-finite losses, which are dumped for tools/replay.py, and collapsing pseudo labels."""

import logging
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from rc2l.engine.checkpoint_file import CheckpointError, write_checkpoint
from rc2l.structures.ranges import SHARE
from rc2l.structures.training_batch import TrainingBatch

logger = logging.getLogger(__name__)


def not_finite(values: Mapping[str, Tensor]) -> list[str]:
    """``name = value`` of each 0-d tensor that is not finite; one device-to-host copy."""
    numbers = torch.stack([value.detach().float() for value in values.values()]).tolist()
    return [f"{name} = {number}" for name, number in zip(values, numbers, strict=True) if not math.isfinite(number)]


class FiniteGuard:
    """Takes back what a step that is not finite has done already, and counts the steps that were skipped for it.

    Args:
        network: its buffers change in the forward pass: batch-norm statistics may hold what overflowed.
        max_skipped: steps of a run that may be skipped.
    """

    def __init__(self, network: nn.Module, max_skipped: int) -> None:
        self.network, self.max_skipped = network, max_skipped
        self.skipped_steps = 0
        self._before: list[Tensor] = []

    def begin(self) -> None:
        """To be called before the forward pass."""
        if self.skipped_steps < self.max_skipped:
            self._before = [buffer.clone() for buffer in self.network.buffers()]

    def skip(self, iteration: int) -> bool:
        """Leave the network as it was at :meth:`begin`; False if no further step may be skipped."""
        if self.skipped_steps >= self.max_skipped:
            return False
        for buffer, before in zip(self.network.buffers(), self._before, strict=True):
            buffer.copy_(before)
        self.skipped_steps += 1
        logger.warning(
            f"iteration {iteration} skipped: its loss is not finite under fp16 (skipped step {self.skipped_steps} of "
            f"SOLVER.MAX_SKIPPED_STEPS {self.max_skipped})"
        )
        return True


def write_dump(folder: str, cfg: CfgNode, step: Mapping[str, Any], batch: TrainingBatch, networks: dict) -> str:
    """Write what ``tools/replay.py`` needs to do a step again; returns what to tell the user about it.

    Args:
        folder: OUTPUT_DIR.
        cfg: of the run.
        step: ``iteration``, ``seed``, ``rank``, ``world_size``, ``error``, ``following`` (what the last image was mixed
            with, where that came from another process).
        batch: what this process saw.
        networks: state dicts of all that a step computes with, weights as before the step, by their names in
            checkpoints: ``model`` (student), ``teacher``, ``scaler``, and the method's own.
    """
    path = Path(folder) / f"divergence_{step['iteration']:07d}_rank{step['rank']}.pth"
    tensors = {field.name: getattr(batch, field.name) for field in fields(batch)}
    try:
        write_checkpoint({"config": cfg.dump(), "step": dict(step), "batch": tensors, **networks}, path)
    except CheckpointError as error:
        return f"(no dump: {error})"
    return f"Do this step again: python tools/replay.py {path}"


class CollapseWatch:
    """Warns once when pseudo labels look collapsed for long, and again only after they recovered.

    Args:
        max_class_share: a class above this share of the kept pixels counts.
        min_kept_share: so does a share of kept pixels below this.
        patience: iterations that it must last.
    """

    def __init__(self, max_class_share: float, min_kept_share: float, patience: int) -> None:
        for key, value in (("MAX_CLASS_SHARE", max_class_share), ("MIN_KEPT_SHARE", min_kept_share)):
            SHARE.check(f"SEMI.COLLAPSE.{key}", value)
        self.max_class_share, self.min_kept_share, self.patience = max_class_share, min_kept_share, patience
        #: Symptom -> iteration at which it began.
        self.since: dict[str, int] = {}
        self.warned: list[str] = []

    def look(self, metrics: Mapping[str, float], iteration: int) -> list[str]:
        """Look at a row of metrics (:func:`rc2l.engine.monitor.pseudo_label_metrics`); returns the new warnings."""
        symptoms = self._symptoms(metrics)
        self.since = {symptom: self.since.get(symptom, iteration) for symptom in symptoms}
        self.warned = [symptom for symptom in self.warned if symptom in symptoms]
        warnings = []
        for symptom, (value, advice) in symptoms.items():
            lasted = iteration - self.since[symptom]
            if lasted >= self.patience and symptom not in self.warned:
                self.warned.append(symptom)
                warnings.append(
                    f"pseudo labels may have collapsed: {symptom} ({value:.4f} at iteration {iteration}) for {lasted} "
                    f"iterations; {advice}"
                )
        for warning in warnings:
            logger.warning(warning)
        return warnings

    def _symptoms(self, metrics: Mapping[str, float]) -> dict[str, tuple[float, str]]:
        found = {}
        kept = metrics.get("pseudo/kept_share")
        if kept is None:
            return found
        if kept < self.min_kept_share:
            found[f"share of kept pixels below {self.min_kept_share}"] = (
                kept,
                "lower SEMI.PSEUDO_LABEL.MIN_CONFIDENCE or lengthen SEMI.BURN_IN",
            )
        for name, share in metrics.items():
            if name.startswith("pseudo/class_share/") and share > self.max_class_share:
                found[f"class '{name.rsplit('/', 1)[1]}' on more than {self.max_class_share} of them"] = (
                    share,
                    "lower SEMI.UNSUPERVISED_WEIGHT or lengthen SEMI.BURN_IN",
                )
        return found

    def state_dict(self) -> dict:
        return {"since": self.since, "warned": self.warned}

    def load_state_dict(self, state: dict) -> None:
        self.since, self.warned = dict(state["since"]), list(state["warned"])
