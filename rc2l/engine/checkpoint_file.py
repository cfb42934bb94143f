"""One checkpoint file: written so that no reader ever sees half of it, read without running anything it holds."""

import contextlib
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from rc2l.refused_files import refusal_of


class CheckpointError(OSError):
    """A checkpoint could not be written; what was there before is unharmed."""


class DamagedCheckpointError(ValueError):
    """A file is no whole checkpoint: truncated, overwritten, missing, or with more than tensors in it."""


class _Recorder:
    """A file that remembers the system's error, which torch's writer replaces by one about positions."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self.file.flush()


def write_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write to ``<path>.tmp``, flush to disk, rename, flush the folder.

    Raises:
        CheckpointError: disk full, folder missing or read-only; the scratch file is gone, an older file is untouched.
    """
    scratch = path.with_name(f"{path.name}.tmp")
    recorder = None
    try:
        with scratch.open("wb") as file:
            recorder = _Recorder(file)
            torch.save(state, recorder)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
        flush_folder(path.parent)
    except (OSError, RuntimeError) as error:
        reason = error if recorder is None or recorder.error is None else recorder.error
        _remove(scratch)
        if not isinstance(reason, OSError):
            raise
        raise _failure(path, reason) from error


def write_text(path: Path, text: str) -> None:
    """Write a small file in the same way.

    Raises:
        CheckpointError: it cannot be written.
    """
    scratch = path.with_name(f"{path.name}.tmp")
    try:
        with scratch.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
        flush_folder(path.parent)
    except OSError as error:
        _remove(scratch)
        raise _failure(path, error) from error


def read_checkpoint(path: Path, verify: bool = True) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU; tensors and plain containers only.

    Args:
        path: the file.
        verify: compare the checksum of every record, which ``torch.load`` does not do: zeroed blocks would pass it.

    Raises:
        DamagedCheckpointError: what is wrong with the file.
    """
    if not path.is_file():
        raise DamagedCheckpointError(f"{path} does not exist")
    try:
        if verify:
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
            if broken is not None:
                raise DamagedCheckpointError(f"{path} is damaged: the checksum of its record {broken} is wrong")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except DamagedCheckpointError:
        raise
    except Exception as error:  # damaged files raise nearly anything: BadZipFile, EOFError, KeyError, RuntimeError
        reason = refusal_of(path, error)
        raise DamagedCheckpointError(f"{path} is damaged or no checkpoint of this project: {reason}") from error
    if not isinstance(content, dict):
        raise DamagedCheckpointError(f"{path} is no checkpoint of this project: it holds a {type(content).__name__}")
    return content


def flush_folder(folder: Path) -> None:
    """Make a rename in it survive a power cut; file systems that cannot are left alone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # a read-only folder: nothing was written there
        path.unlink(missing_ok=True)


def _failure(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"cannot write {path}: {error.strerror or error} ({_free(path.parent)}); checkpoints written before are "
        "unharmed: free space or make the folder writable, then continue with --resume (SOLVER.CHECKPOINTS_KEPT bounds "
        "how many are kept)"
    )


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 2**20:.0f} MiB free there"
    except OSError:
        return "the folder cannot be read"
