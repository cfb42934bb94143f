"""Per-pixel classification: a detectron2 meta-architecture for any head that gives pixel logits, and DeepLab's."""

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY, build_backbone, build_sem_seg_head
from detectron2.projects.deeplab import DeepLabV3PlusHead
from torch import Tensor, nn

from rc2l.modeling.segmentor import Segmentor, probe_head
from rc2l.structures.outputs import SegmentationOutput


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

    @property
    def pixel_feature_channels(self) -> int:
        return self.predictor.in_channels

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        _check_in_features(cfg, input_shape)
        options = cfg.MODEL.SEM_SEG_HEAD
        if len(options.PROJECT_CHANNELS) != len(options.IN_FEATURES) - 1:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS is {list(options.PROJECT_CHANNELS)}: it must name one width for "
                f"each of IN_FEATURES but the coarsest, {len(options.IN_FEATURES) - 1} in all"
            )
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
        _check_in_features(cfg, input_shape)
        options = cfg.MODEL.SEM_SEG_HEAD
        self.in_feature = options.IN_FEATURES[-1]
        channels = input_shape[self.in_feature].channels
        self.pixel_feature_channels = channels
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


def _check_in_features(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> None:
    names = cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES
    if not names or any(name not in input_shape for name in names):
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.IN_FEATURES is {list(names)}, the backbone gives {list(input_shape)}; name one or "
            "more of these, or add the missing ones to MODEL.RESNETS.OUT_FEATURES (MODEL.TIMM.OUT_INDICES)"
        )


@META_ARCH_REGISTRY.register()
class PerPixelSegmentor(Segmentor):
    """A backbone and a head that classifies every pixel; see :class:`Segmentor`.

    The head is any of detectron2's registry whose ``forward(features, auxiliary)`` gives a :class:`SegmentationOutput`
    with ``pixel_logits``.
    """

    kind = "pixels"

    @configurable
    def __init__(self, **options):
        super().__init__(**options)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        name = cfg.MODEL.SEM_SEG_HEAD.NAME
        if name not in SEM_SEG_HEADS_REGISTRY:
            known = ", ".join(sorted(head for head, _ in SEM_SEG_HEADS_REGISTRY))
            raise ValueError(f"MODEL.SEM_SEG_HEAD.NAME is '{name}'; choose one of {known}")
        backbone = build_backbone(cfg)
        shape = backbone.output_shape()
        head = build_sem_seg_head(cfg, shape)
        if probe_head(head, shape).pixel_logits is None:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.NAME is '{name}', which gives no pixel_logits: set MODEL.META_ARCHITECTURE to "
                "MaskFormer, or choose another head, such as DeepLabV3PlusPixelHead"
            )
        return {
            "backbone": backbone,
            "sem_seg_head": head,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            # Convolutions need no padding; images of one batch are padded to the largest.
            "size_divisibility": 1,
            "score_resolution": cfg.TEST.SCORE_RESOLUTION,
        }
