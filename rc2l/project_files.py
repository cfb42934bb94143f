"""The project's own configs and tools: inside the installed package, or beside it in a clone."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def project_folder(name: str) -> Path:
    """The folder ``configs`` or ``tools``."""
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def project_config(name: str | Path) -> Path | None:
    """A file of the project by its name in a clone, ``configs/...``; None where there is no such one."""
    parts = Path(name).parts
    if parts[:1] != ("configs",) or ".." in parts:
        return None
    path = project_folder("configs").joinpath(*parts[1:])
    return path if path.is_file() else None
