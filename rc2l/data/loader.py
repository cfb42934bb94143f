"""Labelled and unlabelled streams -> training batches, resumable at any iteration; and the loader of test images."""

import itertools
import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from rc2l.data.datasets import load_records
from rc2l.data.mapper import EvaluationMapper, LabeledMapper, UnlabeledMapper, seeded_randomness
from rc2l.data.splits import Split
from rc2l.structures.needs import BOTH_STREAMS, Needs
from rc2l.structures.training_batch import TrainingBatch

logger = logging.getLogger(__name__)

#: Which of the two streams; also part of the key of a sample's random numbers.
LABELED, UNLABELED = 0, 1


@dataclass(frozen=True)
class Stream:
    """An endless, reproducible sequence of samples: a fresh permutation of the images in each epoch."""

    records: list[dict]
    mapper: Callable[[dict], dict]
    #: (seed of the run, which stream).
    key: tuple[int, int]

    def __getitem__(self, position: int) -> dict:
        """The sample at any position from 0: a function of the key and the position alone."""
        epoch, offset = divmod(position, len(self.records))
        record = self.records[_permutation((*self.key, epoch), len(self.records))[offset]]
        with seeded_randomness(*self.key, position):
            return self.mapper(record)


@lru_cache(maxsize=8)
def _permutation(key: tuple[int, ...], size: int) -> np.ndarray:
    return np.random.default_rng(key).permutation(size)


class StreamDataset(Dataset):
    """Both streams behind one map-style dataset, whose indices are (stream, position)."""

    def __init__(self, streams: dict[int, Stream]):
        self.streams = streams

    def __getitem__(self, index: tuple[int, int]) -> tuple[int, dict]:
        stream, position = index
        return stream, self.streams[stream][position]


class StreamBatchSampler(Sampler):
    """Yields, without end, the (stream, position) keys of this process's share of each iteration.

    Iteration i of a stream with a total batch of B takes positions i·B .. i·B + B-1, dealt to the processes in rank
    order: which images a step sees depends neither on restarts nor on the number of processes. Before the iteration
    that ``first_iterations`` names for it (default 0), a stream gives nothing, and its positions are passed over.
    """

    def __init__(
        self,
        batch_sizes: dict[int, int],
        start_iteration: int,
        rank: int,
        world_size: int,
        first_iterations: dict[int, int] | None = None,
    ):
        self.batch_sizes = batch_sizes
        self.start_iteration = start_iteration
        self.rank, self.world_size = rank, world_size
        self.first_iterations = first_iterations or {}

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for iteration in itertools.count(self.start_iteration):
            yield [
                (stream, iteration * total + self.rank * share + offset)
                for stream, total in self.batch_sizes.items()
                if iteration >= self.first_iterations.get(stream, 0)
                for share in [total // self.world_size]
                for offset in range(share)
            ]


def collate(samples: list[tuple[int, dict]]) -> TrainingBatch:
    """Stack the samples of one step; at least one must be labelled."""
    labeled = [sample for stream, sample in samples if stream == LABELED]
    unlabeled = [sample for stream, sample in samples if stream == UNLABELED]
    images = torch.stack([sample["image"] for sample in labeled])
    if unlabeled:
        weak, valid = (torch.stack([sample[key] for sample in unlabeled]) for key in ("image", "valid"))
        # One view of all images after the other.
        strong = torch.stack(
            [torch.stack(view) for view in zip(*(sample["strong"] for sample in unlabeled), strict=True)]
        )
    else:
        weak, strong = images[:0], images[:0][None]
        valid = images[:0, 0].bool()
    return TrainingBatch(
        labeled_images=images,
        labeled_targets=torch.stack([sample["target"] for sample in labeled]),
        unlabeled_images=weak,
        strong_images=strong,
        unlabeled_valid=valid,
        labeled_files=[sample["file_name"] for sample in labeled],
        unlabeled_files=[sample["file_name"] for sample in unlabeled],
    )


def _is_death(error: Exception) -> bool:
    """Whether a worker is gone, and not an error that it handed on from a mapper: only torch's text tells."""
    if isinstance(error, RuntimeError):
        return bool(re.match(r"DataLoader worker \(pid.*exited unexpectedly|Pin memory thread exited", str(error)))
    # Tensors come through a connection to the worker, which breaks before torch looks whether it lives.
    return "in DataLoader worker process" not in str(error)


class SurvivingLoader(DataLoader):
    """A DataLoader that goes on in this process where one of its workers is killed, and says so in :attr:`death`.

    A batch is a function of its place in the order alone, so nothing is lost or repeated, and a step that other
    processes are in comes to its end.
    """

    #: What happened; None while all workers live. Set once, so that DataLoader's own attributes stay untouched.
    death: ChildProcessError | None = None

    def __iter__(self) -> Iterator:
        batches = super().__iter__()
        if self.num_workers > 0 and threading.current_thread() is threading.main_thread():
            # torch's handler would raise wherever the main thread is, be it halfway through an update of the weights.
            # Without it a death is found when the batch is waited for.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        given = 0
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                if not _is_death(error):
                    raise
                self.death = ChildProcessError(
                    "a loader worker was killed, often for lack of memory (DATALOADER.NUM_WORKERS is "
                    f"{self.num_workers}: lower it, or give the run more memory)"
                )
                logger.warning(f"{self.death}; the images that it owed are loaded by the training process")
                break
            yield batch
            given += 1
        for indices in itertools.islice(self.batch_sampler, given, None):
            yield self.collate_fn([self.dataset[index] for index in indices])


def build_train_loader(
    cfg: CfgNode,
    split: Split,
    start_iteration: int = 0,
    seed: int | None = None,
    needs: Needs = BOTH_STREAMS,
) -> DataLoader:
    """An endless loader of this process's :class:`TrainingBatch` es, from ``start_iteration`` on.

    The batch of an iteration is a function of the split, the seed and the iteration alone. Iterations below
    ``SEMI.BURN_IN`` look at no unlabelled image, so none is loaded for them. ``seed`` replaces ``cfg.SEED``; where both
    leave it open (None, negative), the processes agree on a random one. ``needs`` is what the method asks for: whether
    there is an unlabelled stream, and how many strong views of each of its images.

    Raises:
        ValueError: a batch size is below 1 or does not divide by the number of processes; a key of INPUT is bad.
        DatasetError: while iterating, where a file cannot be read.
    """
    if seed is None:
        seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    world_size = comm.get_world_size()
    batch_sizes = {LABELED: batch_size(cfg, "IMS_PER_BATCH", world_size)}
    streams = {LABELED: Stream(split.labeled, LabeledMapper(cfg), (seed, LABELED))}
    if needs.unlabeled:
        batch_sizes[UNLABELED] = batch_size(cfg, "IMS_PER_BATCH_UNLABELED", world_size)
        streams[UNLABELED] = Stream(
            split.unlabeled, UnlabeledMapper(cfg, strong_views=max(needs.strong_views, 1)), (seed, UNLABELED)
        )
    return SurvivingLoader(
        StreamDataset(streams),
        batch_sampler=StreamBatchSampler(
            batch_sizes, start_iteration, comm.get_rank(), world_size, {UNLABELED: cfg.SEMI.BURN_IN}
        ),
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=cfg.DATALOADER.NUM_WORKERS > 0,
        **_worker_options(cfg),
    )


def batch_size(cfg: CfgNode, key: str, world_size: int) -> int:
    """Images of a step over all processes, SOLVER.IMS_PER_BATCH or SOLVER.IMS_PER_BATCH_UNLABELED (``key``).

    Raises:
        ValueError: it is below 1, or does not divide by the number of processes.
    """
    size = cfg.SOLVER[key]
    if size < 1 or size % world_size:
        raise ValueError(
            f"SOLVER.{key} is {size}; it counts the images of all processes, so it must be a positive multiple of "
            f"their number, {world_size}"
        )
    return size


class MappedRecords(Dataset):
    """Dataset dicts through a mapper."""

    def __init__(self, records: list[dict], mapper: Callable[[dict], dict]):
        self.records, self.mapper = records, mapper

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        return self.mapper(self.records[index])


def build_test_loader(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """Loader of the first ``TEST.MAX_IMAGES`` (0: all) images of a dataset, for detectron2's ``inference_on_dataset``.

    Yields lists of one dict as :class:`~rc2l.data.mapper.EvaluationMapper` makes them. Each image goes to exactly one
    process.

    Raises:
        DatasetError: the dataset is unknown or missing.
    """
    records = load_records(dataset_name)
    if cfg.TEST.MAX_IMAGES > 0:
        records = records[: cfg.TEST.MAX_IMAGES]
    return SurvivingLoader(
        MappedRecords(records, EvaluationMapper(cfg)),
        batch_size=1,
        sampler=InferenceSampler(len(records)),
        collate_fn=list,
        **_worker_options(cfg),
    )


def _worker_options(cfg: CfgNode) -> dict:
    # A generator of its own: an iterator that is made draws a number, which must not come from torch's global one,
    # whose state belongs to the model.
    return {
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
        "worker_init_fn": _init_worker,
        "generator": torch.Generator(),
    }


def _obey_parent() -> None:
    """Take SIGTERM from the training process alone, which ends its workers by it."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _init_worker(worker: int) -> None:
    # A scheduler's or a terminal's stop signal reaches workers too; they must live until the checkpoint is written.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_obey_parent, daemon=True).start()
    # As many threads as cores in each of many workers would only fight for them.
    cv2.setNumThreads(0)
