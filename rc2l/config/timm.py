"""MODEL.TIMM.*: backbones of the timm library."""

from detectron2.config import CfgNode

from rc2l.ranges import MOST_CHANNELS, config_node, declare, flag, integer, number, one_of, several, text


@config_node
def add_timm_config(cfg: CfgNode) -> None:
    """Add the keys of build_timm_backbone."""
    cfg.MODEL.TIMM = CfgNode()
    # Name of a model of the timm library, such as tf_efficientnet_lite0, convnext_tiny, swin_tiny_patch4_window7_224 or
    # vit_small_patch14_dinov2; read if MODEL.BACKBONE.NAME is build_timm_backbone.
    cfg.MODEL.TIMM.NAME = ""
    # Start from timm's weights of NAME, as MODEL.WEIGHTS "timm://NAME" does; MODEL.WEIGHTS, where set, comes first.
    cfg.MODEL.TIMM.PRETRAINED = False
    # Which of the model's feature maps, ascending (of a plain transformer: one block or four); empty: the last of each
    # stride from 4 on, or four evenly spaced blocks.
    cfg.MODEL.TIMM.OUT_INDICES = ()
    # Rate of stochastic depth in the last block, in [0, 1).
    cfg.MODEL.TIMM.DROP_PATH = 0.0
    # BN | FrozenBN | SyncBN: what becomes of batch norms; networks without any are not changed.
    cfg.MODEL.TIMM.NORM = "BN"
    # A layer norm on each feature map, as the authors of Swin and ConvNeXt have it for segmentation; plain transformers
    # have norms in their pyramid.
    cfg.MODEL.TIMM.OUTPUT_NORM = False
    # 32 | 16 | 8: stride of the last map; less than 32 by dilation, where the model has it.
    cfg.MODEL.TIMM.OUTPUT_STRIDE = 32
    # Compute activations again in the backward pass instead of keeping them: less memory, about a third more time.
    cfg.MODEL.TIMM.CHECKPOINTING = False
    # Channels of the feature pyramid of a plain vision transformer.
    cfg.MODEL.TIMM.PYRAMID_CHANNELS = 256


declare(
    "MODEL.TIMM",
    {
        "NAME": text(),
        "PRETRAINED": flag(),
        "OUT_INDICES": several(integer(at_least=0, at_most=1000)),
        "DROP_PATH": number(at_least=0, below=1),
        "NORM": one_of("BN", "FrozenBN", "SyncBN"),
        "OUTPUT_NORM": flag(),
        "OUTPUT_STRIDE": one_of(32, 16, 8),
        "CHECKPOINTING": flag(),
        "PYRAMID_CHANNELS": integer(at_least=1, at_most=MOST_CHANNELS),
    },
)
