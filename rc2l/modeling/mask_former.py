"""MaskFormer: mask classification for semantic segmentation, as detectron2 meta-architecture and head."""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY, build_backbone, build_sem_seg_head
from torch import Tensor, nn

from rc2l.modeling.masked_attention import NUM_LEVELS, MaskedAttentionPredictor
from rc2l.modeling.pixel_decoder import build_pixel_decoder
from rc2l.modeling.segmentor import Segmentor
from rc2l.modeling.transformer_decoder import TransformerPredictor
from rc2l.structures.outputs import SegmentationOutput

# What MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE may name beside a backbone feature.
_ENCODED, _PIXEL_EMBEDDING = "transformer_encoder", "pixel_embedding"
# What it must name with the masked-attention decoder.
_LEVELS = "multi_scale_pixel_decoder"


#: Names of MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME: that of MaskFormer, that of Mask2Former.
PLAIN_DECODER, MASKED_ATTENTION_DECODER = "StandardTransformerDecoder", "MultiScaleMaskedTransformerDecoder"


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(nn.Module):
    """Pixel decoder and transformer predictor.

    Args:
        pixel_decoder: has ``forward_features``, see :class:`~rc2l.modeling.pixel_decoder.BasePixelDecoder`.
        predictor: turns a feature map and the per-pixel features into a :class:`SegmentationOutput`.
        transformer_in_feature: what the queries attend to: a backbone feature, "transformer_encoder" (the pixel
            decoder's encoded feature), "pixel_embedding" (its per-pixel features) or, for the masked-attention decoder,
            "multi_scale_pixel_decoder" (its coarsest levels).
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
        if uses_masked_attention(cfg):
            num_features = len(set(cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES))
            if num_features < NUM_LEVELS:
                raise ValueError(
                    f"MODEL.SEM_SEG_HEAD.IN_FEATURES is {list(cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES)}; masked attention "
                    f"needs {NUM_LEVELS} or more features"
                )
            return {
                "pixel_decoder": pixel_decoder,
                "predictor": MaskedAttentionPredictor(cfg, cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM),
                "transformer_in_feature": name,
            }
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
        if self.transformer_in_feature == _LEVELS:
            pixel_features, levels = self.pixel_decoder.forward_levels(features)
            return self.predictor(levels[:NUM_LEVELS], pixel_features, auxiliary)
        pixel_features, encoded = self.pixel_decoder.forward_features(features)
        if self.transformer_in_feature == _ENCODED:
            x = encoded
        elif self.transformer_in_feature == _PIXEL_EMBEDDING:
            x = pixel_features
        else:
            x = features[self.transformer_in_feature]
        return self.predictor(x, pixel_features, auxiliary)


def uses_masked_attention(cfg: CfgNode) -> bool:
    """Whether MODEL.MASK_FORMER asks for the masked-attention decoder instead of the plain one."""
    return cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME == MASKED_ATTENTION_DECODER


def losses_on_points(cfg: CfgNode) -> bool:
    """Whether MODEL.MASK_FORMER.MASK_LOSS_ON asks for mask losses on sampled points."""
    choice = cfg.MODEL.MASK_FORMER.MASK_LOSS_ON
    return choice == "points" or (choice == "auto" and uses_masked_attention(cfg))


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
class MaskFormer(Segmentor):
    """Mask classification model (MaskFormer) for semantic segmentation; its masks have stride 4.

    Args:
        no_object_weight: kept in ``criterion.empty_weight`` for the loss.
        others: see :class:`Segmentor`.
    """

    kind = "masks"

    @configurable
    def __init__(self, *, no_object_weight: float, **others):
        super().__init__(**others)
        self.criterion = ClassWeights(self.num_classes, no_object_weight)

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
            "score_resolution": cfg.TEST.SCORE_RESOLUTION,
        }


def _check_config(cfg: CfgNode) -> None:
    """One clear error for values of MODEL.MASK_FORMER and MODEL.SEM_SEG_HEAD that no model can be built from."""
    options, head = cfg.MODEL.MASK_FORMER, cfg.MODEL.SEM_SEG_HEAD
    if options.TEST.PANOPTIC_ON:
        raise ValueError(
            "MODEL.MASK_FORMER.TEST.PANOPTIC_ON is True; RC2L does semantic segmentation only, set it to False"
        )
    if options.TEST.INSTANCE_ON or not options.TEST.SEMANTIC_ON:
        raise ValueError(
            f"MODEL.MASK_FORMER.TEST.INSTANCE_ON is {options.TEST.INSTANCE_ON} and SEMANTIC_ON "
            f"{options.TEST.SEMANTIC_ON}; RC2L does semantic segmentation only, set them to False and True"
        )
    decoders = PLAIN_DECODER, MASKED_ATTENTION_DECODER
    if options.TRANSFORMER_DECODER_NAME not in decoders:
        raise ValueError(
            f"MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME is '{options.TRANSFORMER_DECODER_NAME}'; choose one of "
            f"{', '.join(decoders)}"
        )
    if uses_masked_attention(cfg) != (options.TRANSFORMER_IN_FEATURE == _LEVELS):
        raise ValueError(
            f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is '{options.TRANSFORMER_IN_FEATURE}' and "
            f"TRANSFORMER_DECODER_NAME '{options.TRANSFORMER_DECODER_NAME}'; {_LEVELS} and {MASKED_ATTENTION_DECODER} "
            "belong together"
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
        "MODEL.MASK_FORMER.DEC_LAYERS": (options.DEC_LAYERS, 2 if uses_masked_attention(cfg) else 1),
        "MODEL.MASK_FORMER.ENC_LAYERS": (options.ENC_LAYERS, 0),
        "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": (head.TRANSFORMER_ENC_LAYERS, 0),
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": (head.NUM_CLASSES, 1),
    }
    for key, (value, minimum) in minima.items():
        if value < minimum:
            raise ValueError(f"{key} is {value}; it must be {minimum} or more")
    widths = {"MODEL.MASK_FORMER.HIDDEN_DIM": options.HIDDEN_DIM}
    if head.PIXEL_DECODER_NAME in ("TransformerEncoderPixelDecoder", "MSDeformAttnPixelDecoder"):
        widths["MODEL.SEM_SEG_HEAD.CONVS_DIM"] = head.CONVS_DIM
    for key, width in widths.items():
        if width % 4 or width % options.NHEADS:
            raise ValueError(
                f"{key} is {width}; it must be a multiple of 4 and of MODEL.MASK_FORMER.NHEADS ({options.NHEADS})"
            )
