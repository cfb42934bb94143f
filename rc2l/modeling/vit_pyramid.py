"""The simple feature pyramid of a plain vision transformer: maps of strides 4 to 32 from maps of one stride."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Base-2 logarithms of the pyramid's strides.
LEVELS = (2, 3, 4, 5)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel: (B, C, h, w) -> (B, C, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class FeaturePyramid(nn.Module):
    """ViTDet's simple feature pyramid ("Exploring Plain Vision Transformer Backbones", section 3), for any patch size.

    The grid of patches is enlarged 4x and 2x by transposed convolutions, kept, and halved by max pooling; with patches
    of 14 pixels the results, of strides 3.5 to 28, are resampled to strides 4 to 32.

    Args:
        channels: of each given map; one map makes all levels, of four each makes its own, the first the finest.
        stride: of all given maps, the patch size.
        out_channels: of the results.

    Raises:
        ValueError: another number of maps than one or four.
    """

    def __init__(self, channels: list[int], stride: int, out_channels: int) -> None:
        super().__init__()
        if len(channels) not in (1, len(LEVELS)):
            raise ValueError(f"a feature pyramid is made of one map or of {len(LEVELS)}, not of {len(channels)}")
        # A patch of 8 is already the second level; 14 and 16 are the third.
        grid_level = round(float(torch.tensor(stride).log2()))
        self.scales = [stride * 2.0 ** (level - grid_level) / 2**level for level in LEVELS]
        widths = channels * len(LEVELS) if len(channels) == 1 else channels
        self.levels = nn.ModuleList(
            nn.Sequential(
                *_resampling(width, level - grid_level),
                nn.Conv2d(_width(width, level - grid_level), out_channels, kernel_size=1, bias=False),
                ChannelNorm(out_channels),
                nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
                ChannelNorm(out_channels),
            )
            for width, level in zip(widths, LEVELS, strict=True)
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Shape: maps (B, C, n, m) of the patches -> four of (B, out_channels, at least ceil(n stride / 4), ...)."""
        maps = maps * len(self.levels) if len(maps) == 1 else maps
        results = []
        for level, x, scale in zip(self.levels, maps, self.scales, strict=True):
            x = level(x)
            if scale != 1:
                # The size is rounded down: one more row and column, to be cropped where they are too many.
                x = F.interpolate(
                    x, scale_factor=scale, mode="bilinear", align_corners=False, recompute_scale_factor=False
                )
                x = F.pad(x, (0, 1, 0, 1), mode="replicate")
            results.append(x)
        return results


def _width(channels: int, steps: int) -> int:
    """Channels after ``steps`` halvings of the size; each doubling (a negative step) halves them."""
    return channels if steps >= 0 else max(channels >> -steps, 1)


def _resampling(channels: int, steps: int) -> list[nn.Module]:
    """Layers that halve the size ``steps`` times, or double it -``steps`` times."""
    if steps >= 0:
        return [nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True) for _ in range(steps)]
    layers: list[nn.Module] = []
    for step in range(-steps):
        if step:
            layers += [ChannelNorm(_width(channels, -step)), nn.GELU()]
        layers.append(nn.ConvTranspose2d(_width(channels, -step), _width(channels, -step - 1), kernel_size=2, stride=2))
    return layers
