"""A backbone and a per-pixel head of one's own, by detectron2's registries.

python train_net.py --import examples.own_network --config-file examples/own_network.yaml
"""

from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, SEM_SEG_HEADS_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from rc2l.modeling import SegmentationOutput


@BACKBONE_REGISTRY.register()
class StridedConvolutions(Backbone):
    """Features ``res2`` to ``res5`` of strides 4 to 32, each of two 3x3 convolutions with group norm."""

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
        super().__init__()
        widths = [32, 64, 128, 256]
        self.stem = self._block(input_shape.channels, 32)
        self.stages = nn.ModuleList(
            self._block(before, width) for before, width in zip([32, *widths], widths, strict=False)
        )
        self._shapes = {f"res{i + 2}": ShapeSpec(channels=width, stride=4 * 2**i) for i, width in enumerate(widths)}

    @staticmethod
    def _block(in_channels: int, out_channels: int) -> nn.Sequential:
        return nn.Sequential(
            Conv2d(in_channels, out_channels, 3, stride=2, padding=1, norm=nn.GroupNorm(8, out_channels)),
            nn.ReLU(),
            Conv2d(out_channels, out_channels, 3, padding=1, norm=nn.GroupNorm(8, out_channels)),
            nn.ReLU(),
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Shape: (B, 3, H, W) -> name -> (B, C_i, H / stride, W / stride)."""
        features, x = {}, self.stem(images)
        for name, stage in zip(self._shapes, self.stages, strict=True):
            features[name] = x = stage(x)
        return features

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes


@SEM_SEG_HEADS_REGISTRY.register()
class SumOfFeatures(nn.Module):
    """The features of MODEL.SEM_SEG_HEAD.IN_FEATURES, each CONVS_DIM wide, added at the finest size and classified."""

    def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> None:
        super().__init__()
        options = cfg.MODEL.SEM_SEG_HEAD
        self.pixel_feature_channels = options.CONVS_DIM
        self.projections = nn.ModuleDict(
            {name: Conv2d(input_shape[name].channels, options.CONVS_DIM, 1) for name in options.IN_FEATURES}
        )
        self.predictor = Conv2d(options.CONVS_DIM, options.NUM_CLASSES, 1)

    def forward(self, features: dict[str, Tensor], auxiliary: bool = True) -> SegmentationOutput:
        """Shape: name -> (B, C_i, h_i, w_i)."""
        size = max((features[name].shape[-2:] for name in self.projections), key=lambda size: size[0])
        maps = [
            F.interpolate(projection(features[name]), size=size, mode="bilinear", align_corners=False)
            for name, projection in self.projections.items()
        ]
        pixel_features = sum(maps).relu()
        return SegmentationOutput(None, None, pixel_features, pixel_logits=self.predictor(pixel_features))
