"""SOLVER.* and what else says how a run goes."""

from detectron2.config import CfgNode

from rc2l.ranges import MOST_STEPS, MOST_THINGS, config_node, declare, flag, integer, number, one_of


@config_node
def add_solver_config(cfg: CfgNode) -> None:
    """Add the keys of batches, optimiser and checkpoints."""
    # ADAMW | SGD
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    # Learning rate of the backbone relative to SOLVER.BASE_LR.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    # Weight decay of embeddings (the queries); SOLVER.WEIGHT_DECAY_NORM is detectron2's key for normalisation layers.
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0
    # The learning rate of each layer of the backbone is that of the next one times this, in (0, 1]; the last layer has
    # BASE_LR x BACKBONE_MULTIPLIER. BEiT and ConvNeXt: 0.65 to 0.95.
    cfg.SOLVER.BACKBONE_LAYER_DECAY = 1.0

    # SOLVER.IMS_PER_BATCH counts the labelled images of a step over all processes, this the unlabelled ones. RC2L: 8+8.
    cfg.SOLVER.IMS_PER_BATCH_UNLABELED = 8
    # Checkpoints kept beside model_final.pth and model_best.pth; older ones are deleted. 0: all.
    cfg.SOLVER.CHECKPOINTS_KEPT = 3
    # bfloat16 | float16 | auto (bfloat16 where the device has it, else float16), read if SOLVER.AMP.ENABLED.
    cfg.SOLVER.AMP.DTYPE = "auto"
    # Steps of a run with a non-finite loss that are left out instead of stopping it, 0 or more; read only under fp16.
    cfg.SOLVER.MAX_SKIPPED_STEPS = 0


declare(
    "SOLVER",
    {
        "OPTIMIZER": one_of("ADAMW", "SGD"),
        "BACKBONE_MULTIPLIER": number(at_least=0),
        "WEIGHT_DECAY_EMBED": number(at_least=0),
        "BACKBONE_LAYER_DECAY": number(above=0, at_most=1),
        "IMS_PER_BATCH_UNLABELED": integer(at_least=0, at_most=65536),
        "CHECKPOINTS_KEPT": integer(at_least=0, at_most=MOST_THINGS),
        "AMP.DTYPE": one_of("auto", "bfloat16", "float16"),
        "MAX_SKIPPED_STEPS": integer(at_least=0, at_most=MOST_STEPS),
    },
)


@config_node
def add_run_config(cfg: CfgNode) -> None:
    """Add the key of how exactly a run repeats."""
    # Kernels that give the same bits each time, where CUDA has them (docs/determinism.md); slower. CPUs always do.
    cfg.DETERMINISTIC = False


declare(
    "",
    {
        "DETERMINISTIC": flag(),
    },
)
