"""Steps with a non-finite loss: dumps that replay, skipping under fp16; and warnings of collapsed pseudo labels."""

import re

import pytest
import torch

from rc2l.data.splits import build_split
from rc2l.engine.config_file import load_config
from rc2l.engine.divergence import CollapseWatch
from rc2l.engine.trainer import SemiSupervisedTrainer
from tests.shared_data import REPO
from tests.test_train_net import TINY, datasets, datasets_folder, run  # noqa: F401  the first two are fixtures
from tests.tool_modules import load_tool

replay = load_tool("replay")


def tiny_trainer(output, *overrides: str) -> SemiSupervisedTrainer:
    cfg = load_config(
        str(REPO / "configs/shapes/rc2l.yaml"), [*TINY, "OUTPUT_DIR", str(output), "MODEL.DEVICE", "cpu", *overrides]
    )
    return SemiSupervisedTrainer(cfg, build_split(cfg))


def break_loss(monkeypatch, at: tuple[int, ...]) -> None:
    """Make the student's outputs NaN in these iterations."""
    original = SemiSupervisedTrainer.step

    def step(self, batch, iteration):
        if iteration in at:
            batch.labeled_images = batch.labeled_images.float().fill_(float("nan"))
        return original(self, batch, iteration)

    monkeypatch.setattr(SemiSupervisedTrainer, "step", step)


def test_a_divergence_names_everything_and_its_dump_replays(tmp_path, monkeypatch, capsys):
    with pytest.raises(FloatingPointError) as error, monkeypatch.context() as patch:
        original = SemiSupervisedTrainer.run_step

        def run_step(self):
            if self.iter == 2:
                self.labeler.students["student"].backbone.stem.conv1.weight.data[0] = float("nan")
            original(self)

        patch.setattr(SemiSupervisedTrainer, "run_step", run_step)
        run("shapes/rc2l.yaml", tmp_path)
    message = str(error.value)
    assert re.search(r"^iteration 2: .*Images of this step: .*train_\d+\.jpg", message)
    path = re.search(r"python tools/replay\.py (\S+)", message)[1]
    assert replay.replay(path)
    said = capsys.readouterr().out
    assert "iteration 2" in said and "backbone.stem.conv1" in said
    dump = torch.load(path, weights_only=True)
    saved = torch.load(tmp_path / "model_0000001.pth", weights_only=True)
    for name, parameter in saved["teacher"].items():
        assert torch.equal(dump["teacher"][name], parameter), name


def test_a_replay_repeats_the_step_bit_for_bit(tmp_path, monkeypatch):
    """A finite step, dumped before it was made, gives the same losses again."""
    trainer = tiny_trainer(tmp_path, "MODEL.MASK_FORMER.DROPOUT", "0.1")
    seen = {}
    original = trainer.step

    def step(batch, iteration):
        if iteration == 2:
            trainer._dump(batch, "none")
        metrics = original(batch, iteration)
        seen[iteration] = {name: value.item() for name, value in metrics().items()}
        return metrics

    monkeypatch.setattr(trainer, "step", step)
    trainer.train()
    replayed, batch = replay.rebuild(torch.load(tmp_path / "divergence_0000002_rank0.pth", weights_only=True))
    replayed.seed_step()
    assert {name: value.item() for name, value in replayed.step(batch, 2)().items()} == seen[2]


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(tmp_path):
    trainer = tiny_trainer(tmp_path)
    before = {name: p.clone() for name, p in trainer.labeler.students["student"].named_parameters()}
    next(trainer.labeler.students["student"].parameters()).register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FloatingPointError, match=r"iteration 0: not finite: gradient_norm = (nan|inf)"):
        trainer.train()
    for name, parameter in trainer.labeler.students["student"].named_parameters():
        assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("allowed", [1, 2])
def test_fp16_skips_at_most_so_many_steps(allowed, tmp_path, monkeypatch):
    fp16 = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "float16"]
    trainer = tiny_trainer(tmp_path, *fp16, "SOLVER.MAX_SKIPPED_STEPS", str(allowed))
    break_loss(monkeypatch, at=(1, 2))
    if allowed == 1:
        with pytest.raises(FloatingPointError, match="iteration 2"):
            trainer.train()
    else:
        trainer.train()
        assert all(torch.isfinite(value).all() for value in trainer.labeler.students["student"].state_dict().values())
    assert trainer.state_dict()["skipped_steps"] == allowed


def test_without_fp16_nothing_is_skipped(tmp_path, monkeypatch):
    trainer = tiny_trainer(tmp_path, "SOLVER.MAX_SKIPPED_STEPS", "5")
    break_loss(monkeypatch, at=(1,))
    with pytest.raises(FloatingPointError, match="iteration 1"):
        trainer.train()


def test_collapse_is_told_once_after_patience_and_again_after_recovery():
    watch = CollapseWatch(max_class_share=0.9, min_kept_share=0.05, patience=40)
    good = {"pseudo/kept_share": 1.0, "pseudo/class_share/sky": 0.5}
    bad = {"pseudo/kept_share": 1.0, "pseudo/class_share/sky": 0.95}
    rows = [good, bad, bad, bad, bad, good, bad, bad, bad]
    told = [len(watch.look(row, 20 * number)) for number, row in enumerate(rows)]
    assert told == [0, 0, 0, 1, 0, 0, 0, 0, 1]
    assert watch.warned == ["class 'sky' on more than 0.9 of them"]


def test_few_kept_pixels_are_a_collapse_and_the_state_survives_a_restart():
    watch = CollapseWatch(0.9, 0.05, patience=20)
    assert watch.look({"pseudo/kept_share": 0.01}, 0) == []
    resumed = CollapseWatch(0.9, 0.05, patience=20)
    resumed.load_state_dict(watch.state_dict())
    assert "share of kept pixels below 0.05" in resumed.look({"pseudo/kept_share": 0.02}, 20)[0]
    assert resumed.look({"total_loss": 1.0}, 40) == []


def test_bad_limits_are_refused():
    with pytest.raises(ValueError, match=r"SEMI\.COLLAPSE\.MAX_CLASS_SHARE is 98: it must be a number in \[0, 1\]"):
        CollapseWatch(98, 0.01, 1)
