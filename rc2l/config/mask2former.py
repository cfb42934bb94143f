"""The keys that Mask2Former's YAML files have beside MaskFormer's, with the official names and defaults."""

from detectron2.config import CfgNode

from rc2l.ranges import (
    MOST_CHANNELS,
    MOST_THINGS,
    SHARE,
    config_check,
    declare,
    flag,
    integer,
    number,
    one_of,
    several,
    text,
)


def add_mask2former_config(cfg: CfgNode) -> None:
    """Add the keys of the masked-attention decoder, of point-sampled losses and of Swin backbones."""
    options = cfg.MODEL.MASK_FORMER
    # StandardTransformerDecoder (MaskFormer's, "plain") | MultiScaleMaskedTransformerDecoder (Mask2Former's: needs
    # TRANSFORMER_IN_FEATURE multi_scale_pixel_decoder, and makes one of its DEC_LAYERS predictions without a layer).
    # The official default is the latter; here it is MaskFormer's, whose YAML files don't have the key.
    options.TRANSFORMER_DECODER_NAME = "StandardTransformerDecoder"
    # Weight of the classification loss, also in the matching cost, 0 or more; Mask2Former's files: 2, with 5 and 5 for
    # mask and dice.
    options.CLASS_WEIGHT = 1.0
    # Where mask losses and matching look. auto: points with masked attention, pixels with the plain decoder. points:
    # TRAIN_NUM_POINTS points of each mask, binary cross-entropy and dice (Mask2Former). pixels: all pixels, focal and
    # dice (MaskFormer, RC2L eq. 1).
    options.MASK_LOSS_ON = "auto"
    # Points per mask, 1 or more.
    options.TRAIN_NUM_POINTS = 12544
    # Candidates per point, 1 or more, and the share of the points, in [0, 1], that are the most uncertain candidates;
    # the others are drawn evenly.
    options.OVERSAMPLE_RATIO = 3.0
    options.IMPORTANCE_SAMPLE_RATIO = 0.75
    # Instance inference is not part of this project: only False and, for semantic inference, True are accepted.
    options.TEST.INSTANCE_ON = False
    options.TEST.SEMANTIC_ON = True

    head = cfg.MODEL.SEM_SEG_HEAD
    # Features that the encoder of MSDeformAttnPixelDecoder takes, out of IN_FEATURES; finer ones follow by pyramid
    # steps up to COMMON_STRIDE.
    head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = ["res3", "res4", "res5"]
    # Points per head and level of its attention, 1 or more.
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS = 4
    # In official files, never read there either: the heads are MASK_FORMER.NHEADS.
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = 8

    # Of the official mappers for instances and panoptic segmentation, which are refused; accepted so that files merge.
    cfg.INPUT.IMAGE_SIZE = 1024
    cfg.INPUT.MIN_SCALE = 0.1
    cfg.INPUT.MAX_SCALE = 2.0

    cfg.MODEL.SWIN = CfgNode()
    # Swin backbones (BACKBONE.NAME D2SwinTransformer): patch size, channels, blocks and heads of the four stages,
    # window, all 1 or more; the hidden width of a block's MLP relative to its channels, above 0.
    cfg.MODEL.SWIN.PATCH_SIZE = 4
    cfg.MODEL.SWIN.EMBED_DIM = 96
    cfg.MODEL.SWIN.DEPTHS = [2, 2, 6, 2]
    cfg.MODEL.SWIN.NUM_HEADS = [3, 6, 12, 24]
    cfg.MODEL.SWIN.WINDOW_SIZE = 7
    cfg.MODEL.SWIN.MLP_RATIO = 4.0
    # Which of res2 to res5 it gives.
    cfg.MODEL.SWIN.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # Probabilities in [0, 1): of dropping units, attention weights, and whole blocks (of the last block; rising to it).
    cfg.MODEL.SWIN.DROP_RATE = 0.0
    cfg.MODEL.SWIN.ATTN_DROP_RATE = 0.0
    cfg.MODEL.SWIN.DROP_PATH_RATE = 0.3
    # Trade time for memory by computing blocks again in the backward pass.
    cfg.MODEL.SWIN.USE_CHECKPOINT = False
    # Variants that no published file uses; only these values are accepted. PRETRAIN_IMG_SIZE is read with APE only.
    cfg.MODEL.SWIN.QKV_BIAS = True
    cfg.MODEL.SWIN.QK_SCALE = None
    cfg.MODEL.SWIN.APE = False
    cfg.MODEL.SWIN.PATCH_NORM = True
    cfg.MODEL.SWIN.PRETRAIN_IMG_SIZE = 224


declare(
    "MODEL.MASK_FORMER",
    {
        "TRANSFORMER_DECODER_NAME": one_of("StandardTransformerDecoder", "MultiScaleMaskedTransformerDecoder"),
        "CLASS_WEIGHT": number(at_least=0),
        "MASK_LOSS_ON": one_of("auto", "points", "pixels"),
        "TRAIN_NUM_POINTS": integer(at_least=1, at_most=MOST_THINGS),
        "OVERSAMPLE_RATIO": number(at_least=1),
        "IMPORTANCE_SAMPLE_RATIO": SHARE,
        "TEST.INSTANCE_ON": one_of(False),
        "TEST.SEMANTIC_ON": one_of(True),
    },
)
declare(
    "MODEL.SEM_SEG_HEAD",
    {
        "DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": several(text(empty=False), at_least=1),
        "DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": integer(at_least=1, at_most=1024),
        "DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": integer(at_least=1, at_most=1024),
    },
)
declare(
    "INPUT",
    {"IMAGE_SIZE": integer(at_least=1, at_most=65500), "MIN_SCALE": number(above=0), "MAX_SCALE": number(above=0)},
)
declare(
    "MODEL.SWIN",
    {
        "PATCH_SIZE": integer(at_least=1, at_most=1024),
        "EMBED_DIM": integer(at_least=1, at_most=MOST_CHANNELS),
        "DEPTHS": several(integer(at_least=1, at_most=1000), at_least=4, at_most=4),
        "NUM_HEADS": several(integer(at_least=1, at_most=1024), at_least=4, at_most=4),
        "WINDOW_SIZE": integer(at_least=1, at_most=1024),
        "MLP_RATIO": number(above=0),
        "OUT_FEATURES": several(one_of("res2", "res3", "res4", "res5"), at_least=1),
        "DROP_RATE": number(at_least=0, below=1),
        "ATTN_DROP_RATE": number(at_least=0, below=1),
        "DROP_PATH_RATE": number(at_least=0, below=1),
        "USE_CHECKPOINT": flag(),
        "QKV_BIAS": one_of(True),
        "QK_SCALE": one_of(None),
        "APE": one_of(False),
        "PATCH_NORM": one_of(True),
        "PRETRAIN_IMG_SIZE": integer(at_least=1, at_most=65500),
    },
)


@config_check
def check_baselines(cfg: CfgNode) -> None:
    """Refuse the per-pixel baselines of MaskFormer's files."""
    if cfg.MODEL.SEM_SEG_HEAD.NAME.startswith("PerPixelBaseline"):
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.NAME is {cfg.MODEL.SEM_SEG_HEAD.NAME}: RC2L has other per-pixel models; set "
            "MODEL.META_ARCHITECTURE to PerPixelSegmentor and this to DeepLabV3PlusPixelHead"
        )
