"""Processes of a test, forked from a server that has imported everything, so that each starts at once."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed as dist
from torch import multiprocessing as mp

from tests.shared_data import REPO

multiprocessing.set_forkserver_preload(["tests.test_train_net"])


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
