"""DATASETS.* and INPUT.*: which images are labelled, and what is done to them before a network sees them."""

from detectron2.config import CfgNode

from rc2l.ranges import (
    MOST_THINGS,
    SHARE,
    a_mapping,
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


@config_node
def add_dataset_config(cfg: CfgNode) -> None:
    """Add the keys of datasets, splits and partial labels."""
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

    # Path of a dataset YAML file (next to the config file, or in the working directory), or a list of such paths and
    # of mappings with its keys; datasets/README.md, "Your own images". They can be used by name in DATASETS.TRAIN etc.
    cfg.DATASETS.CUSTOM = None
    # stop | skip: what to do where unlabelled images are damaged (missing, empty, cut off, no image), which is found
    # before the first step. skip: leave them out, each by name. Damaged labelled and test images always stop the run.
    cfg.DATASETS.DAMAGED = "stop"


declare(
    "DATASETS",
    {
        "UNLABELED": several(text(empty=False)),
        "SPLIT.FRACTION": text(empty=False),
        "SPLIT.NUM_LABELED": integer(at_least=0, at_most=MOST_THINGS),
        "SPLIT.SAMPLING": one_of("random", "class_balanced", "few_labels"),
        "SPLIT.UNLABELED_SHARE": number(above=0, at_most=1),
        "SPLIT.SEED": integer(at_least=-(2**31), at_most=2**31 - 1),
        "SPLIT.LABELED_LIST": text(),
        "SPLIT.UNLABELED_LIST": text(),
        "SPLIT.MIN_CLASSES": integer(at_least=1, at_most=255),
        "PARTIAL_LABELS.ENABLED": flag(),
        "PARTIAL_LABELS.SHARE": SHARE,
        "PARTIAL_LABELS.SEED": integer(at_least=0, at_most=2**31 - 1),
        "PARTIAL_LABELS.FOLDER": text(),
        "CUSTOM": either(one_of(None), text(), several(either(text(empty=False), a_mapping()))),
        "DAMAGED": one_of("stop", "skip"),
    },
)


@config_node
def add_input_config(cfg: CfgNode) -> None:
    """Add the keys of the sizes and colours of each view."""
    # Which mapper a YAML asks for; RC2L has one, for semantic segmentation, and refuses instance or panoptic ones.
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    # Colour augmentation of the SSD detector on every training image (labelled and weak view); MaskFormer's, "color
    # augmentation" of RC2L section 3.1.
    cfg.INPUT.COLOR_AUG_SSD = False
    # Pad crops so that height and width are multiples of this; -1: no padding beyond the crop size.
    cfg.INPUT.SIZE_DIVISIBILITY = -1

    # [height, width] to which every image is resized before anything else, in training and in tests; []: none. ReCo
    # appendix A: [512, 1024] on Cityscapes, [384, 512] on SUN RGB-D.
    cfg.INPUT.BASE_SIZE = []
    # Range of a random scale relative to the image's own size (or BASE_SIZE); []: none. ReCo appendix A: [0.5, 1.5].
    # Where this or BASE_SIZE is set, MIN_SIZE_TRAIN and MAX_SIZE_TRAIN are not used.
    cfg.INPUT.SCALE_RANGE = []
    # The strong view: what the student sees of an unlabelled image beyond the weak view, before mixing. All 0 in the
    # paper, where the strong view is the weak one with CutMix.
    add_view(cfg, "STRONG")
    # Labelled images, after COLOR_AUG_SSD.
    add_view(cfg, "LABELED")
    # The weak view, which the teacher sees and the strong view starts from, after COLOR_AUG_SSD.
    add_view(cfg, "WEAK")


def add_view(cfg: CfgNode, view: str) -> None:
    """Add INPUT.<view>, the colour changes of one kind of training image."""
    node = cfg.INPUT[view] = CfgNode()
    # Largest change of brightness, contrast, saturation (each factor from [1-x, 1+x]) and hue (shift from [-x, x],
    # at most 0.5), and the probability of such a change.
    node.COLOR_JITTER = [0.0, 0.0, 0.0, 0.0]
    node.COLOR_JITTER_PROB = 0.8
    # Probability of a grey image.
    node.GRAYSCALE_PROB = 0.0
    # Probability of Gaussian blur, and the range of its sigma in pixels.
    node.BLUR_PROB = 0.0
    node.BLUR_SIGMA = [0.1, 2.0]


_EDGE = integer(at_least=1, at_most=65500)
declare(
    "INPUT",
    {
        "DATASET_MAPPER_NAME": one_of("mask_former_semantic"),
        "COLOR_AUG_SSD": flag(),
        "SIZE_DIVISIBILITY": either(integer(at_least=1, at_most=4096), one_of(-1, 0)),
        "BASE_SIZE": either(exactly(_EDGE, _EDGE), several(_EDGE, at_most=0)),
        "SCALE_RANGE": either(smallest_largest(number(above=0)), several(number(), at_most=0)),
    },
)
_FACTOR = number(at_least=0)
for _view in ("LABELED", "WEAK", "STRONG"):
    declare(
        f"INPUT.{_view}",
        {
            "COLOR_JITTER": exactly(_FACTOR, _FACTOR, _FACTOR, number(at_least=0, at_most=0.5)),
            "COLOR_JITTER_PROB": SHARE,
            "GRAYSCALE_PROB": SHARE,
            "BLUR_PROB": SHARE,
            "BLUR_SIGMA": smallest_largest(number(above=0)),
        },
    )
