"""Streams and batches: shapes, resume, ranks, workers, and the loader of test images."""

import rc2l  # noqa: F401  first of all: makes detectron2 importable

# isort: split
import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.utils import comm

from rc2l.config import get_rc2l_cfg
from rc2l.data.errors import DatasetError
from rc2l.data.loader import build_test_loader, build_train_loader
from rc2l.data.splits import build_split
from rc2l.structures.needs import Needs
from rc2l.structures.training_batch import TrainingBatch
from tests.mini_datasets import build_mini_camvid


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(build_mini_camvid(tmp_path, num_train=14, num_val=5)))
    cfg = get_rc2l_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("camvid_sem_seg_train",), ("camvid_sem_seg_val",)
    cfg.DATASETS.SPLIT.NUM_LABELED = 5
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [32, 32]
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = (24, 48), "range"
    cfg.INPUT.COLOR_AUG_SSD = True
    cfg.INPUT.STRONG.COLOR_JITTER = [0.5, 0.5, 0.5, 0.1]
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.IMS_PER_BATCH_UNLABELED = 2, 4
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SEED = 7
    return cfg


def batches(cfg, count, start=0, **kwargs) -> list[TrainingBatch]:
    return list(itertools.islice(build_train_loader(cfg, build_split(cfg), start, **kwargs), count))


def assert_same(first: TrainingBatch, second: TrainingBatch):
    for name, value in vars(first).items():
        other = getattr(second, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name


def join(parts: list[TrainingBatch]) -> TrainingBatch:
    columns = {name: [getattr(part, name) for part in parts] for name in vars(parts[0])}
    joined = {
        name: torch.cat(values, int(name == "strong_images"))  # the first axis counts views
        if isinstance(values[0], torch.Tensor)
        else list(itertools.chain(*values))
        for name, values in columns.items()
    }
    return TrainingBatch(**joined)


def test_batch_shapes_and_types(cfg):
    (batch,) = batches(cfg, 1)
    assert batch.labeled_images.shape == (2, 3, 32, 32) and batch.labeled_targets.shape == (2, 32, 32)
    assert batch.unlabeled_images.shape == (4, 3, 32, 32) and batch.strong_images.shape == (1, 4, 3, 32, 32)
    assert batch.unlabeled_valid.shape == (4, 32, 32) and batch.unlabeled_valid.dtype == torch.bool
    for tensor in (batch.labeled_images, batch.labeled_targets, batch.unlabeled_images, batch.strong_images):
        assert tensor.dtype == torch.uint8
    assert len(batch.labeled_files) == 2 and len(batch.unlabeled_files) == 4
    assert isinstance(batch.to("cpu"), TrainingBatch) and batch.to("meta").strong_images.is_meta


def test_supervised_batches_have_no_unlabeled_images(cfg):
    (batch,) = batches(cfg, 1, needs=Needs())
    assert batch.unlabeled_images.shape == (0, 3, 32, 32) and batch.strong_images.shape == (1, 0, 3, 32, 32)
    assert batch.unlabeled_valid.shape == (0, 32, 32) and batch.unlabeled_valid.dtype == torch.bool
    assert batch.unlabeled_files == []


def test_strong_views_of_an_image_are_drawn_independently_and_the_first_is_that_of_one_view(cfg):
    (one,), (two,) = batches(cfg, 1), batches(cfg, 1, needs=Needs(unlabeled=True, strong_views=2))
    assert two.strong_images.shape == (2, 4, 3, 32, 32)
    assert torch.equal(two.unlabeled_images, one.unlabeled_images)
    assert torch.equal(two.strong_images[0], one.strong_images[0])
    for first, second in zip(*two.strong_images, strict=True):
        assert not torch.equal(first, second)


@pytest.mark.parametrize("start", [0, 1, 2])
def test_no_unlabeled_image_is_loaded_during_burn_in_and_nothing_else_changes(cfg, start):
    straight = batches(cfg, 4)
    cfg.SEMI.BURN_IN = 2
    for iteration, batch in enumerate(batches(cfg, 4 - start, start), start):
        if iteration >= 2:
            assert_same(batch, straight[iteration])
            continue
        assert batch.unlabeled_images.shape == (0, 3, 32, 32) and batch.unlabeled_files == []
        assert torch.equal(batch.labeled_images, straight[iteration].labeled_images)


def test_each_epoch_shows_each_image_once_in_another_order(cfg):
    files = [batch.labeled_files for batch in batches(cfg, 10)]
    stream = list(itertools.chain(*files))
    epochs = [stream[i : i + 5] for i in range(0, 20, 5)]
    assert all(len(set(epoch)) == 5 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    split = build_split(cfg)
    assert set(stream) == {record["file_name"] for record in split.labeled}
    unlabeled = {file for batch in batches(cfg, 10) for file in batch.unlabeled_files}
    assert unlabeled == {record["file_name"] for record in split.unlabeled}


def test_an_image_looks_different_each_time(cfg):
    cfg.DATASETS.SPLIT.NUM_LABELED = 1
    first, second = batches(cfg, 2)
    assert not torch.equal(first.labeled_images[0], first.labeled_images[1])
    assert not torch.equal(first.labeled_images, second.labeled_images)


def test_resume_continues_the_same_sequence(cfg):
    straight = batches(cfg, 5)
    for resumed, expected in zip(batches(cfg, 2, start=3), straight[3:], strict=True):
        assert_same(resumed, expected)


def test_workers_change_nothing_and_global_generators_are_left_alone(cfg):
    alone = batches(cfg, 3)
    cfg.DATALOADER.NUM_WORKERS = 2
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    for ours, theirs in zip(batches(cfg, 3), alone, strict=True):
        assert_same(ours, theirs)
    assert torch.equal(torch.get_rng_state(), before[0]) and np.array_equal(np.random.get_state()[1], before[1])


def test_seeds(cfg):
    by_config, by_argument, other = batches(cfg, 1)[0], batches(cfg, 1, seed=7)[0], batches(cfg, 1, seed=8)[0]
    assert_same(by_config, by_argument)
    assert not torch.equal(by_config.labeled_images, other.labeled_images)
    cfg.SEED = -1
    assert not torch.equal(batches(cfg, 1)[0].unlabeled_images, by_config.unlabeled_images)


def test_ranks_share_the_batch_of_one_process(cfg, monkeypatch):
    (whole,) = batches(cfg, 1, start=4)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts += batches(cfg, 1, start=4)
    assert_same(join(parts), whole)


def test_batch_sizes_must_divide(cfg, monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 4)
    with pytest.raises(ValueError, match=r"SOLVER.IMS_PER_BATCH is 2; .* a positive multiple of their number, 4"):
        build_train_loader(cfg, build_split(cfg))
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.SOLVER.IMS_PER_BATCH_UNLABELED = 0
    with pytest.raises(ValueError, match=r"SOLVER.IMS_PER_BATCH_UNLABELED is 0"):
        build_train_loader(cfg, build_split(cfg))


@pytest.mark.parametrize("workers", [0, 1])
def test_image_that_breaks_during_training_is_named(cfg, workers):
    split = build_split(cfg)
    cfg.DATALOADER.NUM_WORKERS = workers
    for record in split.unlabeled:
        with open(record["file_name"], "wb") as file:
            file.write(b"gone")
    with pytest.raises(DatasetError, match=r"train_\d+.jpg: cannot read this image"):
        next(iter(build_train_loader(cfg, split)))


def test_test_loader(cfg, monkeypatch):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    loader = build_test_loader(cfg, "camvid_sem_seg_val")
    samples = list(loader)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(loader) == 5 and all(len(sample) == 1 for sample in samples)
    assert [sample[0]["image_id"] for sample in samples] == [f"val_{i:05d}" for i in range(5)]
    cfg.TEST.MAX_IMAGES = 2
    assert len(build_test_loader(cfg, "camvid_sem_seg_val")) == 2


def test_test_images_go_to_exactly_one_rank(cfg, monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    seen = Counter()
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        seen.update(sample["image_id"] for (sample,) in build_test_loader(cfg, "camvid_sem_seg_val"))
    assert seen == {f"val_{i:05d}": 1 for i in range(5)}
