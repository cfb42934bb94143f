#!/usr/bin/env python3
"""Check that this machine can train: one line a finding, with its fix.

    python tools/doctor.py
    python tools/doctor.py --config-file configs/voc/rc2l_r101_1-16.yaml     # also all that a training of it checks

With a config, everything is checked that train_net.py checks before its first step: keys, folder, weights, networks,
split, and every file of the datasets. Exit status: 0, nothing stands in the way (warnings may); 1, something does.
"""

import argparse
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

if TYPE_CHECKING:
    from detectron2.config import CfgNode

OK, WARNING, PROBLEM = "ok", "warning", "problem"
#: name -> oldest version that is known to work; detectron2 is looked at by itself.
PACKAGES = {
    "torch": (2, 6),
    "torchvision": (0, 21),
    "numpy": (2, 0),
    "scipy": (1, 11),
    "opencv-python-headless": (4, 9),
    "pycocotools": (2, 0),
    "fvcore": (0, 1),
}
MIN_DISK = 5 * 2**30
MIN_SHARED_MEMORY = 1 * 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    level: str
    text: str
    #: What to do; empty where all is well.
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.level:8} {self.text}" + (f" -> {self.fix}" if self.fix else "")


def versions() -> Iterator[Finding]:
    """Python and the packages that matter."""
    current = sys.version_info[:2]
    good = (3, 10) <= current < (3, 14)
    yield Finding(OK if good else PROBLEM, f"Python {platform.python_version()}", "" if good else "use 3.10 to 3.13")
    for name, oldest in PACKAGES.items():
        wanted = ".".join(map(str, oldest))
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(
                PROBLEM,
                f"{name} is not installed",
                f"install {name}>={wanted} (pip install . in a clone, or make install)",
            )
            continue
        numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
        good = numbers >= oldest
        yield Finding(
            OK if good else PROBLEM,
            f"{name} {version}",
            "" if good else f"install {name}>={wanted} (pip install . in a clone, or make install)",
        )


def detectron2_flavour() -> Iterator[Finding]:
    """Which detectron2 is there, and whether it can be imported."""
    try:
        import detectron2

        from rc2l.compat import has_compiled_operators
    except Exception as error:  # anything can go wrong in an import of a broken build
        reason = str(error).split("\n")[0]
        yield Finding(
            PROBLEM, f"detectron2 cannot be imported: {reason}", "pip install . in a clone of RC²L, or make install"
        )
        return
    kind = "with compiled operators" if has_compiled_operators() else "without compiled operators, none is needed"
    yield Finding(OK, f"detectron2 {detectron2.__version__}, {kind}")


def devices() -> Iterator[Finding]:
    """GPUs or the lack of them."""
    import torch

    count = torch.cuda.device_count()
    for index in range(count):
        properties = torch.cuda.get_device_properties(index)
        bf16 = "bfloat16" if torch.cuda.is_bf16_supported() else "float16 only"
        yield Finding(OK, f"GPU {index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bf16}")
    if not count:
        built = "a CPU build of torch" if torch.version.cuda is None else "no usable driver or device"
        yield Finding(WARNING, f"no GPU ({built}), {os.cpu_count()} CPU cores", "expect small datasets only")


def disk(folder: Path, needed: int = MIN_DISK) -> Iterator[Finding]:
    """Free space and the right to write where checkpoints go."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    fix = "" if free >= needed else f"free {needed / 2**30:.0f} GiB, or choose another OUTPUT_DIR"
    yield Finding(OK if not fix else WARNING, f"{free / 2**30:.1f} GiB free in {folder.resolve()}", fix)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        yield Finding(
            PROBLEM, f"{folder.resolve()} cannot be written to: {error.strerror}", "choose another OUTPUT_DIR"
        )


def shared_memory(folder: Path = Path("/dev/shm"), needed: int = MIN_SHARED_MEMORY) -> Iterator[Finding]:
    """What loader workers hand their batches over in."""
    if not folder.exists():
        return
    size = shutil.disk_usage(folder).total
    fix = "" if size >= needed else "docker run --shm-size=8g, or DATALOADER.NUM_WORKERS 0"
    yield Finding(OK if not fix else WARNING, f"{size / 2**30:.1f} GiB shared memory in {folder}", fix)


def datasets(names: tuple[str, ...] | None) -> Iterator[Finding]:
    """Which datasets are there: those of a config, where missing is a problem, or all that the project knows."""
    from rc2l.data.datasets import known_datasets, load_records

    # detectron2 registers more, which no config here uses.
    own = [name for name in known_datasets() if "_sem_seg_" in name and not name.startswith("ade20k")]
    wanted = own if names is None else names
    for name in wanted:
        try:
            count = len(load_records(name))
            yield Finding(OK, f"dataset {name}: {count} images")
        except (ValueError, OSError, KeyError, AssertionError) as error:
            level = WARNING if names is None else PROBLEM
            reason, _, fix = " ".join(str(error).split()).removeprefix(f"dataset '{name}': ").partition("; ")
            yield Finding(level, f"dataset {name}: {reason}", fix or "see datasets/README.md")


def weights(cfg: "CfgNode") -> Iterator[Finding]:
    """Whether the initial weights of a config are there, or can be fetched (which is done)."""
    from rc2l.modeling.weight_sources import initial_weights, local_weights

    if path := initial_weights(cfg):
        try:
            yield Finding(OK, f"weights {path}: {local_weights(path)}")
        except (ValueError, OSError) as error:
            reason, _, fix = str(error).removeprefix("MODEL.WEIGHTS: ").rpartition("; ")
            yield Finding(PROBLEM, f"weights: {reason or fix}", fix if reason else "see configs/README.md")


def training(cfg: "CfgNode") -> Iterator[Finding]:
    """All that a training checks before it writes anything, by the same functions."""
    from rc2l.engine.run import prepare
    from rc2l.engine.run_lock import refuse_if_held

    try:
        refuse_if_held(Path(cfg.OUTPUT_DIR))
        trainer = prepare(cfg)
    except (ValueError, OSError) as error:
        yield Finding(PROBLEM, " ".join(str(error).split()), "correct it and ask the doctor again")
        return
    if damaged := trainer.split.damaged:
        yield Finding(
            WARNING,
            f"{len(damaged)} damaged unlabelled images are left out (DATASETS.DAMAGED skip), first {damaged[0]}",
            "restore them, or take them out of the dataset",
        )
    images = f"{len(trainer.split.labeled)} labelled and {len(trainer.split.unlabeled)} unlabelled images"
    yield Finding(OK, f"training by {cfg.SEMI.METHOD} on {trainer.device} can start: {images}")


def self_test() -> Iterator[Finding]:
    """One training step on made-up images."""
    from rc2l.data.datasets.shapes import generate_shapes
    from rc2l.data.splits import build_split
    from rc2l.engine.config_file import load_config
    from rc2l.engine.launch import resolve_device
    from rc2l.engine.trainer import SemiSupervisedTrainer

    config = Path(__file__).resolve().parent.parent / "configs/shapes/rc2l.yaml"
    overrides = "SOLVER.MAX_ITER 1 SEMI.BURN_IN 0 SOLVER.IMS_PER_BATCH 2 SOLVER.IMS_PER_BATCH_UNLABELED 2".split()
    with tempfile.TemporaryDirectory() as scratch, mock.patch.dict("os.environ", DETECTRON2_DATASETS=scratch):
        generate_shapes(Path(scratch), num_train=16, num_val=1, size=64)
        cfg = load_config(str(config), [*overrides, "OUTPUT_DIR", scratch])
        resolve_device(cfg, num_gpus=1)
        trainer = SemiSupervisedTrainer(cfg, build_split(cfg))
        trainer.train()
        yield Finding(OK, f"one training step on {trainer.device}")


def guarded(check: Callable[[], Iterator[Finding]], name: str) -> Iterator[Finding]:
    """The findings of a check, whose failure is a finding too."""
    try:
        yield from check()
    except Exception as error:  # the doctor survives every patient
        reason = " ".join(str(error).split())[:300]
        yield Finding(PROBLEM, f"{name}: {type(error).__name__}: {reason}", "see above, or report it with this output")


def main() -> int:
    from rc2l.engine.arguments import add_import_argument, import_modules

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", help="check what this config needs")
    parser.add_argument("overrides", nargs="*", help="config KEY VALUE pairs")
    add_import_argument(parser, at_once=False)
    args = parser.parse_args()
    output, names, cfg = Path("output"), None, None
    findings = [*guarded(versions, "versions"), *guarded(detectron2_flavour, "detectron2")]
    for finding in findings:
        print(finding)
    if all(finding.level != PROBLEM for finding in findings):
        if args.config_file:
            from rc2l.engine.run import argument_parser, checked_config

            try:
                import_modules(args.imports)
                cfg = checked_config(
                    argument_parser("").parse_args(["--config-file", args.config_file, *args.overrides])
                )
            except (ValueError, OSError) as error:
                print(Finding(PROBLEM, " ".join(str(error).split()), "correct the config or the command line"))
                return 1
            output = Path(cfg.OUTPUT_DIR)
            names = tuple(dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.UNLABELED, *cfg.DATASETS.TEST]))
        checks = {
            "devices": devices,
            "disk": lambda: disk(output),
            "shared memory": shared_memory,
            "datasets": lambda: datasets(names),
            "weights": lambda: weights(cfg) if cfg is not None else iter(()),
            "self test": self_test,
        }
        if args.config_file:
            checks["training"] = lambda: training(cfg)
        for name, check in checks.items():
            if name == "training" and any(finding.level == PROBLEM for finding in findings):
                break  # it would say the same again
            for finding in guarded(check, name):
                print(finding, flush=True)
                findings.append(finding)
    problems = sum(finding.level == PROBLEM for finding in findings)
    print(f"{problems} problem(s), {sum(finding.level == WARNING for finding in findings)} warning(s)")
    return 1 if problems else 0


if __name__ == "__main__":
    try:
        import rc2l  # noqa: F401  makes detectron2 importable
    except ImportError as error:
        sys.exit(f"{PROBLEM:8} {error}")
    from rc2l.engine.entry_point import entry_point

    sys.exit(entry_point(main)())
