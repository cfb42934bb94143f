"""The projection head of pixel contrast, kept outside the segmentation model: neither teacher nor export has one."""

from detectron2.config import CfgNode
from detectron2.layers import Conv2d
from torch import Tensor, nn
from torch.nn import functional as F

from rc2l.modeling.mask_former import MaskFormer
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


def build_projection(cfg: CfgNode, network: Segmentor) -> ProjectionHead | None:
    """The projection head for a network's per-pixel features; None where RECO.ENABLED is False."""
    if not cfg.RECO.ENABLED:
        return None
    if isinstance(network, MaskFormer):
        return ProjectionHead(cfg.MODEL.SEM_SEG_HEAD.MASK_DIM, cfg.RECO.DIM).to(network.device)
    predictor = network.sem_seg_head.predictor
    if isinstance(predictor, nn.ModuleList):
        predictor = predictor[0]
    return ProjectionHead(predictor.in_channels, cfg.RECO.DIM).to(network.device)


class TrainingNetwork(nn.Module):
    """The student with its projection head, in one forward pass as distributed training needs it."""

    def __init__(self, network: Segmentor, projection: ProjectionHead) -> None:
        super().__init__()
        self.network = network
        self.projection = projection

    def forward(self, images: Tensor) -> SegmentationOutput:
        """The network's output with ``representation``."""
        output = self.network(images)
        output.representation = self.projection(output.pixel_features)
        return output
