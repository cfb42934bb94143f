"""Segmentation models; importing this package registers them with detectron2."""

from rc2l.modeling.backbone import build_basic_resnet_backbone
from rc2l.modeling.deformable_pixel_decoder import MSDeformAttnPixelDecoder
from rc2l.modeling.mask_former import MaskFormer, MaskFormerHead
from rc2l.modeling.per_pixel import PerPixelSegmentor
from rc2l.modeling.pixel_decoder import BasePixelDecoder, TransformerEncoderPixelDecoder
from rc2l.modeling.swin import D2SwinTransformer
from rc2l.modeling.timm_backbone import build_timm_backbone
from rc2l.structures.outputs import SegmentationOutput, semantic_scores

__all__ = [
    "BasePixelDecoder",
    "D2SwinTransformer",
    "MSDeformAttnPixelDecoder",
    "MaskFormer",
    "MaskFormerHead",
    "PerPixelSegmentor",
    "SegmentationOutput",
    "TransformerEncoderPixelDecoder",
    "build_basic_resnet_backbone",
    "build_timm_backbone",
    "semantic_scores",
]
