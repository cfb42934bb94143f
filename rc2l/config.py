"""Every config key of the project beside detectron2's own, each with its meaning, unit or range, and source.

``MODEL.MASK_FORMER.*``, ``MODEL.SEM_SEG_HEAD.*``, ``INPUT.*`` and ``SOLVER.*`` carry the names and defaults of the
official MaskFormer, so that its YAML files merge unchanged.
"""

from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from rc2l.mask2former_config import add_mask2former_config
from rc2l.ranges import (
    MOST_CHANNELS,
    MOST_STEPS,
    MOST_THINGS,
    a_mapping,
    add_config_nodes,
    config_node,
    declare,
    either,
    exactly,
    flag,
    integer,
    number,
    one_of,
    several,
    smallest_largest,
    text,
)

_share = number(at_least=0, at_most=1)


@config_node
def add_mask_former_config(cfg: CfgNode) -> None:
    """Add the keys that official MaskFormer YAML files use, with the official defaults."""
    # Which mapper a YAML asks for; RC2L has one, for semantic segmentation, and refuses instance or panoptic ones.
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    # Colour augmentation of the SSD detector on every training image (labelled and weak view); MaskFormer's, "color
    # augmentation" of RC2L section 3.1.
    cfg.INPUT.COLOR_AUG_SSD = False
    # Pad crops so that height and width are multiples of this; -1: no padding beyond the crop size.
    cfg.INPUT.SIZE_DIVISIBILITY = -1

    # ADAMW | SGD
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    # Learning rate of the backbone relative to SOLVER.BASE_LR.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    # Weight decay of embeddings (the queries); SOLVER.WEIGHT_DECAY_NORM is detectron2's key for normalisation layers.
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0

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
    "INPUT",
    {
        "DATASET_MAPPER_NAME": one_of("mask_former_semantic"),
        "COLOR_AUG_SSD": flag(),
        "SIZE_DIVISIBILITY": either(integer(at_least=1, at_most=4096), one_of(-1, 0)),
    },
)
declare(
    "SOLVER",
    {
        "OPTIMIZER": one_of("ADAMW", "SGD"),
        "BACKBONE_MULTIPLIER": number(at_least=0),
        "WEIGHT_DECAY_EMBED": number(at_least=0),
    },
)
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
        "TEST.OBJECT_MASK_THRESHOLD": _share,
        "TEST.OVERLAP_THRESHOLD": _share,
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


@config_node
def add_semi_config(cfg: CfgNode) -> None:
    """Add the keys of semi-supervised training: streams, views, teacher, pseudo labels, losses."""
    # Datasets that are only a source of unlabelled images. The unlabelled stream is these and the images of
    # DATASETS.TRAIN that the split leaves unlabelled, each image once, less the labelled ones.
    cfg.DATASETS.UNLABELED = ()
    cfg.DATASETS.SPLIT = CfgNode()
    # Share of DATASETS.TRAIN that is labelled, as a fraction ("1/16", rounded up as the papers do) or "all".
    cfg.DATASETS.SPLIT.FRACTION = "all"
    # Number of labelled images; 0: use FRACTION.
    cfg.DATASETS.SPLIT.NUM_LABELED = 0
    # random: by a hash of (seed, image id). class_balanced: each next image contains the class least seen so far.
    # few_labels: the same among images of at least SPLIT.MIN_CLASSES classes (ReCo).
    cfg.DATASETS.SPLIT.SAMPLING = "random"
    # Which draw, a 32-bit number; independent of SEED.
    cfg.DATASETS.SPLIT.SEED = 0
    # Share of the unlabelled images that are used, above 0 and up to 1, rounded up; smaller shares are contained in
    # larger ones. ReCo fig. 7c: 0.02, 0.05, 0.1.
    cfg.DATASETS.SPLIT.UNLABELED_SHARE = 1.0

    # SOLVER.IMS_PER_BATCH counts the labelled images of a step over all processes, this the unlabelled ones. RC2L: 8+8.
    cfg.SOLVER.IMS_PER_BATCH_UNLABELED = 8
    # Checkpoints kept beside model_final.pth and model_best.pth; older ones are deleted. 0: all.
    cfg.SOLVER.CHECKPOINTS_KEPT = 3
    # bfloat16 | float16 | auto (bfloat16 where the device has it, else float16), read if SOLVER.AMP.ENABLED.
    cfg.SOLVER.AMP.DTYPE = "auto"

    # The strong view: what the student sees of an unlabelled image beyond the weak view, before mixing. All 0 in the
    # paper, where the strong view is the weak one with CutMix.
    cfg.INPUT.STRONG = CfgNode()
    # Largest change of brightness, contrast, saturation (each factor from [1-x, 1+x]) and hue (shift from [-x, x],
    # at most 0.5), and the probability of such a change.
    cfg.INPUT.STRONG.COLOR_JITTER = [0.0, 0.0, 0.0, 0.0]
    cfg.INPUT.STRONG.COLOR_JITTER_PROB = 0.8
    # Probability of a grey image.
    cfg.INPUT.STRONG.GRAYSCALE_PROB = 0.0
    # Probability of Gaussian blur, and the range of its sigma in pixels.
    cfg.INPUT.STRONG.BLUR_PROB = 0.0
    cfg.INPUT.STRONG.BLUR_SIGMA = [0.1, 2.0]

    cfg.SEMI = CfgNode()
    # supervised | consistency (RC2L table 3, row 1) | rc2l | self_training (CutOut, CutMix, ClassMix) | s4gan |
    # fixmatch | unimatch, or one that a module of --import registers.
    cfg.SEMI.METHOD = "rc2l"
    # alpha of RC2L eq. 3: weight of the whole unsupervised loss; 2 on VOC Train, 1 on VOC Aug (table 4).
    cfg.SEMI.UNSUPERVISED_WEIGHT = 1.0
    # Iterations of supervised training before the unsupervised loss starts; the teacher is the student at their end.
    cfg.SEMI.BURN_IN = 0
    # Unsupervised losses on every decoder layer (averaged over layers), not only the last.
    cfg.SEMI.DEEP_SUPERVISION = False
    # Where pseudo regions are counted, matched and compared with masks: "mask", the stride of the predicted masks (a
    # region without a pixel left there is none), or "crop", the full resolution (slower; finer where objects are a few
    # pixels wide). RFC is always at the stride of the features.
    cfg.SEMI.LOSS_RESOLUTION = "mask"
    # Losses of regions (rc2l, consistency) are weighted by the teacher's mean confidence in the region to this power, 0
    # or more; 0: all regions weigh the same, as in the paper.
    cfg.SEMI.REGION_CONFIDENCE_POWER = 0.0
    cfg.SEMI.TEACHER = CfgNode()
    # tau of RC2L eq. 4, in [0, 1): decay of the moving average; the first steps use min(1 - 1/(step+1), tau).
    cfg.SEMI.TEACHER.DECAY = 0.999
    # Average float buffers (batch-norm statistics) too, instead of copying them.
    cfg.SEMI.TEACHER.AVERAGE_BUFFERS = False
    cfg.SEMI.PSEUDO_LABEL = CfgNode()
    # Pixels whose teacher confidence is below this, in [0, 1], are ignored; 0 keeps all, as in the paper.
    cfg.SEMI.PSEUDO_LABEL.MIN_CONFIDENCE = 0.0
    # Regions of fewer pixels (of the crop, after mixing) are ignored; 0 keeps all.
    cfg.SEMI.PSEUDO_LABEL.MIN_AREA = 0
    cfg.SEMI.MIXING = CfgNode()
    # cutmix | classmix | cutout | none. The first two paste from the next unlabelled image of the step (over all
    # processes; the first after the last), so they need SOLVER.IMS_PER_BATCH_UNLABELED of 2 or more.
    cfg.SEMI.MIXING.NAME = "cutmix"
    # Probability that an image gets a box of cutmix or cutout, in [0, 1]; UniMatch: 0.5.
    cfg.SEMI.MIXING.PROB = 1.0
    # Range of the share of the image that the pasted box covers, in (0, 1].
    cfg.SEMI.MIXING.AREA = [0.2, 0.5]
    # Range of the box's height/width ratio relative to the image's.
    cfg.SEMI.MIXING.ASPECT_RATIO = [0.5, 2.0]
    # Boxes of cutmix and cutout. free: as MIXING.AREA and MIXING.ASPECT_RATIO say. half: half of the image's area, the
    # width drawn evenly from more than half of the image's to all of it, as ReCo's baselines have it.
    cfg.SEMI.MIXING.BOX = "free"


declare(
    "DATASETS",
    {
        "UNLABELED": several(text(empty=False)),
        "SPLIT.FRACTION": text(empty=False),
        "SPLIT.NUM_LABELED": integer(at_least=0, at_most=MOST_THINGS),
        "SPLIT.SAMPLING": one_of("random", "class_balanced", "few_labels"),
        "SPLIT.UNLABELED_SHARE": number(above=0, at_most=1),
        "SPLIT.SEED": integer(at_least=-(2**31), at_most=2**31 - 1),
    },
)
declare(
    "SOLVER",
    {
        "IMS_PER_BATCH_UNLABELED": integer(at_least=0, at_most=65536),
        "CHECKPOINTS_KEPT": integer(at_least=0, at_most=MOST_THINGS),
        "AMP.DTYPE": one_of("auto", "bfloat16", "float16"),
    },
)
declare(
    "SEMI",
    {
        "METHOD": text(empty=False),
        "UNSUPERVISED_WEIGHT": number(at_least=0),
        "BURN_IN": integer(at_least=0, at_most=MOST_STEPS),
        "DEEP_SUPERVISION": flag(),
        "LOSS_RESOLUTION": one_of("mask", "crop"),
        "REGION_CONFIDENCE_POWER": number(at_least=0),
        "TEACHER.DECAY": number(at_least=0, below=1),
        "TEACHER.AVERAGE_BUFFERS": flag(),
        "PSEUDO_LABEL.MIN_CONFIDENCE": _share,
        "PSEUDO_LABEL.MIN_AREA": integer(at_least=0, at_most=MOST_THINGS),
        "MIXING.NAME": one_of("cutmix", "classmix", "cutout", "none"),
        "MIXING.PROB": _share,
        "MIXING.AREA": smallest_largest(number(above=0, at_most=1)),
        "MIXING.ASPECT_RATIO": smallest_largest(number(above=0)),
        "MIXING.BOX": one_of("free", "half"),
    },
)


def declare_colors(node: str) -> None:
    """Declare the ranges of the colour keys of a view, such as INPUT.STRONG."""
    factor = number(at_least=0)
    declare(
        node,
        {
            "COLOR_JITTER": exactly(factor, factor, factor, number(at_least=0, at_most=0.5)),
            "COLOR_JITTER_PROB": _share,
            "GRAYSCALE_PROB": _share,
            "BLUR_PROB": _share,
            "BLUR_SIGMA": smallest_largest(number(above=0)),
        },
    )


declare_colors("INPUT.STRONG")


@config_node
def add_label_config(cfg: CfgNode) -> None:
    """Add the keys of published splits, partial labels, and the sizes and colours of each view."""
    # A text file with the labelled images, one a line (id, file name, path, or image and label path), or a folder with
    # labeled.txt and perhaps unlabeled.txt; "": draw them. FRACTION and NUM_LABELED, where set, must agree with it.
    cfg.DATASETS.SPLIT.LABELED_LIST = ""
    # Likewise the unlabelled images; "": all others. Needs LABELED_LIST.
    cfg.DATASETS.SPLIT.UNLABELED_LIST = ""
    # SAMPLING few_labels: images with fewer classes than this are not drawn. ReCo's rule; the paper prints no number.
    cfg.DATASETS.SPLIT.MIN_CLASSES = 3

    # ReCo's "partial labels, full dataset" (section 4): every image of DATASETS.TRAIN is labelled, but only in a share
    # of the pixels of each class; the same images, and DATASETS.UNLABELED, are the unlabelled stream.
    cfg.DATASETS.PARTIAL_LABELS = CfgNode()
    cfg.DATASETS.PARTIAL_LABELS.ENABLED = False
    # Labelled share of the pixels of each class in each image, in [0, 1]; 0.0: one pixel. ReCo: 0.0,
    # 0.01, 0.05, 0.25.
    cfg.DATASETS.PARTIAL_LABELS.SHARE = 0.01
    # Which pixels, 0 or more; independent of SEED.
    cfg.DATASETS.PARTIAL_LABELS.SEED = 0
    # A folder that tools/make_partial_labels.py wrote, instead of thinning labels out while reading; "": none.
    cfg.DATASETS.PARTIAL_LABELS.FOLDER = ""

    # [height, width] to which every image is resized before anything else, in training and in tests; []: none. ReCo
    # appendix A: [512, 1024] on Cityscapes, [384, 512] on SUN RGB-D.
    cfg.INPUT.BASE_SIZE = []
    # Range of a random scale relative to the image's own size (or BASE_SIZE); []: none. ReCo appendix A: [0.5, 1.5].
    # Where this or BASE_SIZE is set, MIN_SIZE_TRAIN and MAX_SIZE_TRAIN are not used.
    cfg.INPUT.SCALE_RANGE = []
    # Colour changes of labelled images and of the weak view (which the teacher sees and the strong view starts from),
    # after those of COLOR_AUG_SSD; the keys mean the same as those of INPUT.STRONG.
    cfg.INPUT.LABELED = CfgNode()
    # Brightness, contrast, saturation, hue, and the probability of any change.
    cfg.INPUT.LABELED.COLOR_JITTER = [0.0, 0.0, 0.0, 0.0]
    cfg.INPUT.LABELED.COLOR_JITTER_PROB = 0.8
    # Probability of a grey image.
    cfg.INPUT.LABELED.GRAYSCALE_PROB = 0.0
    # Probability of Gaussian blur, and the range of its sigma in pixels.
    cfg.INPUT.LABELED.BLUR_PROB = 0.0
    cfg.INPUT.LABELED.BLUR_SIGMA = [0.1, 2.0]
    # The same keys for the weak view.
    cfg.INPUT.WEAK = CfgNode()
    cfg.INPUT.WEAK.COLOR_JITTER = [0.0, 0.0, 0.0, 0.0]
    cfg.INPUT.WEAK.COLOR_JITTER_PROB = 0.8
    cfg.INPUT.WEAK.GRAYSCALE_PROB = 0.0
    cfg.INPUT.WEAK.BLUR_PROB = 0.0
    cfg.INPUT.WEAK.BLUR_SIGMA = [0.1, 2.0]


declare(
    "DATASETS",
    {
        "SPLIT.LABELED_LIST": text(),
        "SPLIT.UNLABELED_LIST": text(),
        "SPLIT.MIN_CLASSES": integer(at_least=1, at_most=255),
        "PARTIAL_LABELS.ENABLED": flag(),
        "PARTIAL_LABELS.SHARE": _share,
        "PARTIAL_LABELS.SEED": integer(at_least=0, at_most=2**31 - 1),
        "PARTIAL_LABELS.FOLDER": text(),
    },
)
_edge = integer(at_least=1, at_most=65500)
declare(
    "INPUT",
    {
        "BASE_SIZE": either(exactly(_edge, _edge), several(_edge, at_most=0)),
        "SCALE_RANGE": either(smallest_largest(number(above=0)), several(number(), at_most=0)),
    },
)
declare_colors("INPUT.LABELED")
declare_colors("INPUT.WEAK")


@config_node
def add_custom_dataset_config(cfg: CfgNode) -> None:
    """Add the keys of datasets that a user describes, and of their damaged files."""
    # Path of a dataset YAML file (next to the config file, or in the working directory), or a list of such paths and
    # of mappings with its keys; datasets/README.md, "Your own images". They can be used by name in DATASETS.TRAIN etc.
    cfg.DATASETS.CUSTOM = None
    # stop | skip: what to do where unlabelled images are damaged (missing, empty, cut off, no image), which is found
    # before the first step. skip: leave them out, each by name. Damaged labelled and test images always stop the run.
    cfg.DATASETS.DAMAGED = "stop"


declare(
    "DATASETS",
    {
        "CUSTOM": either(one_of(None), text(), several(either(text(empty=False), a_mapping()))),
        "DAMAGED": one_of("stop", "skip"),
    },
)


@config_node
def add_run_config(cfg: CfgNode) -> None:
    """Add the keys of what a run shows, and of what happens when it goes wrong."""
    # Steps of a run with a non-finite loss that are left out instead of stopping it, 0 or more; read only under fp16.
    cfg.SOLVER.MAX_SKIPPED_STEPS = 0
    # Kernels that give the same bits each time, where CUDA has them (docs/determinism.md); slower. CPUs always do.
    cfg.DETERMINISTIC = False
    # When to warn of a collapsed teacher: a class above this share of the kept pixels, in [0, 1] ...
    cfg.SEMI.COLLAPSE = CfgNode()
    cfg.SEMI.COLLAPSE.MAX_CLASS_SHARE = 0.98
    # ... or fewer kept pixels than this share, in [0, 1] ...
    cfg.SEMI.COLLAPSE.MIN_KEPT_SHARE = 0.01
    # ... for this many iterations.
    cfg.SEMI.COLLAPSE.PATIENCE = 200
    # Pictures of a few fixed images while training, in OUTPUT_DIR/pictures and TensorBoard, and of the best and worst
    # images of each evaluation (docs/watching.md). -1: at each evaluation; N: every N iterations; 0: none.
    cfg.VIS_PERIOD = -1
    # Evaluate on the first so many images of each test set; 0: all of them.
    cfg.TEST.MAX_IMAGES = 0
    # At each evaluation, compare the pseudo labels of so many unlabeled images with their labels, where the dataset has
    # these (as those of a benchmark, which the split hides): the metrics pseudo/mIoU and so on. At most
    # TEST.MAX_IMAGES, where that is set; 0: do not.
    cfg.TEST.PSEUDO_LABEL_IMAGES = 16


declare(
    "",
    {
        "SOLVER.MAX_SKIPPED_STEPS": integer(at_least=0, at_most=MOST_STEPS),
        "DETERMINISTIC": flag(),
        "SEMI.COLLAPSE.MAX_CLASS_SHARE": _share,
        "SEMI.COLLAPSE.MIN_KEPT_SHARE": _share,
        "SEMI.COLLAPSE.PATIENCE": integer(at_least=0, at_most=MOST_STEPS),
        "VIS_PERIOD": integer(at_least=-1, at_most=MOST_STEPS),
        "TEST.MAX_IMAGES": integer(at_least=0, at_most=MOST_THINGS),
        "TEST.PSEUDO_LABEL_IMAGES": integer(at_least=0, at_most=MOST_THINGS),
    },
)


@config_node
def add_inference_config(cfg: CfgNode) -> None:
    """Add the keys of how networks are run on whole images: in evaluations, by predict and by the Predictor."""
    # Beside detectron2's TEST.AUG: where ENABLED, scores are averaged over images of the short edges MIN_SIZES (0:
    # their own), long ones at most MAX_SIZE, each also mirrored where FLIP; INPUT.MIN_SIZE_TEST is not used then.
    cfg.TEST.WINDOW = CfgNode()
    # [height, width] of a sliding window, in pixels of the image that the network sees, after its resizing; []: whole
    # images. That of training, INPUT.CROP.SIZE, is a good one.
    cfg.TEST.WINDOW.SIZE = []
    # From window to window: a share of SIZE in (0, 1], or pixels above 1.
    cfg.TEST.WINDOW.STRIDE = 0.75
    # linear: a window's weight falls towards its border, over what it shares with its neighbours; no seams. uniform:
    # all pixels of all windows weigh the same, as in most papers.
    cfg.TEST.WINDOW.BLENDING = "linear"
    # Windows that the network sees at once.
    cfg.TEST.WINDOW.BATCH_SIZE = 4
    # Half precision by autocast, of the type SOLVER.AMP.DTYPE; scores are float32 all the same. Evaluations of
    # published results are without, whatever the training was.
    cfg.TEST.AMP = False
    # Width of the bands of Boundary IoU, as a share of the image's diagonal in [0, 0.5]; 0: it is not measured. 0.02 in
    # its paper (Cheng et al. 2021).
    cfg.TEST.BOUNDARY_WIDTH = 0.02


declare(
    "TEST",
    {
        "WINDOW.SIZE": either(exactly(_edge, _edge), several(_edge, at_most=0)),
        "WINDOW.STRIDE": number(above=0, at_most=65500),
        "WINDOW.BLENDING": one_of("linear", "uniform"),
        "WINDOW.BATCH_SIZE": integer(at_least=1, at_most=65536),
        "AMP": flag(),
        "BOUNDARY_WIDTH": number(at_least=0, at_most=0.5),
    },
)


@config_node
def add_timm_config(cfg: CfgNode) -> None:
    """Add the keys of build_timm_backbone, and of learning rates within a backbone."""
    cfg.MODEL.TIMM = CfgNode()
    # Name of a model of the timm library, such as tf_efficientnet_lite0, convnext_tiny, swin_tiny_patch4_window7_224 or
    # vit_small_patch14_dinov2; read if MODEL.BACKBONE.NAME is build_timm_backbone.
    cfg.MODEL.TIMM.NAME = ""
    # Start from timm's weights of NAME, as MODEL.WEIGHTS "timm://NAME" does; MODEL.WEIGHTS, where set, comes first.
    cfg.MODEL.TIMM.PRETRAINED = False
    # Which of the model's feature maps, ascending (of a plain transformer: one block or four); empty: the last of each
    # stride from 4 on, or four evenly spaced blocks.
    cfg.MODEL.TIMM.OUT_INDICES = ()
    # Rate of stochastic depth in the last block, in [0, 1).
    cfg.MODEL.TIMM.DROP_PATH = 0.0
    # BN | FrozenBN | SyncBN: what becomes of batch norms; networks without any are not changed.
    cfg.MODEL.TIMM.NORM = "BN"
    # A layer norm on each feature map, as the authors of Swin and ConvNeXt have it for segmentation; plain transformers
    # have norms in their pyramid.
    cfg.MODEL.TIMM.OUTPUT_NORM = False
    # 32 | 16 | 8: stride of the last map; less than 32 by dilation, where the model has it.
    cfg.MODEL.TIMM.OUTPUT_STRIDE = 32
    # Compute activations again in the backward pass instead of keeping them: less memory, about a third more time.
    cfg.MODEL.TIMM.CHECKPOINTING = False
    # Channels of the feature pyramid of a plain vision transformer.
    cfg.MODEL.TIMM.PYRAMID_CHANNELS = 256
    # The learning rate of each layer of the backbone is that of the next one times this, in (0, 1]; the last layer has
    # BASE_LR x BACKBONE_MULTIPLIER. BEiT and ConvNeXt: 0.65 to 0.95.
    cfg.SOLVER.BACKBONE_LAYER_DECAY = 1.0


declare(
    "MODEL.TIMM",
    {
        "NAME": text(),
        "PRETRAINED": flag(),
        "OUT_INDICES": several(integer(at_least=0, at_most=1000)),
        "DROP_PATH": number(at_least=0, below=1),
        "NORM": one_of("BN", "FrozenBN", "SyncBN"),
        "OUTPUT_NORM": flag(),
        "OUTPUT_STRIDE": one_of(32, 16, 8),
        "CHECKPOINTING": flag(),
        "PYRAMID_CHANNELS": integer(at_least=1, at_most=MOST_CHANNELS),
    },
)
declare("SOLVER", {"BACKBONE_LAYER_DECAY": number(above=0, at_most=1)})


def add_rc2l_config(cfg: CfgNode) -> None:
    """Add all keys of the project, and of modules imported so far, to a detectron2 config, in place."""
    add_deeplab_config(cfg)
    # DeepLab's default stem and multi-grid are not MaskFormer's: detectron2's ResNet ignores them, so no key is lost.
    import rc2l.semi.objectives  # noqa: F401  their nodes; here, as they import this far

    add_config_nodes(cfg)


def get_rc2l_cfg() -> CfgNode:
    """detectron2's default config with the keys of the project added."""
    cfg = get_cfg()
    add_rc2l_config(cfg)
    return cfg
