"""What is in a file of weights that was not loaded, found out without running anything of it."""

import pickletools
import tarfile
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

#: What pickles of tensors and arrays consist of; nothing of it runs code of the file's author.
_HARMLESS_MODULES = ("torch._utils", "torch.storage", "torch._tensor", "numpy.core.", "numpy._core.", "collections")
_HARMLESS = {
    "_codecs.encode",
    "numpy.ndarray",
    "numpy.dtype",
    "torch.Size",
    "torch.device",
    "builtins.set",
    "builtins.complex",
}
#: Bytes and operations of a pickle that are looked at, and names that are told.
_MOST_BYTES, _MOST_OPERATIONS, _MOST_NAMES = 64 * 2**20, 2_000_000, 5
_STRINGS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING"}
_STARTS = {
    b"\x1f\x8b": "it is compressed by gzip: unpack it first",
    b"7z\xbc\xaf": "it is a 7z archive: unpack it first",
    b"Rar!": "it is a RAR archive: unpack it first",
    b"version https://git-lfs": "it is a pointer of git LFS, not the file itself: fetch that (git lfs pull)",
    b"\x89HDF": "it is an HDF5 file, which is not read",
    b"<": "it is a web page or other text, not weights: the download went wrong",
    b"{": "it is JSON text, not weights",
}


def refusal_of(path: Path, error: Exception) -> str:
    """Why a file of weights or a checkpoint was refused: what it is or contains, else what the loader said of it.

    The loader's advice to load it in an unsafe way is never repeated.

    Args:
        path: the file.
        error: what the safe loader raised.
    """
    try:
        if known := _kind_of(path):
            return known
        names = _classes_in(path)
    except (OSError, zipfile.BadZipFile, tarfile.TarError, RuntimeError, ValueError, EOFError):
        names = []
    if names:
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        return f"it contains {', '.join(names[:_MOST_NAMES])}{more}, which could run code"
    said = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    if "weights_only" in str(error) or "Weights only" in str(error):
        return "it holds something else than tensors, numbers, text and plain containers"
    return said[:300]


def _kind_of(path: Path) -> str:
    """What a file that can hold no weights for us is, in words; empty for others."""
    with path.open("rb") as file:
        start = file.read(32)
    if not start:
        return "it is empty"
    for beginning, meaning in _STARTS.items():
        if start.lstrip().startswith(beginning):
            return meaning
    if start[:2] == b"PK":
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        parts = [name.split("/") for name in names]
        if any("code" in part[:2] or part[-1] == "constants.pkl" for part in parts):
            return "it is a TorchScript program, which holds code; take the weights that it was exported from"
        if not any(part[-1] == "data.pkl" for part in parts):
            return f"it is a zip archive of other files ({', '.join(sorted(names)[:3])}): unpack it first"
    elif start[:1] != b"\x80" and tarfile.is_tarfile(path):
        return (
            "it is a tar archive, of files or of an early PyTorch: unpack it, or save its tensors anew by the version "
            "that wrote it"
        )
    return ""


def _classes_in(path: Path) -> list[str]:
    """Full names of what the pickles of a file would import, without harmless ones; each once, in order."""
    with path.open("rb") as file:
        if file.read(2) == b"PK":
            with zipfile.ZipFile(path) as archive:
                member = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                with archive.open(member) as inside:
                    written = BytesIO(inside.read(_MOST_BYTES))
        else:
            file.seek(0)
            written = BytesIO(file.read(_MOST_BYTES))
    names = (name for name in _imports(written) if name not in _HARMLESS and not _is_storage(name))
    return [name for name in dict.fromkeys(names) if not name.startswith(_HARMLESS_MODULES)]


def _is_storage(name: str) -> bool:
    return name.startswith("torch.") and name.endswith("Storage")


def _imports(file: BinaryIO) -> Iterator[str]:
    """What each of the pickles in a file imports; legacy files of torch are several pickles and raw data."""
    left = _MOST_OPERATIONS
    while left > 0:
        strings: list[str] = []
        memo: dict[int, str] = {}
        last = ""
        try:
            for operation, argument, _ in pickletools.genops(file):
                left -= 1
                name = operation.name
                if name in _STRINGS:
                    last = argument.decode("latin1") if isinstance(argument, bytes) else str(argument)
                    strings.append(last)
                elif name == "MEMOIZE":
                    memo[len(memo)] = last
                elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
                    memo[int(argument)] = last
                elif name in ("GET", "BINGET", "LONG_BINGET"):
                    last = memo.get(int(argument), "")
                    strings.append(last)
                elif name in ("GLOBAL", "INST"):
                    last = ""
                    yield _printable(".".join(str(argument).split(" ", 1)))
                elif name == "STACK_GLOBAL":
                    last = ""
                    yield _printable(
                        ".".join(strings[-2:]) if all(strings[-2:]) and strings[1:] else "a class of hidden name"
                    )
                elif name in ("EXT1", "EXT2", "EXT4"):
                    yield "a registered extension"
                if left <= 0:
                    return
        except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError):  # the end, or raw data
            return


def _printable(name: str) -> str:
    if name.startswith("__builtin__."):  # what protocols before 3 call it
        name = f"builtins.{name.removeprefix('__builtin__.')}"
    return "".join(each if each.isprintable() else "?" for each in name)[:100]
