"""Pixel decoders: from backbone features to per-pixel features of stride 4 (MaskFormer)."""

import logging

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from rc2l.modeling.position_encoding import sine_position_encoding
from rc2l.modeling.transformer import TransformerEncoder, init_xavier

logger = logging.getLogger("rc2l.modeling")


def build_pixel_decoder(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """Build the pixel decoder that MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME names.

    Any class of SEM_SEG_HEADS_REGISTRY with a method ``forward_features`` will do (see :class:`BasePixelDecoder`).

    Raises:
        ValueError: there is no such pixel decoder; the message lists the choices.
    """
    name = cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME
    choices = sorted(key for key, value in SEM_SEG_HEADS_REGISTRY if hasattr(value, "forward_features"))
    if name not in choices:
        raise ValueError(f"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME is '{name}'; choose one of {', '.join(choices)}")
    return SEM_SEG_HEADS_REGISTRY.get(name)(cfg, input_shape)


def conv(in_channels: int, out_channels: int, kernel_size: int, norm: str = "", relu: bool = False) -> Conv2d:
    """A convolution of odd size that keeps height and width, with bias where there is no normalisation."""
    layer = Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        padding=kernel_size // 2,
        bias=norm == "",
        norm=get_norm(norm, out_channels),
        activation=F.relu if relu else None,
    )
    weight_init.c2_xavier_fill(layer)
    return layer


@SEM_SEG_HEADS_REGISTRY.register()
class BasePixelDecoder(nn.Module):
    """Feature pyramid: top-down sums of 1x1-projected backbone features, each smoothed by a 3x3 convolution.

    Args:
        input_shape: channels and stride of every backbone feature to use.
        conv_dim: channels of the pyramid.
        mask_dim: channels of the per-pixel features.
        norm: normalisation of the pyramid's convolutions, a name known to ``detectron2.layers.get_norm``.
    """

    @configurable
    def __init__(self, input_shape: dict[str, ShapeSpec], *, conv_dim: int, mask_dim: int, norm: str):
        super().__init__()
        self.in_features = sorted(input_shape, key=lambda name: input_shape[name].stride)
        for index, name in enumerate(self.in_features, start=1):
            channels = input_shape[name].channels
            if index == len(self.in_features):
                top_channels = self._build_top(channels, conv_dim)
                self.add_module(f"layer_{index}", conv(top_channels, conv_dim, 3, norm, relu=True))
            else:
                self.add_module(f"adapter_{index}", conv(channels, conv_dim, 1, norm))
                self.add_module(f"layer_{index}", conv(conv_dim, conv_dim, 3, norm, relu=True))
        self.mask_features = conv(conv_dim, mask_dim, 3)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        head = cfg.MODEL.SEM_SEG_HEAD
        missing = [name for name in head.IN_FEATURES if name not in input_shape]
        if missing or not head.IN_FEATURES:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES is {list(head.IN_FEATURES)}, the backbone gives {list(input_shape)}; "
                "name one or more of these, or add the missing ones to MODEL.RESNETS.OUT_FEATURES"
            )
        if cls is BasePixelDecoder and head.TRANSFORMER_ENC_LAYERS:
            logger.warning(
                f"MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS is {head.TRANSFORMER_ENC_LAYERS} but BasePixelDecoder has "
                "no transformer encoder; set PIXEL_DECODER_NAME to TransformerEncoderPixelDecoder to use one"
            )
        return {
            "input_shape": {name: input_shape[name] for name in head.IN_FEATURES},
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
        }

    def _build_top(self, in_channels: int, conv_dim: int) -> int:
        """Build what comes before the pyramid on the coarsest feature; returns the channels of its output."""
        return in_channels

    def _top(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The pyramid's start, and the encoded feature if there is one."""
        return x, None

    def pyramid(self, features: dict[str, Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """The pyramid's levels, coarsest first, and the encoded coarsest feature or None; shapes as below."""
        last = len(self.in_features)
        top, encoded = self._top(features[self.in_features[-1]])
        levels = [getattr(self, f"layer_{last}")(top)]
        for index in range(last - 1, 0, -1):
            lateral = getattr(self, f"adapter_{index}")(features[self.in_features[index - 1]])
            y = lateral + F.interpolate(levels[-1], size=lateral.shape[-2:], mode="nearest")
            levels.append(getattr(self, f"layer_{index}")(y))
        return levels, encoded

    def forward_features(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Decode backbone features.

        Shape:
            features: name -> (B, C_i, h_i, w_i). Result: per-pixel features (B, mask_dim, h, w) of the finest one's
            size, and the encoded coarsest feature (B, conv_dim, h_n, w_n) or None without a transformer encoder.
        """
        levels, encoded = self.pyramid(features)
        return self.mask_features(levels[-1]), encoded

    def forward_levels(self, features: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Per-pixel features as of :meth:`forward_features`, and all levels (B, conv_dim, h_i, w_i), coarsest first."""
        levels, _ = self.pyramid(features)
        return self.mask_features(levels[-1]), levels

    def forward(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        return self.forward_features(features)


@SEM_SEG_HEADS_REGISTRY.register()
class TransformerEncoderPixelDecoder(BasePixelDecoder):
    """The feature pyramid on top of a transformer encoder of the coarsest feature.

    Args:
        input_shape, conv_dim, mask_dim, norm: see :class:`BasePixelDecoder`; the encoder's width is ``conv_dim``.
        enc_layers, num_heads, feedforward_dim, dropout, pre_norm: see :class:`TransformerEncoder`.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        conv_dim: int,
        mask_dim: int,
        norm: str,
        enc_layers: int,
        num_heads: int,
        feedforward_dim: int,
        dropout: float,
        pre_norm: bool,
    ):
        super().__init__(input_shape, conv_dim=conv_dim, mask_dim=mask_dim, norm=norm)
        self.transformer = nn.Module()  # a level of names: official checkpoints say transformer.encoder.layers
        self.transformer.encoder = TransformerEncoder(
            enc_layers, conv_dim, num_heads, feedforward_dim, dropout, pre_norm
        )
        init_xavier(self.transformer)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        options = cfg.MODEL.MASK_FORMER
        return super().from_config(cfg, input_shape) | {
            "enc_layers": cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS,
            "num_heads": options.NHEADS,
            "feedforward_dim": options.DIM_FEEDFORWARD,
            "dropout": options.DROPOUT,
            "pre_norm": options.PRE_NORM,
        }

    def _build_top(self, in_channels: int, conv_dim: int) -> int:
        self.input_proj = conv(in_channels, conv_dim, 1)
        return conv_dim

    def _top(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        x = self.input_proj(x)
        _, channels, height, width = x.shape
        pos = sine_position_encoding(height, width, channels, device=x.device)
        tokens = self.transformer.encoder(x.flatten(2).transpose(1, 2), pos.flatten(2).transpose(1, 2))
        encoded = tokens.transpose(1, 2).unflatten(2, (height, width))
        return encoded, encoded
