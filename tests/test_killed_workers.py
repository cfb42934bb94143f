"""A loader worker that is killed ends the run in a checkpoint and one line; an evaluation goes on."""

import os
import signal

import pytest
import torch

from rc2l.data.loader import build_test_loader
from rc2l.engine.config_file import load_config
from rc2l.engine.trainer import SemiSupervisedTrainer
from tests.shared_data import REPO
from tests.test_train_net import TINY, datasets, datasets_folder, metrics, run, same_weights  # noqa: F401

SHORT = "SOLVER.MAX_ITER 12 SOLVER.CHECKPOINT_PERIOD 100 TEST.MAX_IMAGES 2 INPUT.CROP.SIZE [32,32]".split()


def workers() -> list[int]:
    """Process ids of this process's children."""
    return [int(pid) for pid in open(f"/proc/self/task/{os.getpid()}/children").read().split()]


def test_a_killed_worker_ends_in_a_checkpoint_and_the_resumed_run_is_the_undisturbed_one(tmp_path, monkeypatch):
    before = set(workers())
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    run("shapes/rc2l.yaml", straight, *SHORT)
    run_step = SemiSupervisedTrainer.run_step

    def kill_and_step(trainer):
        if trainer.iter == 3:
            for pid in set(workers()) - before:
                os.kill(pid, signal.SIGKILL)
        run_step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(SemiSupervisedTrainer, "run_step", kill_and_step)
        with pytest.raises(
            ChildProcessError, match=r"a loader worker was killed.*--resume continues from model_0"
        ) as e:
            run("shapes/rc2l.yaml", killed, *SHORT, "DATALOADER.NUM_WORKERS", 1)
    assert "\n" not in str(e.value)
    newest = (killed / "last_checkpoint").read_text()
    iteration = torch.load(killed / newest, weights_only=True)["trainer"]["iteration"]
    assert 3 <= iteration < 11
    run("shapes/rc2l.yaml", killed, *SHORT, options=("--resume",))
    assert same_weights(straight / "model_final.pth", killed / "model_final.pth")
    assert same_weights(straight / "model_best.pth", killed / "model_best.pth")
    assert [row["total_loss"] for row in metrics(straight)] == [row["total_loss"] for row in metrics(killed)]


def test_an_evaluation_survives_its_workers():
    cfg = load_config(str(REPO / "configs/shapes/rc2l.yaml"), [*TINY, "DATALOADER.NUM_WORKERS", "1"])
    before, seen = set(workers()), []
    for (record,) in build_test_loader(cfg, "shapes_sem_seg_val"):
        seen.append(record["image_id"])
        for pid in set(workers()) - before:
            os.kill(pid, signal.SIGKILL)
    cfg.DATALOADER.NUM_WORKERS = 0
    assert seen == [record["image_id"] for (record,) in build_test_loader(cfg, "shapes_sem_seg_val")] and len(seen) == 4
