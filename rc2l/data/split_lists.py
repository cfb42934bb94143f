"""Text files that say which images are labelled: read in the layouts of published lists, written in our own."""

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from rc2l.data.errors import DatasetError
from rc2l.data.file_listing import normalize_name
from rc2l.data.scratch import scratch_folder

LABELED_FILE, UNLABELED_FILE, SPLIT_FILE = "labeled.txt", "unlabeled.txt", "split.json"
_SEPARATORS = re.compile(r"[\s,;]+")


class ImageIndex:
    """Finds dataset dicts by what lists call an image: its id, file name, stem, or the end of its path."""

    def __init__(self, records: list[dict]):
        self.records = records
        self._by_id: dict[str, set[int]] = {}
        self._by_path: dict[str, set[int]] = {}
        for position, record in enumerate(records):
            self._by_id.setdefault(normalize_name(str(record["image_id"])), set()).add(position)
            path = _posix(record["file_name"])
            for name in {path, str(PurePosixPath(path).with_suffix("")), normalize_name(str(record["image_id"]))}:
                for end in _ends(name):
                    self._by_path.setdefault(end, set()).add(position)

    def find(self, line: str) -> set[int]:
        """Positions in ``records`` of the images that a line means; more than one where it is ambiguous.

        A line is an id or a path, perhaps followed by white space or a comma and the path of a label, which is not
        looked at. Folders that the image's own path lacks are passed over, so that lists of other machines fit.
        """
        # File names may hold spaces, so the whole line is tried before its parts.
        line = normalize_name(line)
        texts = [line, *(line[: separator.start()] for separator in reversed([*_SEPARATORS.finditer(line)]))]
        for text in filter(None, texts):
            found = self._by_id.get(text) or self._by_path.get(_posix(text))
            if found:
                return found
        for text in filter(None, reversed(texts)):
            name = _posix(text)
            for end in (*_ends(name), PurePosixPath(name).stem):
                found = self._by_path.get(end)
                if found:
                    return found
        return set()


def _posix(path: str) -> str:
    return normalize_name(path).replace("\\", "/").removeprefix("./").strip("/")


def _ends(path: str) -> Iterator[str]:
    """ "a/b/c" -> "a/b/c", "b/c", "c"."""
    parts = path.split("/")
    return ("/".join(parts[start:]) for start in range(len(parts)))


def list_files(labeled: str, unlabeled: str) -> tuple[Path, Path | None]:
    """The two files that ``DATASETS.SPLIT.LABELED_LIST`` and ``UNLABELED_LIST`` mean; a folder stands for its files.

    Raises:
        DatasetError: a file does not exist.
    """
    first = Path(labeled).expanduser()
    second = Path(unlabeled).expanduser() if unlabeled else None
    if first.is_dir():
        if second is None and (first / UNLABELED_FILE).exists():
            second = first / UNLABELED_FILE
        first = first / LABELED_FILE
    if second is not None and second.is_dir():
        second = second / UNLABELED_FILE
    for key, path in (("LABELED_LIST", first), ("UNLABELED_LIST", second)):
        if path is not None and not path.is_file():
            raise DatasetError(
                f"DATASETS.SPLIT.{key}: {path} does not exist; name a text file with one image a line, or a folder "
                f"with {LABELED_FILE} and {UNLABELED_FILE}"
            )
    return first, second


def read_list(path: Path, index: ImageIndex, datasets: str) -> dict[int, int]:
    """Position in ``index.records`` -> line number, for all images of a list. Empty lines are passed over.

    ``datasets`` says in words where the images are looked for.

    Raises:
        DatasetError: the file is no text or empty, or a line matches no image, several, or one of an earlier line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"{path}: cannot read this list ({error}); it must be UTF-8 text, an image a line"
        ) from error
    lines_of: dict[int, int] = {}
    problems = []
    for number, line in enumerate((line.strip() for line in lines), start=1):
        if not line:
            continue
        found = index.find(line)
        where = f"{path} line {number}: '{line[:200]}'"
        if not found:
            problems.append(f"{where} matches no image of {datasets}; write an image id, a file name or a path a line")
        elif len(found) > 1:
            files = ", ".join(index.records[position]["file_name"] for position in sorted(found)[:2])
            problems.append(f"{where} matches {len(found)} images ({files}); write more of the path")
        elif (position := next(iter(found))) in lines_of:
            problems.append(f"{where} is the image of line {lines_of[position]} again; take one of the two out")
        else:
            lines_of[position] = number
    if problems:
        more = f" ({len(problems) - 1} more such lines in this file)" if len(problems) > 1 else ""
        raise DatasetError(problems[0] + more)
    if not lines_of:
        raise DatasetError(f"{path} is empty; write one image id, file name or path a line")
    return lines_of


def write_lists(folder: Path, labeled: list[str], unlabeled: list[str], facts: dict) -> None:
    """Write a new folder with labeled.txt, unlabeled.txt and split.json (``facts``), all or nothing.

    Raises:
        DatasetError: the folder exists.
    """
    if folder.exists():
        raise DatasetError(f"{folder} exists; remove it, or name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder) as new:
        for name, lines in ((LABELED_FILE, labeled), (UNLABELED_FILE, unlabeled)):
            (new / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        (new / SPLIT_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        new.rename(folder)
