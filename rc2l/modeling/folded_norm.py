"""Frozen batch norm as part of the convolution before it."""

from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn


class FoldedConv2d(Conv2d):
    """detectron2's convolution with a frozen batch norm, which scales the kernel instead of the output.

    The same function and the same gradient: the norm is affine with fixed numbers, and a kernel is far smaller than a
    map. Two passes over each map less in the forward, one less in the backward pass, and one map less to keep.
    Parameters, buffers and their names stay as they are.
    """

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        bias = norm.bias - norm.running_mean * scale
        if self.bias is not None:
            bias = bias + self.bias * scale
        x = self._conv_forward(x, self.weight * scale[:, None, None, None], bias)
        return x if self.activation is None else self.activation(x)


def fold_frozen_norms(network: nn.Module) -> None:
    """Turn every detectron2 convolution of ``network`` with a :class:`FrozenBatchNorm2d` into a folded one, in place.

    Subclasses of either stay as they are: they may do something else.
    """
    for module in network.modules():
        if type(module) is Conv2d and type(module.norm) is FrozenBatchNorm2d:
            module.__class__ = FoldedConv2d
