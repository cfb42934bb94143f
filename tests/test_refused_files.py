"""Files of weights that are refused: the message says what is in them, and never how to load them all the same."""

import gzip
import pickle
import tarfile
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from rc2l.engine.checkpoint_file import DamagedCheckpointError, read_checkpoint
from rc2l.modeling.weight_files import read_weight_file
from rc2l.refused_files import refusal_of
from tests.tool_modules import load_tool

TENSORS = {"model": {"a.weight": torch.zeros(2)}}


class Calls:
    """Unpickling it would call a function."""

    def __init__(self, function: Callable, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def tar_of(path: Path) -> None:
    (path.parent / "notes.txt").write_text("notes")
    with tarfile.open(path, "w") as archive:
        archive.add(path.parent / "notes.txt")


def zip_of(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "notes")


def harmful(path: Path) -> dict:
    return TENSORS | {"epoch": Calls(open, str(path.parent / "victim"), "w")}


#: Name -> (writes the file, what is said of it).
FILES = {
    "zip": (lambda path: torch.save(harmful(path), path), r"it contains (_io|io)\.open, which could run code"),
    "legacy pickle": (
        lambda path: torch.save(harmful(path), path, _use_new_zipfile_serialization=False),
        r"it contains (_io|io)\.open, which could run code",
    ),
    "plain pickle": (lambda path: path.write_bytes(pickle.dumps(harmful(path))), r"it contains (_io|io)\.open"),
    "old pickle": (
        lambda path: path.write_bytes(pickle.dumps(harmful(path), protocol=0)),
        r"it contains (_io|io)\.open",
    ),
    "a class": (
        lambda path: torch.save(TENSORS | {"args": Namespace(lr=1)}, path),
        r"it contains argparse\.Namespace, which could run code",
    ),
    "a whole network": (
        lambda path: torch.save(nn.Linear(2, 2), path),
        r"it contains torch\.nn\.modules\.linear\.Linear, which could run code",
    ),
    "several": (
        lambda path: torch.save(
            [Calls(print), Calls(len, []), Calls(abs, 1), Calls(max, 1, 2), Calls(hex, 3), Calls(oct, 3)], path
        ),
        r"it contains builtins\.print, builtins\.len, .* and 1 more, which could run code",
    ),
    "TorchScript": (lambda path: torch.jit.save(torch.jit.script(nn.ReLU()), path), "it is a TorchScript program"),
    "tar": (tar_of, "it is a tar archive"),
    "zip of something": (zip_of, r"it is a zip archive of other files \(notes\.txt\)"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"x")), "compressed by gzip"),
    "web page": (lambda path: path.write_text("\n<html>quota exceeded"), "it is a web page"),
    "pointer": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "a pointer of git LFS"),
    "empty": (lambda path: path.write_bytes(b""), "it is empty"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("suffix", ["pth", "pkl"])
@pytest.mark.parametrize("kind", FILES)
def test_a_refusal_says_what_the_file_holds(kind, suffix, tmp_path):
    write, message = FILES[kind]
    path = tmp_path / f"bad.{suffix}"
    write(path)
    readers = {
        "weights": (ValueError, lambda: read_weight_file(str(path))),
        "checkpoint": (DamagedCheckpointError, lambda: read_checkpoint(path)),
        "dump": (DamagedCheckpointError, lambda: load_tool("replay").replay(str(path))),
    }
    for expected, read in readers.values():
        with pytest.raises(expected, match=message) as error:
            read()
        said = str(error.value)
        assert str(path) in said and "\n" not in said
        assert not any(word in said for word in ("weights_only", "Weights only", "trust", "add_safe_globals"))
    assert not (tmp_path / "victim").exists()


def test_the_loaders_own_advice_is_not_repeated(tmp_path):
    path = tmp_path / "x.pth"
    torch.save(TENSORS, path)
    advice = RuntimeError("Weights only load failed. Re-running `torch.load` with `weights_only` set to `False` ...")
    assert refusal_of(path, advice) == "it holds something else than tensors, numbers, text and plain containers"
    assert refusal_of(path, EOFError()) == "EOFError"
    assert refusal_of(tmp_path / "gone.pth", KeyError("storages\nmore")) == r"'storages\nmore'"


def test_names_that_are_hidden_or_hold_control_characters(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"\x80\x04)\x93.")  # STACK_GLOBAL of what is no text
    assert "a class of hidden name" in refusal_of(path, ValueError("x"))
    path.write_bytes(b"cos\x1b[2J\nsystem\n.")
    assert refusal_of(path, ValueError("x")) == "it contains os?[2J.system, which could run code"
