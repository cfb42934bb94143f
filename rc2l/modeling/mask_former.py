"""MaskFormer: mask classification for semantic segmentation, as detectron2 meta-architecture and head."""

import math

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY, build_backbone, build_sem_seg_head
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn import functional as F

from rc2l.modeling.outputs import SegmentationOutput, semantic_scores
from rc2l.modeling.pixel_decoder import build_pixel_decoder
from rc2l.modeling.transformer_decoder import TransformerPredictor

# What MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE may name beside a backbone feature.
_ENCODED, _PIXEL_EMBEDDING = "transformer_encoder", "pixel_embedding"


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(nn.Module):
    """Pixel decoder and transformer predictor.

    Args:
        pixel_decoder: has ``forward_features``, see :class:`~rc2l.modeling.pixel_decoder.BasePixelDecoder`.
        predictor: turns a feature map and the per-pixel features into a :class:`SegmentationOutput`.
        transformer_in_feature: what the queries attend to: a backbone feature, "transformer_encoder" (the pixel
            decoder's encoded feature) or "pixel_embedding" (its per-pixel features).
    """

    @configurable
    def __init__(self, *, pixel_decoder: nn.Module, predictor: nn.Module, transformer_in_feature: str):
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        self.transformer_in_feature = transformer_in_feature

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        pixel_decoder = build_pixel_decoder(cfg, input_shape)
        name = cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE
        channels = {key: shape.channels for key, shape in input_shape.items()}
        channels[_PIXEL_EMBEDDING] = cfg.MODEL.SEM_SEG_HEAD.MASK_DIM
        # An encoder is what gives "transformer_encoder" a meaning; the plain pyramid has none.
        if hasattr(pixel_decoder, "transformer"):
            channels[_ENCODED] = cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM
        if name not in channels:
            raise ValueError(
                f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is '{name}'; with {type(pixel_decoder).__name__} and this "
                f"backbone choose one of {', '.join(channels)}"
            )
        return {
            "pixel_decoder": pixel_decoder,
            "predictor": TransformerPredictor(cfg, channels[name]),
            "transformer_in_feature": name,
        }

    def forward(self, features: dict[str, Tensor], auxiliary: bool = True) -> SegmentationOutput:
        """Shape: features name -> (B, C_i, h_i, w_i). ``auxiliary=False`` gives the last decoder layer only."""
        pixel_features, encoded = self.pixel_decoder.forward_features(features)
        if self.transformer_in_feature == _ENCODED:
            x = encoded
        elif self.transformer_in_feature == _PIXEL_EMBEDDING:
            x = pixel_features
        else:
            x = features[self.transformer_in_feature]
        return self.predictor(x, pixel_features, auxiliary)


class ClassWeights(nn.Module):
    """Weights of the K+1 classes in the classification loss: ones, and the weight of "no object" last.

    A submodule named ``criterion``, because official checkpoints keep the weights under ``criterion.empty_weight``.
    """

    def __init__(self, num_classes: int, no_object_weight: float):
        super().__init__()
        weights = torch.ones(num_classes + 1)
        weights[-1] = no_object_weight
        self.register_buffer("empty_weight", weights)


@META_ARCH_REGISTRY.register()
class MaskFormer(nn.Module):
    """Mask classification model (MaskFormer) for semantic segmentation.

    Args:
        backbone: a detectron2 backbone.
        sem_seg_head: turns its features into a :class:`SegmentationOutput`.
        num_classes: K.
        no_object_weight: kept in ``criterion.empty_weight`` for the loss.
        pixel_mean, pixel_std: per channel, on the 0..255 scale, in INPUT.FORMAT order.
        size_divisibility: inference pads to a multiple of this and of the backbone's own divisibility.
        postprocess_before_inference: resize masks to the requested size before, not after, classes and masks are
            combined.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        sem_seg_head: nn.Module,
        num_classes: int,
        no_object_weight: float,
        pixel_mean: list[float],
        pixel_std: list[float],
        size_divisibility: int,
        postprocess_before_inference: bool,
    ):
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.criterion = ClassWeights(num_classes, no_object_weight)
        self.num_classes = num_classes
        self.size_divisibility = math.lcm(max(size_divisibility, 1), max(backbone.size_divisibility, 1))
        self.postprocess_before_inference = postprocess_before_inference
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        _check_config(cfg)
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "no_object_weight": cfg.MODEL.MASK_FORMER.NO_OBJECT_WEIGHT,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "size_divisibility": cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY,
            "postprocess_before_inference": cfg.MODEL.MASK_FORMER.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def normalize(self, images: Tensor) -> Tensor:
        """Shape: (..., C, H, W) of any dtype, 0..255, to float32 with the configured mean and deviation removed."""
        return (images.to(self.pixel_mean) - self.pixel_mean) / self.pixel_std

    def forward(
        self, images: Tensor | list[dict], auxiliary: bool = True
    ) -> SegmentationOutput | list[dict[str, Tensor]]:
        """Raw outputs for a tensor of images, or semantic inference for detectron2's list of dicts.

        Args:
            images: either (B, C, H, W) of values 0..255 in INPUT.FORMAT order, uint8 or float, any H and W; or, in eval
                mode, a list of dicts with "image" (C, h, w) and optionally "height" and "width", the result's size.
            auxiliary: for a tensor: give the earlier decoder layers' outputs too (if DEEP_SUPERVISION); the teacher
                does without.

        Returns:
            For a tensor a :class:`SegmentationOutput` with masks of stride 4; for a list ``[{"sem_seg": (K, height,
            width)}]``, scores of at least 0.

        Raises:
            TypeError: a list in train mode; the losses live in the trainer.
            ValueError: a tensor of another shape.
        """
        if isinstance(images, Tensor):
            if images.dim() != 4 or images.shape[1] != len(self.pixel_mean):
                raise ValueError(f"images have shape {tuple(images.shape)}, expected (B, {len(self.pixel_mean)}, H, W)")
            return self.sem_seg_head(self.backbone(self.normalize(images)), auxiliary)
        if self.training:
            raise TypeError(
                "MaskFormer in train mode takes an image tensor (B, 3, H, W) and returns raw outputs; losses are "
                "computed by rc2l.engine.trainer. Call model.eval() for inference on a list of dicts"
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
        # full-resolution masks of all queries are the peak of memory.
        with torch.autocast(self.device.type, enabled=False):
            for index, (item, image_size) in enumerate(zip(batched_inputs, images.image_sizes, strict=True)):
                size = item.get("height", image_size[0]), item.get("width", image_size[1])
                masks = F.interpolate(
                    output.pred_masks[index : index + 1], size=padded_size, mode="bilinear", align_corners=False
                )
                if self.postprocess_before_inference:
                    masks = sem_seg_postprocess(masks[0], image_size, *size)[None]
                scores = semantic_scores(output.pred_logits[index : index + 1], masks.sigmoid())[0]
                if not self.postprocess_before_inference:
                    scores = sem_seg_postprocess(scores, image_size, *size)
                results.append({"sem_seg": scores})
        return results


def _check_config(cfg: CfgNode) -> None:
    """One clear error for values of MODEL.MASK_FORMER and MODEL.SEM_SEG_HEAD that no model can be built from."""
    options, head = cfg.MODEL.MASK_FORMER, cfg.MODEL.SEM_SEG_HEAD
    if options.TEST.PANOPTIC_ON:
        raise ValueError(
            "MODEL.MASK_FORMER.TEST.PANOPTIC_ON is True; RC2L does semantic segmentation only, set it to False"
        )
    unit_interval = {
        "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": options.TEST.OBJECT_MASK_THRESHOLD,
        "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": options.TEST.OVERLAP_THRESHOLD,
    }
    for key, value in unit_interval.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{key} is {value}; it must be in [0, 1]")
    if not 0 <= options.DROPOUT < 1:
        raise ValueError(f"MODEL.MASK_FORMER.DROPOUT is {options.DROPOUT}; it must be in [0, 1)")
    minima = {
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": (options.NUM_OBJECT_QUERIES, 1),
        "MODEL.MASK_FORMER.NHEADS": (options.NHEADS, 1),
        "MODEL.MASK_FORMER.DEC_LAYERS": (options.DEC_LAYERS, 1),
        "MODEL.MASK_FORMER.ENC_LAYERS": (options.ENC_LAYERS, 0),
        "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": (head.TRANSFORMER_ENC_LAYERS, 0),
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": (head.NUM_CLASSES, 1),
    }
    for key, (value, minimum) in minima.items():
        if value < minimum:
            raise ValueError(f"{key} is {value}; it must be {minimum} or more")
    widths = {"MODEL.MASK_FORMER.HIDDEN_DIM": options.HIDDEN_DIM}
    if head.PIXEL_DECODER_NAME == "TransformerEncoderPixelDecoder":
        widths["MODEL.SEM_SEG_HEAD.CONVS_DIM"] = head.CONVS_DIM
    for key, width in widths.items():
        if width % 4 or width % options.NHEADS:
            raise ValueError(
                f"{key} is {width}; it must be a multiple of 4 and of MODEL.MASK_FORMER.NHEADS ({options.NHEADS})"
            )
