"""Reading of weight files, safely, into tensors under our parameter names."""

import hashlib
import pickle
import re
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names
from detectron2.utils.file_io import PathManager
from torch import Tensor

# Where numpy keeps the functions that rebuild pickled arrays: numpy 1 and numpy 2.
_ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_ADMITTED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    *((module, name) for module in _ARRAY_MODULES for name in ("_reconstruct", "scalar")),
}
_RESAVE = 'save its tensors alone with torch.save({"model": model.state_dict()}, path) where the file comes from'


@dataclass(frozen=True)
class WeightFile:
    """Tensors of a weight file under the names that our models use."""

    path: str
    sha256: str
    #: What kind of file it is, in words.
    kind: str
    #: Which input the weights expect: "torchvision" (RGB, unit-variance channels), "caffe2" (BGR, no division, stride
    #: in the 1x1 convolution) or "" (unknown, or set by the config that belongs to the file).
    convention: str
    tensors: dict[str, Tensor]
    #: Names of entries that are no numeric arrays.
    not_tensors: list[str]


class _ArrayUnpickler(pickle.Unpickler):
    """Admits numpy arrays and plain containers only; anything else could run code."""

    def find_class(self, module: str, name: str):
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it contains the class {module}.{name}")
        return OrderedDict if name == "OrderedDict" else super().find_class(module, name)


def _local_path(path: str) -> Path:
    try:
        local = Path(PathManager.get_local_path(path))
    except Exception as error:  # each of PathManager's handlers raises errors of its own (network, catalog)
        raise FileNotFoundError(
            f"MODEL.WEIGHTS: cannot fetch {path} ({error}); download it and give its local path"
        ) from error
    if not local.is_file():
        raise FileNotFoundError(
            f"MODEL.WEIGHTS: there is no file {path}; correct the path, or set it to '' to start from random weights"
        )
    return local


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _deserialize(path: Path, name: str) -> object:
    """The object in a file written by ``torch.save`` (any suffix) or, for ``.pkl``, by ``pickle``."""
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
        file.seek(0)
        try:
            # The suffix is that of the name given: downloads may be cached under another.
            if name.endswith(".pkl") and not is_zip:
                return _ArrayUnpickler(file, encoding="latin1").load()
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged files raise nearly anything: EOFError, KeyError, RuntimeError, ...
            refused = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
            reason = f"it contains the class {refused[1]}" if refused else str(error).strip().split("\n")[0]
            raise ValueError(
                f"MODEL.WEIGHTS: {name} cannot be loaded safely: {reason or type(error).__name__}; only tensors, numpy "
                f"arrays and plain containers are read: {_RESAVE}, or fetch it again if it is damaged"
            ) from error


def _select(content: object, prefer: str, name: str) -> tuple[dict, str, str]:
    """(state dict, what it is, author) of a file's content."""
    if not isinstance(content, dict):
        raise ValueError(f"MODEL.WEIGHTS: {name} holds a {type(content).__name__}, not named tensors; {_RESAVE}")
    author = str(content.get("__author__", ""))
    if isinstance(content.get("model"), dict):
        teacher = content.get("teacher")
        if isinstance(teacher, dict):
            return (teacher, "teacher", author) if prefer == "teacher" else (content["model"], "student", author)
        return content["model"], "", author
    for key in ("state_dict", "blobs"):
        if isinstance(content.get(key), dict):
            return content[key], "", author
    return content, "", author


def _to_tensors(state: dict) -> tuple[dict[str, Tensor], list[str]]:
    tensors, rest = {}, []
    for name, value in state.items():
        if isinstance(value, Tensor):
            tensors[str(name)] = value
        elif isinstance(value, np.ndarray | np.generic) and np.asarray(value).dtype.kind in "fiub":
            tensors[str(name)] = torch.from_numpy(np.array(value))
        else:
            rest.append(str(name))
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors, rest


_TORCHVISION_RULES = [
    (re.compile(r"^layer([1-4])\."), lambda match: f"res{int(match[1]) + 1}."),
    (re.compile(r"^(?=conv1\.|bn1\.)"), "stem."),
    (re.compile(r"\bbn(\d)\."), r"conv\1.norm."),
    (re.compile(r"\bdownsample\.0\."), "shortcut."),
    (re.compile(r"\bdownsample\.1\."), "shortcut.norm."),
]


def torchvision_to_detectron2(name: str) -> str:
    """detectron2's name of a parameter of a torchvision ResNet: layer1.0.bn2.weight is res2.0.conv2.norm.weight."""
    for pattern, replacement in _TORCHVISION_RULES:
        name = pattern.sub(replacement, name)
    return name


def _current_name(name: str) -> str:
    """Current name of a MaskFormer parameter: old files lack ``pixel_decoder.`` in the names of its parts."""
    head = "sem_seg_head."
    # DeepLab's head has a part named decoder, MaskFormer's never had.
    parts = ("predictor.", "pixel_decoder.", "decoder.")
    if name.startswith(head) and not name.startswith(tuple(head + part for part in parts)):
        return f"{head}pixel_decoder.{name.removeprefix(head)}"
    return name


def _rename(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """(tensors under our names, kind of the file)."""
    if any(name.startswith("sem_seg_head.") for name in tensors):
        if not any(name.startswith("sem_seg_head.predictor.query_embed") for name in tensors) and any(
            re.match(r"sem_seg_head\.(decoder|predictor)\.", name) for name in tensors
        ):
            return tensors, "DeepLab"
        renamed = {_current_name(name): value for name, value in tensors.items()}
        return renamed, "MaskFormer" if renamed.keys() == tensors.keys() else "MaskFormer, legacy names"
    if "layer1.0.conv1.weight" in tensors:
        return {f"backbone.{torchvision_to_detectron2(name)}": value for name, value in tensors.items()}, (
            "torchvision ResNet"
        )
    if any(name.startswith("res2_0_branch") for name in tensors):
        weights = {name: value for name, value in tensors.items() if not name.endswith("_momentum")}
        converted, _ = convert_c2_detectron_names(weights)
        return {f"backbone.{name}": value for name, value in converted.items()}, "Caffe2 ResNet"
    if any(name.startswith(("stem.", "res2.")) for name in tensors):
        return {f"backbone.{name}": value for name, value in tensors.items()}, "detectron2 ResNet"
    return tensors, "unknown names"


def _convention(kind: str, author: str, path: str, tensors: dict[str, Tensor]) -> str:
    if kind in ("torchvision ResNet", "Caffe2 ResNet"):
        return "torchvision" if kind == "torchvision ResNet" else "caffe2"
    if kind != "detectron2 ResNet":
        return ""
    for source in (author.lower(), path.lower()):
        if "torchvision" in source:
            return "torchvision"
        if "msra" in source or "caffe2" in source:
            return "caffe2"
    # Only Caffe2's files have batch norm fused into an affine layer, without statistics.
    return "" if any(name.endswith(".running_var") for name in tensors) else "caffe2"


def read_weight_file(path: str, prefer: str = "teacher") -> WeightFile:
    """Read a weight file of any supported form; no code that a file may contain is run.

    Forms: a torchvision ResNet state dict; an ImageNet ResNet of detectron2's model zoo (``{"model": ...}``) or of
    Caffe2; a MaskFormer checkpoint with current or legacy names; a checkpoint of ours (``{"model": student, "teacher":
    ...}``), of which ``prefer`` chooses "teacher" (the student where there is none) or "student".

    Raises:
        FileNotFoundError: no such file, or it cannot be fetched.
        ValueError: unsafe, damaged or without tensors; unknown ``prefer``.
    """
    if prefer not in ("teacher", "student"):
        raise ValueError(f"prefer is '{prefer}'; choose teacher or student")
    local = _local_path(path)
    state, role, author = _select(_deserialize(local, path), prefer, path)
    tensors, not_tensors = _to_tensors(state)
    if not tensors:
        raise ValueError(f"MODEL.WEIGHTS: {path} holds no named tensors; {_RESAVE}")
    tensors, kind = _rename(tensors)
    convention = _convention(kind, author, path, tensors)
    kind = f"{kind}, {role}" if role else kind
    return WeightFile(path, _sha256(local), kind, convention, tensors, not_tensors)
