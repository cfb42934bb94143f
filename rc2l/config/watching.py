"""What a run shows (docs/watching.md): pictures, and services that follow runs."""

from detectron2.config import CfgNode

from rc2l.ranges import MOST_STEPS, config_node, declare, flag, integer, text


@config_node
def add_watching_config(cfg: CfgNode) -> None:
    """Add the keys of what a run shows."""
    # Pictures of a few fixed images while training, in OUTPUT_DIR/pictures and TensorBoard, and of the best and worst
    # images of each evaluation. -1: at each evaluation; N: every N iterations; 0: none.
    cfg.VIS_PERIOD = -1
    # A service that follows runs: wandb | mlflow, or one that a module of --import registers; "": none.
    cfg.TRACKER = CfgNode()
    cfg.TRACKER.NAME = ""
    # Project of W&B, "team/project" where it is a team's; experiment of MLflow.
    cfg.TRACKER.PROJECT = "rc2l"
    # Name of the run; "": that of OUTPUT_DIR.
    cfg.TRACKER.RUN_NAME = ""
    # Write to local files only: OUTPUT_DIR/wandb, to be uploaded by `wandb sync`; ./mlflow.db and ./mlruns, to be seen
    # by `mlflow ui`.
    cfg.TRACKER.OFFLINE = False
    # Address of the server, or of MLflow's store; "": what the service's own environment variables say.
    cfg.TRACKER.URI = ""


declare(
    "",
    {
        "VIS_PERIOD": integer(at_least=-1, at_most=MOST_STEPS),
        "TRACKER.NAME": text(),
        "TRACKER.PROJECT": text(empty=False),
        "TRACKER.RUN_NAME": text(),
        "TRACKER.OFFLINE": flag(),
        "TRACKER.URI": text(),
    },
)
