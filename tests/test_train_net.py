"""Whole runs through train_net.py on miniature datasets: every method, evaluation, resume, launchers, bad input."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import train_net
from rc2l.engine.launch import launch
from rc2l.engine.run import argument_parser
from tests.processes import run_python
from tests.shared_data import REPO

#: A small network and a short schedule, for what does not depend on them.
TINY = """MODEL.SEM_SEG_HEAD.CONVS_DIM 32 MODEL.SEM_SEG_HEAD.MASK_DIM 32 MODEL.MASK_FORMER.HIDDEN_DIM 32
MODEL.MASK_FORMER.DIM_FEEDFORWARD 32 MODEL.MASK_FORMER.DEC_LAYERS 2 SOLVER.IMS_PER_BATCH 2
SOLVER.IMS_PER_BATCH_UNLABELED 2 SEMI.BURN_IN 1 SOLVER.MAX_ITER 4 SOLVER.CHECKPOINT_PERIOD 2 TEST.EVAL_PERIOD 0
VIS_PERIOD 0 DATASETS.SPLIT.FRACTION 1/4""".split()


def run(config: str, output: Path, *overrides: str, options: tuple[str, ...] = ()) -> dict[str, float]:
    arguments = ["--config-file", str(REPO / "configs" / config), *options, *TINY, "OUTPUT_DIR", str(output)]
    return train_net.main(argument_parser("").parse_args([*arguments, *map(str, overrides)]))


@pytest.fixture(scope="module")
def datasets(miniature_datasets) -> Path:
    return miniature_datasets


@pytest.fixture(autouse=True)
def datasets_folder(datasets, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))


def metrics(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


def same_weights(first: Path, second: Path) -> bool:
    files = [torch.load(path, weights_only=True) for path in (first, second)]
    return all(
        torch.equal(files[0][network][name], tensor)
        for network in ("model", "teacher")
        for name, tensor in files[1][network].items()
    )


ROWS_OF_TABLE_3 = {
    "consistency": ("consistency", [], {"loss_consistency"}),
    "smc": ("rc2l", ["RC2L.RCC_WEIGHT", 0.0, "RC2L.RMC_WEIGHT", 0.0, "RC2L.RFC_WEIGHT", 0.0], {"loss_smc"}),
    "smc + rcc": ("rc2l", ["RC2L.RMC_WEIGHT", 0.0, "RC2L.RFC_WEIGHT", 0.0], {"loss_smc", "loss_rcc"}),
    "smc + rcc + rmc": ("rc2l", ["RC2L.RFC_WEIGHT", 0.0], {"loss_smc", "loss_rcc", "loss_rmc"}),
    "rc2l": ("rc2l", [], {"loss_smc", "loss_rcc", "loss_rmc", "loss_rfc"}),
    "rc2l, all layers": (
        "rc2l",
        ["SEMI.DEEP_SUPERVISION", True, "RC2L.CONSISTENCY_WEIGHT", 1.0, "SEMI.LOSS_RESOLUTION", "mask"],
        {"loss_smc", "loss_rcc", "loss_rmc", "loss_rfc", "loss_consistency"},
    ),
    "supervised": ("supervised", [], set()),
}


@pytest.mark.parametrize("row", ROWS_OF_TABLE_3)
def test_every_method_trains_evaluates_and_saves(row, tmp_path):
    config, overrides, unsupervised = ROWS_OF_TABLE_3[row]
    results = run(f"shapes/{config}.yaml", tmp_path, *overrides)
    assert {"teacher/mIoU", "student/mIoU"} <= results.keys()
    last = [row for row in metrics(tmp_path) if "total_loss" in row][-1]
    supervised = {f"loss_{kind}{suffix}" for kind in ("ce", "mask", "dice") for suffix in ("", "_0")}
    assert {name for name in last if name.startswith("loss_")} == supervised | unsupervised
    assert last["total_loss"] == pytest.approx(sum(last[name] for name in supervised | unsupervised), rel=1e-4)
    assert ("pseudo/kept_share" in last) == ("pseudo/mIoU" in last) == bool(unsupervised)
    checkpoint = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert checkpoint.keys() >= {"model", "teacher", "optimizer", "scheduler", "scaler", "trainer"}
    assert checkpoint["trainer"]["iteration"] == 3


def test_eval_only_scores_a_checkpoint_as_the_end_of_training_did(tmp_path):
    """The paper's VOC config on a miniature devkit, two iterations of a small backbone at a small crop."""
    small = "INPUT.CROP.SIZE [64,64] INPUT.MIN_SIZE_TRAIN (64,80) INPUT.MIN_SIZE_TEST 64".split()
    small += ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.WEIGHTS", ""]
    overrides = [*small, "SOLVER.MAX_ITER", 2, "SOLVER.CHECKPOINT_PERIOD", 100, "DATALOADER.NUM_WORKERS", 0]
    overrides += ["DATASETS.SPLIT.FRACTION", "1/16", "SEMI.BURN_IN", 0]
    trained = run("voc/rc2l_r101_1-16.yaml", tmp_path / "train", *overrides)
    written = {path.name: json.loads(path.read_text()) for path in (tmp_path / "train/inference").iterdir()}
    assert len(written) == 2
    scored = run(
        "voc/rc2l_r101_1-16.yaml",
        tmp_path / "eval",
        *overrides,
        "MODEL.WEIGHTS",
        tmp_path / "train/model_final.pth",
        options=("--eval-only",),
    )
    assert scored == trained
    tables = (tmp_path / "eval/eval_only/inference").iterdir()
    assert {path.name: json.loads(path.read_text()) for path in tables} == written


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("shapes/rc2l.yaml", tmp_path / name, "SEED", seed)
    assert same_weights(tmp_path / "a/model_final.pth", tmp_path / "b/model_final.pth")
    assert not same_weights(tmp_path / "a/model_final.pth", tmp_path / "c/model_final.pth")
    for name in "abc":  # of three runs in one process each has its own log
        log = (tmp_path / name / "log.txt").read_text()
        assert log.count("Starting training") == log.count(f"Full config saved to {tmp_path / name}/") == 1


def test_resume_into_another_model_is_refused(tmp_path):
    run("shapes/supervised.yaml", tmp_path, "SOLVER.MAX_ITER", 2)
    with pytest.raises(ValueError, match=r"MODEL\.SEM_SEG_HEAD\.MASK_DIM is 48, but .*model_final\.pth .* 32"):
        run("shapes/supervised.yaml", tmp_path, "MODEL.SEM_SEG_HEAD.MASK_DIM", 48, options=("--resume",))


def test_mixed_precision_trains(tmp_path):
    run("shapes/rc2l.yaml", tmp_path, "SOLVER.AMP.ENABLED", True)
    assert all(np.isfinite(row["total_loss"]) for row in metrics(tmp_path) if "total_loss" in row)


def test_training_starts_from_a_torchvision_backbone(tmp_path):
    path = tmp_path / "resnet18.pth"
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)
    widths = ["MODEL.RESNETS.STEM_OUT_CHANNELS", 64, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
    run("shapes/supervised.yaml", tmp_path, *widths, "MODEL.WEIGHTS", path, "SOLVER.BASE_LR", 0.0)
    trained = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    expected = torch.load(path, weights_only=True)["layer1.0.conv1.weight"]
    torch.testing.assert_close(trained["backbone.res2.0.conv1.weight"], expected)


def test_fast_dev_run_from_the_command_line(tmp_path):
    """By an interpreter of its own."""
    command = [sys.executable, "train_net.py", "--config-file", "configs/shapes/rc2l.yaml", "--fast-dev-run"]
    command += [*TINY, "OUTPUT_DIR", str(tmp_path)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    folder = tmp_path / "fast_dev_run"
    assert (folder / "model_final.pth").exists() and (folder / "config.yaml").exists()
    assert any("teacher/mIoU" in row for row in metrics(folder))
    assert re.search(r"eta: .*iter: 3", done.stdout)


BAD_INPUT = {
    "unknown method": (["SEMI.METHOD", "magic"], r"SEMI\.METHOD is 'magic': it must be supervised, "),
    "option after overrides": (
        ["SOLVER.BASE_LR", "0.1", "--eval-only"],
        r"--eval-only stands among the config overrides",
    ),
    "odd overrides": (["SOLVER.BASE_LR"], r"KEY VALUE pairs"),
    "unknown key": (["SOLVER.BASE_LRR", "1"], r"SOLVER\.BASE_LRR \(did you mean SOLVER\.BASE_LR\?\)"),
    "wrong type": (["SOLVER.MAX_ITER", "many"], r"SOLVER\.MAX_ITER|MAX_ITER"),
    "unknown union": (["RC2L.UNION", "mean"], r"RC2L\.UNION is 'mean': it must be sum, max, "),
    "temperature": (["RC2L.RMC_TEMPERATURE", "0.0"], r"RC2L\.RMC_TEMPERATURE is 0\.0: it must be a number above 0"),
    "ignore value": (["MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "0"], r"IGNORE_VALUE is 0: it must be 255"),
    "decay": (["SEMI.TEACHER.DECAY", "1.0"], r"SEMI\.TEACHER\.DECAY is 1\.0"),
    "number of classes": (["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "7"], r"NUM_CLASSES.*7.*9|9.*NUM_CLASSES.*7"),
    "unknown dataset": (["DATASETS.TRAIN", "('nothing',)"], r"nothing.*shapes_sem_seg_train"),
    "empty split": (["DATASETS.SPLIT.NUM_LABELED", "-1"], r"NUM_LABELED"),
    "overlap": (["DATASETS.TEST", "('shapes_sem_seg_train',)"], r"also in the training data"),
    "too many GPUs": (["--num-gpus", "64"], r"--num-gpus 64, but this machine has"),
    "no such config": (["--config-file", "configs/none.yaml"], r"configs/none\.yaml: no such file"),
    "optimizer": (["SOLVER.OPTIMIZER", "LION"], r"SOLVER\.OPTIMIZER is 'LION': it must be ADAMW or SGD"),
    "amp type": (["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "float8"], r"SOLVER\.AMP\.DTYPE"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_error_before_training(case, tmp_path, monkeypatch):
    arguments, message = BAD_INPUT[case]
    options = ["--config-file", str(REPO / "configs/shapes/rc2l.yaml")]
    if arguments[0].startswith("--"):
        options, arguments = options + arguments, []
    monkeypatch.setattr("rc2l.engine.trainer.SemiSupervisedTrainer.run_step", lambda self: pytest.fail("it trained"))
    parsed = argument_parser("").parse_args([*options, "OUTPUT_DIR", str(tmp_path), *arguments])
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        launch(train_net.main, parsed)
    assert "\n" not in str(error.value).strip()


def break_label(root: Path, action) -> None:
    label = sorted((root / "shapes/SegmentationClass").glob("train_*.png"))[0]
    action(label)


BAD_FILES = {
    "label missing": (Path.unlink, r"label file .*train_0000\.png of this image does not exist"),
    "label id out of range": (
        lambda path: Image.fromarray(np.full((64, 64), 42, np.uint8)).save(path),
        r"train_0000\.png.*42",
    ),
    "label of another size": (
        lambda path: Image.fromarray(np.zeros((32, 64), np.uint8)).save(path),
        r"train_0000.*(64.*32|32.*64)",
    ),
    "label unreadable": (lambda path: path.write_bytes(b"not a picture"), r"train_0000\.png"),
    "image unreadable": (
        lambda path: (path.parent.parent / "JPEGImages/train_0000.jpg").write_bytes(b"not a picture"),
        r"train_0000\.jpg",
    ),
    "dataset missing": (lambda path: shutil.rmtree(path.parent.parent), r"shapes.*make_shapes"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_one_error_before_training(case, datasets, tmp_path, monkeypatch):
    action, message = BAD_FILES[case]
    shutil.copytree(datasets / "shapes", tmp_path / "datasets/shapes")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    break_label(tmp_path / "datasets", action)
    monkeypatch.setattr("rc2l.engine.trainer.SemiSupervisedTrainer.run_step", lambda self: pytest.fail("it trained"))
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        run("shapes/all_labels.yaml", tmp_path / "output", "DATASETS.SPLIT.FRACTION", "all")


def test_the_command_line_prints_one_error_line(tmp_path):
    done = run_python("train_net.py", "--config-file", "configs/shapes/rc2l.yaml", "SEMI.METHOD", "magic")
    assert done.returncode != 0
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [
        "error: SEMI.METHOD is 'magic': it must be supervised, consistency, self_training, rc2l, s4gan, fixmatch or "
        "unimatch"
    ]
    assert "Traceback" not in done.stderr


def test_non_finite_outputs_stop_the_run_with_iteration_and_images(tmp_path, capsys):
    with pytest.raises(FloatingPointError, match=r"iteration \d+: .*Images of this step: .*train_\d+\.jpg"):
        run("shapes/supervised.yaml", tmp_path, "SOLVER.BASE_LR", 1e30, "SOLVER.CLIP_GRADIENTS.ENABLED", False)
    for said in (capsys.readouterr().out, (tmp_path / "log.txt").read_text()):
        assert "Starting training" in said and "Traceback" not in said  # detectron2 would log one


def test_best_and_last_checkpoints_are_kept_and_older_ones_are_not(tmp_path):
    results = run("shapes/supervised.yaml", tmp_path, "SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.CHECKPOINTS_KEPT", 2)
    kept = {path.name for path in tmp_path.glob("*.pth")}
    assert kept == {"model_0000002.pth", "model_0000003.pth", "model_final.pth", "model_best.pth"}
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)["trainer"]
    assert best["best"] == results["teacher/mIoU"] and best["iteration"] == 3


def test_weights_that_cannot_be_fetched_are_told_before_the_data_is_looked_at(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nothing"))
    monkeypatch.setattr("iopath.common.file_io.download", unreachable)
    with pytest.raises(FileNotFoundError, match=r"cannot fetch https://\S+a.pth .* and put it at .*cache/a.pth"):
        run("shapes/rc2l.yaml", tmp_path / "output", "MODEL.WEIGHTS", "https://example.org/a.pth")
