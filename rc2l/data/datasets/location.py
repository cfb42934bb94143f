"""Where datasets are looked for, and what is said when they are not there."""

import os
from pathlib import Path

from rc2l.data.errors import DatasetError


def datasets_root() -> Path:
    """The folder that holds all datasets: ``DETECTRON2_DATASETS``, or ``datasets`` in the working directory."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def require(path: Path, dataset: str, fix: str = "see datasets/README.md for where to get it") -> Path:
    """Return ``path`` if it exists.

    Raises:
        DatasetError: it does not; the message says which dataset wants it, where was looked and the ``fix``.
    """
    if not path.exists():
        setting = os.environ.get("DETECTRON2_DATASETS")
        where = (
            f"DETECTRON2_DATASETS is {setting}"
            if setting
            else f"DETECTRON2_DATASETS is not set, so datasets are looked for in {datasets_root().absolute()}"
        )
        raise DatasetError(f"dataset '{dataset}': {path} does not exist ({where}); {fix}")
    return path


def require_some(records: list[dict], folder: Path, dataset: str) -> list[dict]:
    """Return ``records`` if there are any.

    Raises:
        DatasetError: there are none; ``folder`` is where they were looked for.
    """
    if not records:
        raise DatasetError(
            f"dataset '{dataset}': {folder} holds no images; see datasets/README.md for the expected layout"
        )
    return records
