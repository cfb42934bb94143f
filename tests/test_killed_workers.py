"""A killed worker, or a file that is damaged while a run is at work, ends it in a checkpoint and one line.

An evaluation goes on without its workers.
"""

import os
import signal
from pathlib import Path

import pytest
import torch

from rc2l.data.datasets import load_records
from rc2l.data.errors import DatasetError
from rc2l.data.loader import build_test_loader
from rc2l.engine.config_file import load_config
from rc2l.engine.trainer import SemiSupervisedTrainer
from tests.shared_data import REPO
from tests.test_train_net import TINY, datasets, datasets_folder, metrics, run, same_weights  # noqa: F401

SHORT = "SOLVER.MAX_ITER 8 SOLVER.CHECKPOINT_PERIOD 100 TEST.MAX_IMAGES 2 INPUT.CROP.SIZE [32,32]".split()


def workers() -> list[int]:
    """Process ids of this process's children."""
    return [int(pid) for pid in open(f"/proc/self/task/{os.getpid()}/children").read().split()]


def with_each_step(patch: pytest.MonkeyPatch, before) -> None:
    """Let ``before(trainer)`` do something before each step."""
    run_step = SemiSupervisedTrainer.run_step
    patch.setattr(SemiSupervisedTrainer, "run_step", lambda trainer: (before(trainer), run_step(trainer)))


def iterations_done(folder: Path) -> int:
    return torch.load(folder / (folder / "last_checkpoint").read_text(), weights_only=True)["trainer"]["iteration"]


def test_a_disturbed_run_ends_in_a_checkpoint_and_goes_on_as_the_undisturbed_one(tmp_path, monkeypatch):
    before = set(workers())
    straight, killed, damaged = (tmp_path / name for name in ("straight", "killed", "damaged"))
    run("shapes/rc2l.yaml", straight, *SHORT)

    def kill(trainer):
        if trainer.iter == 3:
            for pid in set(workers()) - before:
                os.kill(pid, signal.SIGKILL)

    with monkeypatch.context() as patch:
        with_each_step(patch, kill)
        with pytest.raises(
            ChildProcessError, match=r"a loader worker was killed.*--resume continues from model_0"
        ) as e:
            run("shapes/rc2l.yaml", killed, *SHORT, "DATALOADER.NUM_WORKERS", 1)
    assert "\n" not in str(e.value)
    assert 2 <= iterations_done(killed) < 7

    contents = {}

    def damage(trainer):
        if trainer.iter == 3:
            for record in trainer.split.unlabeled:
                path = Path(record["file_name"])
                contents[path] = path.read_bytes()
                path.write_bytes(contents[path][:100])

    try:
        with monkeypatch.context() as patch:
            with_each_step(patch, damage)
            message = r"cannot read this image \(.*--resume continues from model_0000003.pth, after iteration 3$"
            with pytest.raises(DatasetError, match=message) as e:
                run("shapes/rc2l.yaml", damaged, *SHORT)
        assert "\n" not in str(e.value) and iterations_done(damaged) == 3
        with pytest.raises(DatasetError, match=r"images cannot be used"):
            run("shapes/rc2l.yaml", damaged, *SHORT, options=("--resume",))
    finally:
        for path, content in contents.items():
            path.write_bytes(content)

    validation = []

    def damage_test_image(trainer):
        if trainer.iter == 7:
            path = Path(load_records("shapes_sem_seg_val")[1]["file_name"])
            validation.append((path, path.read_bytes()))
            path.write_bytes(b"")

    try:
        with monkeypatch.context() as patch:
            with_each_step(patch, damage_test_image)
            with pytest.raises(DatasetError, match=r"it is empty.*--resume continues from model_0000007.pth"):
                run("shapes/rc2l.yaml", damaged, *SHORT, options=("--resume",))
    finally:
        for path, content in validation:
            path.write_bytes(content)

    for folder in (killed, damaged):
        run("shapes/rc2l.yaml", folder, *SHORT, options=("--resume",))
        assert same_weights(straight / "model_final.pth", folder / "model_final.pth")
        assert same_weights(straight / "model_best.pth", folder / "model_best.pth")
        assert [row["total_loss"] for row in metrics(straight)] == [row["total_loss"] for row in metrics(folder)]


def test_an_evaluation_survives_its_workers():
    cfg = load_config(str(REPO / "configs/shapes/rc2l.yaml"), [*TINY, "DATALOADER.NUM_WORKERS", "1"])
    before, seen = set(workers()), []
    for (record,) in build_test_loader(cfg, "shapes_sem_seg_val"):
        seen.append(record["image_id"])
        for pid in set(workers()) - before:
            os.kill(pid, signal.SIGKILL)
    cfg.DATALOADER.NUM_WORKERS = 0
    assert seen == [record["image_id"] for (record,) in build_test_loader(cfg, "shapes_sem_seg_val")] and len(seen) == 4
