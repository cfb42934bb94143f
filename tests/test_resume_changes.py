"""--resume with another config or other data: what is continued, what is refused, what is said."""

import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from rc2l.engine.trainer import SemiSupervisedTrainer
from tests.custom_data import write_folder
from tests.test_train_net import datasets, datasets_folder, run  # noqa: F401  two are fixtures

SHORT = ["TEST.MAX_IMAGES", 1, "SOLVER.WARMUP_ITERS", 2]


@pytest.fixture(scope="module")
def trained(datasets, tmp_path_factory) -> Path:  # noqa: F811
    """A run of four iterations."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(datasets))
        run("shapes/supervised.yaml", folder, *SHORT)
    return folder


@pytest.fixture
def rates(monkeypatch) -> list[tuple[int, list[float]]]:
    """(iteration, learning rate of each group) of all steps that are done."""
    steps = []
    original = SemiSupervisedTrainer.run_step

    def step(self) -> None:
        steps.append((self.iter, [group["lr"] for group in self.optimizer.param_groups]))
        original(self)

    monkeypatch.setattr(SemiSupervisedTrainer, "run_step", step)
    return steps


def copy(trained: Path, target: Path, last: str = "model_final.pth") -> Path:
    shutil.copytree(trained, target)
    (target / "log.txt").unlink()
    (target / "last_checkpoint").write_text(last)
    return target


def said(folder: Path) -> list[str]:
    return [line for line in (folder / "log.txt").read_text().splitlines() if "--resume:" in line]


@pytest.mark.parametrize(
    "schedule", [(), ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR", 0.001)], ids=["longer", "other"]
)
def test_a_longer_run_has_the_rates_of_a_fresh_one(schedule, trained, tmp_path, rates):
    changes = [*SHORT, "SOLVER.MAX_ITER", 8, *schedule]
    run("shapes/supervised.yaml", tmp_path / "fresh", *changes)
    fresh = rates.copy()
    assert [iteration for iteration, _ in fresh] == list(range(8)) and min(min(rate) for _, rate in fresh) > 0
    for last, start in (("model_final.pth", 4), ("model_0000001.pth", 2)):
        rates.clear()
        folder = copy(trained, tmp_path / last, last)
        run("shapes/supervised.yaml", folder, *changes, options=("--resume",))
        assert rates == fresh[start:]
        assert len(said(folder)) == 1 and "SOLVER.MAX_ITER 4 -> 8" in said(folder)[0]
        assert ("SOLVER.BASE_LR 0.0005 -> 0.001" in said(folder)[0]) == bool(schedule)


REFUSED = {
    "SOLVER.OPTIMIZER": ("SGD", "'SGD'.*'ADAMW'"),
    "SEMI.METHOD": ("rc2l", "'rc2l'.*'supervised'"),
    "SEED": (5, "5.*0"),
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": (8, "8.*16"),
    "MODEL.RESNETS.DEPTH": (34, "34.*18"),
    "SOLVER.BACKBONE_MULTIPLIER": (0.5, "0.5.*1.0"),
    "SOLVER.MAX_ITER": (3, "3.* 4 iterations behind it"),
}


def test_what_the_state_depends_on_is_refused_before_the_first_step(trained, tmp_path, rates):
    folder = copy(trained, tmp_path / "run")
    for key, (value, values) in REFUSED.items():
        with pytest.raises(ValueError, match=rf"--resume: {re.escape(key)} is {values}.*OUTPUT_DIR") as refusal:
            run("shapes/supervised.yaml", folder, *SHORT, key, value, options=("--resume",))
        assert "\n" not in str(refusal.value)
    assert not rates


def test_nothing_is_said_of_an_unchanged_run_or_an_older_checkpoint(trained, tmp_path, rates):
    folder = copy(trained, tmp_path / "run", "model_0000001.pth")
    run("shapes/supervised.yaml", folder, *SHORT, options=("--resume",))
    assert len(rates) == 2 and not said(folder)
    old = torch.load(folder / "model_final.pth", weights_only=True)
    del old["trainer"]["record"]
    torch.save(old, folder / "model_final.pth")
    run("shapes/supervised.yaml", folder, *SHORT, "SOLVER.MAX_ITER", 5, options=("--resume",))
    assert [iteration for iteration, _ in rates] == [2, 3, 4] and not said(folder)


def grown_run(root: Path, *options: str, **description: object) -> Path:
    keys = {"name": "grown", "classes": ["a", "b", "c"], "images": "images", "labels": "labels", "val_fraction": 0.25}
    (root / "grown.yaml").write_text(yaml.safe_dump(keys | description))
    data = ["DATASETS.CUSTOM", str(root / "grown.yaml"), "DATASETS.TRAIN", "('grown_sem_seg_train',)"]
    data += ["DATASETS.TEST", "('grown_sem_seg_val',)", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3]
    data += ["DATASETS.SPLIT.SAMPLING", "random", "INPUT.CROP.SIZE", "[32,32]", "SOLVER.CHECKPOINT_PERIOD", 100]
    run("shapes/consistency.yaml", root / "out", *data, "SOLVER.MAX_ITER", 2, options=options)
    return root / "out"


def test_a_grown_dataset(tmp_path):
    """Hashes below 0.25 of 00 to 11: 00, 02, 07, 09; of 00 to 07: 00, 02, 07."""
    write_folder(tmp_path, 12)
    later = [path for path in tmp_path.glob("*/*") if path.stem >= "08"]
    assert len(later) == 8
    for path in later:
        path.rename(path.with_suffix(".later"))
    out = grown_run(tmp_path)
    state = torch.load(out / "model_final.pth", weights_only=True)["trainer"]
    assert [len(state["record"][part]) for part in ("labeled", "unlabeled", "validation", "trained")] == [2, 3, 3, 5]
    # A best score that these networks cannot have.
    content = torch.load(out / "model_final.pth", weights_only=True)
    for path in later:
        path.with_suffix(".later").rename(path)
    torch.save(content | {"trainer": state | {"best": 200.0}}, out / "model_final.pth")
    grown_run(tmp_path, "--resume")
    (line,) = said(out)
    assert re.search(r"hash \w{12} then, \w{12} now; labelled 2 -> 2.*validation 3 -> 4 \(\+1 -0\)", line)
    assert line.endswith("is forgotten")
    (tmp_path / "out/log.txt").unlink()
    with pytest.raises(
        ValueError, match=r"--resume: the split is not.* images that it was trained on are now for"
    ) as e:
        grown_run(tmp_path, "--resume", val_fraction=0.7)
    assert "OUTPUT_DIR and MODEL.WEIGHTS" in str(e.value) and "\n" not in str(e.value)
    with pytest.raises(ValueError, match=r"--resume: grown.value_range is \[0.0, 300.0\], but .* trained with None"):
        grown_run(tmp_path, "--resume", value_range=[0, 300])
