"""Folders that are built beside their place and appear complete or not at all; what killed builds left is removed."""

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SUFFIX = ".building"


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """A new hidden folder beside ``target`` (whose own folder exists), gone at the end unless it was renamed.

    Folders of the same target whose process is gone are removed first: a living one holds a lock on its own.

    Raises:
        OSError: it cannot be made.
    """
    prefix = f".{target.name}-"
    parent = os.open(target.parent, os.O_RDONLY)
    try:
        # No other process looks between the making of a folder and its lock.
        safe = _lock(parent, wait=True)
        if safe:
            _remove_abandoned(target.parent, prefix)
        scratch = Path(tempfile.mkdtemp(prefix=prefix, suffix=_SUFFIX, dir=target.parent))
        own = os.open(scratch, os.O_RDONLY)
        _lock(own)
    finally:
        os.close(parent)
    try:
        scratch.chmod(0o755)  # mkdtemp makes folders that only their owner can read
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(own)


def _remove_abandoned(folder: Path, prefix: str) -> None:
    pattern = re.compile(re.escape(prefix) + r"[a-z0-9_]{8}" + re.escape(_SUFFIX))
    for path in folder.iterdir():
        if pattern.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except OSError:
                continue
            if _lock(descriptor):
                shutil.rmtree(path, ignore_errors=True)
            os.close(descriptor)


def _lock(descriptor: int, wait: bool = False) -> bool:
    """Whether the lock was got; file systems without locks give none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
