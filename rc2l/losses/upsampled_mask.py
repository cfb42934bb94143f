"""Focal and dice loss of masks that are upsampled bilinearly first, with the gradient in closed form.

Mask logits come at stride 4, their targets at the size of the crop. Written with PyTorch's operators, a loss keeps a
dozen maps of crop size of every mask for its backward pass. Here each mask's gradient is computed together with its
loss and taken back to stride 4 at once: the same numbers, a third of the time or less, and no map of crop size is kept.

A pixel enters both losses through n = x where the target y is 1 and -x elsewhere, the logit of the right answer. With
t = sigmoid(n) and s = 1 - t, of a mask with V valid pixels:

    focal = -1/V sum A s^2 log t              A = alpha where y is 1, 1 - alpha elsewhere
    d focal / dn = A s^2 (2 t log t - s) / V
    dice = 1 - N / D                          N = 2 sum_y t + 1,  D = sum s + N
    d dice / dx = s t (N / D^2 - 2 y / D)
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rc2l.losses.mask import FOCAL_ALPHA
from rc2l.structures.regions import Regions

#: Pixels at crop size that are worked on at once on a GPU; each takes some 40 bytes then.
_PIXELS_AT_ONCE = 1 << 24


def upsampled_mask_losses(logits: Tensor, regions: Regions, image: Tensor, slot: Tensor) -> tuple[Tensor, Tensor]:
    """Focal (alpha 0.25, gamma 2) and dice loss of each mask, upsampled bilinearly to the size of ``regions``.

    The same as :func:`~rc2l.losses.mask.focal_loss` and :func:`~rc2l.losses.mask.dice_loss` after ``F.interpolate``,
    over the valid pixels, in float32 (float64 stays). Differentiable once.

    Shape:
        logits (M, h, w); regions (B, H, W); image, slot (M,) int64: the region that each mask is to cover. Result
        2 x (M,).
    """
    return _UpsampledMaskLosses.apply(logits, regions.index, regions.valid, image, slot)


class _UpsampledMaskLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, index: Tensor, valid: Tensor, image: Tensor, slot: Tensor):
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        grid = _Grid(logits.shape[-2:], index.shape[-2:])
        focal, dice = torch.zeros(2, len(logits), dtype=dtype, device=logits.device)
        wanted = ctx.needs_input_grad[0]
        focal_gradient, dice_gradient = (torch.empty_like(logits, dtype=dtype) if wanted else None for _ in range(2))
        with torch.autocast(logits.device.type, enabled=False):
            targets = _targets_by_mask if logits.device.type == "cpu" else _targets_in_chunks
            for masks, target in targets(grid.ordered(index), grid.ordered(valid), image, slot, dtype):
                loss = _Loss(grid.up(logits[masks].to(dtype)), target)
                focal[masks], dice[masks] = loss.focal, loss.dice
                if wanted:
                    focal_gradient[masks] = grid.down(loss.focal_gradient())
                    dice_gradient[masks] = grid.down(loss.dice_gradient())
        ctx.dtype = logits.dtype
        if wanted:
            ctx.save_for_backward(focal_gradient, dice_gradient)
        return focal, dice

    @staticmethod
    @once_differentiable
    def backward(ctx, focal: Tensor, dice: Tensor):
        focal_gradient, dice_gradient = ctx.saved_tensors
        gradient = focal_gradient * focal[:, None, None]
        gradient.addcmul_(dice_gradient, dice[:, None, None])
        return gradient.to(ctx.dtype), None, None, None, None


class _Target:
    """What the losses need of the regions, in the order of :class:`_Grid`: each map (M or 1, H W)."""

    def __init__(self, inside: Tensor, valid: Tensor, all_valid: bool, dtype: torch.dtype) -> None:
        if not all_valid:
            inside = inside & valid
        self.inside = inside.to(dtype)
        #: None where all pixels are valid.
        self.valid = None if all_valid else valid.to(dtype)
        self.sign = self.inside * 2 - 1
        self.weight = self.inside * (2 * FOCAL_ALPHA - 1)
        self.weight.add_(1 - FOCAL_ALPHA if all_valid else self.valid * (1 - FOCAL_ALPHA))
        self.num_valid = valid.sum(1, keepdim=True).to(dtype).clamp(min=1)


def _targets_in_chunks(
    index: Tensor, valid: Tensor, image: Tensor, slot: Tensor, dtype: torch.dtype
) -> Iterator[tuple[slice, _Target]]:
    """Targets and the masks that they are for, many at once, for GPUs: nothing depends on the data."""
    step = max(1, _PIXELS_AT_ONCE // max(1, index.shape[1]))
    for start in range(0, len(image), step):
        masks = slice(start, start + step)
        yield masks, _Target(index[image[masks]] == slot[masks, None], valid[image[masks]], False, dtype)


def _targets_by_mask(
    index: Tensor, valid: Tensor, image: Tensor, slot: Tensor, dtype: torch.dtype
) -> Iterator[tuple[slice, _Target]]:
    """Targets and the masks that they are for, one by one, for a CPU, whose cache holds one."""
    all_valid = valid.all(1).tolist()
    masks_of: dict[tuple[int, int], list[int]] = {}
    for mask, pair in enumerate(zip(image.tolist(), slot.tolist(), strict=True)):
        masks_of.setdefault(pair, []).append(mask)
    for (b, region), masks in masks_of.items():  # decoder layers share their targets
        target = _Target(index[b : b + 1] == region, valid[b : b + 1], all_valid[b], dtype)
        for mask in masks:
            yield slice(mask, mask + 1), target


class _Loss:
    """Losses of upsampled logits (M, H W), which it overwrites, and their gradients with respect to them."""

    def __init__(self, logits: Tensor, target: _Target) -> None:
        self.target = target
        right = logits.mul_(target.sign)
        self.t = right.sigmoid()
        self.s = 1 - self.t
        # log t is the logit itself where t is too small for a float.
        log = self.t.clamp(min=torch.finfo(right.dtype).tiny).log_()
        torch.minimum(log, right, out=log)
        self.weighted = self.s.square().mul_(target.weight)
        self.pixels = log.mul_(self.weighted)
        self.focal = -(self.pixels.sum(1, keepdim=True) / target.num_valid)[:, 0]
        overlap = torch.mul(self.t, target.inside, out=right).sum(1, keepdim=True)
        missed = (self.s if target.valid is None else torch.mul(self.s, target.valid, out=right)).sum(1, keepdim=True)
        self.N = 2 * overlap + 1
        self.D = missed + self.N
        self.dice = 1 - (self.N / self.D)[:, 0]
        self.scratch = right

    def focal_gradient(self) -> Tensor:
        gradient = self.pixels.mul_(self.t).mul_(2)
        gradient.addcmul_(self.weighted, self.s, value=-1)
        return gradient.mul_(self.target.sign).div_(self.target.num_valid)

    def dice_gradient(self) -> Tensor:
        everywhere, inside = self.N / self.D.square(), -2 / self.D
        slope = torch.mul(self.target.inside, inside, out=self.scratch)
        slope = slope.add_(everywhere) if self.target.valid is None else slope.addcmul_(self.target.valid, everywhere)
        return slope.mul_(self.s).mul_(self.t)


class _Grid:
    """Bilinear upsampling of (M, h, w) to (M, H W) and its transpose.

    Where H and W are multiples of h and w, as they are for crops, pixels are ordered by their place between two source
    pixels: all those with the same two weights are one slice of the source, and upsampling is a few operations on whole
    slices instead of a gather. No loss asks for the order, as long as the targets have it too.
    """

    def __init__(self, source: tuple[int, int], size: tuple[int, int]) -> None:
        self.source, self.size = tuple(source), tuple(size)
        self.by_place = all(
            large > 0 and large % small == 0 for small, large in zip(self.source, self.size, strict=True)
        )
        self.factors = tuple(large // small for small, large in zip(self.source, self.size, strict=True))

    def ordered(self, maps: Tensor) -> Tensor:
        """(B, H, W) -> (B, H W)."""
        if not self.by_place:
            return maps.flatten(1)
        (h, w), (rows, columns) = self.source, self.factors
        return maps.reshape(len(maps), h, rows, w, columns).permute(0, 4, 2, 1, 3).reshape(len(maps), -1)

    def up(self, logits: Tensor) -> Tensor:
        if not self.by_place:
            up = F.interpolate(logits[:, None], size=self.size, mode="bilinear", align_corners=False)
            return up.flatten(1)
        (h, w), (rows, columns) = self.source, self.factors
        if rows == columns == 1:
            return logits.flatten(1).clone()
        padded = F.pad(logits[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
        tall = padded.new_empty(len(logits), rows, h, w + 2)
        for place, start, weight in _places(rows):
            torch.lerp(padded[:, start : start + h], padded[:, start + 1 : start + 1 + h], weight, out=tall[:, place])
        up = padded.new_empty(len(logits), columns, rows, h, w)
        for place, start, weight in _places(columns):
            torch.lerp(tall[..., start : start + w], tall[..., start + 1 : start + 1 + w], weight, out=up[:, place])
        return up.flatten(1)

    def down(self, gradient: Tensor) -> Tensor:
        (h, w), (rows, columns) = self.source, self.factors
        if not self.by_place:
            shape = (len(gradient), 1, *self.source)
            gradient = gradient.reshape(len(gradient), 1, *self.size)
            return torch.ops.aten.upsample_bilinear2d_backward(gradient, self.size, shape, False)[:, 0]
        gradient = gradient.reshape(len(gradient), columns, rows, h, w)
        if rows == columns == 1:
            return gradient[:, 0, 0]
        tall = gradient.new_zeros(len(gradient), rows, h, w + 2)
        for place, start, weight in _places(columns):
            tall[..., start : start + w].add_(gradient[:, place], alpha=1 - weight)
            tall[..., start + 1 : start + 1 + w].add_(gradient[:, place], alpha=weight)
        padded = gradient.new_zeros(len(gradient), h + 2, w + 2)
        for place, start, weight in _places(rows):
            padded[:, start : start + h].add_(tall[:, place], alpha=1 - weight)
            padded[:, start + 1 : start + 1 + h].add_(tall[:, place], alpha=weight)
        # The border repeats the outermost pixels.
        padded[:, 1] += padded[:, 0]
        padded[:, h] += padded[:, h + 1]
        padded[..., 1] += padded[..., 0]
        padded[..., w] += padded[..., w + 1]
        return padded[:, 1 : h + 1, 1 : w + 1]


def _places(factor: int) -> Iterator[tuple[int, int, float]]:
    """Place of a pixel within its source pixel, where its first neighbour's slice of the padded source starts, and the
    weight of the second one."""
    for place in range(factor):
        position = (place + 0.5) / factor - 0.5
        yield (place, 0, position + 1) if position < 0 else (place, 1, position)
