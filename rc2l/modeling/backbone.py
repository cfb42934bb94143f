"""Basic-block ResNets (18, 34) of any width, made of detectron2's own blocks."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet

_BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_STAGES = ("res2", "res3", "res4", "res5")


@BACKBONE_REGISTRY.register()
def build_basic_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """ResNet-18 or -34 with RESNETS.RES2_OUT_CHANNELS channels in res2, doubled in each later stage.

    detectron2's own builder accepts no width but 64 at these depths; parameter names are the same. Reads
    MODEL.RESNETS.{DEPTH, NORM, OUT_FEATURES, STEM_OUT_CHANNELS, RES2_OUT_CHANNELS} and MODEL.BACKBONE.FREEZE_AT, and
    builds the stages up to the last of OUT_FEATURES only.

    Raises:
        ValueError: unknown depth or output feature.
    """
    options = cfg.MODEL.RESNETS
    if options.DEPTH not in _BLOCKS_PER_STAGE:
        raise ValueError(
            f"MODEL.RESNETS.DEPTH is {options.DEPTH}, build_basic_resnet_backbone knows 18 and 34; "
            "for 50, 101 and 152 set MODEL.BACKBONE.NAME to build_resnet_backbone"
        )
    choices = ("stem", *_STAGES)
    unknown = [name for name in options.OUT_FEATURES if name not in choices]
    if unknown or not options.OUT_FEATURES:
        raise ValueError(
            f"MODEL.RESNETS.OUT_FEATURES is {list(options.OUT_FEATURES)}; choose one or more of {', '.join(choices)}"
        )

    stem = BasicStem(in_channels=input_shape.channels, out_channels=options.STEM_OUT_CHANNELS, norm=options.NORM)
    in_channels, out_channels = options.STEM_OUT_CHANNELS, options.RES2_OUT_CHANNELS
    stages = []
    for index in range(max(choices.index(name) for name in options.OUT_FEATURES)):
        num_blocks = _BLOCKS_PER_STAGE[options.DEPTH][index]
        first_stride = 1 if index == 0 else 2
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                num_blocks,
                stride_per_block=[first_stride] + [1] * (num_blocks - 1),
                in_channels=in_channels,
                out_channels=out_channels,
                norm=options.NORM,
            )
        )
        in_channels, out_channels = out_channels, 2 * out_channels
    return ResNet(stem, stages, out_features=list(options.OUT_FEATURES), freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)
