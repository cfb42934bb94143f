"""A process that has imported everything and forks trainings, each of which can be told when to kill itself."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path

import torch

import train_net
from rc2l.engine.launch import launch
from rc2l.engine.run import argument_parser
from rc2l.engine.trainer import SemiSupervisedTrainer
from tests.shared_data import REPO


@dataclass(frozen=True)
class Kill:
    """A signal that a training sends to itself at the first occasion from the start of ``iteration`` on.

    The occasion is its progress, not the clock, so it comes on a slow machine and on a fast one.
    """

    iteration: int
    #: "timer": after ``amount`` seconds. "writing": when ``amount`` bytes of a checkpoint are written. "renamed": when
    #: a checkpoint has got its name and ``last_checkpoint`` does not name it yet.
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

        SemiSupervisedTrainer.run_step, torch.save, os.replace = run_step_and_look, save_a_part, replace_and_die

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


class TrainingServer:
    """The test's end: one training at a time, without the seconds that imports take.

    Args:
        environment: variables besides this process's own.
    """

    def __init__(self, **environment: str) -> None:
        self._child: int | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.training_server"],
            cwd=REPO,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)} | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, *arguments: str, kill: Kill | None = None) -> int:
        """Start ``train_net.py <arguments>``; returns its process id."""
        if self._child is not None:
            raise RuntimeError(f"the training of process {self._child} has not been waited for")
        self._send({"arguments": arguments, "kill": kill and asdict(kill)})
        self._child = self._receive("pid")
        return self._child

    def wait(self) -> int:
        """Exit status of the training, negative where a signal ended it."""
        status = self._receive("status")
        self._child = None
        return status

    def end_training(self) -> None:
        """Kill what still runs, so that the next test finds the server idle."""
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGKILL)
            self.wait()

    def close(self) -> None:
        self.end_training()
        # Not by closing the pipe, of which workers forked since hold copies.
        self._send("stop")
        self._process.wait(timeout=60)

    def _send(self, message: object) -> None:
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _receive(self, kind: str) -> int:
        line = self._process.stdout.readline()
        name, _, number = line.strip().partition(" ")
        if name != kind:
            raise RuntimeError(f"the training server said '{line.strip()}' where its {kind} was due")
        return int(number)


def serve() -> None:
    """For each line of standard input, fork a training; say ``pid <number>``, and at its end ``status <number>``."""
    for line in sys.stdin:
        message = json.loads(line)
        if message == "stop":
            return
        child = os.fork()
        if child == 0:
            os._exit(_train(message["arguments"], message["kill"]))
        print(f"pid {child}", flush=True)
        print(f"status {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}", flush=True)


def _train(arguments: list[str], kill: dict | None) -> int:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if kill:
        Kill(**kill).arm()
    try:
        launch(train_net.main, argument_parser("").parse_args(arguments))
        status = 0
    except SystemExit as stop:
        status = stop.code
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        status = 1
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join()  # a kill that was due strikes, however quickly the rest went
    return status


if __name__ == "__main__":
    serve()
