"""Where the reference vectors and the real test images are, which are not part of the repository."""

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("RC2L_SHARED", REPO.parent / "shared"))


def shared_file(name: str) -> Path:
    """Path of a file below the shared folder; skips the calling test where it is missing."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is missing (set RC2L_SHARED to the folder that holds {name.split('/')[0]}/)")
    return path
