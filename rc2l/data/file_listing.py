"""Finds files in folders and by patterns: the one place that decides which files of a user's folder count."""

import fnmatch
import glob
import logging
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

#: What systems and network drives leave in folders, besides names that begin with a dot.
_SYSTEM_NAMES = {"@eadir", "__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information"}
#: A pattern that matches everything below a folder.
_EVERYTHING = ("**",)

logger = logging.getLogger("rc2l")


def is_system_name(name: str) -> bool:
    """Whether a file or folder is the system's (``._a.jpg``, ``.ipynb_checkpoints``, ``@eaDir``), not the data."""
    return name.startswith(".") or name.casefold() in _SYSTEM_NAMES


def normalize_name(text: str) -> str:
    """The Unicode form NFC, in which all names are compared: some systems write "ä" as two characters."""
    return unicodedata.normalize("NFC", text)


def existing_path(path: Path) -> Path | None:
    """``path``, or the path that is the same but for its Unicode form; None where neither exists."""
    if path.exists():
        return path
    if not path.parent.name:
        return None
    folder = existing_path(path.parent)
    if folder is None or not folder.is_dir():
        return None
    wanted = normalize_name(path.name)
    return next((entry for entry in sorted(folder.iterdir()) if normalize_name(entry.name) == wanted), None)


def find_files(folder: Path, suffixes: Iterable[str], each_once: bool = True) -> list[Path]:
    """Files below ``folder`` whose suffix is one of ``suffixes`` (lower case), in order of their paths.

    Links are followed, but none that leads back to a folder on its own path; names of the system are passed over.

    Args:
        folder: where to look, with all subfolders.
        suffixes: such as ".jpg"; letter case does not matter.
        each_once: of several paths that are one file by links, the first one without a link (or else the first) counts,
            which the log says. Labels want False: several images may share one.
    """
    return _search(folder, _EVERYTHING, tuple(suffixes), each_once)


def find_by_pattern(pattern: Path, suffixes: Iterable[str]) -> tuple[Path, list[Path]]:
    """The folder above the first wildcard of a pattern, and the files that match, as :func:`find_files` takes them.

    A component that exists under just that name is a name, also with ``[``, ``*`` or ``?`` in it; the rest is a
    pattern: ``*``, ``?`` and ``[...]`` within a component, ``**`` for any number of folders.
    """
    base, rest = split_pattern(pattern)
    if not rest:
        return base.parent, [base]
    return base, _search(base, tuple(map(normalize_name, rest)), tuple(suffixes), True)


def split_pattern(pattern: Path) -> tuple[Path, tuple[str, ...]]:
    """The longest beginning of a path that exists, whatever its names hold, and the components of the pattern below it.

    A file whose name looks like a pattern is left to the pattern.
    """
    parts = pattern.parts
    base = Path(parts[0])
    for position, part in enumerate(parts[1:], start=1):
        found = existing_path(base / part)
        if found is None or (glob.has_magic(part) and not found.is_dir()):
            return base, parts[position:]
        base = found
    return base, ()


def _search(folder: Path, pattern: tuple[str, ...], suffixes: tuple[str, ...], each_once: bool) -> list[Path]:
    found: list[tuple[bool, str, Path]] = []
    start = os.path.realpath(folder)
    todo = [(folder, (start,), False, _reach({0}, pattern))]
    while todo:
        current, chain, linked, states = todo.pop()
        with os.scandir(current) as entries:
            listed = list(entries)
        for entry in listed:
            if is_system_name(entry.name):
                continue
            after = _advance(states, pattern, normalize_name(entry.name))
            path = current / entry.name
            if entry.is_dir():
                if not after:
                    continue
                real = os.path.realpath(path) if entry.is_symlink() else os.path.join(chain[-1], entry.name)
                # A link to a folder above, or to the one that the search began in, would never end.
                if entry.is_symlink() and any(_contains(real, passed) for passed in chain):
                    continue
                todo.append((path, (*chain, real), linked or entry.is_symlink(), after))
            elif len(pattern) in after and path.suffix.lower() in suffixes:
                # A link to nothing is listed too: it is an error of the data, to be named where files are read.
                if entry.is_file() or entry.is_symlink():
                    found.append((linked or entry.is_symlink(), normalize_name(str(path)), path))
    if not each_once:
        return [path for _, _, path in sorted(found, key=lambda item: item[1])]
    taken: dict[str, tuple[str, Path]] = {}
    again = []
    for linked, name, path in sorted(found):
        real = os.path.realpath(path) if linked else os.path.join(os.path.realpath(path.parent), path.name)
        if taken.setdefault(real, (name, path))[1] is not path:
            again.append((path, taken[real][1]))
    if again:
        logger.info(
            f"{folder}: {len(again)} paths are links to images that are there by another path, first {again[0][0]} "
            f"({again[0][1]}); each image counts once"
        )
    return [path for _, path in sorted(taken.values())]


def _contains(folder: str, inside: str) -> bool:
    return inside == folder or inside.startswith(folder.rstrip(os.sep) + os.sep)


def _reach(states: set[int], pattern: tuple[str, ...]) -> set[int]:
    """Positions in the pattern with those that "**", which may stand for nothing, lets be reached from them."""
    reached = set(states)
    for position in range(len(pattern)):
        if position in reached and pattern[position] == "**":
            reached.add(position + 1)
    return reached


def _advance(states: set[int], pattern: tuple[str, ...], name: str) -> set[int]:
    """Positions in the pattern after one more component of a path."""
    after = set()
    for position in states:
        if position < len(pattern):
            if pattern[position] == "**":
                after.add(position)
            elif fnmatch.fnmatchcase(name, pattern[position]):
                after.add(position + 1)
    return _reach(after, pattern)
