"""SEMI.*: what every semi-supervised method has; each method's own node is beside its objective."""

from detectron2.config import CfgNode

from rc2l.ranges import (
    MOST_STEPS,
    MOST_THINGS,
    SHARE,
    config_node,
    declare,
    flag,
    integer,
    number,
    one_of,
    smallest_largest,
    text,
)


@config_node
def add_semi_config(cfg: CfgNode) -> None:
    """Add the keys of semi-supervised training: method, teacher, pseudo labels, mixing, losses."""
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
    # When to warn of a collapsed teacher: a class above this share of the kept pixels, in [0, 1] ...
    cfg.SEMI.COLLAPSE = CfgNode()
    cfg.SEMI.COLLAPSE.MAX_CLASS_SHARE = 0.98
    # ... or fewer kept pixels than this share, in [0, 1] ...
    cfg.SEMI.COLLAPSE.MIN_KEPT_SHARE = 0.01
    # ... for this many iterations.
    cfg.SEMI.COLLAPSE.PATIENCE = 200


declare(
    "SEMI",
    {
        "METHOD": text(empty=False),
        "UNSUPERVISED_WEIGHT": number(at_least=0),
        "BURN_IN": integer(at_least=0, at_most=MOST_STEPS),
        "DEEP_SUPERVISION": flag(),
        "LOSS_RESOLUTION": one_of("mask", "crop"),
        "REGION_CONFIDENCE_POWER": number(at_least=0),
        "TEACHER.AVERAGE_BUFFERS": flag(),
        "PSEUDO_LABEL.MIN_CONFIDENCE": SHARE,
        "PSEUDO_LABEL.MIN_AREA": integer(at_least=0, at_most=MOST_THINGS),
        "MIXING.NAME": one_of("cutmix", "classmix", "cutout", "none"),
        "MIXING.PROB": SHARE,
        "MIXING.AREA": smallest_largest(number(above=0, at_most=1)),
        "MIXING.ASPECT_RATIO": smallest_largest(number(above=0)),
        "MIXING.BOX": one_of("free", "half"),
        "COLLAPSE.MAX_CLASS_SHARE": SHARE,
        "COLLAPSE.MIN_KEPT_SHARE": SHARE,
        "COLLAPSE.PATIENCE": integer(at_least=0, at_most=MOST_STEPS),
    },
)
