"""Scores of images: by strips or at the masks' own resolution, and what they were before."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rc2l.modeling import raised_scores as module
from rc2l.modeling.raised_scores import raised_scores
from rc2l.modeling.segmentor import Segmentor
from rc2l.structures.outputs import SegmentationOutput, semantic_scores


def output_of(kind: str, size: tuple[int, int], batch: int = 2) -> SegmentationOutput:
    generator = torch.Generator().manual_seed(0)
    maps = 3 * torch.randn(batch, 6, *size, generator=generator)
    if kind == "pixels":
        return SegmentationOutput(None, None, maps, pixel_logits=maps)
    return SegmentationOutput(torch.randn(batch, 6, 5, generator=generator), maps, maps)


def raised_at_once(output: SegmentationOutput, size: tuple[int, int]) -> torch.Tensor:
    pixels = output.pixel_logits is not None
    maps = F.interpolate(output.pixel_logits if pixels else output.pred_masks, size=size, mode="bilinear")
    return maps.softmax(1) if pixels else semantic_scores(output.pred_logits, maps.sigmoid())


@pytest.mark.parametrize("kind", ["masks", "pixels"])
@pytest.mark.parametrize("strip", [1, 700, 1 << 20])
def test_strips_give_the_scores_of_the_whole(kind, strip, monkeypatch):
    monkeypatch.setattr(module, "_CPU_STRIP", strip)
    for size, larger in (
        ((8, 12), (32, 48)),
        ((9, 7), (31, 30)),
        ((5, 6), (5, 6)),
        ((8, 8), (4, 20)),
        ((1, 1), (9, 4)),
    ):
        output = output_of(kind, size)
        torch.testing.assert_close(raised_scores(output, larger), raised_at_once(output, larger), atol=2e-6, rtol=1e-5)


class Fixed(nn.Module):
    """A head or backbone that gives what it is told to."""

    size_divisibility = 1

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, *_, **__):
        return self.value


@pytest.mark.parametrize("kind", ["masks", "pixels"])
def test_a_network_scores_at_the_size_of_images_or_of_masks(kind):
    output = output_of(kind, (8, 12), batch=1)
    options = {"num_classes": 4, "pixel_mean": [0.0] * 3, "pixel_std": [1.0] * 3, "size_divisibility": 16}
    image = {"image": torch.zeros(3, 30, 45), "height": 60, "width": 91}
    scores = {}
    for resolution in ("image", "mask"):
        network = Segmentor(
            backbone=Fixed({}), sem_seg_head=Fixed(output), score_resolution=resolution, **options
        ).eval()
        scores[resolution] = network([image])[0]["sem_seg"]
        assert torch.equal(network([image])[0]["sem_seg"], scores[resolution])
    whole = raised_at_once(output, (32, 48))[..., :30, :45]
    expected = F.interpolate(whole, size=(60, 91), mode="bilinear")[0]
    torch.testing.assert_close(scores["image"], expected, atol=2e-6, rtol=1e-5)
    assert torch.equal(scores["image"].argmax(0), expected.argmax(0))
    at_masks = (
        output.pixel_logits.softmax(1)
        if kind == "pixels"
        else semantic_scores(output.pred_logits, output.pred_masks.sigmoid())
    )
    own = F.interpolate(at_masks, size=(32, 48), mode="bilinear")[..., :30, :45]
    torch.testing.assert_close(scores["mask"], F.interpolate(own, size=(60, 91), mode="bilinear")[0])
    assert not torch.allclose(scores["mask"], scores["image"], atol=1e-3)
