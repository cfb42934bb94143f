"""The projection heads of pixel contrast, kept outside the segmentation model: neither teacher nor export has one."""

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import Conv2d
from torch import Tensor, nn
from torch.nn import functional as F

from rc2l.modeling.outputs import SegmentationOutput
from rc2l.modeling.segmentor import Segmentor


class ProjectionHead(nn.Module):
    """psi_r of ReCo section 3.1: two convolutions, 3x3 with group norm and ReLU, then 1x1."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        # Group norm, unlike batch norm, does not mix the statistics of labelled and strong views.
        norm = nn.GroupNorm(next(groups for groups in (32, 16, 8, 4, 2, 1) if in_channels % groups == 0), in_channels)
        self.layers = nn.Sequential(
            Conv2d(in_channels, in_channels, kernel_size=3, padding=1, bias=False, norm=norm, activation=F.relu),
            Conv2d(in_channels, out_channels, kernel_size=1),
        )

    def forward(self, pixel_features: Tensor) -> Tensor:
        """Shape: (B, C, h, w) -> (B, out_channels, h, w)."""
        return self.layers(pixel_features)


class ProjectionHeads(nn.ModuleDict):
    """The projection head of each loss that contrasts pixels, by its name: ``reco``, ``dgcl``."""

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """As of any module. Files from before there were two kinds of heads hold that of ReCo, without its name."""
        if all(name.startswith("layers.") for name in state_dict):
            state_dict = {f"reco.{name}": value for name, value in state_dict.items()}
        return super().load_state_dict(state_dict, *args, **kwargs)


def build_projection(cfg: CfgNode, network: Segmentor) -> ProjectionHeads | None:
    """The projection heads for a network's per-pixel features; None where neither RECO nor DGCL is ENABLED."""
    channels = {name: node.DIM for name, node in (("reco", cfg.RECO), ("dgcl", cfg.DGCL)) if node.ENABLED}
    if not channels:
        return None
    in_channels = network.pixel_feature_channels
    heads = ProjectionHeads({name: ProjectionHead(in_channels, number) for name, number in channels.items()})
    return heads.to(network.device)


class TrainingNetwork(nn.Module):
    """The student with its projection heads, in one forward pass as distributed training needs it."""

    def __init__(self, network: Segmentor, projection: ProjectionHeads) -> None:
        super().__init__()
        self.network = network
        self.projection = projection

    def forward(self, images: Tensor) -> SegmentationOutput:
        """The network's output with ``representations``."""
        output = self.network(images)
        output.representations = {name: head(output.pixel_features) for name, head in self.projection.items()}
        return output
