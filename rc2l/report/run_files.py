"""What the folder of a run holds, read without a network, a dataset or a GPU; whatever is missing stays empty."""

import json
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from rc2l.ranges import flatten
from rc2l.yaml_file import read_yaml

logger = logging.getLogger(__name__)

#: Names of the files that make a folder a run's.
_SIGNS = ("config.yaml", "metrics.json")
_STAMP = re.compile(r"\[(\d\d/\d\d \d\d:\d\d:\d\d)\]")


@dataclass(frozen=True)
class Run:
    """One run, as far as it came."""

    folder: Path
    #: Dotted key -> value of its config.yaml; lists, never tuples.
    settings: dict[str, object] = field(default_factory=dict)
    #: Of metrics.json in the order of iterations: ``iteration`` and the numbers of that row.
    rows: list[dict] = field(default_factory=list)
    #: Contents of its evaluation's files, by "<dataset>/<network>".
    scores: dict[str, dict] = field(default_factory=dict)
    #: Where the pictures of each of :attr:`scores` are.
    score_folders: dict[str, Path] = field(default_factory=dict)
    #: Pictures of the training in the order of iterations: (iteration, name, file).
    pictures: list[tuple[int, str, Path]] = field(default_factory=list)
    #: From the first to the last line of its log, breaks included; None where that cannot be told.
    wall_clock: timedelta | None = None

    @property
    def iterations(self) -> int:
        """Iterations that are behind it."""
        return max((row["iteration"] + 1 for row in self.rows), default=0)

    @property
    def networks(self) -> list[str]:
        """What was evaluated, the result of the run first: "teacher", or "<dataset>/teacher" with several test sets."""
        names = {key.removesuffix("/mIoU") for row in self.rows for key in row if key.endswith("/mIoU")} - {"pseudo"}
        order = {"teacher": 0, "student": 1}
        return sorted(names, key=lambda name: (order.get(name.rpartition("/")[2], 2), name))

    def curve(self, key: str) -> dict[int, float]:
        """Iterations done -> a number of the metrics."""
        return {row["iteration"] + 1: row[key] for row in self.rows if isinstance(row.get(key), int | float)}

    @property
    def result(self) -> dict:
        """The scores of the network that is the result, on the first test set; {}: it was not evaluated."""
        datasets = self.settings.get("DATASETS.TEST") or []
        for dataset in [*datasets, *(key.partition("/")[0] for key in self.scores)]:
            for network in ("teacher", "student"):
                if f"{dataset}/{network}" in self.scores:
                    return self.scores[f"{dataset}/{network}"]
        return next(iter(self.scores.values()), {})


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """The folders of runs that some paths mean: each itself, or else those below it, up to three folders deep.

    Raises:
        ValueError: a path holds no run.
    """
    found: list[Path] = []
    for path in paths:
        below = _runs_below(path, depth=3)
        if not below:
            raise ValueError(
                f"{path} holds no run: name the OUTPUT_DIR of a training (with config.yaml and metrics.json), or a "
                "folder of such"
            )
        found += [folder for folder in below if folder not in found]
    return found


def _runs_below(path: Path, depth: int) -> list[Path]:
    # What a run keeps in folders of its own, such as an earlier run, is not looked at.
    if any((path / name).is_file() for name in _SIGNS):
        return [path]
    folders = sorted(folder for folder in path.glob("*") if folder.is_dir()) if depth else []
    return [run for folder in folders for run in _runs_below(folder, depth - 1)]


def read_run(folder: Path) -> Run:
    """Everything that a report shows of a run.

    Raises:
        ValueError: a file is damaged, other than the last row of metrics.json, which a kill may have torn.
    """
    settings = {}
    if (folder / "config.yaml").is_file():
        content = read_yaml(folder / "config.yaml")
        if not isinstance(content, dict):
            raise ValueError(f"{folder / 'config.yaml'}: it must hold the config of a run")
        settings = dict(_flattened(content))
    scores, score_folders = {}, {}
    for part in ("eval_only/inference", "inference"):  # what a training found comes last, and counts
        for path in sorted((folder / part).glob("*.json")):
            content = _read_scores(path)
            name = f"{content['dataset']}/{content['network']}"
            scores[name], score_folders[name] = content, path.with_suffix("")
    return Run(
        folder,
        settings,
        _read_rows(folder / "metrics.json"),
        scores,
        score_folders,
        _pictures(folder / "pictures"),
        _wall_clock(folder / "log.txt"),
    )


def _flattened(node: dict, prefix: str = "") -> Iterable[tuple[str, object]]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def default_settings(node: dict) -> dict[str, object]:
    """Dotted key -> value of a config, in the form of :attr:`Run.settings`."""
    return {key: json.loads(json.dumps(value, default=str)) for key, value in flatten(node)}


def _read_rows(path: Path) -> list[dict]:
    if not path.is_file():
        return []
    lines = path.read_text(errors="replace").splitlines()
    rows, damaged = {}, 0
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows[int(row["iteration"])] = row
        except (ValueError, KeyError, TypeError):
            damaged += number < len(lines)
    if damaged:
        logger.warning(f"{path}: {damaged} of its {len(lines)} rows cannot be read and are left out")
    return [rows[iteration] for iteration in sorted(rows)]


def _read_scores(path: Path) -> dict:
    try:
        content = json.loads(path.read_text())
        if not isinstance(content["IoU"], dict) or not {"dataset", "network", "mIoU"} <= content.keys():
            raise ValueError
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged, or not written by an evaluation: delete it to report without") from error
    return content


def _pictures(folder: Path) -> list[tuple[int, str, Path]]:
    matches = [(re.fullmatch(r"(\d+)_(\w+)\.(jpg|png)", path.name), path) for path in sorted(folder.glob("*"))]
    return sorted((int(match[1]), match[2], path) for match, path in matches if match)


def _wall_clock(path: Path) -> timedelta | None:
    if not path.is_file():
        return None
    stamps = [_STAMP.match(line) for line in path.read_text(errors="replace").splitlines()]
    # Years are not written; 2000 has a 29th of February.
    times = [datetime.strptime(f"2000/{stamp[1]}", "%Y/%m/%d %H:%M:%S") for stamp in stamps if stamp]
    if len(times) < 2:
        return None
    passed = times[-1] - times[0]
    return passed if passed >= timedelta(0) else passed + timedelta(days=366)
