"""Reading of weight files, safely, into tensors under our parameter names."""

import hashlib
import pickle
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import rc2l.modeling.timm_weights  # noqa: F401  registers its formats
from rc2l.modeling.weight_formats import ExpectedInput, WeightSource, interpret
from rc2l.modeling.weight_sources import local_weights
from rc2l.refused_files import refusal_of

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
#: How the files of torch before 1.6 begin: a pickled number.
_TORCH_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
_RESAVE = 'save its tensors alone with torch.save({"model": model.state_dict()}, path) where the file comes from'


@dataclass(frozen=True)
class WeightFile:
    """Tensors of a weight file under the names that our models use."""

    path: str
    sha256: str
    #: What kind of file it is, in words.
    kind: str
    #: Which input the weights expect; None: unknown, or set by the config that belongs to the file.
    expected_input: ExpectedInput | None
    tensors: dict[str, Tensor]
    #: Names of entries that are no numeric arrays.
    not_tensors: list[str]
    #: Of a checkpoint of ours: the config of its run, key -> value, also ``<dataset>.value_range`` and ``.bands``.
    run_config: dict[str, object] = field(default_factory=dict)


class _ArrayUnpickler(pickle.Unpickler):
    """Admits numpy arrays and plain containers only; anything else could run code."""

    def find_class(self, module: str, name: str):
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it contains the class {module}.{name}")
        return OrderedDict if name == "OrderedDict" else super().find_class(module, name)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _deserialize(path: Path, name: str) -> object:
    """The object in a file written by ``torch.save`` (any suffix), ``pickle`` (``.pkl``) or safetensors."""
    with path.open("rb") as file:
        of_torch = file.read(len(_TORCH_MAGIC)).startswith((b"PK", _TORCH_MAGIC))
        file.seek(0)
        try:
            if path.suffix == ".safetensors" or name.endswith(".safetensors"):
                return _safetensors(path)
            # The suffix is that of the name given: downloads may be cached under another.
            if name.endswith(".pkl") and not of_torch:
                return _ArrayUnpickler(file, encoding="latin1").load()
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged files raise nearly anything: EOFError, KeyError, RuntimeError, ...
            raise ValueError(
                f"MODEL.WEIGHTS: {name} cannot be loaded safely: {refusal_of(path, error)}; only tensors, numpy "
                f"arrays and plain containers are read: {_RESAVE}, or fetch it again if it is damaged"
            ) from error


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ValueError("the package safetensors is not installed (the extra `timm` of this project)") from error
    return load_file(path)


def networks_of(content: dict) -> list[str]:
    """Names of the networks in a checkpoint of ours, the result of its run first; [] in other files.

    The entry ``model`` is the network called student, every other one has its own name.
    """
    trainer = content.get("trainer")
    if isinstance(trainer, dict) and isinstance(trainer.get("networks"), list):
        return [str(name) for name in trainer["networks"]]
    # Files of before don't say.
    return ["teacher", "student"] if isinstance(content.get("teacher"), dict) else []


def _select(content: object, prefer: str, name: str) -> tuple[dict, str, str]:
    """(state dict, what it is, author) of a file's content."""
    if not isinstance(content, dict):
        raise ValueError(f"MODEL.WEIGHTS: {name} holds a {type(content).__name__}, not named tensors; {_RESAVE}")
    author = str(content.get("__author__", ""))
    if isinstance(content.get("model"), dict):
        networks = networks_of(content)
        if not networks:
            return content["model"], "", author
        chosen = prefer or networks[0]
        if chosen not in networks:
            raise ValueError(f"{name} holds the networks {', '.join(networks)}, but no {chosen}")
        return content["model" if chosen == "student" else chosen], chosen, author
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


def read_weight_file(path: str, prefer: str = "", network: nn.Module | None = None) -> WeightFile:
    """Read a weight file of any format that is registered; no code that a file may contain is run.

    Formats (:mod:`~rc2l.modeling.weight_formats`, which others can add to): what the network or its backbone saves
    under its own names; ResNets of torchvision, detectron2's model zoo (``{"model": ...}``) and Caffe2; MaskFormer
    checkpoints with current or legacy names; for a timm backbone, timm's own files and the official ones that timm
    reads; a checkpoint of ours (``{"model": student, "teacher": ...}``), of which ``prefer`` chooses a network by name
    ("": the result of its run, usually the teacher).

    Args:
        path: a file (``.pth``, ``.pkl``, ``.safetensors``, ...) or an address, see
            :mod:`~rc2l.modeling.weight_sources`.
        prefer: see above.
        network: whose names the tensors shall have; its own names are never changed.

    Raises:
        FileNotFoundError: no such file, or it cannot be fetched.
        ValueError: unsafe, damaged or without tensors; there is no network ``prefer``.
    """
    local = local_weights(path)
    content = _deserialize(local, path)
    state, role, author = _select(content, prefer, path)
    tensors, not_tensors = _to_tensors(state)
    if not tensors:
        raise ValueError(f"MODEL.WEIGHTS: {path} holds no named tensors; {_RESAVE}")
    tensors, kind, expected_input = interpret(tensors, WeightSource(path, local, author), network)
    kind = f"{kind}, {role}" if role else kind
    return WeightFile(path, _sha256(local), kind, expected_input, tensors, not_tensors, _run_config(content))


def _run_config(content: object) -> dict[str, object]:
    for key in ("trainer", "record", "config"):
        content = content.get(key) if isinstance(content, dict) else None
    return content if isinstance(content, dict) else {}


def networks_in_file(path: str) -> list[str]:
    """Names of the networks in a checkpoint of ours, the result of its run first; [] where the file is another's.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_weight_file`.
    """
    content = _deserialize(local_weights(path), path)
    return networks_of(content) if isinstance(content, dict) else []
