"""Train methods on few labels of `shapes`, compare them: one table, one picture.

    python tools/demo.py                                  # supervised and rc2l, one seed
    python tools/demo.py --methods all --seeds 3 4 5 --output output/table

KEY VALUE pairs of the config can stand at the end. Each run is a process of train_net.py with one thread; as many run
at a time as there are cores. Finished runs are kept: the same command continues where it was stopped.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import rc2l  # noqa: F401  before detectron2, which it makes importable

# isort: split
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from tabulate import tabulate

from rc2l.data.datasets.location import datasets_root
from rc2l.data.datasets.shapes import generate_shapes
from rc2l.data.loader import build_test_loader
from rc2l.engine.arguments import add_import_argument, split_overrides
from rc2l.engine.config_file import load_config
from rc2l.engine.entry_point import entry_point
from rc2l.modeling.weights import load_weights
from rc2l.visualization.panels import colorize, save_panel

REPO = Path(__file__).resolve().parent.parent
TITLES = {
    "supervised": "supervised",
    "consistency": "mask consistency",
    "rc2l": "RC²L",
    "rc2l-reco": "RC²L + ReCo",
    "rc2l-dgcl": "RC²L + DGCL",
    "all_labels": "supervised, all labels",
    "supervised_deeplab": "DeepLabV3+, supervised",
    "cutout_deeplab": "DeepLabV3+, CutOut",
    "cutmix_deeplab": "DeepLabV3+, CutMix",
    "classmix_deeplab": "DeepLabV3+, ClassMix",
    "classmix-reco_deeplab": "DeepLabV3+, ClassMix + ReCo",
    "cutmix-dgcl_deeplab": "DeepLabV3+, CutMix + DGCL",
    "s4gan_deeplab": "DeepLabV3+, S4GAN",
}
DATASET = "shapes_sem_seg_val"


@dataclass
class Run:
    """One training: a method and a seed, which is also the seed of the labelled split."""

    method: str
    seed: int
    folder: Path
    overrides: list[str]
    imports: list[str] = field(default_factory=list)
    started: float = 0.0
    process: subprocess.Popen | None = field(default=None, repr=False)

    @property
    def finished(self) -> bool:
        return (self.folder / "done").exists()

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "rc2l.cli", "train"]
        command += ["--config-file", str(REPO / f"configs/shapes/{self.method}.yaml"), "--resume"]
        command += [word for name in self.imports for word in ("--import", name)]
        command += ["SEED", str(self.seed), "DATASETS.SPLIT.SEED", str(self.seed), "OUTPUT_DIR", str(self.folder)]
        command += self.overrides
        self.started = time.monotonic()
        with (self.folder / "console.txt").open("a") as console:
            self.process = subprocess.Popen(
                command,
                stdout=console,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )

    def poll(self) -> bool:
        """True once the run is over.

        Raises:
            ValueError: it failed.
        """
        code = self.process.poll()
        if code is None:
            return False
        if code != 0:
            tail = "\n".join((self.folder / "console.txt").read_text().splitlines()[-15:])
            raise ValueError(f"{self.method}, seed {self.seed} failed; the end of {self.folder}/console.txt:\n{tail}")
        (self.folder / "done").touch()
        return True

    def progress(self) -> tuple[int, str]:
        """Iterations done, and the loss last logged."""
        try:
            rows = [json.loads(line) for line in (self.folder / "metrics.json").read_text().splitlines()]
            last = [row for row in rows if "total_loss" in row][-1]
        except (FileNotFoundError, IndexError, json.JSONDecodeError):
            return 0, "?"
        return last["iteration"] + 1, f"{last['total_loss']:.2f}"

    def score(self, network: str = "teacher") -> float:
        """Final mIoU in percent."""
        return json.loads((self.folder / "inference" / f"{DATASET}_{network}.json").read_text())["mIoU"]


def config(method: str, overrides: list[str]) -> CfgNode:
    """The config that a run of the method uses."""
    return load_config(str(REPO / f"configs/shapes/{method}.yaml"), overrides)


def train_all(runs: list[Run], at_a_time: int, iterations: int) -> None:
    """Train every unfinished run, showing a progress line."""
    waiting, active = deque(run for run in runs if not run.finished), []
    total, begin = iterations * len(waiting), time.monotonic()
    finished_iterations = 0
    while waiting or active:
        while waiting and len(active) < at_a_time:
            active.append(waiting.popleft())
            active[-1].start()
        time.sleep(2)
        progress = [(run, *run.progress()) for run in active]
        done = finished_iterations + sum(count for _, count, _ in progress)
        elapsed = time.monotonic() - begin
        remaining = f"{elapsed / done * (total - done):.0f} s" if done else "?"
        parts = [f"{run.method} (seed {run.seed}) {count}/{iterations}, loss {loss}" for run, count, loss in progress]
        show(f"[{elapsed:.0f} s, ETA {remaining}] " + "; ".join(parts))
        for run in [run for run in active if run.poll()]:
            active.remove(run)
            finished_iterations += iterations
            seconds = time.monotonic() - run.started
            show("")
            print(f"{TITLES[run.method]}, seed {run.seed}: mIoU {run.score():.1f} (teacher) in {seconds:.0f} s")


def show(line: str) -> None:
    """A line that replaces itself on a terminal and stays a line in a file."""
    if sys.stdout.isatty():
        print(f"\r\033[K{line[:150]}", end="", flush=True)
    elif line:
        print(line, flush=True)


def table(runs: list[Run], methods: list[str]) -> str:
    """mIoU of teacher and student by method: mean over seeds, and the teacher's by seed."""
    rows = []
    for method in methods:
        own = [run for run in runs if run.method == method]
        teacher, student = [run.score("teacher") for run in own], [run.score("student") for run in own]
        by_seed = ", ".join(f"{score:.1f}" for score in teacher)
        rows.append([TITLES[method], statistics.mean(teacher), statistics.mean(student), by_seed])
    headers = ["method", "mIoU teacher", "mIoU student", "teacher by seed " + " ".join(str(r.seed) for r in own)]
    return tabulate(rows, headers, tablefmt="pipe", floatfmt=".1f")


def picture(runs: list[Run], methods: list[str], path: Path, num_images: int = 6) -> None:
    """Input, ground truth, and each method's prediction (teacher) on validation images."""
    metadata = MetadataCatalog.get(DATASET)
    networks = []
    for method in methods:
        run = next(run for run in runs if run.method == method)
        cfg = config(method, ["MODEL.DEVICE", "cpu", *run.overrides])
        network = build_model(cfg).eval()
        load_weights(network, str(run.folder / "model_final.pth"), strict=True)
        networks.append(network)
    rows = []
    for (record,) in build_test_loader(cfg, DATASET):
        with torch.no_grad():
            predictions = [network([record])[0]["sem_seg"].argmax(0) for network in networks]
        label_maps = [torch.as_tensor(record["sem_seg"]), *predictions]
        image = record["image"].permute(1, 2, 0).numpy()
        rows.append([image] + [colorize(label_map.numpy(), metadata.stuff_colors) for label_map in label_maps])
        if len(rows) == num_images:
            break
    titles = ["input", "ground truth"] + [TITLES[method] for method in methods]
    save_panel(path, rows, titles, metadata.stuff_classes, metadata.stuff_colors)


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=["all", *TITLES], default=["supervised", "rc2l"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of labelled split, weights and training")
    parser.add_argument("--output", type=Path, default=Path("output/demo"))
    parser.add_argument("--at-a-time", type=int, default=os.cpu_count(), help="runs at a time, one thread each")
    add_import_argument(parser)
    words, overrides = split_overrides(sys.argv[1:])  # KEY VALUE pairs of all runs, also behind --methods and --seeds
    args = parser.parse_args(words)
    methods = list(TITLES) if "all" in args.methods else args.methods

    folder = generate_shapes(datasets_root().resolve())
    os.environ["DETECTRON2_DATASETS"] = str(folder.parent)
    print(f"dataset: {folder}")
    runs = [
        Run(method, seed, args.output.resolve() / f"{method}_{seed}", overrides, args.imports)
        for seed in args.seeds
        for method in methods
    ]
    cfg = config(methods[0], overrides)
    train_all(runs, args.at_a_time, cfg.SOLVER.MAX_ITER)
    report = table(runs, methods)
    print(f"\nshapes, {cfg.DATASETS.SPLIT.FRACTION} of the labels, {len(args.seeds)} seed(s):\n\n{report}\n")
    (args.output / "table.md").write_text(report + "\n")
    picture(runs, methods, args.output / "picture.png")
    print(f"table: {args.output / 'table.md'}\npicture: {args.output / 'picture.png'}")


if __name__ == "__main__":
    main()
