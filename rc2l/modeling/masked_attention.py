"""Masked-attention predictor: queries look at three feature levels in turn, each inside its own mask (Mask2Former)."""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from rc2l.modeling.position_encoding import sine_position_encoding
from rc2l.modeling.transformer import MLP, init_xavier
from rc2l.structures.outputs import SegmentationOutput

#: Feature levels that the layers look at in turn, coarsest first.
NUM_LEVELS = 3


class _Residual(nn.Module):
    """A block with a residual connection and a normalisation, of the sum or with ``pre_norm`` of the input."""

    def __init__(self, dim: int, pre_norm: bool):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.pre_norm = pre_norm

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """Shape: x (B, Q, C); result the same."""
        return x + self._block(self.norm(x), *others) if self.pre_norm else self.norm(x + self._block(x, *others))


class SelfAttentionLayer(_Residual):
    """Attention between queries, whose positions are added to queries and keys."""

    def __init__(self, dim: int, num_heads: int, pre_norm: bool):
        super().__init__(dim, pre_norm)
        self.self_attn = nn.MultiheadAttention(dim, num_heads, batch_first=True)

    def _block(self, x: Tensor, query_pos: Tensor) -> Tensor:
        query = x + query_pos
        return self.self_attn(query, query, x, need_weights=False)[0]


class CrossAttentionLayer(_Residual):
    """Attention of queries to the pixels of a level that are not blocked."""

    def __init__(self, dim: int, num_heads: int, pre_norm: bool):
        super().__init__(dim, pre_norm)
        self.multihead_attn = nn.MultiheadAttention(dim, num_heads, batch_first=True)

    def _block(self, x: Tensor, query_pos: Tensor, key: Tensor, memory: Tensor, blocked: Tensor) -> Tensor:
        blocked = blocked[:, None].expand(-1, self.multihead_attn.num_heads, -1, -1).flatten(0, 1)
        return self.multihead_attn(x + query_pos, key, memory, attn_mask=blocked, need_weights=False)[0]


class FeedForwardLayer(_Residual):
    """Feed-forward network of two linear layers."""

    def __init__(self, dim: int, feedforward_dim: int, pre_norm: bool):
        super().__init__(dim, pre_norm)
        self.linear1 = nn.Linear(dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, dim)

    def _block(self, x: Tensor) -> Tensor:
        return self.linear2(F.relu(self.linear1(x)))


class MaskedAttentionPredictor(nn.Module):
    """N learned queries refined by masked attention; each gives class logits and a mask embedding.

    Predictions are made from the learned queries themselves and after every layer.

    Args:
        in_channels: channels of each of the levels.
        num_classes: K.
        num_queries: N, 1 or more.
        hidden_dim: width of the transformer, a multiple of 4 and of ``num_heads``.
        mask_dim: channels of mask embeddings and per-pixel features.
        num_heads, feedforward_dim, pre_norm: the transformer's, see MODEL.MASK_FORMER.
        num_layers: layers, 1 or more, each of masked cross-attention, self-attention and feed-forward network.
        enforce_input_proj: project the levels even if they have ``hidden_dim`` channels.
        deep_supervision: give all predictions, not only the last.
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
        num_layers: int,
        pre_norm: bool,
        enforce_input_proj: bool,
        deep_supervision: bool,
    ):
        super().__init__()
        self.deep_supervision = deep_supervision
        layers = range(num_layers)
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(hidden_dim, num_heads, pre_norm) for _ in layers
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(hidden_dim, num_heads, pre_norm) for _ in layers
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FeedForwardLayer(hidden_dim, feedforward_dim, pre_norm) for _ in layers
        )
        init_xavier(self)
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(NUM_LEVELS, hidden_dim)
        # A level that no layer looks at gets no parameters: they would never have a gradient.
        self.num_levels = min(NUM_LEVELS, num_layers)
        self.input_proj = nn.ModuleList(nn.Identity() for _ in range(self.num_levels))
        if in_channels != hidden_dim or enforce_input_proj:
            self.input_proj = nn.ModuleList(
                Conv2d(in_channels, hidden_dim, kernel_size=1) for _ in range(self.num_levels)
            )
            for conv in self.input_proj:
                weight_init.c2_xavier_fill(conv)
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
            # The prediction from the learned queries counts as one of DEC_LAYERS.
            "num_layers": options.DEC_LAYERS - 1,
            "pre_norm": options.PRE_NORM,
            "enforce_input_proj": options.ENFORCE_INPUT_PROJ,
            "deep_supervision": options.DEEP_SUPERVISION,
        }

    def forward(self, levels: list[Tensor], pixel_features: Tensor, auxiliary: bool = True) -> SegmentationOutput:
        """Predict classes and masks.

        Shape:
            levels (B, in_channels, h_l, w_l) each, coarsest first; pixel_features (B, mask_dim, h, w); masks have the
            size of the latter. ``auxiliary=False`` leaves the predictions before the last out.
        """
        keys, memories, small_features = [], [], []
        for index, (level, project) in enumerate(zip(levels, self.input_proj, strict=False)):
            x = project(level)
            pos = sine_position_encoding(x.shape[2], x.shape[3], x.shape[1], device=x.device)
            memory = x.flatten(2).transpose(1, 2) + self.level_embed.weight[index]
            memories.append(memory)
            keys.append(memory + pos.flatten(2).transpose(1, 2))
            # Resized masks are the dot products with resized features: both are linear.
            small_features.append(_shrink(pixel_features.detach(), level.shape[-2:]))

        query_pos = self.query_embed.weight[None]
        x = self.query_feat.weight[None].expand(len(pixel_features), -1, -1)
        every = auxiliary and self.deep_supervision
        states = [self.decoder_norm(x)] if every else []
        layers = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        )
        for index, (cross_attention, self_attention, feedforward) in enumerate(layers):
            level = index % self.num_levels
            blocked = self.attention_mask(x, small_features[level])
            x = cross_attention(x, query_pos, keys[level], memories[level], blocked)
            x = feedforward(self_attention(x, query_pos))
            if every:
                states.append(self.decoder_norm(x))
        if not every:
            states.append(self.decoder_norm(x))

        states = torch.stack(states)
        logits = self.class_embed(states)
        masks = torch.einsum("dbqc,bchw->dbqhw", self.mask_embed(states), pixel_features)
        return SegmentationOutput(
            pred_logits=logits[-1],
            pred_masks=masks[-1],
            pixel_features=pixel_features,
            aux_outputs=list(zip(logits[:-1], masks[:-1], strict=True)),
        )

    @torch.no_grad()
    def attention_mask(self, x: Tensor, features: Tensor) -> Tensor:
        """Where queries may not look: outside of the masks that they predict; a query without mask looks everywhere.

        Shape:
            x (B, Q, C) queries, features (B, mask_dim, h, w) per-pixel features at the level's size. Result
            (B, Q, h w) bool, True where blocked.
        """
        embedding = self.mask_embed(self.decoder_norm(x))
        blocked = torch.einsum("bqc,bchw->bqhw", embedding, features).flatten(2) < 0  # probability below 0.5
        return blocked & ~blocked.all(-1, keepdim=True)


def _shrink(features: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)
