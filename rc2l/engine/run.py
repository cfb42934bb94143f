"""From command-line arguments to a finished run: config, checks, training or evaluation."""

import argparse
import logging
import shutil
from contextlib import ExitStack
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng

import rc2l.modeling  # noqa: F401  registers the architectures
from rc2l.config import get_rc2l_cfg
from rc2l.data.check import check_data, damaged_unlabeled
from rc2l.data.loader import build_test_loader
from rc2l.data.splits import build_split, log_split, without_unlabeled
from rc2l.engine.arguments import add_import_argument, add_run_argument
from rc2l.engine.checkpoint import newest_whole_checkpoint
from rc2l.engine.checkpoint_file import write_text
from rc2l.engine.config_file import check_config, load_config
from rc2l.engine.entry_point import write_traces_to
from rc2l.engine.launch import by_main_process, raise_together, resolve_device, use_deterministic_kernels, was_restarted
from rc2l.engine.run_folder import complete_move, files_of_a_run, set_aside
from rc2l.engine.run_lock import refuse_if_held, run_lock
from rc2l.engine.run_log import open_log, start_logging
from rc2l.engine.tracking import check_tracker
from rc2l.engine.trainer import SemiSupervisedTrainer
from rc2l.engine.training_check import check_training, explained_build
from rc2l.evaluation import evaluate_networks
from rc2l.modeling.weight_files import networks_in_file
from rc2l.modeling.weight_sources import initial_weights, local_weights
from rc2l.modeling.weights import load_weights
from rc2l.semi.method import method_of

logger = logging.getLogger(__name__)


def argument_parser(epilog: str) -> argparse.ArgumentParser:
    """detectron2's options, ``--run``, ``--import`` and ``--fast-dev-run``."""
    parser = default_argument_parser(epilog)
    add_run_argument(parser)
    add_import_argument(parser)
    parser.add_argument(
        "--fast-dev-run",
        action="store_true",
        help="a few iterations of everything: train, evaluate on a few images, write a checkpoint",
    )
    return parser


def setup(args: argparse.Namespace) -> CfgNode:
    """Config from the arguments, logging; everything checked that needs no data. Nothing is written.

    Where OUTPUT_DIR is not set, it is output/<folder and name of the config file>.

    Raises:
        ValueError, FileNotFoundError: what is wrong, where, and the fix.
    """
    cfg = checked_config(args)
    use_deterministic_kernels(cfg.DETERMINISTIC)
    cfg.freeze()
    start_logging()
    logger.info(f"Environment:\n{collect_env_info()}")
    logger.info(f"Command line: {args}")
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
    if not args.eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK and not cfg.DETERMINISTIC
    logger.info(f"method {cfg.SEMI.METHOD} on {cfg.MODEL.DEVICE}, {comm.get_world_size()} process(es)")
    return cfg


def checked_config(args: argparse.Namespace) -> CfgNode:
    """The config of the arguments, all of it checked; what :func:`setup` and ``tools/doctor.py`` begin with.

    Raises:
        ValueError, FileNotFoundError: as :func:`setup`.
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
    check_config(cfg)
    check_training(cfg)
    return cfg


def train(cfg: CfgNode, resume: bool, *, replace: bool = False) -> dict[str, float]:
    """Train, evaluate, write checkpoints; returns the last scores.

    OUTPUT_DIR changes only after all checks have passed, and under a lock.

    Args:
        cfg: the config.
        resume: continue the run in OUTPUT_DIR.
        replace: delete an earlier run's files there instead of moving them aside.

    Raises:
        ValueError: the data is not as it must be (:class:`~rc2l.data.errors.DatasetError`), another run works in
            OUTPUT_DIR, or its checkpoints cannot be continued from.
    """
    folder = Path(cfg.OUTPUT_DIR)
    raise_together(lambda: refuse_if_held(folder))
    trainer = prepare(cfg)
    with ExitStack() as stack:
        raise_together(lambda: stack.enter_context(run_lock(folder)))
        raise_together(lambda: complete_move(folder))
        continued = (resume or was_restarted()) and trainer.resume()
        if not continued:
            raise_together(lambda: _clear(folder, replace))
        _open_folder(cfg, folder)
        raise_together(trainer.start_tracking)
        return trainer.train()


def prepare(cfg: CfgNode) -> SemiSupervisedTrainer:
    """All that training needs, checked, with nothing written; ``tools/doctor.py`` does the same.

    Raises:
        ValueError, FileNotFoundError: weights that cannot be had or do not fit, networks that cannot be built, or data
            that is not as it must be (:class:`~rc2l.data.errors.DatasetError`).
    """
    check_tracker(cfg)
    # Before the data: whoever has to fetch a file elsewhere shall know at once. The first process downloads it.
    if weights := initial_weights(cfg):
        raise_together(lambda: local_weights(weights))
    needs = method_of(cfg).needs
    split = build_split(cfg, needs)
    if cfg.DATASETS.DAMAGED == "skip" and needs.unlabeled:
        split = without_unlabeled(split, by_main_process(lambda: damaged_unlabeled(split)))
    log_split(split)
    with explained_build():
        trainer = SemiSupervisedTrainer(cfg, split)
    raise_together(lambda: check_data(cfg, split, cfg.DATASETS.TEST, needs))
    return trainer


def _clear(folder: Path, replace: bool) -> None:
    """Leave nothing of an earlier run where a new one begins."""
    if replace:
        for path in files_of_a_run(folder):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    elif earlier := set_aside(folder):
        logger.warning(f"{folder} held files of an earlier run that is not continued: they are now in {earlier}")


def _open_folder(cfg: CfgNode, folder: Path) -> None:
    """Write config.yaml and begin log.txt."""
    raise_together(lambda: folder.mkdir(parents=True, exist_ok=True))
    open_log(folder)
    write_traces_to(folder)
    path = folder / "config.yaml"
    raise_together(lambda: write_text(path, cfg.dump()))
    logger.info(f"Full config saved to {path}")


def evaluate_only(cfg: CfgNode, resume: bool) -> dict[str, float]:
    """Score a checkpoint: every network of one of ours, or the one network of another file.

    The tables, the config and the log go to OUTPUT_DIR/eval_only: a run may be at work in OUTPUT_DIR itself.

    Args:
        cfg: the config; MODEL.WEIGHTS is the checkpoint.
        resume: take the newest whole checkpoint of OUTPUT_DIR instead, the one that a resumed run would take.

    Raises:
        ValueError, FileNotFoundError: there is no such checkpoint, or it cannot be read or does not fit.
    """
    path = cfg.MODEL.WEIGHTS
    if resume:
        found, _, failure = newest_whole_checkpoint(Path(cfg.OUTPUT_DIR))
        if failure:
            raise ValueError(failure)
        if found is None:
            raise FileNotFoundError(f"--eval-only --resume: there is no checkpoint in {cfg.OUTPUT_DIR}")
        path = str(found)
    if not path:
        raise ValueError(
            "--eval-only needs weights: add MODEL.WEIGHTS <file>, or --resume for the newest of OUTPUT_DIR"
        )
    networks = {}
    for name in networks_in_file(path) or ["model"]:
        with explained_build():
            networks[name] = build_model(cfg)
        load_weights(networks[name], path, prefer="" if name == "model" else name, cfg=cfg, strict=True)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR) / "eval_only")
    cfg.freeze()
    _open_folder(cfg, Path(cfg.OUTPUT_DIR))
    return evaluate_networks(cfg, networks, build_test_loader)
