"""How the processes of a run come to be: one, --num-gpus N (detectron2's launcher), torchrun, or srun; GPUs or CPUs."""

import argparse
import os
import re
import sys
from collections.abc import Callable
from typing import TypeVar

import torch
from detectron2.config import CfgNode
from detectron2.engine import launch as launch_on_gpus
from detectron2.utils import comm
from torch import distributed as dist
from torch import multiprocessing as mp

from rc2l.engine.arguments import import_modules
from rc2l.engine.entry_point import EXIT_INTERRUPTED, EXIT_UNEXPECTED, EXIT_USER_ERROR, entry_point
from rc2l.engine.signals import EXIT_STOPPED, forwarded_to_children

T = TypeVar("T")

#: Exit statuses of a process of a run that has said why it ended.
_SAID_BY_CHILD = (EXIT_STOPPED, EXIT_USER_ERROR, EXIT_UNEXPECTED, EXIT_INTERRUPTED)


def resolve_device(cfg: CfgNode, num_gpus: int) -> None:
    """Without a GPU, or with ``--num-gpus 0``, MODEL.DEVICE becomes "cpu".

    Raises:
        ValueError: MODEL.DEVICE is no device, or one that this machine does not have.
    """
    count = torch.cuda.device_count()
    match = re.fullmatch(r"cpu|mps|cuda(?::(\d{1,4}))?", cfg.MODEL.DEVICE)
    if match is None:
        raise ValueError(f"MODEL.DEVICE is '{cfg.MODEL.DEVICE}': it must be cpu, cuda, cuda:N (one GPU) or mps")
    if match[1] and count and num_gpus and int(match[1]) >= count:
        raise ValueError(f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but this machine has {count} GPU(s), cuda:0 the first")
    if cfg.MODEL.DEVICE == "mps" and not torch.backends.mps.is_available():
        raise ValueError("MODEL.DEVICE is mps, which this machine does not have: set it to cpu or cuda")
    if cfg.MODEL.DEVICE.startswith("cuda") and (count == 0 or num_gpus == 0):
        cfg.MODEL.DEVICE = "cpu"


def use_deterministic_kernels(wanted: bool) -> None:
    """Make PyTorch choose kernels that repeat bit for bit; operators that have none only warn."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)


def was_restarted() -> bool:
    """Whether torchrun or SLURM started this process again after a failure: such a run continues by itself."""
    return any(int(os.environ.get(name) or 0) > 0 for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


def launch(main: Callable[[argparse.Namespace], dict], args: argparse.Namespace) -> dict | None:
    """Run ``main(args)`` in every process; returns its result where there is only one process.

    Raises:
        ValueError: more GPUs are asked for than there are (one is always granted: without a GPU it is the CPU), several
            machines without GPUs, or SLURM's variables make no sense.
        SystemExit: with the status of a process that has said why it ended (such as EXIT_STOPPED: on request).
    """
    available = torch.cuda.device_count()
    if args.num_gpus > max(available, 1):
        raise ValueError(
            f"--num-gpus {args.num_gpus}, but this machine has {available} GPU(s): use --num-gpus {max(available, 1)}, "
            "or, for several processes on CPUs, torchrun --nproc-per-node N train_net.py ..."
        )
    environment = process_environment(os.environ)
    if environment is not None:  # torchrun or srun: the processes exist already
        os.environ.update(environment)
        use_gpu = available > 0 and args.num_gpus > 0
        if use_gpu:
            # srun may show each process its own GPU only.
            torch.cuda.set_device(int(environment["LOCAL_RANK"]) % available)
        store, rank, world_size = next(dist.rendezvous("env://"))
        # torchrun may keep its store over a restart, and with it the addresses of processes that are gone.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"rc2l_attempt_{attempt}", store)
        dist.init_process_group("nccl" if use_gpu else "gloo", store=store, rank=rank, world_size=world_size)
        try:
            return main(args)
        finally:
            dist.destroy_process_group()
    if args.num_gpus * args.num_machines > 1:
        if not available:
            raise ValueError(
                f"--num-machines {args.num_machines} needs GPUs; on CPUs start each machine by torchrun --nnodes "
                f"{args.num_machines} --node-rank R --rdzv-endpoint HOST:PORT --nproc-per-node N train_net.py ..."
            )
        return _spawn(main, args)
    return main(args)


def _spawn(main: Callable[[argparse.Namespace], dict], args: argparse.Namespace) -> None:
    with forwarded_to_children():
        try:
            launch_on_gpus(
                _main_of_child, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, (main, args)
            )
        except mp.ProcessExitedException as error:
            if error.exit_code in _SAID_BY_CHILD:
                sys.exit(error.exit_code)
            end = f"was killed by {error.signal_name}" if error.signal_name else f"ended with {error.exit_code}"
            raise OSError(
                f"process {error.error_index} {end}; memory that runs out is the usual cause. --resume "
                "continues from the last checkpoint"
            ) from error


@entry_point
def _main_of_child(main: Callable[[argparse.Namespace], dict], args: argparse.Namespace) -> None:
    import_modules(getattr(args, "imports", []))
    main(args)


def process_environment(environ: dict[str, str]) -> dict[str, str] | None:
    """The variables of ``torch.distributed``'s env:// method, where a launcher made the processes; None where none did.

    Args:
        environ: torchrun's variables, which hold them already, or srun's. In an sbatch script itself, outside srun, the
            job is one process.

    Raises:
        ValueError: srun's list of nodes cannot be read.
    """
    if "TORCHELASTIC_RUN_ID" in environ:
        names = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK")
        return {name: environ[name] for name in names if name in environ}
    # Only srun sets this one: the batch script has SLURM_NTASKS too, but is alone.
    if int(environ.get("SLURM_STEP_NUM_TASKS") or 1) == 1:
        return None
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
    job = int(re.sub(r"\D", "", environ.get("SLURM_JOB_ID", "")) or 0)
    return {
        "MASTER_ADDR": environ.get("MASTER_ADDR") or first_host(nodes),
        "MASTER_PORT": environ.get("MASTER_PORT") or str(15000 + job % 20000),
        "RANK": environ["SLURM_PROCID"],
        "WORLD_SIZE": environ["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environ["SLURM_LOCALID"],
    }


def first_host(nodes: str) -> str:
    """The first host of a SLURM node list: "gpu[03-05,9],login" -> "gpu03".

    Raises:
        ValueError: the list is empty or malformed.
    """
    match = re.match(r"([^\[\],\s]+)(?:\[(\d+)[^\]]*\]([^\[\],\s]*))?(?:,|$)", nodes)
    if match is None:
        raise ValueError(f"SLURM_STEP_NODELIST is '{nodes}': no host can be read from it; set MASTER_ADDR")
    return match[1] + (match[2] or "") + (match[3] or "")


def raise_together(check: Callable[[], object]) -> None:
    """Run ``check`` on the main process; if it raises a ValueError or OSError, every process raises it.

    No process is left waiting for one that stopped.
    """

    def run() -> None:
        check()

    by_main_process(run)


def by_main_process(function: Callable[[], T]) -> T:
    """In every process, what ``function`` returns in the main one, or the ValueError or OSError that it raises."""
    failure = result = None
    if comm.is_main_process():
        try:
            result = function()
        except (ValueError, OSError) as error:
            failure = error
    failure, result = comm.all_gather((failure, result))[0]
    if failure is not None:
        raise failure
    return result
