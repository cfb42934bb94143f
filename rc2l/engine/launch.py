"""How the processes of a run come to be: one, --num-gpus N (detectron2's launcher), or torchrun, on GPUs or CPUs."""

import argparse
import os
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.engine import launch as launch_on_gpus
from detectron2.utils import comm
from torch import Tensor, nn
from torch import distributed as dist


def resolve_device(cfg: CfgNode, num_gpus: int) -> None:
    """Without a GPU, or with ``--num-gpus 0``, MODEL.DEVICE becomes "cpu"."""
    if cfg.MODEL.DEVICE.startswith("cuda") and (torch.cuda.device_count() == 0 or num_gpus == 0):
        cfg.MODEL.DEVICE = "cpu"


def launch(main: Callable[[argparse.Namespace], dict], args: argparse.Namespace) -> dict | None:
    """Run ``main(args)`` in every process; returns its result where there is only one process.

    Raises:
        ValueError: more GPUs are asked for than there are. One is always granted: without a GPU it is the CPU.
    """
    available = torch.cuda.device_count()
    if args.num_gpus > max(available, 1):
        raise ValueError(
            f"--num-gpus {args.num_gpus}, but this machine has {available} GPU(s): use --num-gpus {max(available, 1)}, "
            "or, for several processes on CPUs, torchrun --nproc-per-node N train_net.py ..."
        )
    if "TORCHELASTIC_RUN_ID" in os.environ:  # started by torchrun: the processes exist already
        use_gpu = torch.cuda.is_available() and args.num_gpus > 0
        if use_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if use_gpu else "gloo")
        try:
            return main(args)
        finally:
            dist.destroy_process_group()
    if args.num_gpus * args.num_machines > 1:
        return launch_on_gpus(main, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, (args,))
    return main(args)


def average_over_processes(totals: Tensor) -> Tensor:
    """Mean of a tensor over all processes; every process must call it. The tensor itself when there is one process."""
    if comm.get_world_size() == 1:
        return totals
    totals = totals.clone()
    dist.all_reduce(totals)
    return totals / comm.get_world_size()


def broadcast_buffers(*networks: nn.Module) -> None:
    """Give every process the main process's buffers: batch-norm statistics drift apart between processes."""
    if comm.get_world_size() > 1:
        for network in networks:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)


def raise_together(check: Callable[[], None]) -> None:
    """Run ``check`` on the main process; if it raises a ValueError, every process raises it.

    No process is left waiting for one that stopped.
    """
    failure = None
    if comm.is_main_process():
        try:
            check()
        except ValueError as error:
            failure = error
    failure = comm.all_gather(failure)[0]
    if failure is not None:
        raise failure
