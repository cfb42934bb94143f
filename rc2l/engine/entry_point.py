"""The last resort of every command: whatever goes wrong is one line, an exit status and, if need be, a file."""

import functools
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

#: Exit status where something that the user gave is wrong: arguments, config, data, files, memory.
EXIT_USER_ERROR = 2
#: Exit status where the program itself may be wrong; sysexits.h calls it "internal software error".
EXIT_UNEXPECTED = 70
#: Exit status after Ctrl-C, as shells have it.
EXIT_INTERRUPTED = 130

_PROJECT = Path(__file__).resolve().parents[2]
_OWN = tuple(f"{_PROJECT / part}{end}" for part, end in (("rc2l", os.sep), ("tools", os.sep), ("train_net.py", "")))
_BUNDLED = str(_PROJECT / "rc2l" / "bundled") + os.sep
_trace_folder: Path | None = None


def entry_point(main: Callable) -> Callable:
    """Make a function the start of a command; a decorator, also for what spawned processes run.

    What it raises ends the process by SystemExit, with one line on standard error: EXIT_USER_ERROR for errors that say
    what the user can mend (ValueErrors of this project, OSError, FloatingPointError, too little memory, a connection
    that fails), EXIT_INTERRUPTED for Ctrl-C, and EXIT_UNEXPECTED for all else, whose trace is written to a file that
    the line names.
    """

    @functools.wraps(main)
    def guarded(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(EXIT_INTERRUPTED) from None
        except Exception as error:
            status, line = explain(error)
            if isinstance(error, BrokenPipeError):  # nobody reads on: what is left to print would fail again at exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            print(f"error: {line}", file=sys.stderr, flush=True)
            raise SystemExit(status) from None

    return guarded


def write_traces_to(folder: Path) -> None:
    """Say where the traces of this process go from now on; before, it is the system's folder for temporary files."""
    global _trace_folder
    _trace_folder = folder


def explain(error: Exception) -> tuple[int, str]:
    """(exit status, what to print of an error); writes the trace of an unexpected one."""
    if line := _of_user(error):
        return EXIT_USER_ERROR, line
    first = next((line.strip() for line in message_of(error).splitlines() if line.strip()), "")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _is_of_project(frame.filename)] or frames
    place = f" in {Path(own[-1].filename).name}, line {own[-1].lineno}" if own else ""
    return EXIT_UNEXPECTED, (
        f"unexpected {type(error).__name__}{place}: {first[:500] or 'no message'}. {_write_trace(error)}"
    )


def message_of(error: Exception) -> str:
    """Its text; of an error from a worker of the loader, that of the worker, without the worker's trace."""
    text = str(error)
    if "Original Traceback (most recent call last):" not in text:
        return text
    _, _, trace = text.partition("Original Traceback (most recent call last):")
    lines = trace.strip("\n").splitlines()
    start = max((i for i, line in enumerate(lines) if line and not line[0].isspace()), default=0)
    return "\n".join(lines[start:]).partition(": ")[2] or text


def _of_user(error: Exception) -> str:
    """What to tell of an error that the user can mend; empty for others."""
    message = message_of(error)
    if is_lack_of_memory(error):
        first = message.strip().split("\n")[0][:300]
        return (
            f"there is too little memory ({first or type(error).__name__}): lower SOLVER.IMS_PER_BATCH, "
            "SOLVER.IMS_PER_BATCH_UNLABELED or INPUT.CROP.SIZE, or set SOLVER.AMP.ENABLED True"
        )
    if isinstance(error, OSError):
        named = error.filename is not None and error.strerror
        return f"{error.filename}: {error.strerror}" if named else message or type(error).__name__
    if isinstance(error, FloatingPointError):
        return message
    if type(error).__module__.startswith("torch.") and type(error).__name__.startswith("Dist"):
        return f"the processes cannot reach each other: {message.strip().splitlines()[0]}"
    if message.startswith("DataLoader worker"):
        first = message.strip().split("\n")[0]
        return f"{first} This happens where memory runs out, /dev/shm included: lower DATALOADER.NUM_WORKERS"
    return message if isinstance(error, ValueError) and _is_own(error) else ""


def _is_own(error: ValueError) -> bool:
    """Whether code of this project raised it, in words for its users."""
    if type(error).__module__.startswith("rc2l."):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    return not frames or _is_of_project(frames[-1].filename)


def _is_of_project(file: str) -> bool:
    return file.startswith(_OWN) and not file.startswith(_BUNDLED)


def is_lack_of_memory(error: Exception) -> bool:
    """Whether memory of the machine or of a GPU ran out."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(sign in text for sign in ("can't allocate memory", "out of memory", "Cannot allocate memory"))
    )


def _write_trace(error: Exception) -> str:
    """Write the whole trace into a file; returns what to say of it."""
    name = f"traceback_{time.strftime('%Y%m%d-%H%M%S')}_{os.getpid()}.txt"
    written = "".join(traceback.format_exception(error))
    content = f"{' '.join(sys.argv)}\nPython {sys.version}\n\n{written}"
    for folder in (_trace_folder, Path(tempfile.gettempdir())):
        if folder is not None:
            try:
                (folder / name).write_text(content, encoding="utf-8", errors="backslashreplace")
            except OSError:
                continue
            return (
                f"The full trace is in {folder / name}: if the config or the data is not the cause, report it as an "
                "issue of the project, with that file and the output of tools/doctor.py"
            )
    return "The trace could not be written: report it as an issue of the project, with the output of tools/doctor.py"
