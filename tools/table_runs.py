"""The runs of a table: their commands, folders and results."""

import hashlib
import json
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from table_file import Row

from rc2l.config import get_rc2l_cfg
from rc2l.engine.config_file import load_config
from rc2l.engine.resume import settings

REPO = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Run:
    """One training: a recipe, overrides, and a seed, which is also the seed of the labelled split."""

    recipe: Path
    overrides: tuple[str, ...]
    seed: int
    folder: Path
    imports: tuple[str, ...] = ()
    #: The file that keeps the result; None: only the run's folder does.
    kept: Path | None = None

    @property
    def command(self) -> list[str]:
        seed = str(self.seed)
        seeds = ["SEED", seed, "DATASETS.SPLIT.SEED", seed, "DATASETS.PARTIAL_LABELS.SEED", seed]
        words = [sys.executable, str(REPO / "train_net.py"), "--config-file", str(self.recipe), "--resume"]
        words += [word for name in self.imports for word in ("--import", name)]
        return [*words, *self.overrides, *seeds, "OUTPUT_DIR", str(self.folder)]

    @property
    def shown(self) -> str:
        """:attr:`command` for readers: with `python`, and paths relative to the repository where they lie in it."""
        return shlex.join(["python", *(relative(word) for word in self.command[1:])])

    @property
    def result(self) -> dict | None:
        """What the finished run scored; None where it is not finished.

        Raises:
            ValueError: the file is damaged, or was kept from a run with other settings than the recipe has by now.
        """
        if self.kept is not None and self.kept.is_file():
            result = _read_result(self.kept)
            if result.get("settings") != settings_digest(self.recipe, self.overrides):
                raise ValueError(
                    f"{self.kept} was made with other settings than {relative(str(self.recipe))} has now: delete it to "
                    "run it anew, or put the recipe back"
                )
            return result
        path = self.folder / "result.json"
        return _read_result(path) if path.is_file() else None


def relative(word: str) -> str:
    """A path relative to the repository, where it lies in it; other words as they are."""
    return os.path.relpath(word, REPO) if word.startswith(f"{REPO}/") else word


def _read_result(path: Path) -> dict:
    try:
        result = json.loads(path.read_text())
        return result | {"last": float(result["last"]), "best": float(result["best"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: delete it to collect it anew") from error


def settings_digest(recipe: Path, overrides: tuple[str, ...]) -> str:
    """Of all settings that differ from the defaults, so that a key which comes later changes none."""
    defaults = settings(get_rc2l_cfg())
    found = settings(load_config(str(recipe), list(overrides)))
    own = {key: value for key, value in found.items() if key not in defaults or defaults[key] != value}
    return hashlib.sha256(json.dumps(sorted(own.items())).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Choice:
    """What the command line asks for, of all rows."""

    seeds: list[int]
    overrides: list[str]
    imports: list[str]
    output: Path
    #: Folder of the results that are kept; None: none are.
    results: Path | None = None


def runs_of(row: Row, choice: Choice) -> list[Run]:
    """The runs of a row, one a seed; none for a row that is only quoted."""
    if row.recipe is None:
        return []
    merged = dict(zip(row.overrides[::2], row.overrides[1::2], strict=True))
    merged |= dict(zip(choice.overrides[::2], choice.overrides[1::2], strict=True))
    name = os.path.relpath(row.recipe, REPO)
    digest = hashlib.sha256(json.dumps([name, sorted(merged.items()), choice.imports]).encode()).hexdigest()
    words = tuple(word for pair in merged.items() for word in pair)
    name = f"{row.recipe.parent.name}-{row.recipe.stem}_{digest[:8]}"
    return [
        Run(
            row.recipe,
            words,
            seed,
            choice.output / "runs" / name / f"seed{seed}",
            tuple(choice.imports),
            choice.results and choice.results / f"{name}_seed{seed}.json",
        )
        for seed in choice.seeds
    ]
