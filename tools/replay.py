#!/usr/bin/env python3
"""Do the step again at which a run stopped because a loss was not finite.

    python tools/replay.py output/shapes/rc2l/divergence_0000123_rank0.pth

Prints the images, which modules first gave something that is not finite, each loss, and whether the error came back.
Exit status: 0, it did; 1, it did not; 2, the file cannot be read. Of a run on several processes, the dump holds one
process's images: losses are then normalised by its own number of regions.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from rc2l.config import get_rc2l_cfg
from rc2l.data.datasets import register_custom_datasets
from rc2l.engine.arguments import add_import_argument
from rc2l.engine.checkpoint import with_objectives
from rc2l.engine.checkpoint_file import DamagedCheckpointError, read_checkpoint
from rc2l.engine.config_file import check_config, merge_yaml
from rc2l.engine.entry_point import entry_point
from rc2l.engine.launch import resolve_device
from rc2l.engine.trainer import SemiSupervisedTrainer
from rc2l.engine.training_check import check_networks, explained_build
from rc2l.structures.training_batch import TrainingBatch
from rc2l.yaml_file import parse_yaml_mapping


def rebuild(dump: dict, num_gpus: int = 1) -> tuple[SemiSupervisedTrainer, TrainingBatch]:
    """Trainer in the state before the step, and what its process saw.

    Raises:
        DamagedCheckpointError: the dump lacks something.
    """
    missing = [key for key in ("config", "step", "batch", "model", "scaler") if key not in dump]
    if missing:
        raise DamagedCheckpointError(f"this is no dump of a step: it lacks {', '.join(missing)}")
    _check_step(dump["step"])
    cfg = get_rc2l_cfg()
    merge_yaml(cfg, parse_yaml_mapping(dump["config"], "the dump's config"), "the dump's config")
    cfg.MODEL.WEIGHTS = ""
    check_config(cfg)
    check_networks(cfg)
    resolve_device(cfg, num_gpus)
    register_custom_datasets(cfg)
    with explained_build():
        trainer = SemiSupervisedTrainer(cfg, split=None)
    try:
        dump = with_objectives(dump)
        for name, part in trainer.parts_of_a_step().items():
            part.load_state_dict(dump[name])
        batch = TrainingBatch(**dump["batch"])
        _check_batch(batch)
        batch = batch.to(trainer.device)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DamagedCheckpointError(f"the dump does not fit its config: {type(error).__name__}: {reason}") from error
    step = dump["step"]
    trainer.iter, trainer.seed, trainer.rank = step["iteration"], step["seed"], step["rank"]
    if step["following"] and step["world_size"] > 1:  # what the next process gave, which is not here
        following = iter([[tensor.to(trainer.device) for tensor in view] for view in step["following"]])
        trainer.exchange = lambda _: next(following)
    return trainer, batch


def _check_batch(batch: TrainingBatch) -> None:
    """Raise ValueError where a batch is not as the loader makes it."""
    labeled, unlabeled = len(batch.labeled_images), len(batch.unlabeled_images)
    H, W = batch.labeled_targets.shape[-2:]
    shapes = {
        "labeled_images": (labeled, 3, H, W),
        "labeled_targets": (labeled, H, W),
        "unlabeled_images": (unlabeled, 3, H, W),
        "strong_images": (len(batch.strong_images), unlabeled, 3, H, W),
        "unlabeled_valid": (unlabeled, H, W),
    }
    for name, shape in shapes.items():
        tensor, kind = getattr(batch, name), torch.bool if name == "unlabeled_valid" else torch.uint8
        absent = not unlabeled and not name.startswith("labeled")
        if tensor.dtype != kind or (tensor.shape != shape and not absent):
            raise ValueError(f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}, not {kind} of {shape}")
    for name in ("labeled_files", "unlabeled_files"):
        if not all(isinstance(file, str) for file in getattr(batch, name)):
            raise ValueError(f"{name} is no list of names")


def _check_step(step: object) -> None:
    """Compare the entry "step" of a dump with what write_dump gives it."""
    kinds = {"iteration": int, "seed": int, "rank": int, "world_size": int, "error": str, "following": list}
    if not isinstance(step, dict):
        raise DamagedCheckpointError(f"this is no dump of a step: its step is a {type(step).__name__}")
    for name, kind in kinds.items():
        if not isinstance(step.get(name), kind):
            raise DamagedCheckpointError(
                f"this is no dump of a step: its {name} is {step.get(name)!r:.80}, not of type {kind.__name__}"
            )
    views = step["following"]
    if not all(isinstance(view, list) and all(isinstance(each, Tensor) for each in view) for view in views):
        raise DamagedCheckpointError("this is no dump of a step: what follows is no list of tensors for each view")


@contextmanager
def first_bad_modules(model: nn.Module, found: list[str], limit: int = 3) -> Iterator[None]:
    """Within it, ``found`` collects the first modules whose output is not finite."""

    def look(name: str):
        def hook(_module, _inputs, output) -> None:
            if len(found) < limit and isinstance(output, Tensor) and not torch.isfinite(output.sum()):
                found.append(name)

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def replay(path: str, num_gpus: int = 1) -> bool:
    """Do the step of a dump again and report; True if the error came back."""
    dump = read_checkpoint(Path(path))
    trainer, batch = rebuild(dump, num_gpus)
    step = dump["step"]
    print(f"iteration {step['iteration']}, process {step['rank']} of {step['world_size']}, seed {step['seed']}")
    print(f"the run said: {step['error']}")
    for kind, files in (("labeled", batch.labeled_files), ("unlabeled", batch.unlabeled_files)):
        print(f"{kind} images: {', '.join(files) or 'none'}")
    bad: list[str] = []
    trainer.seed_step()
    try:
        with first_bad_modules(trainer.model, bad):
            metrics = trainer.step(batch, step["iteration"])()
    except FloatingPointError as error:
        print(f"first modules with an output that is not finite: {', '.join(bad) or 'none'}")
        print(f"the replay said: {error}")
        return True
    for name, value in metrics.items():
        print(f"{name}: {value.item():.6g}")
    print("the replay is finite: it depends on the other processes, the device or the kernels")
    return False


@entry_point
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dump", help="divergence_<iteration>_rank<r>.pth in the OUTPUT_DIR of the run")
    parser.add_argument("--num-gpus", type=int, default=1, help="0: replay on the CPU")
    add_import_argument(parser)
    args = parser.parse_args()
    return 0 if replay(args.dump, args.num_gpus) else 1


if __name__ == "__main__":
    sys.exit(main())
