"""Ranges of the keys that detectron2 itself and its DeepLab project bring along, as far as anything here reads them.

detectron2's other keys have no effect here. Where that would change results without a word, only the value that means
"off" is accepted; of the rest :func:`without_effect` gives those that a config changes, to be warned of.
"""

from functools import cache

from detectron2.config import CfgNode, get_cfg

from rc2l.ranges import (
    MOST_STEPS,
    RANGES,
    SHARE,
    config_check,
    declare,
    either,
    exactly,
    flag,
    flatten,
    integer,
    number,
    one_of,
    only,
    several,
    text,
)

_NAMES = several(text(empty=False))
_SOME_NAMES = several(text(empty=False), at_least=1)
#: What detectron2's get_norm knows.
_NORM = one_of("", "BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "LN")
_WIDTH = integer(at_least=1, at_most=65536)
#: What a pixel of a channel may have; padding has it too.
_LEVEL = number(at_least=0, at_most=255)
#: The longest edge that image formats have, and the largest crop that is cut out of images.
_EDGE, _CROP_EDGE = 65500, 8192
_short_edge = integer(at_least=0, at_most=_EDGE)

declare(
    "",
    {
        "VERSION": one_of(2),
        "OUTPUT_DIR": text(empty=False),
        "SEED": integer(at_least=-1, at_most=2**31 - 1),
        "CUDNN_BENCHMARK": flag(),
        "DATALOADER.NUM_WORKERS": integer(at_least=0, at_most=1024),
        "DATALOADER.SAMPLER_TRAIN": only("TrainingSampler", "images are drawn by the split"),
        "DATASETS.TRAIN": _NAMES,
        "DATASETS.TEST": _NAMES,
        "TEST.EVAL_PERIOD": integer(at_least=0, at_most=MOST_STEPS),
        "TEST.AUG.ENABLED": flag(),
        "TEST.AUG.MIN_SIZES": several(_short_edge, at_least=1, at_most=64),
        "TEST.AUG.MAX_SIZE": integer(at_least=1, at_most=1_000_000),
        "TEST.AUG.FLIP": flag(),
        "TEST.PRECISE_BN.ENABLED": only(False, "statistics of batch norm are not measured anew here"),
    },
)
declare(
    "INPUT",
    {
        "MIN_SIZE_TRAIN": either(_short_edge, several(_short_edge, at_least=1)),
        "MIN_SIZE_TRAIN_SAMPLING": one_of("choice", "range"),
        "MAX_SIZE_TRAIN": integer(at_least=1, at_most=1_000_000),
        "MIN_SIZE_TEST": _short_edge,
        "MAX_SIZE_TEST": integer(at_least=1, at_most=1_000_000),
        "RANDOM_FLIP": one_of("horizontal", "vertical", "none"),
        "CROP.ENABLED": flag(),
        "CROP.TYPE": one_of("relative_range", "relative", "absolute", "absolute_range"),
        "CROP.SIZE": exactly(number(above=0, at_most=_CROP_EDGE), number(above=0, at_most=_CROP_EDGE)),
        "CROP.SINGLE_CATEGORY_MAX_AREA": number(above=0, at_most=1),
        "FORMAT": one_of("RGB", "BGR"),
    },
)
declare(
    "SOLVER",
    {
        "LR_SCHEDULER_NAME": one_of("WarmupMultiStepLR", "WarmupCosineLR", "WarmupPolyLR"),
        "MAX_ITER": integer(at_least=1, at_most=MOST_STEPS),
        "BASE_LR": number(at_least=0),
        "MOMENTUM": number(at_least=0, below=1),
        "NESTEROV": flag(),
        "WEIGHT_DECAY": number(at_least=0),
        "WEIGHT_DECAY_NORM": number(at_least=0),
        "GAMMA": number(above=0),
        "STEPS": several(integer(at_least=1, at_most=MOST_STEPS)),
        "WARMUP_FACTOR": SHARE,
        "WARMUP_ITERS": integer(at_least=0, at_most=MOST_STEPS),
        "WARMUP_METHOD": one_of("linear", "constant"),
        "POLY_LR_POWER": number(at_least=0),
        "POLY_LR_CONSTANT_ENDING": SHARE,
        "CHECKPOINT_PERIOD": integer(at_least=1, at_most=MOST_STEPS),
        "IMS_PER_BATCH": integer(at_least=1, at_most=65536),
        "REFERENCE_WORLD_SIZE": only(0, "batches and rates are not scaled by the number of processes here"),
        "BIAS_LR_FACTOR": only(1.0, "biases have the learning rate of their layer here"),
        "CLIP_GRADIENTS.ENABLED": flag(),
        "CLIP_GRADIENTS.CLIP_TYPE": one_of("full_model", "norm", "value"),
        "CLIP_GRADIENTS.CLIP_VALUE": number(above=0),
        "CLIP_GRADIENTS.NORM_TYPE": number(above=0),
        "AMP.ENABLED": flag(),
    },
)
declare(
    "MODEL",
    {
        "META_ARCHITECTURE": text(empty=False),
        "DEVICE": text(empty=False),
        "WEIGHTS": text(),
        "MASK_ON": only(False, "there are no instances here"),
        "KEYPOINT_ON": only(False, "there are no keypoints here"),
        "LOAD_PROPOSALS": only(False, "there are no proposals here"),
        "PIXEL_MEAN": exactly(_LEVEL, _LEVEL, _LEVEL),
        "PIXEL_STD": exactly(number(above=0), number(above=0), number(above=0)),
        "BACKBONE.NAME": text(empty=False),
        "BACKBONE.FREEZE_AT": integer(at_least=0, at_most=5),
        "FPN.IN_FEATURES": _NAMES,
        "FPN.OUT_CHANNELS": _WIDTH,
        "FPN.NORM": _NORM,
        "FPN.FUSE_TYPE": one_of("sum", "avg"),
    },
)
declare(
    "MODEL.RESNETS",
    {
        "DEPTH": one_of(18, 34, 50, 101, 152),
        "OUT_FEATURES": _SOME_NAMES,
        "NUM_GROUPS": _WIDTH,
        "NORM": _NORM,
        "WIDTH_PER_GROUP": _WIDTH,
        "STRIDE_IN_1X1": flag(),
        "RES4_DILATION": one_of(1, 2),
        "RES5_DILATION": one_of(1, 2, 4),
        "RES5_MULTI_GRID": exactly(*[integer(at_least=1, at_most=64)] * 3),
        "RES2_OUT_CHANNELS": _WIDTH,
        "STEM_OUT_CHANNELS": _WIDTH,
        "STEM_TYPE": one_of("basic", "deeplab"),
        "DEFORM_ON_PER_STAGE": exactly(*[flag()] * 4),
        "DEFORM_MODULATED": flag(),
        "DEFORM_NUM_GROUPS": _WIDTH,
    },
)
declare(
    "MODEL.SEM_SEG_HEAD",
    {
        "NAME": text(empty=False),
        "IN_FEATURES": _SOME_NAMES,
        "IGNORE_VALUE": only(
            255, "ignored pixels are in every label map here; map another one to 255 by the dataset's label_map"
        ),
        "NUM_CLASSES": integer(at_least=1, at_most=255),
        "CONVS_DIM": _WIDTH,
        "COMMON_STRIDE": one_of(4, 8, 16, 32),
        "NORM": _NORM,
        "LOSS_TYPE": one_of("cross_entropy", "hard_pixel_mining"),
        "PROJECT_FEATURES": _NAMES,
        "PROJECT_CHANNELS": several(_WIDTH),
        "ASPP_CHANNELS": _WIDTH,
        "ASPP_DILATIONS": several(integer(at_least=1, at_most=1024), at_least=1, at_most=16),
        "ASPP_DROPOUT": number(at_least=0, below=1),
        "USE_DEPTHWISE_SEPARABLE_CONV": flag(),
    },
)


def without_effect(cfg: CfgNode) -> list[str]:
    """detectron2's keys that a config changes though nothing here reads them."""
    defaults = _defaults()
    return [
        key
        for key, value in flatten(cfg)
        if key in defaults and key not in RANGES and _comparable(value) != _comparable(defaults[key])
    ]


@cache
def _defaults() -> dict[str, object]:
    return dict(flatten(get_cfg()))


def _comparable(value: object) -> object:
    return [_comparable(item) for item in value] if isinstance(value, (list, tuple)) else value


@config_check
def check_sizes(cfg: CfgNode) -> None:
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and not (
        isinstance(sizes, (list, tuple)) and len(sizes) == 2 and sizes[0] <= sizes[1]
    ):
        raise ValueError(
            f"INPUT.MIN_SIZE_TRAIN is {sizes}: with MIN_SIZE_TRAIN_SAMPLING range it must be (smallest, largest)"
        )


@config_check
def check_dilations(cfg: CfgNode) -> None:
    head = cfg.MODEL.SEM_SEG_HEAD
    if head.NAME == "DeepLabV3PlusPixelHead" and len(head.ASPP_DILATIONS) != 3:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.ASPP_DILATIONS is {list(head.ASPP_DILATIONS)}: DeepLabV3PlusPixelHead takes 3 of them"
        )


@config_check
def check_schedule(cfg: CfgNode) -> None:
    if cfg.SOLVER.NESTEROV and cfg.SOLVER.OPTIMIZER == "SGD" and cfg.SOLVER.MOMENTUM == 0:
        raise ValueError("SOLVER.NESTEROV is True: it needs a SOLVER.MOMENTUM above 0")
    steps = list(cfg.SOLVER.STEPS)
    if steps != sorted(steps):
        raise ValueError(f"SOLVER.STEPS is {steps}: it must be iterations in ascending order")
