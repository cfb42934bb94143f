"""Where the time of a step goes, and that of the data.

    python tools/benchmark.py data                      # images per second of every part of the loader
    python tools/benchmark.py step                      # R50, crop 256, 2 labelled + 2 unlabelled images
    python tools/benchmark.py step --config-file configs/shapes/rc2l.yaml --repeats 20
    python tools/benchmark.py reco                      # the ReCo loss alone
    python tools/benchmark.py dgcl                      # the DGCL loss and its memory bank alone
    python tools/benchmark.py run                       # the overhead of safety: tools/benchmark_checkpoint.py

``step`` times one training step of RC²L part by part, on images made up for it, and compares the whole with its floor:
forward and backward of the student on the same images under a trivial loss, and the teacher's forward. Medians over the
repeats; floor and step alternate, so that the ratio holds on a machine whose speed drifts.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import benchmark_data
import torch
from benchmark_checkpoint import benchmark_run
from benchmark_dgcl import benchmark_dgcl
from benchmark_reco import benchmark_reco
from detectron2.config import CfgNode
from tabulate import tabulate

from rc2l.data.datasets.shapes import generate_shapes
from rc2l.data.loader import build_train_loader
from rc2l.data.splits import build_split
from rc2l.engine.arguments import add_import_argument
from rc2l.engine.config_file import load_config
from rc2l.engine.entry_point import entry_point
from rc2l.engine.launch import resolve_device
from rc2l.engine.trainer import SemiSupervisedTrainer
from rc2l.losses import rc2l as region
from rc2l.semi.labeler import STUDENT
from rc2l.semi.objectives import mask_former
from rc2l.structures.training_batch import TrainingBatch
from rc2l.structures.views import PseudoLabels

#: A published-size MaskFormer on the made-up images, batch 2 + 2 at crop 256.
R50 = """
MODEL.META_ARCHITECTURE MaskFormer MODEL.BACKBONE.FREEZE_AT 0 MODEL.RESNETS.DEPTH 50 MODEL.RESNETS.NORM FrozenBN
MODEL.RESNETS.STRIDE_IN_1X1 False MODEL.RESNETS.OUT_FEATURES ['res2','res3','res4','res5']
MODEL.SEM_SEG_HEAD.NAME MaskFormerHead MODEL.SEM_SEG_HEAD.IN_FEATURES ['res2','res3','res4','res5']
MODEL.SEM_SEG_HEAD.NUM_CLASSES 9 MODEL.SEM_SEG_HEAD.CONVS_DIM 256 MODEL.MASK_FORMER.NUM_OBJECT_QUERIES 50
MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME TransformerEncoderPixelDecoder MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS 6
MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE transformer_encoder MODEL.PIXEL_STD [58.395,57.12,57.375]
INPUT.FORMAT RGB INPUT.CROP.ENABLED True INPUT.CROP.TYPE absolute INPUT.CROP.SIZE [256,256]
INPUT.MIN_SIZE_TRAIN (256,320) INPUT.MAX_SIZE_TRAIN 640 SOLVER.LR_SCHEDULER_NAME WarmupPolyLR
SOLVER.IMS_PER_BATCH 2 SOLVER.IMS_PER_BATCH_UNLABELED 2 SOLVER.CLIP_GRADIENTS.ENABLED True
SOLVER.CLIP_GRADIENTS.CLIP_TYPE full_model SOLVER.CLIP_GRADIENTS.CLIP_VALUE 0.01
""".split()

#: Applied after the config of the user: the images are ours, and the unsupervised loss runs from the first step.
DATA = """
DATASETS.TRAIN ('shapes_sem_seg_train',) DATASETS.TEST () DATASETS.SPLIT.FRACTION 1/2 SEMI.BURN_IN 0 SEMI.METHOD rc2l
MODEL.WEIGHTS '' DATALOADER.NUM_WORKERS 0 SEED 0
""".split()


class Stopwatch:
    """Seconds spent in named parts; a part inside another is counted in both."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = self.now()
        yield
        self.seconds[name].append(self.now() - start)

    def timed(self, name: str, function: Callable) -> Callable:
        def wrapper(*args, **kwargs):
            with self.part(name):
                return function(*args, **kwargs)

        return wrapper


#: Rows of the table -> (object, attribute) that is timed, given the trainer.
PARTS: dict[str, Callable[[SemiSupervisedTrainer], tuple[object, str]]] = {
    "teacher and pseudo labels": lambda trainer: (trainer, "label"),
    "mixing": lambda trainer: (trainer, "mix"),
    "student forward": lambda trainer: (trainer, "model"),
    "matching": lambda trainer: (trainer.learners[STUDENT].matching, "matcher"),
    "supervised loss": lambda _: (mask_former, "set_criterion"),
    "RCC": lambda _: (region, "region_class_consistency"),
    "SMC: union": lambda _: (region, "semantic_union"),
    "SMC: focal and dice": lambda _: (region, "semantic_mask_consistency"),
    "RMC": lambda _: (region, "region_mask_contrast"),
    "RFC": lambda _: (region, "region_feature_contrast"),
    "backward": lambda _: (torch.Tensor, "backward"),
    "optimizer": lambda trainer: (trainer.optimizer, "step"),
    "EMA": lambda trainer: (trainer.labeler, "after_step"),
}


def floor(trainer: SemiSupervisedTrainer, batch: TrainingBatch) -> None:
    """What a step cannot do without: both networks on these images, and one backward pass."""
    with torch.no_grad():
        trainer.labeler.labels_for(STUDENT)(batch.unlabeled_images, auxiliary=False)
    output = trainer.model({STUDENT: torch.cat([batch.labeled_images, *batch.strong_images])})[STUDENT]
    loss = sum(logits.float().mean() + masks.float().mean() for logits, masks in output.layers())
    trainer.optimizer.zero_grad()
    loss.backward()


def use_true_regions(trainer: SemiSupervisedTrainer) -> None:
    """Give pseudo labels the regions of the labelled images: an untrained teacher would see one class everywhere."""
    label = trainer.label

    def label_as_trained(batch: TrainingBatch) -> dict[str, PseudoLabels]:
        labels = label(batch)
        pseudo = labels[STUDENT]
        copies = -(-len(pseudo.label_map) // len(batch.labeled_targets))
        pseudo.label_map = batch.labeled_targets.repeat(copies, 1, 1)[: len(pseudo.label_map)]
        return labels

    trainer.label = label_as_trained


def benchmark_step(cfg: CfgNode, repeats: int, warmup: int = 2) -> None:
    """Print the table of parts and the ratio of a step to its floor."""
    trainer = SemiSupervisedTrainer(cfg, build_split(cfg))
    use_true_regions(trainer)
    batches = iter(build_train_loader(cfg, trainer.split, seed=0))
    watch = Stopwatch(trainer.device)
    for repeat in range(warmup + repeats):
        if repeat == warmup:
            watch.seconds.clear()
        with watch.part("data"):
            batch = next(batches)
        batch = batch.to(trainer.device)
        with watch.part("floor"):
            floor(trainer, batch)
        with watch.part("step"):
            trainer.step(batch, repeat)
    whole = statistics.median(watch.seconds["step"])
    ratio = statistics.median(
        step / lowest for step, lowest in zip(watch.seconds["step"], watch.seconds["floor"], strict=True)
    )
    data, lowest = statistics.median(watch.seconds["data"]), statistics.median(watch.seconds["floor"])

    watch.seconds.clear()
    for repeat in range(repeats):
        batch = next(batches).to(trainer.device)
        with timed_parts(trainer, watch):
            trainer.step(batch, repeat)
    rows = [["data (one process, no worker)", data * 1000, 100 * data / whole]]
    for name in PARTS:
        seconds = statistics.median(watch.seconds[name])
        rows.append([name, seconds * 1000, 100 * seconds / whole])
    rows.append(["whole step, without data", whole * 1000, 100.0])
    rows.append(["floor: both forwards and backward", lowest * 1000, 100 * lowest / whole])
    height, width = cfg.INPUT.CROP.SIZE
    print(
        f"\none RC²L step on {trainer.device}, {torch.get_num_threads()} thread(s), ResNet-{cfg.MODEL.RESNETS.DEPTH}, "
        f"crop {height}x{width}, {cfg.SOLVER.IMS_PER_BATCH} labelled + {cfg.SOLVER.IMS_PER_BATCH_UNLABELED} unlabelled "
        f"images, median of {repeats}:\n"
    )
    print(tabulate(rows, ["part", "ms", "% of step"], tablefmt="pipe", floatfmt=(None, ".1f", ".1f")))
    print(f"\nwhole step / floor: {ratio:.3f} (median of the ratios of {repeats} pairs)")


@contextmanager
def timed_parts(trainer: SemiSupervisedTrainer, watch: Stopwatch) -> Iterator[None]:
    """Within it, every part of :data:`PARTS` reports its time."""
    patches = []
    for name, locate in PARTS.items():
        owner, attribute = locate(trainer)
        # A module cannot be replaced by a function as an attribute of the trainer's own dict without losing state_dict,
        # so the student is timed at its forward.
        if isinstance(getattr(owner, attribute), torch.nn.Module):
            owner, attribute = getattr(owner, attribute), "forward"
        patches.append(mock.patch.object(owner, attribute, watch.timed(name, getattr(owner, attribute))))
    try:
        for patch in patches:
            patch.start()
        yield
    finally:
        mock.patch.stopall()


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    step = commands.add_parser("step", help="one RC²L step, part by part, against its floor")
    run = commands.add_parser("run", help="what checks, agreement and checkpoints cost")
    for command in (step, run):
        command.add_argument("--config-file", default="", help="a config instead of R50 at crop 256, batch 2 + 2")
        command.add_argument("--repeats", type=int, default=7)
        add_import_argument(command)
        command.add_argument("overrides", nargs="*", help="config KEY VALUE pairs")
    benchmark_data.add_arguments(commands.add_parser("data", help="images per second of each part of the loader"))
    losses = {"reco": (benchmark_reco, "the ReCo loss alone"), "dgcl": (benchmark_dgcl, "the DGCL loss and its memory")}
    for name, (_, subject) in losses.items():
        loss = commands.add_parser(name, help=f"{subject}: time and peak memory")
        loss.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    if args.command == "data":
        benchmark_data.run(args)
        return
    if args.command in losses:
        losses[args.command][0](args.repeats, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        return

    cfg = load_config(args.config_file, ([] if args.config_file else R50) + DATA + args.overrides)
    resolve_device(cfg, num_gpus=1)
    with tempfile.TemporaryDirectory() as scratch, mock.patch.dict("os.environ", DETECTRON2_DATASETS=scratch):
        cfg.OUTPUT_DIR = scratch
        generate_shapes(Path(scratch), num_train=16, num_val=1, size=320)
        (benchmark_step if args.command == "step" else benchmark_run)(cfg, args.repeats)


if __name__ == "__main__":
    main()
