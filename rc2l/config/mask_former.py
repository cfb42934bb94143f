"""MODEL.MASK_FORMER.* and MODEL.SEM_SEG_HEAD.*, with the official MaskFormer's names and defaults."""

from detectron2.config import CfgNode

from rc2l.config.mask2former import add_mask2former_config
from rc2l.ranges import SHARE, config_node, declare, flag, integer, number, one_of, text


@config_node
def add_mask_former_config(cfg: CfgNode) -> None:
    """Add the keys that official MaskFormer YAML files use, with the official defaults."""
    cfg.MODEL.MASK_FORMER = CfgNode()
    # Losses on every decoder layer, not only the last.
    cfg.MODEL.MASK_FORMER.DEEP_SUPERVISION = True
    # Weight of the "no object" class in the classification loss; RC2L eq. 1.
    cfg.MODEL.MASK_FORMER.NO_OBJECT_WEIGHT = 0.1
    # Weights of dice and focal loss in L_mask (the classification loss has weight 1), also in the matching cost.
    cfg.MODEL.MASK_FORMER.DICE_WEIGHT = 1.0
    cfg.MODEL.MASK_FORMER.MASK_WEIGHT = 20.0
    # Transformer of the predictor: attention heads, dropout in [0, 1), width of the feed-forward layers, number of
    # encoder and decoder layers, normalisation before instead of after each block, width.
    cfg.MODEL.MASK_FORMER.NHEADS = 8
    cfg.MODEL.MASK_FORMER.DROPOUT = 0.1
    cfg.MODEL.MASK_FORMER.DIM_FEEDFORWARD = 2048
    cfg.MODEL.MASK_FORMER.ENC_LAYERS = 0
    cfg.MODEL.MASK_FORMER.DEC_LAYERS = 6
    cfg.MODEL.MASK_FORMER.PRE_NORM = False
    cfg.MODEL.MASK_FORMER.HIDDEN_DIM = 256
    # N, the number of queries; RC2L table 5.
    cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 100
    # What the queries attend to: a backbone feature ("res5"), "transformer_encoder" or "pixel_embedding". Small images
    # need a finer one than res5.
    cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE = "res5"
    # Project the transformer's input by a 1x1 convolution even where its width already fits.
    cfg.MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ = False
    # Inference pads images to a multiple of this (and of the backbone's own divisibility).
    cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY = 32
    cfg.MODEL.MASK_FORMER.TEST = CfgNode()
    # Panoptic inference is not part of this project: True is refused. The two thresholds belong to it; only 0.0 to 1.0
    # is accepted, so that official YAML files merge.
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = False
    cfg.MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD = 0.0
    cfg.MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD = 0.0
    # Resize masks to the original image size before, not after, classes and masks are combined.
    cfg.MODEL.MASK_FORMER.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = False

    # Channels of the per-pixel features F^s and of the mask embeddings.
    cfg.MODEL.SEM_SEG_HEAD.MASK_DIM = 256
    # Encoder layers of TransformerEncoderPixelDecoder.
    cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS = 0
    # BasePixelDecoder | TransformerEncoderPixelDecoder | MSDeformAttnPixelDecoder
    cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "BasePixelDecoder"
    add_mask2former_config(cfg)


declare(
    "MODEL.MASK_FORMER",
    {
        "DEEP_SUPERVISION": flag(),
        "NO_OBJECT_WEIGHT": number(at_least=0),
        "DICE_WEIGHT": number(at_least=0),
        "MASK_WEIGHT": number(at_least=0),
        "NHEADS": integer(at_least=1, at_most=1024),
        "DROPOUT": number(at_least=0, below=1),
        "DIM_FEEDFORWARD": integer(at_least=1, at_most=1_000_000),
        "ENC_LAYERS": integer(at_least=0, at_most=1000),
        "DEC_LAYERS": integer(at_least=1, at_most=1000),
        "PRE_NORM": flag(),
        "HIDDEN_DIM": integer(at_least=4, at_most=65536, multiple_of=4),
        "NUM_OBJECT_QUERIES": integer(at_least=1, at_most=100_000),
        "TRANSFORMER_IN_FEATURE": text(empty=False),
        "ENFORCE_INPUT_PROJ": flag(),
        "SIZE_DIVISIBILITY": integer(at_least=0, at_most=4096),
        "TEST.PANOPTIC_ON": one_of(False),
        "TEST.OBJECT_MASK_THRESHOLD": SHARE,
        "TEST.OVERLAP_THRESHOLD": SHARE,
        "TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE": flag(),
    },
)
declare(
    "MODEL.SEM_SEG_HEAD",
    {
        "MASK_DIM": integer(at_least=1, at_most=65536),
        "TRANSFORMER_ENC_LAYERS": integer(at_least=0, at_most=1000),
        "PIXEL_DECODER_NAME": text(empty=False),
    },
)
