"""The projection heads of pixel contrast, kept outside the segmentation model: neither teacher nor export has one."""

from collections.abc import Callable, Mapping
from typing import Any

from detectron2.layers import Conv2d
from torch import Tensor, nn
from torch.nn import functional as F

from rc2l.modeling.segmentor import Segmentor
from rc2l.structures.outputs import SegmentationOutput


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
    """The head of each objective that has one, by the objective's name: ``reco``, ``dgcl``."""

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """As of any module. Files from before there were two kinds of heads hold that of ReCo, without its name."""
        if state_dict and all(name.startswith("layers.") for name in state_dict):
            state_dict = {f"reco.{name}": value for name, value in state_dict.items()}
        return super().load_state_dict(state_dict, *args, **kwargs)


class TrainingNetwork(nn.Module):
    """The students with their projection heads, in one forward pass as distributed training needs it.

    Args:
        students: by name.
        heads: of each student, by the name of their objective.
    """

    def __init__(self, students: Mapping[str, Segmentor], heads: Mapping[str, ProjectionHeads]) -> None:
        super().__init__()
        self.students = nn.ModuleDict(students)
        self.heads = nn.ModuleDict(heads)

    def forward(
        self, images: Mapping[str, Tensor], perturb: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None
    ) -> dict[str, SegmentationOutput]:
        """Each student's output, with ``representations``, on its images (B, 3, H, W); see :class:`Segmentor`."""
        outputs = {}
        for name, student in self.students.items():
            outputs[name] = output = student(images[name], perturb=perturb)
            heads = self.heads[name].items()
            output.representations = {head_name: head(output.pixel_features) for head_name, head in heads}
        return outputs
