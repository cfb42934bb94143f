"""Remembers which image files were found whole, so that files that did not change are read to their end only once."""

import fcntl
import json
import logging
import os
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from rc2l.data.damage import check_to_the_end
from rc2l.data.datasets import dataset_family

logger = logging.getLogger("rc2l")

#: Folder of what RC²L remembers over runs; default: rc2l in XDG_CACHE_HOME or ~/.cache.
_FOLDER_VARIABLE = "RC2L_CACHE"
_ABOUT = "Images that were read to their end and are whole: bytes, and time of change in ns. Safe to delete."
#: Of the file's layout and of what the check finds; another number makes a file count as empty.
_VERSION = 1

#: Size in bytes and time of change in nanoseconds.
State = tuple[int, int]


class WholeFiles:
    """The files of one dataset that are known to be whole, kept in a JSON file that may be deleted at any time.

    Several threads may check, and several processes may save: each adds to what the others have written.

    Args:
        path: the JSON file. Where it cannot be written, files are read again at the next start.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known = _read(path)
        self._found: dict[str, State] = {}
        self._lock = threading.Lock()

    def check(self, file: str) -> None:
        """Read an image file to its end, if that was not done since it changed.

        Raises:
            DamagedImageError: as :func:`~rc2l.data.damage.check_to_the_end`.
        """
        file, state = os.path.abspath(file), _state(file)
        if state is None or (self._known.get(file) != state and self._found.get(file) != state):
            check_to_the_end(file)
            if state is not None:
                with self._lock:
                    self._found[file] = state

    def save(self) -> None:
        """Add what was found whole to the JSON file, and take out files that are gone."""
        if not self._found:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.path.parent):
                merged = _read(self.path) | self._found
                _write(self.path, {file: state for file, state in merged.items() if os.path.exists(file)})
        except OSError as error:
            logger.info(
                f"{self.path}: cannot be written ({error.strerror}), so images are read to their end again at the next "
                f"start; {_FOLDER_VARIABLE} may name another folder"
            )
        self._known, self._found = self._known | self._found, {}


def whole_files(dataset: str) -> WholeFiles:
    """What is known of the files of a dataset's family, by the name of one of its subsets."""
    name = re.sub(r"[^\w.-]", "_", dataset_family(dataset))[:100]
    return _open(_folder() / "whole_images" / f"{name}.json")


@contextmanager
def remembered(datasets: Iterable[str]) -> Iterator[dict[str, WholeFiles]]:
    """:func:`whole_files` of each dataset; saved at the end, whatever happens."""
    found = {name: whole_files(name) for name in dict.fromkeys(datasets)}
    try:
        yield found
    finally:
        for files in {id(files): files for files in found.values()}.values():
            files.save()


#: One object a file, so that a process that checks twice reads once.
_open = cache(WholeFiles)


def _folder() -> Path:
    if own := os.environ.get(_FOLDER_VARIABLE):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rc2l"


def _state(file: str) -> State | None:
    """None for what is no local file: it is checked each time."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _read(path: Path) -> dict[str, State]:
    """The entries of a file; none where it is missing, of another version or damaged."""
    try:
        content = json.loads(path.read_bytes())
        if content["version"] != _VERSION:
            return {}
        return {str(file): (int(size), int(changed)) for file, (size, changed) in content["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write(path: Path, files: dict[str, State]) -> None:
    scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    lines = ",\n".join(f"  {json.dumps(file)}: {json.dumps(state)}" for file, state in sorted(files.items()))
    try:
        scratch.write_text(f'{{\n "about": "{_ABOUT}",\n "version": {_VERSION},\n "files": {{\n{lines}\n }}\n}}\n')
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """No other process saves meanwhile; a file system without locks may lose what another one adds, and no more."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            logger.debug(f"{folder}: no locks here")
        yield
    finally:
        os.close(descriptor)
