"""What all segmentation meta-architectures share: input normalisation, raw outputs for training, semantic inference."""

import math
from collections.abc import Callable

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn import functional as F

from rc2l.modeling.folded_norm import fold_frozen_norms
from rc2l.modeling.raised_scores import own_scores, raised_scores
from rc2l.structures.outputs import SegmentationOutput, semantic_scores


class Segmentor(nn.Module):
    """A backbone and a head that gives a :class:`SegmentationOutput`, behind detectron2's model interface.

    A class says by ``kind`` what it predicts: "masks" (``pred_logits`` and ``pred_masks``) or "pixels"
    (``pixel_logits``).

    Args:
        backbone: a detectron2 backbone.
        sem_seg_head: called with the backbone's features and ``auxiliary``.
        num_classes: K.
        pixel_mean, pixel_std: per channel, on the 0..255 scale, in INPUT.FORMAT order.
        size_divisibility: inference pads to a multiple of this and of the backbone's own divisibility.
        postprocess_before_inference: resize masks to the requested size before, not after, classes and masks are
            combined.
        score_resolution: where images are scored, as TEST.SCORE_RESOLUTION: "image" or "mask".
    """

    kind: str

    def __init__(
        self,
        *,
        backbone: nn.Module,
        sem_seg_head: nn.Module,
        num_classes: int,
        pixel_mean: list[float],
        pixel_std: list[float],
        size_divisibility: int,
        postprocess_before_inference: bool = False,
        score_resolution: str = "image",
    ):
        super().__init__()
        fold_frozen_norms(backbone)
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.num_classes = num_classes
        self.size_divisibility = math.lcm(max(size_divisibility, 1), max(backbone.size_divisibility, 1))
        self.postprocess_before_inference = postprocess_before_inference
        self.score_resolution = score_resolution
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def pixel_feature_channels(self) -> int:
        """Channels of :attr:`SegmentationOutput.pixel_features`: what the head says, or else what it gives."""
        channels = getattr(self.sem_seg_head, "pixel_feature_channels", None)
        if channels is None:
            channels = probe_head(self.sem_seg_head, self.backbone.output_shape(), self.device).pixel_features.shape[1]
        return channels

    def normalize(self, images: Tensor) -> Tensor:
        """Shape: (..., C, H, W) of any dtype, 0..255, to float32 with the configured mean and deviation removed."""
        return (images.to(self.pixel_mean) - self.pixel_mean) / self.pixel_std

    def forward(
        self,
        images: Tensor | list[dict],
        auxiliary: bool = True,
        perturb: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    ) -> SegmentationOutput | list[dict[str, Tensor]]:
        """Raw outputs for a tensor of images, or semantic inference for detectron2's list of dicts.

        Args:
            images: either (B, C, H, W) of values 0..255 in INPUT.FORMAT order, uint8 or float, any H and W; or, in eval
                mode, a list of dicts with "image" (C, h, w) and optionally "height" and "width", the result's size.
            auxiliary: for a tensor: give the earlier decoder layers' outputs too, where the model has them; the teacher
                does without.
            perturb: for a tensor: changes the backbone's features on their way to the head (UniMatch).

        Returns:
            For a tensor a :class:`SegmentationOutput`; for a list ``[{"sem_seg": (K, height, width)}]``, scores of at
            least 0.

        Raises:
            TypeError: a list in train mode; the losses live in the trainer.
            ValueError: a tensor of another shape.
        """
        if isinstance(images, Tensor):
            if images.dim() != 4 or images.shape[1] != len(self.pixel_mean):
                raise ValueError(f"images have shape {tuple(images.shape)}, expected (B, {len(self.pixel_mean)}, H, W)")
            features = self.backbone(self.normalize(images))
            return self.sem_seg_head(perturb(features) if perturb else features, auxiliary)
        if self.training:
            raise TypeError(
                f"{type(self).__name__} in train mode takes an image tensor (B, 3, H, W) and returns raw outputs; "
                "losses are computed by rc2l.engine.trainer. Call model.eval() for inference on a list of dicts"
            )
        return self.inference(images)

    def inference(self, batched_inputs: list[dict]) -> list[dict[str, Tensor]]:
        """Semantic inference on images of possibly different sizes; see :meth:`forward`."""
        normalized = [self.normalize(item["image"].to(self.device)) for item in batched_inputs]
        images = ImageList.from_tensors(normalized, self.size_divisibility)
        output = self.sem_seg_head(self.backbone(images.tensor), auxiliary=False).float()
        padded_size = images.tensor.shape[-2:]
        results = []
        # float32 under AMP too: classes and masks of nearly equal score are told apart. One image at a time: the
        # full-resolution maps are the peak of memory.
        with torch.autocast(self.device.type, enabled=False):
            for index, (item, image_size) in enumerate(zip(batched_inputs, images.image_sizes, strict=True)):
                size = item.get("height", image_size[0]), item.get("width", image_size[1])
                scores = self._image_scores(output[index : index + 1], padded_size, image_size, size)
                results.append({"sem_seg": scores})
        return results

    def _image_scores(self, output: SegmentationOutput, padded_size, image_size, size) -> Tensor:
        """(K, height, width) of one image: :meth:`_scores` without masks of the whole size, or at their own size."""
        if self.postprocess_before_inference or torch.jit.is_tracing():  # a trace would keep the number of strips
            return self._scores(output, padded_size, image_size, size)
        if self.score_resolution == "mask":
            scores = F.interpolate(own_scores(output), size=padded_size, mode="bilinear", align_corners=False)
        else:
            scores = raised_scores(output, padded_size)
        scores = scores[..., : image_size[0], : image_size[1]]
        if tuple(size) != tuple(image_size):
            scores = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
        return scores[0]

    def _scores(self, output: SegmentationOutput, padded_size, image_size, size) -> Tensor:
        """(K, height, width) of one image."""
        maps = output.pixel_logits if output.pixel_logits is not None else output.pred_masks
        maps = F.interpolate(maps, size=padded_size, mode="bilinear", align_corners=False)
        if self.postprocess_before_inference:
            maps = sem_seg_postprocess(maps[0], image_size, *size)[None]
        if output.pixel_logits is not None:
            scores = maps.softmax(1)[0]
        else:
            scores = semantic_scores(output.pred_logits, maps.sigmoid())[0]
        return scores if self.postprocess_before_inference else sem_seg_postprocess(scores, image_size, *size)


@torch.no_grad()
def probe_head(
    head: nn.Module, input_shape: dict[str, ShapeSpec], device: torch.device | str = "cpu"
) -> SegmentationOutput:
    """What a head gives for zeros, the features of an image of 64 x 64 pixels.

    Raises:
        ValueError: it cannot be called as a head is here, or gives something else.
    """
    features = {
        name: torch.zeros(1, shape.channels, -(-64 // shape.stride), -(-64 // shape.stride), device=device)
        for name, shape in input_shape.items()
    }
    training = head.training
    head.eval()
    try:
        output = head(features, False)
    except TypeError as error:
        raise ValueError(f"MODEL.SEM_SEG_HEAD.NAME: {_CONTRACT.format(type(head).__name__)} ({error})") from error
    finally:
        head.train(training)
    if not isinstance(output, SegmentationOutput):
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.NAME: {_CONTRACT.format(type(head).__name__)}, not a {type(output).__name__}"
        )
    return output


_CONTRACT = "{}'s forward must take (features, auxiliary) and give a rc2l.modeling.SegmentationOutput"
