"""Options that mean the same in train_net.py and in every tool."""

import argparse
import importlib
import os
import re
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

from rc2l.config import get_rc2l_cfg


class _Import(argparse.Action):
    """Imports a module as soon as it is read, and keeps its name for the processes that are started later."""

    def __call__(self, parser, namespace, values, option_string=None):
        import_modules([values])
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), values])


def add_import_argument(parser: argparse.ArgumentParser, *, at_once: bool = True) -> None:
    """Add ``--import MODULE``, which may be repeated; the names become ``args.imports``, a list.

    Args:
        parser: of any command.
        at_once: import while the arguments are read, that is, before any config is. Otherwise the caller does it, by
            :func:`import_modules`.
    """
    parser.add_argument(
        "--import",
        dest="imports",
        metavar="MODULE",
        default=[],
        action=_Import if at_once else "append",
        help="Python module to import first, such as one that registers your own parts; may be repeated",
    )


def add_run_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--run FOLDER``, which :func:`read_arguments` turns into config and checkpoint."""
    parser.add_argument(
        "--run", default="", metavar="FOLDER", help="OUTPUT_DIR of a run: its config.yaml and its best checkpoint"
    )


def add_trained_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--run``, or ``--config-file`` and ``--checkpoint``; and ``--import``."""
    add_run_argument(parser)
    parser.add_argument("--config-file", default="", help="the config that the network was trained with")
    parser.add_argument("--checkpoint", default="", help="the file of the trained network, such as model_best.pth")
    add_import_argument(parser)


def read_arguments(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments, with ``KEY VALUE`` pairs of the config at the end as ``args.opts``.

    What ``--run`` names becomes ``config_file`` and ``checkpoint``, unless these are given too.

    Raises:
        ValueError: the folder of ``--run`` holds no run, or neither it nor config and checkpoint are given.
    """
    words, pairs = split_overrides(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(words)
    args.opts = [*(getattr(args, "opts", None) or []), *pairs]
    needs_network = hasattr(args, "checkpoint")
    if args.run:
        args.config_file = args.config_file or config_of_run(args.run)
        if not getattr(args, "checkpoint", ""):
            must = (needs_network or getattr(args, "eval_only", False)) and not getattr(args, "resume", False)
            args.checkpoint = checkpoint_of_run(args.run, must_exist=must)
    elif needs_network:
        for name in ("config_file", "checkpoint"):
            if not getattr(args, name):
                option = name.replace("_", "-")
                raise ValueError(
                    f"--{option} is missing: name the folder of a run by --run, or --config-file and --checkpoint"
                )
    return args


def config_of_run(folder: str | Path) -> str:
    """The config of the run in a folder.

    Raises:
        ValueError: there is none.
    """
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise ValueError(f"--run {folder}: it holds no config.yaml; name the OUTPUT_DIR of a run")
    return str(path)


def checkpoint_of_run(folder: str | Path, *, must_exist: bool = True) -> str:
    """The best checkpoint of the run in a folder, else its last one; "" where there is none and none has to be.

    Raises:
        ValueError: there is none.
    """
    for name in ("model_best.pth", "model_final.pth"):
        if (path := Path(folder) / name).is_file():
            return str(path)
    if must_exist:
        raise ValueError(f"--run {folder}: it holds neither model_best.pth nor model_final.pth yet")
    return ""


def split_overrides(words: list[str]) -> tuple[list[str], list[str]]:
    """(options and positional arguments, ``KEY VALUE`` pairs): pairs begin at the first word that is a config key."""
    if "--opts" in words:  # the older form, in which options may follow
        return words, []
    plain = {name for name, value in get_rc2l_cfg().items() if not isinstance(value, dict)}
    for place, word in enumerate(words):
        if word in plain or re.fullmatch(r"[A-Z][A-Z0-9_]*(\.[A-Z][A-Z0-9_]*)+", word):
            return words[:place], words[place:]
    return words, []


def import_modules(names: Iterable[str]) -> None:
    """Import modules of the user; the working directory is searched first, as by ``python -m``.

    Raises:
        ValueError: there is no such module, or it cannot be imported; one line says why, and where.
    """
    folder = os.getcwd()
    for name in names:
        if name.endswith(".py") or os.sep in name:
            module = re.sub(r"\W+", ".", os.path.relpath(name).removesuffix(".py")).strip(".")
            raise ValueError(f"--import {name}: name a module, as in Python's import, not a file: {module}")
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"--import {name}: this is no name of a module; write it as in Python's import")
        if folder not in sys.path:
            sys.path.insert(0, folder)
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise ValueError(_described(name, error)) from error
            raise ValueError(
                f"--import {name}: there is no module {error.name}; it is looked for in {folder}, in PYTHONPATH and "
                "among the installed packages"
            ) from error
        except Exception as error:  # whatever the code of the user does
            raise ValueError(_described(name, error)) from error


def _described(name: str, error: Exception) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    if isinstance(error, SyntaxError):
        place = f"{error.filename}, line {error.lineno}"
    else:
        # The first frame is this file's; importlib's are frozen, or lie in its own folder.
        outside = [frame for frame in frames[1:] if not frame.filename.startswith(os.path.dirname(importlib.__file__))]
        place = f"{outside[-1].filename}, line {outside[-1].lineno}" if outside else "while it was looked for"
    message = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())[:300]
    return f"--import {name}: it cannot be imported: {type(error).__name__}: {message} ({place})"
