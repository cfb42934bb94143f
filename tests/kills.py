#!/usr/bin/env python3
"""Kill runs by SIGKILL at random and at the most delicate moments, resume each, and compare it with an undisturbed one.

    python tests/kills.py --seed 0

Prints a row for each kill; exits with 1 if a resumed run ends in another final or best checkpoint, in other metrics or
in other files. Not a part of `make test`, which has the most telling ones at fixed moments.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tabulate import tabulate
from torch import distributed as dist

import train_net
from rc2l.data.datasets.shapes import generate_shapes
from rc2l.engine.launch import launch
from rc2l.engine.run import argument_parser
from tests.processes import fork, join_group
from tests.test_train_net import TINY
from tests.trainings import Kill, Trainings, run_differences

#: Evaluations on steps of checkpoints and between them, and the end on neither.
SCHEDULE = """SOLVER.MAX_ITER 10 SOLVER.CHECKPOINT_PERIOD 2 TEST.EVAL_PERIOD 3 SOLVER.CHECKPOINTS_KEPT 2 SEMI.BURN_IN 2
MODEL.MASK_FORMER.DROPOUT 0.1 INPUT.CROP.SIZE [32,32] TEST.MAX_IMAGES 2 MODEL.DEVICE cpu""".split()
WITH_WORKER = ["DATALOADER.NUM_WORKERS", "1"]


def arguments(output: Path, *more: str) -> list[str]:
    return ["--config-file", "configs/shapes/rc2l.yaml", *more, *TINY, *SCHEDULE, "OUTPUT_DIR", str(output)]


@dataclass
class Lab:
    """Where runs are killed."""

    folder: Path
    draw: random.Random
    trainings: Trainings
    #: The undisturbed run, its seconds, and that of two processes.
    straight: Path
    seconds: float
    of_two: Path
    seconds_of_two: float

    def resume(self, output: Path) -> int:
        self.trainings.start(*arguments(output, "--resume"))
        return self.trainings.wait()

    def kill_at(self, output: Path, kill: Kill, *more: str) -> str:
        self.trainings.start(*arguments(output), *more, kill=kill)
        return ended(self.trainings.wait())


def ended(status: int) -> str:
    return f"died by {signal.Signals(-status).name}" if status < 0 else f"ended with {status}"


def children(pid: int) -> list[int]:
    """Process ids of the children of a process, [] where it is gone."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def strike_after(seconds: float, pid: int) -> None:
    def strike() -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    threading.Timer(seconds, strike).start()


def at_any_moment(lab: Lab, output: Path, *options: str) -> tuple[str, str]:
    """From the outside, at any time from the start of the process to its end."""
    status = 0
    while not status:  # it may have been quicker than before
        if not options:
            shutil.rmtree(output, ignore_errors=True)
        wait = lab.draw.uniform(0, lab.seconds)
        strike_after(wait, lab.trainings.start(*arguments(output, *options)))
        status = lab.trainings.wait()
    return f"after {wait:.2f} s of {lab.seconds:.2f}", ended(status)


def twice(lab: Lab, output: Path) -> tuple[str, str]:
    """A run, and the run that resumes it."""
    first, _ = at_any_moment(lab, output)
    second, status = at_any_moment(lab, output, "--resume")
    return f"{first}, then {second}", status


def best_and_checkpoint(lab: Lab, output: Path) -> tuple[str, str]:
    """The best network is written, or half written, and the step's own checkpoint is not.

    The first evaluation, after step 2, always finds a best one.
    """
    by = lab.draw.choice(["renamed", "writing"])
    size = (lab.straight / "model_best.pth").stat().st_size
    kill = Kill(lab.draw.randrange(3), by, lab.draw.randrange(size * 9 // 10), file="model_best.pth")
    return f"model_best.pth {by}, from step {kill.iteration}", lab.kill_at(output, kill)


def checkpoint(lab: Lab, output: Path) -> tuple[str, str]:
    """A checkpoint is half written, or written and not yet the last."""
    by = lab.draw.choice(["renamed", "writing"])
    size = (lab.straight / "model_final.pth").stat().st_size
    kill = Kill(lab.draw.randrange(8), by, lab.draw.randrange(size * 9 // 10))
    return f"checkpoint {by}, from step {kill.iteration}", lab.kill_at(output, kill)


def during_move(lab: Lab, output: Path) -> tuple[str, str]:
    """A new run, while it moves the files of an earlier one aside; these must be whole afterwards."""
    shutil.copytree(lab.straight, output)
    before = contents(output)
    moved = lab.draw.randrange(len(list(output.iterdir())))
    lab.trainings.start(*arguments(output), kill=Kill(0, "moving", moved))
    status = ended(lab.trainings.wait())
    journal = json.loads((output / ".moving_aside.json").read_text())["names"]
    lab.resume(output)
    aside = contents(output / "earlier_1")
    if aside != before:
        status += f", but {sorted(before.keys() ^ aside.keys()) or 'a file changed'}"
    shutil.rmtree(output / "earlier_1")
    return f"{moved} of {len(journal)} moved", status


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def a_worker(lab: Lab, output: Path) -> tuple[str, str]:
    """The loader's; the run itself writes a checkpoint and ends."""
    pid = lab.trainings.start(*arguments(output), *WITH_WORKER)
    wait = lab.draw.uniform(0, lab.seconds)
    deadline = time.monotonic() + 60
    while not children(pid) and Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(wait)
    for child in children(pid):
        os.kill(child, signal.SIGKILL)
    return f"{wait:.2f} s after its start", ended(lab.trainings.wait())


def rank_main(rank: int, store: Path, datasets: str, words: list[str]) -> None:
    os.environ["DETECTRON2_DATASETS"] = datasets
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    join_group(rank, 2, store)
    launch(train_net.main, argument_parser("").parse_args(["--num-gpus", "0", *words]))
    dist.destroy_process_group()


def run_two(lab_folder: Path, words: list[str], victim: tuple[int, float] | None = None) -> list[int]:
    """Exit statuses of two processes, one of which is killed after so many seconds."""
    store = Path(tempfile.mkdtemp(dir=lab_folder))
    datasets = os.environ["DETECTRON2_DATASETS"]
    processes = [fork(rank_main, rank, store, datasets, words) for rank in range(2)]
    if victim:
        processes[victim[0]].join(victim[1])
        processes[victim[0]].kill()
    for process in processes:
        process.join(120)
        if process.exitcode is None:
            raise TimeoutError(f"process {process.pid} hangs after the other one died")
    return [process.exitcode for process in processes]


def one_of_two(lab: Lab, output: Path) -> tuple[str, str]:
    """The other process must not hang, and both resume."""
    rank, wait = lab.draw.randrange(2), lab.draw.uniform(0.3, 0.95) * lab.seconds_of_two
    statuses = run_two(lab.folder, arguments(output), (rank, wait))
    run_two(lab.folder, arguments(output, "--resume"))
    told = " and ".join(f"rank {each} {ended(status)}" for each, status in enumerate(statuses))
    return f"rank {rank} after {wait:.2f} s of {lab.seconds_of_two:.2f}", told


#: Occasion -> function, number of kills.
OCCASIONS: dict[str, tuple[Callable[[Lab, Path], tuple[str, str]], int]] = {
    "any moment": (at_any_moment, 8),
    "any moment, twice": (twice, 2),
    "best and checkpoint": (best_and_checkpoint, 4),
    "checkpoint": (checkpoint, 3),
    "move aside": (during_move, 3),
    "loader worker": (a_worker, 3),
    "one rank of two": (one_of_two, 3),
}


def timed(function: Callable[[], object]) -> float:
    begin = time.monotonic()
    function()
    return time.monotonic() - begin


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--only", choices=OCCASIONS, help="kills of one kind")
    args = parser.parse_args(argv)
    rows, wrong = [], 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate_shapes(folder / "datasets", num_train=16, num_val=4, size=64)
        os.environ["DETECTRON2_DATASETS"] = str(folder / "datasets")
        trainings = Trainings()

        def run_alone(output: Path) -> None:
            trainings.start(*arguments(output))
            if trainings.wait():
                raise RuntimeError("the undisturbed run failed")

        run_alone(folder / "warm")  # the first process waits for the server's imports
        seconds = timed(lambda: run_alone(folder / "straight"))
        seconds_of_two = timed(lambda: run_two(folder, arguments(folder / "two")))
        draw = random.Random(args.seed)
        lab = Lab(folder, draw, trainings, folder / "straight", seconds, folder / "two", seconds_of_two)
        for occasion, (function, count) in OCCASIONS.items():
            for number in range(count if args.only in (None, occasion) else 0):
                output = folder / f"{occasion} {number}"
                moment, status = function(lab, output)
                again = 0 if function is one_of_two else lab.resume(output)
                found = run_differences(lab.of_two if function is one_of_two else lab.straight, output)
                names = sorted(path.name for path in output.iterdir())
                left = [name for name in names if name.startswith(".") or ".tmp" in name]
                # What died before its first checkpoint has moved aside; nothing else has.
                left += [str(path.relative_to(output)) for path in output.glob("earlier_*/*.pth")]
                good = not again and not found and not left and " but " not in status
                wrong += not good
                result = "the same" if good else f"resumed with {again}; differs: {found[:3]}; left: {left}"
                rows.append([len(rows) + 1, occasion, moment, status, result])
                print(" | ".join(map(str, rows[-1])), flush=True)
                shutil.rmtree(output)
    print(tabulate(rows, headers=["", "killed", "moment", "the killed", "final, best, metrics, files"]))
    print(f"{len(rows)} kills, {wrong} of which changed the run")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
