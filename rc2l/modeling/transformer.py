"""Transformer encoder and decoder with positions added to queries and keys in every layer (DETR)."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _ResidualLayer(nn.Module):
    """What encoder and decoder layers share: feed-forward network and residual blocks.

    Args:
        dim: width of the tokens.
        num_heads: attention heads; divides ``dim``.
        feedforward_dim: width of the hidden feed-forward layer.
        dropout: probability in [0, 1), in attention, in the feed-forward network and on every block's output.
        pre_norm: normalise the input of each block instead of the sum after it.
    """

    def __init__(self, dim: int, num_heads: int, feedforward_dim: int, dropout: float, pre_norm: bool):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"transformer width {dim} is not divisible by the number of attention heads {num_heads}")
        self.pre_norm = pre_norm
        self.self_attn = nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)
        self.linear1 = nn.Linear(dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def _residual(self, x: Tensor, norm: nn.LayerNorm, block: Callable[[Tensor], Tensor]) -> Tensor:
        if self.pre_norm:
            return x + self.dropout(block(norm(x)))
        return norm(x + self.dropout(block(x)))

    def _self_attention(self, x: Tensor, pos: Tensor) -> Tensor:
        query = x + pos
        return self.self_attn(query, query, x, need_weights=False)[0]

    def _feedforward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(F.relu(self.linear1(x))))


class TransformerEncoderLayer(_ResidualLayer):
    """Self-attention and feed-forward network."""

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        """Shape: x (B, L, C), pos broadcastable to it; result (B, L, C)."""
        x = self._residual(x, self.norm1, lambda y: self._self_attention(y, pos))
        return self._residual(x, self.norm2, self._feedforward)


class TransformerDecoderLayer(_ResidualLayer):
    """Self-attention between queries, attention to the memory, and feed-forward network."""

    def __init__(self, dim: int, num_heads: int, feedforward_dim: int, dropout: float, pre_norm: bool):
        super().__init__(dim, num_heads, feedforward_dim, dropout, pre_norm)
        self.multihead_attn = nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, query_pos: Tensor, key: Tensor, memory: Tensor) -> Tensor:
        """Shape: x (B, Q, C), query_pos broadcastable to it, key (memory with its position) and memory (B, L, C)."""
        x = self._residual(x, self.norm1, lambda y: self._self_attention(y, query_pos))
        x = self._residual(
            x, self.norm2, lambda y: self.multihead_attn(y + query_pos, key, memory, need_weights=False)[0]
        )
        return self._residual(x, self.norm3, self._feedforward)


class TransformerEncoder(nn.Module):
    """``num_layers`` (0 or more) encoder layers; a final LayerNorm with ``pre_norm`` only.

    Arguments are those of the layers.
    """

    def __init__(self, num_layers: int, dim: int, num_heads: int, feedforward_dim: int, dropout: float, pre_norm: bool):
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerEncoderLayer(dim, num_heads, feedforward_dim, dropout, pre_norm) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim) if pre_norm else None

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        """Shape: x (B, L, C), pos broadcastable to it; result (B, L, C)."""
        for layer in self.layers:
            x = layer(x, pos)
        return x if self.norm is None else self.norm(x)


class TransformerDecoder(nn.Module):
    """``num_layers`` (1 or more) decoder layers that share one final LayerNorm."""

    def __init__(self, num_layers: int, dim: int, num_heads: int, feedforward_dim: int, dropout: float, pre_norm: bool):
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerDecoderLayer(dim, num_heads, feedforward_dim, dropout, pre_norm) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, query_pos: Tensor, memory: Tensor, pos: Tensor, all_layers: bool = True) -> Tensor:
        """Decode learned queries that start at zero.

        Shape:
            query_pos (Q, C), memory (B, L, C), pos broadcastable to memory. Result (D, B, Q, C): the D layers' outputs,
            first layer first, or with ``all_layers=False`` the last one only (D = 1).
        """
        query_pos = query_pos[None].expand(memory.shape[0], -1, -1)
        key = memory + pos
        x = torch.zeros_like(query_pos)
        states = []
        for layer in self.layers:
            x = layer(x, query_pos, key, memory)
            states.append(x)
        return self.norm(torch.stack(states if all_layers else states[-1:]))


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int):
        super().__init__()
        dims = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        """Shape: (..., in_dim) to (..., out_dim)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def init_xavier(module: nn.Module) -> None:
    """Xavier-uniform initialisation of every weight of two or more dimensions, in place."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
