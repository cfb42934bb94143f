"""Transformer predictor: queries to class and mask logits (MaskFormer)."""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d
from fvcore.nn import weight_init
from torch import Tensor, nn

from rc2l.modeling.position_encoding import sine_position_encoding
from rc2l.modeling.transformer import MLP, TransformerDecoder, TransformerEncoder, init_xavier
from rc2l.structures.outputs import SegmentationOutput


class Transformer(nn.Module):
    """Encoder (of 0 or more layers) and decoder."""

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        feedforward_dim: int,
        dropout: float,
        enc_layers: int,
        dec_layers: int,
        pre_norm: bool,
    ):
        super().__init__()
        self.encoder = TransformerEncoder(enc_layers, dim, num_heads, feedforward_dim, dropout, pre_norm)
        self.decoder = TransformerDecoder(dec_layers, dim, num_heads, feedforward_dim, dropout, pre_norm)
        init_xavier(self)

    def forward(self, x: Tensor, query_pos: Tensor, pos: Tensor, all_layers: bool = True) -> Tensor:
        """Shape: x (B, L, C), query_pos (Q, C), pos broadcastable to x; result as of :class:`TransformerDecoder`."""
        return self.decoder(query_pos, self.encoder(x, pos), pos, all_layers)


class TransformerPredictor(nn.Module):
    """N learned queries attend to a feature map; each gives class logits and a mask embedding.

    Args:
        in_channels: channels of the feature map that the queries attend to.
        num_classes: K.
        num_queries: N, 1 or more.
        hidden_dim: width of the transformer, a multiple of 4 and of ``num_heads``.
        mask_dim: channels of mask embeddings and per-pixel features.
        num_heads, feedforward_dim, dropout, enc_layers, dec_layers, pre_norm: the transformer's, see MODEL.MASK_FORMER.
        enforce_input_proj: project the feature map even if it has ``hidden_dim`` channels.
        deep_supervision: give the outputs of all decoder layers, not only the last.
    """

    @configurable
    def __init__(
        self,
        in_channels: int,
        *,
        num_classes: int,
        num_queries: int,
        hidden_dim: int,
        mask_dim: int,
        num_heads: int,
        feedforward_dim: int,
        dropout: float,
        enc_layers: int,
        dec_layers: int,
        pre_norm: bool,
        enforce_input_proj: bool,
        deep_supervision: bool,
    ):
        super().__init__()
        self.deep_supervision = deep_supervision
        self.transformer = Transformer(
            dim=hidden_dim,
            num_heads=num_heads,
            feedforward_dim=feedforward_dim,
            dropout=dropout,
            enc_layers=enc_layers,
            dec_layers=dec_layers,
            pre_norm=pre_norm,
        )
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        if in_channels != hidden_dim or enforce_input_proj:
            self.input_proj = Conv2d(in_channels, hidden_dim, kernel_size=1)
            weight_init.c2_xavier_fill(self.input_proj)
        else:
            self.input_proj = nn.Identity()
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)

    @classmethod
    def from_config(cls, cfg: CfgNode, in_channels: int) -> dict:
        options = cfg.MODEL.MASK_FORMER
        return {
            "in_channels": in_channels,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "num_queries": options.NUM_OBJECT_QUERIES,
            "hidden_dim": options.HIDDEN_DIM,
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
            "num_heads": options.NHEADS,
            "feedforward_dim": options.DIM_FEEDFORWARD,
            "dropout": options.DROPOUT,
            "enc_layers": options.ENC_LAYERS,
            "dec_layers": options.DEC_LAYERS,
            "pre_norm": options.PRE_NORM,
            "enforce_input_proj": options.ENFORCE_INPUT_PROJ,
            "deep_supervision": options.DEEP_SUPERVISION,
        }

    def forward(self, x: Tensor, pixel_features: Tensor, auxiliary: bool = True) -> SegmentationOutput:
        """Predict classes and masks.

        Shape:
            x (B, in_channels, h', w'), pixel_features (B, mask_dim, h, w); masks have the size of the latter.
            ``auxiliary=False`` leaves the outputs of the layers before the last out.
        """
        x = self.input_proj(x)
        pos = sine_position_encoding(x.shape[2], x.shape[3], x.shape[1], device=x.device)
        states = self.transformer(
            x.flatten(2).transpose(1, 2),
            self.query_embed.weight,
            pos.flatten(2).transpose(1, 2),
            all_layers=auxiliary and self.deep_supervision,
        )
        logits = self.class_embed(states)
        masks = torch.einsum("dbqc,bchw->dbqhw", self.mask_embed(states), pixel_features)
        return SegmentationOutput(
            pred_logits=logits[-1],
            pred_masks=masks[-1],
            pixel_features=pixel_features,
            aux_outputs=list(zip(logits[:-1], masks[:-1], strict=True)),
        )
