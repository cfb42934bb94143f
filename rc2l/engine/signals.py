"""Stopping on request: SIGTERM and SIGUSR1 (schedulers), SIGINT (Ctrl-C) -> checkpoint after the step, then exit."""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.engine import hooks
from detectron2.utils import comm
from torch import distributed as dist

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
#: Exit status of a run that was stopped on request and can be continued; sysexits.h calls it "temporary failure".
EXIT_STOPPED = 75


class StopRequest:
    """Within it, a stop signal only sets :attr:`received`; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        #: Why the run cannot go on although its state is sound, or None; then the stop is this error.
        self.failure: ValueError | OSError | None = None
        self._previous: dict[signal.Signals, object] = {}

    @property
    def wanted(self) -> bool:
        """Whether this process has a reason to stop after the step."""
        return self.received is not None or self.failure is not None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._previous = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame) -> None:
        if self.received is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number)
        # Not by logging, which may be in the middle of a line.
        os.write(2, f"\n{signal.Signals(number).name}: a checkpoint will be written after this step\n".encode())


class Agreement:
    """Flags that count everywhere as soon as one process raises them: one small reduction on the CPU for each call.

    Must be made by all processes together.
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo") if comm.get_world_size() > 1 else None

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag: is it True in any process? Every process must call it."""
        if self._group is None:
            return flags
        tensor = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group)
        return tuple(bool(flag) for flag in tensor)


def save_to_continue(trainer) -> str:
    """Write the checkpoint of the step that was just done, if it is not there; returns what a message says of it."""
    name = f"model_{trainer.iter:07d}"
    if comm.is_main_process() and trainer.checkpointer.newest != name:
        trainer.checkpointer.save(name, iteration=trainer.iter)
    return f"--resume continues from {name}.pth, after iteration {trainer.iter}"


class StopHook(hooks.HookBase):
    """The last hook of a step: where a stop was agreed on, write a checkpoint and exit with EXIT_STOPPED."""

    def after_step(self) -> None:
        trainer = self.trainer
        # The end of the run is as good a place to stop.
        if not trainer.stop_agreed or trainer.iter + 1 >= trainer.max_iter:
            return
        advice = save_to_continue(trainer)
        # A launcher that sees the first process end kills the others: none may go before the file is there.
        failures = [failure for failure in comm.all_gather(trainer.stop_request.failure) if failure is not None]
        if failures:
            raise type(failures[0])(f"{failures[0]}. {advice}")
        logger.warning(f"stopped on request after iteration {trainer.iter}; {advice.partition(',')[0]}")
        raise SystemExit(EXIT_STOPPED)


@contextmanager
def forwarded_to_children() -> Iterator[None]:
    """Within it, this process hands SIGTERM and SIGUSR1 on to its child processes and outlives them.

    Ctrl-C reaches the children by itself: a terminal sends it to all of them.
    """

    def forward(number: int, _frame) -> None:
        for child in multiprocessing.active_children():
            if child.pid is not None and number != signal.SIGINT:
                os.kill(child.pid, number)

    previous = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
