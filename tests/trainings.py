"""Trainings in processes of their own, each of which can be told when to kill itself, and what two of them share."""

import os
import signal
import sys
import threading
from dataclasses import dataclass
from fnmatch import fnmatch
from multiprocessing import Process
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_net
from rc2l.engine.launch import launch
from rc2l.engine.run import argument_parser
from rc2l.engine.trainer import SemiSupervisedTrainer
from tests.processes import fork
from tests.test_train_net import metrics

#: What depends on the clock.
TIMES = {"time", "data_time", "eta_seconds", "rank_data_time", "memory_mib"}


@dataclass(frozen=True)
class Kill:
    """A signal that a training sends to itself at the first occasion from the start of ``iteration`` on.

    The occasion is its progress, not the clock, so it comes on a slow machine and on a fast one.
    """

    iteration: int
    #: "timer": after ``amount`` seconds. "writing": when ``amount`` bytes of a checkpoint are written. "renamed": when
    #: a checkpoint has got its name and ``last_checkpoint`` does not name it yet. "moving": when ``amount`` files of an
    #: earlier run have been moved aside, before the first step.
    by: str
    amount: float = 0
    #: Names of the checkpoints that count.
    file: str = "model_[0-9f]*.pth"
    number: int = signal.SIGKILL

    def arm(self) -> None:
        """Make it happen in this process."""
        armed = False
        run_step, save, replace = SemiSupervisedTrainer.run_step, torch.save, os.replace

        def run_step_and_look(trainer: SemiSupervisedTrainer) -> None:
            nonlocal armed
            if not armed and trainer.iter >= self.iteration:
                armed = True
                if self.by == "timer":
                    threading.Timer(self.amount, self.strike).start()
            run_step(trainer)

        def save_a_part(state, recorder) -> None:
            counts = armed and self.by == "writing" and fnmatch(Path(recorder.file.name).name, f"{self.file}.tmp")
            save(state, _DyingFile(recorder, self) if counts else recorder)

        def replace_and_die(source, target) -> None:
            replace(source, target)
            if armed and self.by == "renamed" and fnmatch(Path(target).name, self.file):
                self.strike()

        if self.by == "moving":
            self.arm_move()
        SemiSupervisedTrainer.run_step, torch.save, os.replace = run_step_and_look, save_a_part, replace_and_die

    def arm_move(self) -> None:
        """Let ``amount`` files of an earlier run be moved aside."""
        rename, moved = Path.rename, 0

        def rename_or_die(path: Path, target: Path) -> Path:
            nonlocal moved
            if moved == self.amount:
                self.strike()
            moved += "earlier_" in str(target)
            return rename(path, target)

        Path.rename = rename_or_die

    def strike(self) -> None:
        os.kill(os.getpid(), self.number)


class _DyingFile:
    def __init__(self, file, kill: Kill) -> None:
        self.file, self.kill, self.room = file, kill, int(kill.amount)

    def write(self, data) -> int:
        data = memoryview(data)
        written = self.file.write(data[: self.room])
        self.room -= len(data)
        if self.room <= 0:
            self.file.flush()
            self.kill.strike()
        return written

    def flush(self) -> None:
        self.file.flush()


class Trainings:
    """One training at a time.

    Args:
        environment: variables besides those of this process.
    """

    def __init__(self, **environment: str) -> None:
        self._environment = environment
        self._process: Process | None = None

    def start(self, *arguments: str, kill: Kill | None = None) -> int:
        """Start ``train_net.py <arguments>``; returns its process id."""
        if self._process is not None:
            raise RuntimeError(f"the training of process {self._process.pid} has not been waited for")
        self._process = fork(_train, list(arguments), self._environment, kill)
        return self._process.pid

    def wait(self) -> int:
        """Exit status of the training, negative where a signal ended it."""
        self._process.join()
        status, self._process = self._process.exitcode, None
        return status

    def end_training(self) -> None:
        """Kill what still runs, so that the next test finds none."""
        if self._process is not None:
            self._process.kill()
            self.wait()


def _train(arguments: list[str], environment: dict[str, str], kill: Kill | None) -> None:
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if kill:
        kill.arm()
    try:
        launch(train_net.main, argument_parser("").parse_args(arguments))
    finally:
        for thread in threading.enumerate():
            if isinstance(thread, threading.Timer):
                thread.join()  # a kill that was due strikes, however quickly the rest went


def timeless(output: Path) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in metrics(output)]


def tensorboard(output: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(output))
    events.Reload()
    names = set(events.Tags()["scalars"]) - TIMES
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in sorted(names)}


def differences(first: object, second: object, at: str = "") -> list[str]:
    """Where two nested states differ, if only in one bit."""
    if isinstance(first, dict) and isinstance(second, dict):
        if first.keys() != second.keys():
            return [f"{at}: {first.keys() ^ second.keys()}"]
        return [found for key in first for found in differences(first[key], second[key], f"{at}/{key}")]
    if isinstance(first, list | tuple) and len(first) == len(second):
        return [
            found for i, pair in enumerate(zip(first, second, strict=True)) for found in differences(*pair, f"{at}/{i}")
        ]
    same = torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second
    return [] if same else [at]


def contents(checkpoint: Path) -> dict:
    """All that a checkpoint holds, less what depends on the clock."""
    state = torch.load(checkpoint, weights_only=True)
    history = state["trainer"]["history"]
    for part in ("pending", "histories"):
        history[part] = {name: history[part][name] for name in history[part].keys() - TIMES}
    return state


def run_differences(first: Path, second: Path) -> list[str]:
    """Where two runs differ: in an entry of the last or the best checkpoint, a row of the metrics, or the files."""
    found = [
        f"{name}{at}"
        for name in ("model_final.pth", "model_best.pth")
        for at in differences(contents(first / name), contents(second / name))
    ]
    found += ["metrics.json"] * (timeless(first) != timeless(second))
    names = [{path.name for path in output.glob("*.pth*")} for output in (first, second)]
    return found + sorted(names[0] ^ names[1])
