"""How fast one worker makes training samples, part by part, on generated JPEGs.

    python tools/benchmark.py data
    python tools/benchmark.py data --images cityscapes --config-file configs/cityscapes/rc2l_r101_1-8.yaml

Two sizes of images: VOC-like (500x375, crop 512) and Cityscapes-like (2048x1024, crop 768). All colour operations are
on, so that each has its row, unless a config says which. Times are CPU time of one thread; waiting for disks is not in.
"""

import rc2l  # noqa: F401  first of all: makes detectron2 importable

# isort: split
import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from PIL import Image
from tabulate import tabulate

from rc2l.data.image_rule import record_rule
from rc2l.data.loader import LABELED, UNLABELED, collate
from rc2l.data.mapper import LabeledMapper, UnlabeledMapper, seeded_randomness
from rc2l.data.partial_labels import read_record_label
from rc2l.data.reading import read_image
from rc2l.data.transforms import (
    build_padding,
    build_strong_augmentations,
    build_weak_augmentations,
)
from rc2l.engine.arguments import add_import_argument
from rc2l.engine.config_file import load_config
from rc2l.engine.entry_point import entry_point

_DATASET = "benchmark_sem_seg_train"
_NUM_CLASSES = 19
#: Name -> (height, width) of the images and what configs/ sets for such data.
PROFILES = {
    "voc": ((375, 500), ["INPUT.CROP.SIZE", "[512,512]", "INPUT.MIN_SIZE_TRAIN", "(256,1024)"]),
    "cityscapes": ((1024, 2048), ["INPUT.CROP.SIZE", "[768,768]", "INPUT.MIN_SIZE_TRAIN", "(512,2048)"]),
}
_ALL_ON = """
INPUT.FORMAT RGB INPUT.CROP.ENABLED True INPUT.CROP.TYPE absolute INPUT.MIN_SIZE_TRAIN_SAMPLING range
INPUT.MAX_SIZE_TRAIN 4096 INPUT.COLOR_AUG_SSD True INPUT.CROP.SINGLE_CATEGORY_MAX_AREA 0.9
INPUT.STRONG.COLOR_JITTER [0.25,0.25,0.25,0.25] INPUT.STRONG.COLOR_JITTER_PROB 1.0 INPUT.STRONG.BLUR_PROB 1.0
INPUT.STRONG.GRAYSCALE_PROB 1.0
""".split()


def paint(folder: Path, size: tuple[int, int], count: int) -> list[dict]:
    """``count`` JPEGs with smooth shapes and noise, and their labels, as dataset dicts of a registered dataset."""
    random = np.random.default_rng(0)
    H, W = size
    colors = random.integers(0, 256, (_NUM_CLASSES, 3))
    records = []
    for index in range(count):
        coarse = random.integers(0, _NUM_CLASSES, (6, 8), dtype=np.uint8)
        label = cv2.resize(coarse, (W, H), interpolation=cv2.INTER_NEAREST)
        image = cv2.GaussianBlur(colors[label].astype(np.float32), (0, 0), 3) + random.normal(0, 12, (H, W, 1))
        paths = folder / f"{index}.jpg", folder / f"{index}.png"
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(paths[0], quality=90)
        Image.fromarray(label).save(paths[1])
        records.append(
            {"file_name": str(paths[0]), "sem_seg_file_name": str(paths[1]), "image_id": index, "dataset": _DATASET}
        )
    if _DATASET not in DatasetCatalog.list():
        DatasetCatalog.register(_DATASET, list)
        MetadataCatalog.get(_DATASET).set(stuff_classes=[str(i) for i in range(_NUM_CLASSES)], ignore_label=255)
    return records


class Timer:
    """Seconds by name of part, one entry per call: CPU time, which other programs on the machine don't change."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def __call__(self, name: str, function, *args):
        start = time.thread_time()
        result = function(*args)
        self.seconds[name].append(time.thread_time() - start)
        return result

    def augment(self, view: T.AugInput, augmentations: list[T.Augmentation], prefix: str) -> None:
        """Apply ``augmentations`` to ``view`` in place, each timed under its own name."""
        for augmentation in augmentations:
            inner = getattr(augmentation, "aug", augmentation)  # what RandomApply wraps
            self(f"{prefix}: {type(inner).__name__}", augmentation, view)


def benchmark(cfg: CfgNode, records: list[dict], repeats: int) -> list[list]:
    """Rows of (part, ms per image, images per second of one worker), medians over images and repeats."""
    timer = Timer()
    labeled = build_weak_augmentations(cfg)
    weak, strong = build_weak_augmentations(cfg, labeled=False), build_strong_augmentations(cfg)
    padding = build_padding(cfg)
    mappers = {LABELED: LabeledMapper(cfg), UNLABELED: UnlabeledMapper(cfg)}
    for repeat in range(repeats + 1):
        if repeat == 1:  # the first pass warms caches up
            timer.seconds.clear()
        samples = []
        for index, record in enumerate(records):
            with seeded_randomness(repeat, index):
                image = timer("decode image", read_image, record["file_name"], cfg.INPUT.FORMAT, record_rule(record))
                label = timer("decode label", read_record_label, record)
                timer.augment(T.AugInput(image, sem_seg=label), [*labeled, padding], "labeled")
                view = T.AugInput(image)
                timer.augment(view, weak, "weak")
                timer.augment(view, strong, "strong")
            for stream, name in ((LABELED, "whole labelled sample"), (UNLABELED, "whole unlabelled sample, two views")):
                with seeded_randomness(repeat, index):
                    samples.append((stream, timer(name, mappers[stream], record)))
        start = time.thread_time()
        collate(samples)
        timer.seconds["collate (per image)"].append((time.thread_time() - start) / len(samples))
    medians = {name: statistics.median(seconds) for name, seconds in timer.seconds.items()}
    return [[name, 1000 * seconds, 1 / seconds] for name, seconds in medians.items()]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``benchmark.py data``."""
    parser.add_argument("--images", choices=[*PROFILES, "all"], default="all", help="which kind of images")
    parser.add_argument("--num-images", type=int, default=8, help="images of each kind, 1 or more")
    parser.add_argument("--repeats", type=int, default=3, help="passes over the images, 1 or more")
    parser.add_argument("--config-file", default="", help="augmentations of a config instead of all of them")
    add_import_argument(parser)
    parser.add_argument("overrides", nargs="*", help="config KEY VALUE pairs")


def run(args: argparse.Namespace) -> None:
    """Print one table for each kind of images.

    Raises:
        ValueError: a number is below 1, or a config key is bad.
    """
    for name in ("num_images", "repeats"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be 1 or more")
    cv2.setNumThreads(0)  # as in a worker of the loader
    for kind in PROFILES if args.images == "all" else [args.images]:
        size, profile = PROFILES[kind]
        cfg = load_config(args.config_file, [*([] if args.config_file else _ALL_ON + profile), *args.overrides])
        with tempfile.TemporaryDirectory() as scratch:
            rows = benchmark(cfg, paint(Path(scratch), size, args.num_images), args.repeats)
        crop = cfg.INPUT.CROP.SIZE
        print(f"\n{kind}: JPEGs of {size[1]}x{size[0]}, crop {crop[1]}x{crop[0]}, one worker:\n")
        headers = ["part", "ms per image", "images/s"]
        print(tabulate(rows, headers, tablefmt="pipe", floatfmt=(None, ".2f", ".1f")))


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    args = parser.parse_args()
    run(args)


if __name__ == "__main__":
    main()
