"""TEST.*: evaluations, and networks on whole images."""

from detectron2.config import CfgNode

from rc2l.ranges import MOST_THINGS, config_node, declare, either, exactly, flag, integer, number, one_of, several

#: Edges that image formats have.
_EDGE = integer(at_least=1, at_most=65500)


@config_node
def add_test_config(cfg: CfgNode) -> None:
    """Add the keys of evaluations, and of networks on whole images: in these, by predict and by the Predictor."""
    # Evaluate on the first so many images of each test set; 0: all of them.
    cfg.TEST.MAX_IMAGES = 0
    # At each evaluation, compare the pseudo labels of so many unlabelled images with their labels, where the dataset
    # has these (as those of a benchmark, which the split hides): the metrics pseudo/mIoU and so on. At most
    # TEST.MAX_IMAGES, where that is set; 0: do not.
    cfg.TEST.PSEUDO_LABEL_IMAGES = 16

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
    # Where scores are computed: image (masks or logits are raised to the size of the image first) or mask (at the
    # network's own resolution, mostly stride 4; scores are raised, as those of pseudo labels are): faster, and about
    # a thousandth of the labels differ.
    cfg.TEST.SCORE_RESOLUTION = "image"
    # Width of the bands of Boundary IoU, as a share of the image's diagonal in [0, 0.5]; 0: it is not measured. 0.02 in
    # its paper (Cheng et al. 2021).
    cfg.TEST.BOUNDARY_WIDTH = 0.02


declare(
    "TEST",
    {
        "MAX_IMAGES": integer(at_least=0, at_most=MOST_THINGS),
        "PSEUDO_LABEL_IMAGES": integer(at_least=0, at_most=MOST_THINGS),
        "WINDOW.SIZE": either(exactly(_EDGE, _EDGE), several(_EDGE, at_most=0)),
        "WINDOW.STRIDE": number(above=0, at_most=65500),
        "WINDOW.BLENDING": one_of("linear", "uniform"),
        "WINDOW.BATCH_SIZE": integer(at_least=1, at_most=65536),
        "AMP": flag(),
        "SCORE_RESOLUTION": one_of("image", "mask"),
        "BOUNDARY_WIDTH": number(at_least=0, at_most=0.5),
    },
)
