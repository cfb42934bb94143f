"""One run in one OUTPUT_DIR: a lock file that names its holder, and that outlives no holder."""

import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NAME = ".lock"


class RunLockedError(ValueError):
    """Another run works in the folder."""


def _start_of(pid: int) -> str | None:
    """When a process began, in the kernel's own count; None where there is no such process, "" where it is unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # a zombie works no more
    except (OSError, IndexError):
        if Path("/proc/self/stat").exists():
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return ""


def _machine() -> str:
    """What process ids are counted in: the start of this machine and the container."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _own_record() -> dict[str, str | int]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "start": _start_of(os.getpid()) or "",
        "machine": _machine(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": " ".join(sys.argv)[:500],
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "restarts": int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        "token": uuid.uuid4().hex,
    }


def _read(path: Path) -> dict | None:
    """The holder; None where the file is gone, an empty record where it cannot be read."""
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _is_dead(record: dict) -> bool:
    """Whether the holder surely works no more."""
    own = _own_record()
    if own["job"] and record.get("job") == own["job"] and own["restarts"] > record.get("restarts", 0):
        return True  # SLURM ended the job before it started it again, perhaps on another machine
    if record.get("host") != own["host"] or not isinstance(record.get("pid"), int):
        return False
    if record.get("machine") != own["machine"]:
        # Another start of this machine is over; another container of it may be alive.
        return str(record.get("machine", "")).split(" ")[0] != str(own["machine"]).split(" ")[0]
    return _start_of(record["pid"]) != record.get("start")


def refuse_if_held(folder: Path) -> None:
    """Changes nothing.

    Raises:
        RunLockedError: who holds the folder, and what to do.
    """
    path = folder / NAME
    record = _read(path)
    if record is None or _is_dead(record):
        return
    who = (
        f"process {record.get('pid')} on {record.get('host')} since {record.get('since')} ({record.get('command')})"
        if record
        else "a process that its lock does not name"
    )
    raise RunLockedError(
        f"OUTPUT_DIR {folder} is in use by another run: {who}; choose another OUTPUT_DIR or wait, or, if that run is "
        f"surely over, delete {path}"
    )


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Within it, no other run begins in the folder. For the main process only.

    Works without the locks of file systems: the record is written aside and gets its name by a hard link, which fails
    where the name is taken. A dead holder's lock is taken over; on another machine, nobody can tell whether it is dead.

    Raises:
        RunLockedError: see :func:`refuse_if_held`.
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, own = folder / NAME, _own_record()
    scratch = folder / f"{NAME}.{own['token']}"
    scratch.write_text(json.dumps(own))
    try:
        while not _take(scratch, path):
            refuse_if_held(folder)
            _clear_dead(path, scratch)
    finally:
        scratch.unlink(missing_ok=True)
    try:
        yield
    finally:
        if (_read(path) or {}).get("token") == own["token"]:
            path.unlink(missing_ok=True)


def _take(scratch: Path, path: Path) -> bool:
    try:
        os.link(scratch, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        try:
            with path.open("x") as file:
                file.write(scratch.read_text())
        except FileExistsError:
            return False
    return True


def _clear_dead(path: Path, scratch: Path) -> None:
    """Remove a dead holder's lock, unless another process was quicker and holds a lock of its own by now."""
    taken = scratch.with_name(f"{scratch.name}.dead")
    try:
        path.rename(taken)
    except FileNotFoundError:
        return
    record = _read(taken)
    if record is not None and not _is_dead(record):
        with suppress(OSError):
            os.link(taken, path)
    taken.unlink(missing_ok=True)
