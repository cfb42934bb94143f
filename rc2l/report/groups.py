"""Runs that differ in their seed alone belong together: means, standard deviations, and what tells groups apart."""

import os
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rc2l.engine.resume import WITHOUT_EFFECT, matches
from rc2l.report.run_files import Run

#: What may differ between runs of one group.
SEEDS = ("SEED", "DATASETS.SPLIT.SEED", "DATASETS.PARTIAL_LABELS.SEED")


@dataclass(frozen=True)
class Group:
    """Runs with one config but for their seeds."""

    name: str
    runs: list[Run]

    def mean_curve(self, key: str) -> dict[int, tuple[float, float]]:
        """Iterations done -> (mean, standard deviation), where every run that has the key has a value."""
        curves = [curve for run in self.runs if (curve := run.curve(key))]
        shared = set.intersection(*(set(curve) for curve in curves)) if curves else set()
        return {at: mean_and_deviation([curve[at] for curve in curves]) for at in sorted(shared)}

    def scores_of(self, pick) -> list[float]:
        """``pick`` of each run's result where it has one."""
        values = [pick(run) for run in self.runs]
        return [value for value in values if value is not None]


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, 0 for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def last_score(run: Run) -> float | None:
    """mIoU of the result in percent at the last evaluation; None: there was none."""
    curve = run.curve(f"{run.networks[0]}/mIoU") if run.networks else {}
    return curve[max(curve)] if curve else run.result.get("mIoU")


def best_score(run: Run) -> float | None:
    """The highest mIoU of the result at any evaluation."""
    curve = run.curve(f"{run.networks[0]}/mIoU") if run.networks else {}
    return max(curve.values()) if curve else run.result.get("mIoU")


def group_runs(runs: Sequence[Run], defaults: Mapping[str, object] | None = None) -> list[Group]:
    """Groups in the order of their first runs; one that repeats the seed of another is a group of its own.

    Args:
        runs: one or more.
        defaults: dotted key -> value, for keys that a run of an older version has not.
    """
    members: dict[str, list[Run]] = {}
    seen: Counter[str] = Counter()
    for run in runs:
        settings = {**(defaults or {}), **run.settings}
        compared = {key: value for key, value in settings.items() if not matches(key, (*SEEDS, *WITHOUT_EFFECT))}
        config = repr(sorted(compared.items())) if run.settings else str(run.folder)
        draw = config + repr([run.settings.get(key) for key in SEEDS])
        members.setdefault(f"{config} {seen[draw]}", []).append(run)
        seen[draw] += 1
    names = _short_names([_folder_of(group) for group in members.values()])
    return [Group(name, group) for name, group in zip(names, members.values(), strict=True)]


def _folder_of(runs: Sequence[Run]) -> str:
    folders = [os.path.abspath(run.folder) for run in runs]
    return os.path.commonpath(folders) if len({os.path.dirname(folder) for folder in folders}) == 1 else folders[0]


def _short_names(folders: list[str]) -> list[str]:
    """As many of the last parts of each path as tell them apart."""
    for parts in range(1, 20):
        names = [os.sep.join(folder.split(os.sep)[-parts:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [f"{folder} ({number})" for number, folder in enumerate(folders, start=1)]


def differing_settings(groups: Iterable[Group], defaults: Mapping[str, object]) -> dict[str, list[object]]:
    """Key -> value of each group, of the settings in which groups differ; None where there is no such key."""
    settings = [{**defaults, **group.runs[0].settings} for group in groups]
    keys = sorted(key for key in set().union(*settings) if not matches(key, (*SEEDS, *WITHOUT_EFFECT)))
    values = {key: [each.get(key) for each in settings] for key in keys}
    return {key: each for key, each in values.items() if any(value != each[0] for value in each)}
