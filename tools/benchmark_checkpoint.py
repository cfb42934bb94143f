"""What it costs that a run cannot be lost: of a step, and of a checkpoint; ``tools/benchmark.py run``."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from torch import distributed as dist
from torch import multiprocessing as mp

from rc2l.data.loader import build_train_loader
from rc2l.data.splits import build_split
from rc2l.engine import trainer as trainer_module
from rc2l.engine.checkpoint_file import read_checkpoint
from rc2l.engine.signals import Agreement
from rc2l.engine.trainer import SemiSupervisedTrainer


def seconds(function: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ratios(trainer: SemiSupervisedTrainer, repeats: int) -> tuple[float, float]:
    """(seconds of a guarded step, its ratio to a step without the checks), medians of alternating pairs."""
    batches = iter(build_train_loader(trainer.cfg, trainer.split, seed=0))
    guarded, pairs = [], []
    for repeat in range(repeats + 2):
        batch = next(batches).to(trainer.device)

        def step(batch=batch, repeat=repeat):
            return trainer.step(batch, repeat)

        def bare(step=step):
            with mock.patch.object(trainer_module, "not_finite", lambda values: []):
                step()

        # In turns, so that neither is always the one with the warm caches.
        times = {}
        for function in (step, bare) if repeat % 2 else (bare, step):
            times[function] = seconds(function, trainer.device)
        if repeat >= 2:
            guarded.append(times[step])
            pairs.append(times[step] / times[bare])
    return statistics.median(guarded), statistics.median(pairs)


def _agree(rank: int, world_size: int, port: int, repeats: int, file: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    agreement = Agreement()
    agreement.any(False, False)
    times = [seconds(lambda: agreement.any(False, False), torch.device("cpu")) for _ in range(repeats)]
    if rank == 0:
        Path(file).write_text(str(statistics.median(times)))
    dist.destroy_process_group()


def agreement_seconds(world_size: int, repeats: int = 200) -> float:
    """Median time in which processes of this machine agree on their flags."""
    with tempfile.NamedTemporaryFile("r") as file:
        mp.spawn(_agree, (world_size, 29790, repeats, file.name), nprocs=world_size)
        return float(file.read())


def benchmark_run(cfg: CfgNode, repeats: int) -> None:
    """Print the overhead of a step, of writing a checkpoint and of reading one, as ratios."""
    trainer = SemiSupervisedTrainer(cfg, build_split(cfg))
    step, guard = ratios(trainer, repeats)
    trainer.iter, folder = 0, Path(cfg.OUTPUT_DIR)
    whole, plain, verified, unverified = [], [], [], []
    cpu, path = torch.device("cpu"), folder / "model_0000000.pth"
    with EventStorage(0) as trainer.storage:
        for _ in range(repeats):
            whole.append(seconds(lambda: trainer.checkpointer.save("model_0000000"), trainer.device))
            state = {"model": trainer.checkpointer.model.state_dict()}
            state |= {name: part.state_dict() for name, part in trainer.checkpointer.checkpointables.items()}
            plain.append(seconds(lambda state=state: torch.save(state, folder / "plain.pt"), trainer.device))
            verified.append(seconds(lambda: read_checkpoint(path), cpu))
            unverified.append(seconds(lambda: read_checkpoint(path, verify=False), cpu))
    size = path.stat().st_size / 2**20

    def ratio(first: list[float], second: list[float]) -> float:
        return statistics.median(a / b for a, b in zip(first, second, strict=True))

    rows = [
        ["step with checks / without", guard, step * 1000],
        [f"checkpoint ({size:.0f} MiB), flushed / torch.save", ratio(whole, plain), 1000 * statistics.median(plain)],
        ["checkpoint / step", statistics.median(whole) / step, 1000 * statistics.median(whole)],
        ["resume with checksums / without", ratio(verified, unverified), 1000 * statistics.median(verified)],
    ]
    for world_size in (2, 4):
        agreement = agreement_seconds(world_size)
        rows.append([f"agreement of {world_size} processes / step", agreement / step, agreement * 1000])
    print(f"\non {trainer.device}, {torch.get_num_threads()} thread(s), median of {repeats}:\n")
    print(tabulate(rows, ["what", "ratio", "ms"], tablefmt="pipe", floatfmt=(None, ".4f", ".2f")))
