"""The formats of weight files: how each is recognised, what its names become, which input its weights expect.

A format of one's own: ``register_weight_format(WeightFormat("my framework", recognise, rename))``.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names
from torch import Tensor, nn

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class ExpectedInput:
    """Which input weights were trained with."""

    #: Whose weights they are, in words.
    source: str
    #: RGB or BGR, the order of the next two.
    format: str
    #: Per channel, on the 0..255 scale.
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    #: Of residual networks with bottlenecks: whether the stride is in the first 1x1 convolution; None: does not matter.
    stride_in_1x1: bool | None = None


@dataclass(frozen=True)
class WeightSource:
    """Where tensors come from."""

    #: As MODEL.WEIGHTS has it.
    path: str
    local: Path
    #: What the file says of its author; "" where it does not.
    author: str = ""


def _no_input(tensors: Tensors, source: WeightSource, network: nn.Module | None) -> ExpectedInput | None:
    return None


@dataclass(frozen=True)
class WeightFormat:
    """One kind of weight file; ``network`` is None where a file is only looked at."""

    #: In words, for reports; :attr:`describe` may say more.
    name: str
    #: (tensors, network) -> whether the file is of this format.
    recognise: Callable[[Tensors, nn.Module | None], bool]
    #: (tensors, network) -> the tensors under the names of our networks.
    rename: Callable[[Tensors, nn.Module | None], Tensors]
    #: (tensors under their own names, source, network) -> the expected input, None where it is not known or set by the
    #: config that belongs to the file.
    expected_input: Callable[[Tensors, WeightSource, nn.Module | None], ExpectedInput | None] = _no_input
    #: (renamed, original) -> name of the variant; "" for none.
    variant: Callable[[Tensors, Tensors], str] = lambda renamed, original: ""


_FORMATS: list[WeightFormat] = []


def register_weight_format(new: WeightFormat) -> WeightFormat:
    """Add a format; it is asked before all that were added earlier. One of the same name is replaced."""
    _FORMATS[:] = [new, *(known for known in _FORMATS if known.name != new.name)]
    return new


def interpret(
    tensors: Tensors, source: WeightSource, network: nn.Module | None
) -> tuple[Tensors, str, ExpectedInput | None]:
    """(tensors under our names, kind of the file, expected input).

    Names that are the network's own, or its backbone's own, are kept whatever a format makes of the others.
    """
    own = set(network.state_dict()) if network is not None else set()
    kept = {name: value for name, value in tensors.items() if name in own}
    rest = {name: value for name, value in tensors.items() if name not in own}
    of_backbone = _are_the_backbones_own(rest, own)
    known = next((known for known in _FORMATS if known.recognise(tensors, network)), None)
    renamed = rest
    if of_backbone:
        renamed = _prefixed(rest)
    elif known is not None and rest:
        renamed = known.rename(rest, network)
    if known is None:
        kind = "its network's own names" if kept or of_backbone else "unknown names"
        return {**renamed, **kept}, kind, None
    variant = known.variant(renamed | kept, tensors)
    kind = f"{known.name}, {variant}" if variant else known.name
    return {**renamed, **kept}, kind, known.expected_input(tensors, source, network)


def _are_the_backbones_own(tensors: Tensors, own: set[str]) -> bool:
    """Whether at least half of the tensors are those of the backbone, saved without the rest of the network."""
    found = sum(f"backbone.{name}" in own for name in tensors)
    return bool(tensors) and 2 * found >= len(tensors)


def _prefixed(tensors: Tensors, prefix: str = "backbone.") -> Tensors:
    return {f"{prefix}{name}": value for name, value in tensors.items()}


# --- residual networks ----------------------------------------------------------------------------------------------

TORCHVISION_INPUT = ExpectedInput(
    "torchvision", "RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), stride_in_1x1=False
)
CAFFE2_INPUT = ExpectedInput("Caffe2 (MSRA)", "BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0), stride_in_1x1=True)

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


def _from_caffe2(tensors: Tensors, network: nn.Module | None) -> Tensors:
    weights = {name: value for name, value in tensors.items() if not name.endswith("_momentum")}
    return _prefixed(convert_c2_detectron_names(weights)[0])


def _input_of_detectron2(tensors: Tensors, source: WeightSource, network: nn.Module | None) -> ExpectedInput | None:
    for text in (source.author.lower(), source.path.lower()):
        if "torchvision" in text:
            return TORCHVISION_INPUT
        if "msra" in text or "caffe2" in text:
            return CAFFE2_INPUT
    # Only Caffe2's files have batch norm fused into an affine layer, without statistics.
    return None if any(name.endswith(".running_var") for name in tensors) else CAFFE2_INPUT


register_weight_format(
    WeightFormat(
        "detectron2 ResNet",
        lambda tensors, _: any(name.startswith(("stem.", "res2.")) for name in tensors),
        lambda tensors, _: _prefixed(tensors),
        _input_of_detectron2,
    )
)
register_weight_format(
    WeightFormat(
        "Caffe2 ResNet",
        lambda tensors, _: any(name.startswith("res2_0_branch") for name in tensors),
        _from_caffe2,
        lambda *_: CAFFE2_INPUT,
    )
)
register_weight_format(
    WeightFormat(
        "torchvision ResNet",
        lambda tensors, _: "layer1.0.conv1.weight" in tensors,
        lambda tensors, _: {f"backbone.{torchvision_to_detectron2(name)}": value for name, value in tensors.items()},
        lambda *_: TORCHVISION_INPUT,
    )
)


# --- whole networks -------------------------------------------------------------------------------------------------


def _current_name(name: str) -> str:
    """Current name of a MaskFormer parameter: old files lack ``pixel_decoder.`` in the names of its parts."""
    head = "sem_seg_head."
    # DeepLab's head has a part named decoder, MaskFormer's never had.
    parts = ("predictor.", "pixel_decoder.", "decoder.")
    if name.startswith(head) and not name.startswith(tuple(head + part for part in parts)):
        return f"{head}pixel_decoder.{name.removeprefix(head)}"
    return name


def _has_head(tensors: Tensors, network: nn.Module | None) -> bool:
    return any(name.startswith("sem_seg_head.") for name in tensors)


def _is_deeplab(tensors: Tensors, network: nn.Module | None) -> bool:
    return (
        _has_head(tensors, network)
        and not any(name.startswith("sem_seg_head.predictor.query_embed") for name in tensors)
        and any(re.match(r"sem_seg_head\.(decoder|predictor)\.", name) for name in tensors)
    )


register_weight_format(
    WeightFormat(
        "MaskFormer",
        _has_head,
        lambda tensors, _: {_current_name(name): value for name, value in tensors.items()},
        variant=lambda renamed, original: "" if renamed.keys() == original.keys() else "legacy names",
    )
)
register_weight_format(WeightFormat("DeepLab", _is_deeplab, lambda tensors, _: tensors))
