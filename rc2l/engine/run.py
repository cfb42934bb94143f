"""From command-line arguments to a finished run: config, checks, training or evaluation."""

import argparse
import logging
import shutil
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

import rc2l.modeling  # noqa: F401  registers the architectures
from rc2l.config import get_rc2l_cfg
from rc2l.data.check import check_data
from rc2l.data.loader import build_test_loader
from rc2l.data.splits import build_split, log_split
from rc2l.engine.checkpoint import set_aside
from rc2l.engine.config_file import check_config, load_config
from rc2l.engine.launch import raise_together, resolve_device, use_deterministic_kernels, was_restarted
from rc2l.engine.optimizer import amp_dtype
from rc2l.engine.trainer import SemiSupervisedTrainer
from rc2l.evaluation import evaluate_networks
from rc2l.modeling.weight_sources import initial_weights, local_weights
from rc2l.modeling.weights import load_weights
from rc2l.semi.methods import Method

logger = logging.getLogger(__name__)


def argument_parser(epilog: str) -> argparse.ArgumentParser:
    """detectron2's options and ``--fast-dev-run``."""
    parser = default_argument_parser(epilog)
    parser.add_argument(
        "--fast-dev-run",
        action="store_true",
        help="a few iterations of everything: train, evaluate on a few images, write a checkpoint",
    )
    return parser


def setup(args: argparse.Namespace) -> CfgNode:
    """Config from the arguments, logging, output folder; everything checked that needs no data.

    Where OUTPUT_DIR is not set, it is output/<folder and name of the config file>.

    Raises:
        ValueError, FileNotFoundError: what is wrong, where, and the fix.
    """
    if not args.config_file:
        raise ValueError("--config-file is missing: name one of configs/, such as configs/shapes/rc2l.yaml")
    cfg = load_config(args.config_file, args.opts)
    resolve_device(cfg, args.num_gpus)
    if cfg.OUTPUT_DIR == get_rc2l_cfg().OUTPUT_DIR:
        config = Path(args.config_file)
        cfg.OUTPUT_DIR = f"output/{config.parent.name}/{config.stem}"
    if args.fast_dev_run:
        cfg.OUTPUT_DIR = f"{cfg.OUTPUT_DIR}/fast_dev_run"
        cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD = 4, 2, 2
        cfg.SEMI.BURN_IN = min(cfg.SEMI.BURN_IN, 1)
        cfg.TEST.MAX_IMAGES = 4
        if comm.is_main_process() and not (args.resume or args.eval_only):
            shutil.rmtree(cfg.OUTPUT_DIR, ignore_errors=True)  # the last one's, worth nothing
        comm.synchronize()
    check_config(cfg)
    Method(cfg)
    amp_dtype(cfg)
    use_deterministic_kernels(cfg.DETERMINISTIC)
    cfg.freeze()
    _leave_earlier_logs()
    default_setup(cfg, args)
    # The loggers below "rc2l" and "__main__" go where detectron2's go.
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="rc2l")
    logger.info(f"method {cfg.SEMI.METHOD} on {cfg.MODEL.DEVICE}, {comm.get_world_size()} process(es)")
    return cfg


def _leave_earlier_logs() -> None:
    """A second run of this process shall write to its own log.txt alone; handlers other than detectron2's stay."""
    for name in ("detectron2", "fvcore", "rc2l"):
        log = logging.getLogger(name)
        for handler in log.handlers[:]:
            if type(handler) is logging.StreamHandler:
                log.removeHandler(handler)
    setup_logger.cache_clear()


def train(cfg: CfgNode, resume: bool) -> dict[str, float]:
    """Train, evaluate, write checkpoints; returns the last scores.

    Raises:
        ValueError: the data is not as it must be (:class:`~rc2l.data.errors.DatasetError`).
    """
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty: name a dataset that the networks are scored on")
    # Before the data: whoever has to fetch a file elsewhere shall know at once. The first process downloads it.
    if weights := initial_weights(cfg):
        raise_together(lambda: local_weights(weights))
    split = build_split(cfg)
    log_split(split)
    raise_together(lambda: check_data(cfg, split, cfg.DATASETS.TEST))
    trainer = SemiSupervisedTrainer(cfg, split)
    if resume or was_restarted():
        trainer.resume()
    elif comm.is_main_process() and (earlier := set_aside(Path(cfg.OUTPUT_DIR))):
        logger.warning(f"{cfg.OUTPUT_DIR} held a run, and --resume was not given: its files are now in {earlier}")
    return trainer.train()


def evaluate_only(cfg: CfgNode, resume: bool) -> dict[str, float]:
    """Score a checkpoint: teacher and student of ours, or the one network of another file.

    Args:
        cfg: the config; MODEL.WEIGHTS is the checkpoint.
        resume: take the newest checkpoint of OUTPUT_DIR instead.
    """
    path = cfg.MODEL.WEIGHTS
    if resume:
        last = Path(cfg.OUTPUT_DIR) / "last_checkpoint"
        if not last.exists():
            raise FileNotFoundError(f"--eval-only --resume: there is no checkpoint in {cfg.OUTPUT_DIR}")
        path = str(last.parent / last.read_text().strip())
    if not path:
        raise ValueError(
            "--eval-only needs weights: add MODEL.WEIGHTS <file>, or --resume for the newest of OUTPUT_DIR"
        )
    networks = {}
    for name in ("teacher", "student"):
        network = build_model(cfg)
        report = load_weights(network, path, prefer=name, cfg=cfg, strict=True)
        if not report.kind.endswith(name):  # not a checkpoint of ours: it holds a single network
            networks = {"model": network}
            break
        networks[name] = network
    return evaluate_networks(cfg, networks, build_test_loader)
