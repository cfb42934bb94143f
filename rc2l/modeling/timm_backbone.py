"""Any network of the timm library as detectron2 backbone: convolutional, hierarchical or plain vision transformers."""

import copy
import difflib
import logging
import math
import types
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from rc2l.modeling.vit_pyramid import ChannelNorm, FeaturePyramid

logger = logging.getLogger(__name__)

NORMS = ("BN", "FrozenBN", "SyncBN")
#: What makes a family accept any input size; the first that its constructor knows is passed to it.
_ANY_SIZE = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


def import_timm() -> types.ModuleType:
    """The timm library, an extra dependency.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise ValueError(
            "MODEL.BACKBONE.NAME build_timm_backbone and timm:// weights need the package timm, which is not "
            "installed: install it (the extra `timm` of this project, part of `make install`)"
        ) from error
    return timm


class TimmBackbone(Backbone):
    """A timm network without its classifier; feature maps are named by stride: res2 has stride 4, res5 stride 32.

    Inputs of any size: they are padded with zeros (the mean colour) to what patches and windows ask for, and the maps
    are cropped to ceil(size / stride). A network of one stride, a plain vision transformer, gets a
    :class:`~rc2l.modeling.vit_pyramid.FeaturePyramid` with strides 4 to 32. Nothing is kept that the maps do not need,
    so that every parameter has a gradient.

    Args:
        name: of the timm model, with or without the tag of its weights.
        out_indices: which of timm's feature maps (of a plain transformer: blocks, one or four of them); empty: of each
            stride from 4 on the last, or four evenly spaced blocks.
        drop_path: rate of stochastic depth in the last block, in [0, 1).
        norm: BN, FrozenBN (statistics and affine maps stay those of the weights) or SyncBN, for batch norms.
        output_norm: a layer norm on each map, as segmentation with ConvNeXt and Swin has it; never on a pyramid.
        output_stride: 32, or 16 or 8 for dilated convolutions, where the family has them.
        checkpointing: compute activations again in the backward pass instead of keeping them.
        freeze_at: the stem (1) and the first freeze_at - 1 stages (of transformers without stages: blocks) are frozen.
        pyramid_channels: of a plain transformer's pyramid.
        model_options: more arguments of the timm model.

    Raises:
        ValueError: unknown name, no feature maps, or an option that the model does not have.
    """

    #: Parts that no weight file fills; they learn at the head's rate.
    new_parts = ("pyramid", "output_norms")

    def __init__(
        self,
        name: str,
        *,
        out_indices: tuple[int, ...] = (),
        drop_path: float = 0.0,
        norm: str = "BN",
        output_norm: bool = False,
        output_stride: int = 32,
        checkpointing: bool = False,
        freeze_at: int = 0,
        pyramid_channels: int = 256,
        model_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"MODEL.TIMM.NORM is '{norm}': it must be one of {', '.join(NORMS)}")
        options = dict(model_options or {})
        if drop_path:
            options["drop_path_rate"] = drop_path
        if output_stride != 32:
            options["output_stride"] = output_stride
        self.timm_name = name
        self.model_options, probe = _accepted_options(name, options)
        self.pad_to, shapes = _feature_shapes(name, probe)
        reductions = [self.pad_to_reduction(shape) for shape in shapes]
        self.is_plain = len(set(reductions)) == 1
        self.indices = _chosen_indices(name, reductions, tuple(out_indices), self.is_plain)

        net = import_timm().create_model(name, pretrained=False, num_classes=0, **self.model_options)
        # A plain transformer's maps all pass its last norm; a stage's norm or classifier would be without use.
        net.prune_intermediate_layers(self.indices, prune_norm=not self.is_plain, prune_head=True)
        _drop_unused(net, self.indices, self.is_plain, self.pad_to)
        self.net = _with_norm(net, norm)
        if checkpointing:
            if not hasattr(net, "set_grad_checkpointing"):
                raise ValueError(f"MODEL.TIMM.CHECKPOINTING: {name} has none, set it to False")
            self.net.set_grad_checkpointing(True)
        channels = [shapes[index][0] for index in self.indices]
        strides = [reductions[index] for index in self.indices]
        self.output_norms = nn.ModuleList()
        if self.is_plain:
            self.pyramid = FeaturePyramid(channels, strides[0], pyramid_channels)
            self._shapes = {f"res{level}": (pyramid_channels, 2**level) for level in (2, 3, 4, 5)}
        else:
            self.pyramid = None
            self._shapes = dict(zip(_stride_names(strides), zip(channels, strides, strict=True), strict=True))
            if output_norm:
                self.output_norms.extend(ChannelNorm(number) for number in channels)
        self._freeze(freeze_at)

    def pad_to_reduction(self, shape: tuple[int, int, int]) -> int:
        """Stride of a map (C, h, w) that the probe of :func:`_feature_shapes` gave."""
        return round(_PROBE[0] * self.pad_to / shape[1])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Shape: (B, 3, H, W) -> name -> (B, C, ceil(H / stride), ceil(W / stride))."""
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % self.pad_to, 0, -height % self.pad_to))
        maps = self.net.forward_intermediates(
            images, indices=self.indices, norm=self.is_plain, intermediates_only=True, output_fmt="NCHW"
        )
        if self.pyramid is not None:
            maps = self.pyramid(maps)
        elif self.output_norms:
            maps = [norm(x) for norm, x in zip(self.output_norms, maps, strict=True)]
        return {
            name: x[..., : (height + stride - 1) // stride, : (width + stride - 1) // stride]
            for (name, (_, stride)), x in zip(self._shapes.items(), maps, strict=True)
        }

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {name: ShapeSpec(channels=number, stride=stride) for name, (number, stride) in self._shapes.items()}

    def parameter_depths(self) -> dict[str, int]:
        """Depth of each parameter of the pretrained network: 0 for the stem, growing with the blocks."""
        return self._grouped(coarse=False)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are embeddings: positions, tokens, tables of relative positions."""
        names = self.net.no_weight_decay() if hasattr(self.net, "no_weight_decay") else ()
        return {f"net.{name}" for name in names}

    def reference(self) -> nn.Module:
        """The whole network, classifier included, without storage: names and shapes of its parameters."""
        with torch.device("meta"):
            return import_timm().create_model(self.timm_name, pretrained=False, **self.model_options)

    def _grouped(self, coarse: bool) -> dict[str, int]:
        from timm.models import group_parameters

        depths = group_parameters(self.net, self.net.group_matcher(coarse=coarse), reverse=True)
        return {f"net.{name}": depth for name, depth in depths.items()}

    def _freeze(self, freeze_at: int) -> None:
        if freeze_at <= 0:
            return
        depths = self._grouped(coarse=True)
        for name, parameter in self.named_parameters():
            if depths.get(name, math.inf) < freeze_at:
                parameter.requires_grad_(False)
        from timm.layers import freeze_batch_norm_2d

        for name, module in list(self.named_modules()):
            if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm) and not module.weight.requires_grad:
                parent, _, child = name.rpartition(".")
                setattr(self.get_submodule(parent), child, freeze_batch_norm_2d(module))


#: Height and width of the probe image in units of the padding.
_PROBE = (3, 2)


def _accepted_options(name: str, options: dict[str, Any]) -> tuple[dict[str, Any], nn.Module]:
    """(arguments that make the model take any size, the model without storage)."""
    timm = import_timm()
    known = timm.list_models()
    if not timm.is_model(name):
        close = difflib.get_close_matches(name.split(".")[0], known, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() names them"
        raise ValueError(f"MODEL.TIMM.NAME is '{name}', which is none of the {len(known)} models of timm: {hint}")
    for extra in _ANY_SIZE:
        try:
            with torch.device("meta"):
                return {**options, **extra}, timm.create_model(
                    name, pretrained=False, num_classes=0, **options, **extra
                )
        except TypeError as error:
            reason = error
        except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
            raise ValueError(f"MODEL.TIMM.NAME {name} with {options}: {_one_line(error)}") from error
    raise ValueError(
        f"MODEL.TIMM.NAME {name} does not take {', '.join(options)} ({_one_line(reason)}): leave MODEL.TIMM.DROP_PATH "
        "at 0 and MODEL.TIMM.OUTPUT_STRIDE at 32"
    ) from reason


def _feature_shapes(name: str, probe: nn.Module) -> tuple[int, list[tuple[int, int, int]]]:
    """(what sizes must be a multiple of, (C, h, w) of all feature maps for an image of _PROBE times that)."""
    if not hasattr(probe, "forward_intermediates") or not hasattr(probe, "prune_intermediate_layers"):
        raise ValueError(f"MODEL.TIMM.NAME {name} gives no feature maps (timm's features_only): choose another model")
    reductions = [info["reduction"] for info in probe.feature_info]
    fixed = probe.pretrained_cfg.get("input_size", (3, 224, 224))[-1]
    reason = None
    # Patches ask for their stride, windows sometimes for the whole size that the model was trained at.
    for multiple in dict.fromkeys((max(reductions), math.lcm(*reductions), fixed)):
        image = torch.zeros(1, 3, _PROBE[0] * multiple, _PROBE[1] * multiple, device="meta")
        try:
            maps = copy.deepcopy(probe).eval().forward_intermediates(image, intermediates_only=True, output_fmt="NCHW")
        except (RuntimeError, AssertionError, ValueError, IndexError, TypeError, NotImplementedError) as error:
            reason = error
            continue
        return multiple, [tuple(x.shape[1:]) for x in maps]
    raise ValueError(
        f"MODEL.TIMM.NAME {name} takes no images but those of its own size {fixed} ({_one_line(reason)}): choose "
        "another model"
    )


def _chosen_indices(name: str, reductions: list[int], chosen: tuple[int, ...], is_plain: bool) -> list[int]:
    count = len(reductions)
    if not chosen:
        if is_plain:
            return [count * part // 4 - 1 for part in (1, 2, 3, 4)] if count >= 4 else [count - 1]
        return [index for index, reduction in enumerate(reductions) if reduction >= 4]
    if any(not 0 <= index < count for index in chosen) or list(chosen) != sorted(set(chosen)):
        raise ValueError(
            f"MODEL.TIMM.OUT_INDICES is {list(chosen)}: {name} has {count} maps, name some of 0 to "
            f"{count - 1}, ascending"
        )
    if is_plain and len(chosen) not in (1, 4):
        raise ValueError(
            f"MODEL.TIMM.OUT_INDICES is {list(chosen)}: of the plain transformer {name} name one block or four, "
            "for the strides 4, 8, 16 and 32"
        )
    return list(chosen)


def _stride_names(strides: list[int]) -> list[str]:
    """res2 for stride 4; dilated stages, whose stride does not grow, are counted on."""
    levels: list[int] = []
    for stride in strides:
        levels.append(max(round(math.log2(stride)), levels[-1] + 1 if levels else 0))
    return [f"res{level}" for level in levels]


def _drop_unused(net: nn.Module, indices: list[int], is_plain: bool, multiple: int) -> None:
    """Remove submodules that no feature map needs and timm's pruning leaves, such as unused blocks and heads."""
    used: set[nn.Module] = set()
    handles = [
        module.register_forward_hook(lambda module, _, __: used.add(module))
        for module in net.modules()
        if not list(module.children())
    ]
    training = net.training
    net.eval()
    try:
        with torch.no_grad():
            image = torch.zeros(1, 3, multiple, multiple)
            net.forward_intermediates(image, indices=indices, norm=is_plain, intermediates_only=True, output_fmt="NCHW")
    finally:
        for handle in handles:
            handle.remove()
        net.train(training)
    for name, child in list(net.named_children()):
        leaves = [module for module in child.modules() if not list(module.children())]
        if list(child.parameters()) and not used.intersection(leaves):
            setattr(net, name, nn.Identity())


def _with_norm(net: nn.Module, norm: str) -> nn.Module:
    from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d

    if norm == "FrozenBN":
        return freeze_batch_norm_2d(net)
    # On CPUs and in one process this is plain batch norm.
    if norm == "SyncBN":
        return convert_sync_batchnorm(net)
    return net


def _one_line(error: BaseException | None) -> str:
    return " ".join(str(error).split())[:200]


def timm_backbone_options(cfg: CfgNode) -> dict[str, Any]:
    """The arguments of :class:`TimmBackbone` that MODEL.TIMM and MODEL.BACKBONE.FREEZE_AT say, but for the name."""
    options = cfg.MODEL.TIMM
    return {
        "out_indices": tuple(options.OUT_INDICES),
        "drop_path": options.DROP_PATH,
        "norm": options.NORM,
        "output_norm": options.OUTPUT_NORM,
        "output_stride": options.OUTPUT_STRIDE,
        "checkpointing": options.CHECKPOINTING,
        "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
        "pyramid_channels": options.PYRAMID_CHANNELS,
    }


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """The timm model that MODEL.TIMM.NAME names, see :class:`TimmBackbone`.

    Raises:
        ValueError: timm is not installed, or an option does not fit the model.
    """
    if not cfg.MODEL.TIMM.NAME:
        raise ValueError("MODEL.TIMM.NAME is empty: name a timm model, such as tf_efficientnet_lite0 or convnext_tiny")
    backbone = TimmBackbone(cfg.MODEL.TIMM.NAME, **timm_backbone_options(cfg))
    crop = cfg.INPUT.CROP.SIZE
    if cfg.INPUT.CROP.TYPE == "absolute" and any(size % backbone.pad_to for size in crop):
        padded = [-(-size // backbone.pad_to) * backbone.pad_to for size in crop]
        logger.warning(
            f"INPUT.CROP.SIZE {list(crop)} is no multiple of {backbone.pad_to}, which {cfg.MODEL.TIMM.NAME} asks for: "
            f"crops are padded to {padded}"
        )
    return backbone
