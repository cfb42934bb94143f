"""Pixel decoder with multi-scale deformable attention (Mask2Former)."""

import math

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from rc2l.modeling.deformable_attention import DeformableEncoder
from rc2l.modeling.pixel_decoder import BasePixelDecoder, conv
from rc2l.modeling.position_encoding import sine_position_encoding

_GROUPS = 32
_FEEDFORWARD_DIM = 1024


@SEM_SEG_HEADS_REGISTRY.register()
class MSDeformAttnPixelDecoder(BasePixelDecoder):
    """A deformable encoder over several backbone features, and pyramid steps from there to the finest one.

    Args:
        input_shape, mask_dim, norm: see :class:`~rc2l.modeling.pixel_decoder.BasePixelDecoder`.
        conv_dim: width of the encoder, a multiple of 32 and of ``num_heads``.
        encoder_in_features: which features of ``input_shape`` the encoder takes.
        common_stride: the finest feature below the encoder's that is used, a power of 2.
        enc_layers, num_heads, num_points, dropout: the encoder's.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        conv_dim: int,
        mask_dim: int,
        norm: str,
        encoder_in_features: list[str],
        common_stride: int,
        enc_layers: int,
        num_heads: int,
        num_points: int,
        dropout: float,
    ):
        nn.Module.__init__(self)
        if conv_dim % _GROUPS:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.CONVS_DIM is {conv_dim}; with MSDeformAttnPixelDecoder it must be a multiple of "
                f"{_GROUPS}"
            )
        by_stride = sorted(input_shape, key=lambda name: input_shape[name].stride)
        self.encoded_features = [name for name in reversed(by_stride) if name in encoder_in_features]
        finest = min(input_shape[name].stride for name in self.encoded_features)
        num_steps = max(0, round(math.log2(finest / common_stride)))
        self.in_features = by_stride
        self.stepped_features = [name for name in by_stride if input_shape[name].stride < finest][:num_steps]
        if len(self.encoded_features) + len(self.stepped_features) != len(by_stride):
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES is {list(encoder_in_features)}: with "
                f"IN_FEATURES {by_stride} and COMMON_STRIDE {common_stride} some feature would not be used; name the "
                "coarsest ones without a gap"
            )

        self.input_proj = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(input_shape[name].channels, conv_dim, kernel_size=1), nn.GroupNorm(_GROUPS, conv_dim)
            )
            for name in self.encoded_features
        )
        for project in self.input_proj:
            nn.init.xavier_uniform_(project[0].weight)
            nn.init.zeros_(project[0].bias)
        self.transformer = DeformableEncoder(
            enc_layers, conv_dim, len(self.encoded_features), num_heads, num_points, _FEEDFORWARD_DIM, dropout
        )
        self.mask_features = conv(conv_dim, mask_dim, 1)
        for index, name in enumerate(self.stepped_features, start=1):
            self.add_module(f"adapter_{index}", conv(input_shape[name].channels, conv_dim, 1, norm))
            self.add_module(f"layer_{index}", conv(conv_dim, conv_dim, 3, norm, relu=True))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        head = cfg.MODEL.SEM_SEG_HEAD
        encoded = list(head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES)
        if not encoded or not set(encoded) <= set(head.IN_FEATURES):
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES is {encoded}; name one or more of "
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES, which is {list(head.IN_FEATURES)}"
            )
        return super().from_config(cfg, input_shape) | {
            "encoder_in_features": encoded,
            "common_stride": head.COMMON_STRIDE,
            "enc_layers": head.TRANSFORMER_ENC_LAYERS,
            "num_heads": cfg.MODEL.MASK_FORMER.NHEADS,
            "num_points": head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS,
            "dropout": cfg.MODEL.MASK_FORMER.DROPOUT,
        }

    def pyramid(self, features: dict[str, Tensor]) -> tuple[list[Tensor], Tensor]:
        """All levels (B, conv_dim, h_i, w_i), coarsest first, and the coarsest."""
        # float32 under AMP: half-precision coordinates would miss by pixels.
        with torch.autocast(features[self.in_features[0]].device.type, enabled=False):
            projected = [
                project(features[name].float())
                for name, project in zip(self.encoded_features, self.input_proj, strict=True)
            ]
            positions = [sine_position_encoding(x.shape[2], x.shape[3], x.shape[1], x.device) for x in projected]
            levels = self.transformer(projected, positions)
            for index in range(len(self.stepped_features), 0, -1):
                lateral = getattr(self, f"adapter_{index}")(features[self.stepped_features[index - 1]].float())
                y = lateral + F.interpolate(levels[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
                levels.append(getattr(self, f"layer_{index}")(y))
        return levels, levels[0]
