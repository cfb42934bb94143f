"""Multi-scale deformable attention in plain PyTorch (Deformable DETR, as Mask2Former's pixel decoder uses it)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sample_levels(levels: list[Tensor], locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of values that are sampled bilinearly at several points of several levels; zero outside.

    Args:
        levels: values (B, M, D, h, w) of each of the L levels, M heads of D channels.
        locations: (B, S, M, L, P, 2) as x, y, where 0..1 spans a whole level.
        weights: (B, S, M, L, P).

    Returns:
        (B, S, M D) for S queries.
    """
    B, M = locations.shape[0], locations.shape[2]
    grids = (2 * locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # (L, B M, S, P, 2)
    weights = weights.permute(3, 0, 2, 1, 4).flatten(1, 2)[:, :, None]  # (L, B M, 1, S, P)
    total = 0
    for value, grid, weight in zip(levels, grids, weights, strict=True):
        sampled = F.grid_sample(value.flatten(0, 1), grid, mode="bilinear", align_corners=False)  # (B M, D, S, P)
        total = total + (sampled * weight).sum(-1)
    return total.unflatten(0, (B, M)).permute(0, 3, 1, 2).flatten(2)


class MultiScaleDeformableAttention(nn.Module):
    """Every query looks at a few points of every level, at offsets and with weights that are linear in the query.

    Args:
        dim: width of the tokens, a multiple of ``num_heads``.
        num_levels, num_heads, num_points: L, M, and the points P of a head in each level.
    """

    def __init__(self, dim: int, num_levels: int, num_heads: int, num_points: int):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"attention width {dim} is not divisible by the number of attention heads {num_heads}")
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.sampling_offsets = nn.Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Heads look into evenly spread directions, the points 1, 2, ... pixels away, with equal weights."""
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = (directions[:, None, None] * steps[:, None]).expand(-1, self.num_levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        for weight in (self.sampling_offsets.weight, self.attention_weights.weight, self.attention_weights.bias):
            nn.init.zeros_(weight)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        tokens: Tensor,
        shapes: list[tuple[int, int]],
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Shape:
            query (B, S, C); reference_points (B or 1, S, L, 2) as x, y in 0..1; tokens (B, sum of h w, C), the levels
            one after the other, row by row; shapes: h, w of each level; padding_mask (B, sum of h w), True where a
            value counts as zero. Result (B, S, C).
        """
        value = self.value_proj(tokens)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask[..., None], 0.0)
        heads = value.transpose(1, 2).unflatten(1, (self.num_heads, -1))  # (B, M, D, sum of h w)
        levels = [
            part.unflatten(3, shape)
            for part, shape in zip(heads.split([h * w for h, w in shapes], dim=3), shapes, strict=True)
        ]
        layout = (self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).unflatten(2, (*layout, 2))
        weights = self.attention_weights(query).unflatten(2, (self.num_heads, -1)).softmax(-1).unflatten(3, layout[1:])
        # An offset of 1 is one pixel of the level that is looked at.
        sizes = torch.stack([_pair(w, h, query) for h, w in shapes])[:, None]
        locations = reference_points[:, :, None, :, None] + offsets / sizes
        return self.output_proj(sample_levels(levels, locations, weights))


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and feed-forward network, each followed by a normalisation of the sum."""

    def __init__(
        self, dim: int, num_levels: int, num_heads: int, num_points: int, feedforward_dim: int, dropout: float
    ):
        super().__init__()
        self.self_attn = MultiScaleDeformableAttention(dim, num_levels, num_heads, num_points)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, pos: Tensor, reference_points: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        """Shape: x and pos (B or 1, S, C), S tokens of all levels; the others as of the attention. Result as x."""
        x = self.norm1(x + self.dropout(self.self_attn(x + pos, reference_points, x, shapes)))
        return self.norm2(x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x))))))


class DeformableEncoder(nn.Module):
    """``num_layers`` (0 or more) deformable encoder layers over the tokens of all levels.

    A level embedding is added to positions. Arguments are those of the layers.
    """

    def __init__(
        self,
        num_layers: int,
        dim: int,
        num_levels: int,
        num_heads: int,
        num_points: int,
        feedforward_dim: int,
        dropout: float,
    ):
        super().__init__()
        self.level_embed = nn.Parameter(torch.empty(num_levels, dim))
        self.encoder = nn.Module()  # a level of names: official checkpoints say encoder.layers
        self.encoder.layers = nn.ModuleList(
            DeformableEncoderLayer(dim, num_levels, num_heads, num_points, feedforward_dim, dropout)
            for _ in range(num_layers)
        )
        for layer in self.encoder.layers:
            nn.init.xavier_uniform_(layer.linear1.weight)
            nn.init.xavier_uniform_(layer.linear2.weight)
        nn.init.normal_(self.level_embed)

    def forward(self, levels: list[Tensor], positions: list[Tensor]) -> list[Tensor]:
        """Shape: levels (B, C, h, w) each, positions (1, C, h, w) each; results as the levels."""
        shapes = [level.shape[-2:] for level in levels]
        x = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
        pos = torch.cat(
            [
                position.flatten(2).transpose(1, 2) + embed
                for position, embed in zip(positions, self.level_embed, strict=True)
            ],
            dim=1,
        )
        reference_points = torch.cat([_centres(h, w, x) for h, w in shapes])[None, :, None].expand(
            -1, -1, len(levels), -1
        )
        for layer in self.encoder.layers:
            x = layer(x, pos, reference_points, shapes)
        parts = x.transpose(1, 2).split([h * w for h, w in shapes], dim=2)
        return [part.unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True)]


def _centres(height: int, width: int, like: Tensor) -> Tensor:
    """(height width, 2) centres of pixels as x, y in 0..1, row by row."""
    y, x = ((torch.arange(length, dtype=like.dtype, device=like.device) + 0.5) / length for length in (height, width))
    return torch.stack((x[None].expand(height, -1), y[:, None].expand(-1, width)), dim=-1).flatten(0, 1)


def _pair(first: int, second: int, like: Tensor) -> Tensor:
    """(2,) of two lengths; under tracing lengths are tensors, which ``torch.tensor`` would turn into constants."""
    return torch.stack([torch.as_tensor(length, device=like.device) for length in (first, second)]).to(like.dtype)
