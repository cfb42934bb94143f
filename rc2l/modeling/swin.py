"""The official Swin backbone of MaskFormer and Mask2Former, by timm, and the names of its weight files."""

import functools
import re
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

import rc2l.modeling.timm_weights  # noqa: F401  its format is registered first, so that this one is asked first
from rc2l.modeling.timm_backbone import TimmBackbone
from rc2l.modeling.weight_formats import Tensors, WeightFormat, register_weight_format

_STAGES = ("res2", "res3", "res4", "res5")


class SwinBackbone(TimmBackbone):
    """Swin with a layer norm on each map, computed as the official one is at any size.

    Windows are shifted in every stage, however small its map, and maps are padded to whole windows before the shift,
    where timm pads after it. Arguments are those of :class:`TimmBackbone`.
    """

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        block_type = _padded_block()
        for stage in self.net.layers:
            for block in stage.blocks:
                block.__class__ = block_type


@functools.cache
def _padded_block() -> type[nn.Module]:
    from timm.models.swin_transformer import SwinTransformerBlock

    class PaddedBlock(SwinTransformerBlock):
        def _attn(self, x: Tensor) -> Tensor:
            height, width = x.shape[1:3]
            x = F.pad(x, (0, 0, 0, -width % self.window_size[1], 0, -height % self.window_size[0]))
            return super()._attn(x)[:, :height, :width]

    return PaddedBlock


@BACKBONE_REGISTRY.register()
def D2SwinTransformer(cfg: CfgNode, input_shape: ShapeSpec) -> SwinBackbone:  # noqa: N802  the official name
    """Swin of the sizes of MODEL.SWIN; reads MODEL.BACKBONE.FREEZE_AT too.

    Raises:
        ValueError: timm is not installed, or a variant that no published file uses.
    """
    options = cfg.MODEL.SWIN
    only = {"QKV_BIAS": True, "QK_SCALE": None, "APE": False, "PATCH_NORM": True}
    for key, value in only.items():
        if options[key] != value:
            raise ValueError(f"MODEL.SWIN.{key} is {options[key]}; it must be {value}, as in all published files")
    if len(options.DEPTHS) != len(_STAGES) or len(options.NUM_HEADS) != len(_STAGES):
        raise ValueError(
            f"MODEL.SWIN.DEPTHS is {list(options.DEPTHS)} and NUM_HEADS {list(options.NUM_HEADS)}; each must be a list "
            f"of {len(_STAGES)}"
        )
    return SwinBackbone(
        "swin_tiny_patch4_window7_224",
        out_indices=tuple(index for index, name in enumerate(_STAGES) if name in options.OUT_FEATURES),
        drop_path=options.DROP_PATH_RATE,
        output_norm=True,
        checkpointing=options.USE_CHECKPOINT,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        model_options={
            "img_size": options.PRETRAIN_IMG_SIZE,
            "patch_size": options.PATCH_SIZE,
            "embed_dim": options.EMBED_DIM,
            "depths": tuple(options.DEPTHS),
            "num_heads": tuple(options.NUM_HEADS),
            "window_size": options.WINDOW_SIZE,
            "mlp_ratio": options.MLP_RATIO,
            "proj_drop_rate": options.DROP_RATE,
            "attn_drop_rate": options.ATTN_DROP_RATE,
            "always_partition": True,
        },
    )


def official_to_timm(name: str, indices: list[int]) -> str | None:
    """Our name of an official Swin parameter, without ``backbone.``; None for what is not needed.

    Args:
        indices: the stages that give a map.

    Its merging of patches ends a stage, timm's starts the next; its norms of the maps are norm0 to norm3.
    """
    if name.startswith("head.") or name.endswith(("relative_position_index", "attn_mask")) or name.startswith("norm."):
        return None
    if match := re.fullmatch(r"norm(\d)\.(weight|bias)", name):
        stage = int(match[1])
        return f"output_norms.{indices.index(stage)}.{match[2]}" if stage in indices else None
    name = re.sub(r"^layers\.(\d)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.", name)
    return f"net.{name}"


def _is_official(tensors: Tensors, network: nn.Module | None) -> bool:
    names = set(tensors)
    official = any(re.match(r"(backbone\.)?layers\.0\.downsample\.", name) for name in names)
    return official and isinstance(getattr(network, "backbone", None), SwinBackbone)


def _rename(tensors: Tensors, network: nn.Module | None) -> Tensors:
    renamed = {}
    for name, value in tensors.items():
        if name.startswith("sem_seg_head.") and not name.startswith(
            ("sem_seg_head.predictor.", "sem_seg_head.pixel_decoder.")
        ):
            name = f"sem_seg_head.pixel_decoder.{name.removeprefix('sem_seg_head.')}"
        elif name.startswith("backbone.") or not name.startswith(("sem_seg_head.", "criterion.")):
            own = official_to_timm(name.removeprefix("backbone."), network.backbone.indices)
            if own is None:
                continue
            name = f"backbone.{own}"
        renamed[name] = value
    return renamed


register_weight_format(WeightFormat("official Swin", _is_official, _rename))
