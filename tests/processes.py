"""Processes of a test, forked from a server that has imported everything, so that each starts at once."""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed as dist
from torch import multiprocessing as mp

from tests.shared_data import REPO

#: What a training imports when it first needs it counts too: it takes four seconds, which each process would pay.
_LATE = "torch._dynamo scipy.optimize scipy.cluster.hierarchy torch.utils.tensorboard matplotlib.figure".split()
multiprocessing.set_forkserver_preload(["tests.test_train_net", "tests.trainings", *_LATE])
_SERVER = multiprocessing.get_context("forkserver")


def fork(function: Callable, *arguments) -> multiprocessing.Process:
    """Start ``function(*arguments)`` in a process; its ``exitcode`` is negative where a signal ended it."""
    process = _SERVER.Process(target=function, args=arguments)
    process.start()
    return process


def run_python(
    *arguments: str, folder: Path = REPO, environment: dict[str, str] | None = None, limit: float = 300
) -> subprocess.CompletedProcess[str]:
    """What ``python <arguments>`` does, without the seconds that starting Python and importing take.

    Args:
        arguments: a script (or "-m" and a module) and its arguments.
        folder: where it runs.
        environment: all its variables; those of this process by default.
        limit: seconds after which it is killed, which fails the test by its status.

    Returns:
        Its status, negative where a signal ended it, and what it said.
    """
    variables = dict(os.environ if environment is None else environment)
    with tempfile.TemporaryDirectory() as said:
        process = fork(_run_python, arguments, str(folder), variables, said)
        process.join(limit)
        if process.exitcode is None:
            process.kill()
            process.join()
        told = [(Path(said) / name).read_text() for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess(arguments, process.exitcode, *told)


def _run_python(arguments: tuple[str, ...], folder: str, environment: dict[str, str], said: str) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for name in ("stdout", "stderr"):
        os.dup2(os.open(f"{said}/{name}", os.O_WRONLY | os.O_CREAT), getattr(sys, name).fileno())
    try:
        if arguments[0] == "-m":
            sys.argv, sys.path[:0] = list(arguments[1:]), [folder]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[:0] = list(arguments), [str(Path(arguments[0]).resolve().parent)]
            runpy.run_path(arguments[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()


def start_processes(function: Callable, count: int, *arguments) -> mp.ProcessContext:
    """Start ``function(rank, *arguments)`` in ``count`` processes.

    They have the environment variables of the first call in this session of tests, not later ones.
    """
    return mp.start_processes(function, arguments, count, join=False, start_method="forkserver")


def run_processes(function: Callable, count: int, *arguments, limit: float = 300) -> None:
    """Run ``function(rank, *arguments)`` in ``count`` processes up to their end; ``limit`` in seconds.

    Raises:
        TimeoutError: they hang.
    """
    context = start_processes(function, count, *arguments)
    deadline = time.monotonic() + limit
    while not context.join(timeout=1):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"{count} processes of {function.__name__} took more than {limit} s")


def join_group(rank: int, world_size: int, folder: Path) -> None:
    """Make this process one of a gloo group that meets in a file of ``folder``: no port can be taken."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store{world_size}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=100),
    )


def torchrun(count: int, script: str, *overrides: str, restarts: int = 0) -> subprocess.Popen:
    """Start the shapes config of rc2l by PyTorch's launcher with ``count`` processes on the CPU, at a free port."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    arguments = [script, "--config-file", "configs/shapes/rc2l.yaml", "--num-gpus", "0", *overrides]
    return subprocess.Popen(
        [*launcher, "--max-restarts", str(restarts), *arguments],
        cwd=REPO,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
