"""Fixed sine position encoding of feature maps."""

import math

import torch
from torch import Tensor

_TEMPERATURE = 10000.0
_EPS = 1e-6


def sine_position_encoding(height: int, width: int, channels: int, device: torch.device | str | None = None) -> Tensor:
    """Two-dimensional sine encoding (DETR, as MaskFormer uses it), in float32.

    The first half of the channels encodes the row, the second half the column. A position 1..n is scaled to (0, 2 pi];
    channel pair ``j`` of a half holds sine and cosine of it at frequency ``10000 ** (-4 j / channels)``.

    Shape:
        (1, channels, height, width), values in [-1, 1].

    Raises:
        ValueError: ``channels`` is not a multiple of 4.
    """
    if channels % 4:
        raise ValueError(f"sine position encoding needs a number of channels divisible by 4, got {channels}")
    exponents = torch.arange(0, channels // 2, 2, dtype=torch.float32, device=device) / (channels // 2)
    periods = _TEMPERATURE**exponents

    def encode(length: int) -> Tensor:
        steps = torch.arange(1, length + 1, dtype=torch.float32, device=device)
        angles = (steps * (2 * math.pi / (length + _EPS)))[:, None] / periods
        return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)

    rows = encode(height)[:, None, :].expand(-1, width, -1)
    columns = encode(width)[None, :, :].expand(height, -1, -1)
    return torch.cat((rows, columns), dim=-1).permute(2, 0, 1)[None]
