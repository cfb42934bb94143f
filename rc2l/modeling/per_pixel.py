"""Per-pixel classification: a detectron2 meta-architecture with DeepLab heads."""

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY, build_backbone, build_sem_seg_head
from detectron2.projects.deeplab import DeepLabV3PlusHead
from torch import Tensor, nn

from rc2l.modeling.outputs import SegmentationOutput
from rc2l.modeling.segmentor import Segmentor

HEADS = ("DeepLabV3PlusPixelHead", "DeepLabV2PixelHead")


@SEM_SEG_HEADS_REGISTRY.register()
class DeepLabV3PlusPixelHead(DeepLabV3PlusHead):
    """detectron2's DeepLabV3+ head, same parameters, giving decoder features and logits instead of a loss.

    Image pooling of its ASPP is over the whole feature, so that crops may have any size.
    """

    @configurable
    def __init__(self, input_shape: dict[str, ShapeSpec], **options):
        super().__init__(input_shape, **options)
        # Makes layers() stop before the predictor.
        self.decoder_only = True

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        # LOSS_TYPE belongs to a loss that is never called: the losses live in the trainer.
        return super().from_config(cfg, input_shape) | {"train_size": None, "loss_type": "cross_entropy"}

    def forward(self, features: dict[str, Tensor], auxiliary: bool = True) -> SegmentationOutput:
        """Shape: features name -> (B, C_i, h_i, w_i); outputs have the size of the finest one."""
        pixel_features = self.layers(features)
        return SegmentationOutput(None, None, pixel_features, pixel_logits=self.predictor(pixel_features))


@SEM_SEG_HEADS_REGISTRY.register()
class DeepLabV2PixelHead(nn.Module):
    """DeepLabV2's head: logits are the sum of parallel dilated 3x3 convolutions of the coarsest feature.

    Reads MODEL.SEM_SEG_HEAD.{IN_FEATURES (the last is used), ASPP_DILATIONS, NUM_CLASSES}. Its per-pixel features are
    the backbone's.
    """

    def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]):
        super().__init__()
        options = cfg.MODEL.SEM_SEG_HEAD
        self.in_feature = options.IN_FEATURES[-1]
        channels = input_shape[self.in_feature].channels
        self.predictor = nn.ModuleList(
            Conv2d(channels, options.NUM_CLASSES, kernel_size=3, padding=dilation, dilation=dilation)
            for dilation in options.ASPP_DILATIONS
        )
        for conv in self.predictor:
            nn.init.normal_(conv.weight, 0, 0.01)
            nn.init.zeros_(conv.bias)

    def forward(self, features: dict[str, Tensor], auxiliary: bool = True) -> SegmentationOutput:
        """Shape: features name -> (B, C_i, h_i, w_i)."""
        x = features[self.in_feature]
        return SegmentationOutput(None, None, x, pixel_logits=sum(conv(x) for conv in self.predictor))


@META_ARCH_REGISTRY.register()
class PerPixelSegmentor(Segmentor):
    """A backbone and a head that classifies every pixel; see :class:`Segmentor`."""

    @configurable
    def __init__(self, **options):
        super().__init__(**options)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        head = cfg.MODEL.SEM_SEG_HEAD
        if head.NAME not in HEADS:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.NAME is '{head.NAME}'; with PerPixelSegmentor choose one of {', '.join(HEADS)}"
            )
        backbone = build_backbone(cfg)
        shape = backbone.output_shape()
        missing = [name for name in head.IN_FEATURES if name not in shape]
        if missing or not head.IN_FEATURES:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES is {list(head.IN_FEATURES)}, the backbone gives {list(shape)}; name "
                "one or more of these, or add the missing ones to MODEL.RESNETS.OUT_FEATURES"
            )
        if head.NAME == "DeepLabV3PlusPixelHead" and len(head.PROJECT_CHANNELS) != len(head.IN_FEATURES) - 1:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS is {list(head.PROJECT_CHANNELS)}: it must name one width for "
                f"each of IN_FEATURES but the coarsest, {len(head.IN_FEATURES) - 1} in all"
            )
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, shape),
            "num_classes": head.NUM_CLASSES,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            # Convolutions need no padding; images of one batch are padded to the largest.
            "size_divisibility": 1,
        }
