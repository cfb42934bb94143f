"""A run that is killed or stopped, however often, ends as the undisturbed one: weights, metrics, best score."""

import json
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch

from rc2l.engine.history import cut_rows
from rc2l.engine.signals import EXIT_STOPPED, StopRequest
from rc2l.engine.trainer import SemiSupervisedTrainer
from tests.test_train_net import TINY, datasets, datasets_folder, metrics, run  # noqa: F401  two are fixtures
from tests.trainings import Kill, Trainings, contents, differences, run_differences, tensorboard, timeless

#: Evaluations at steps where no row is due, checkpoints at others still, and the end at neither.
SCHEDULE = """SOLVER.MAX_ITER 45 SOLVER.CHECKPOINT_PERIOD 7 TEST.EVAL_PERIOD 11 SOLVER.CHECKPOINTS_KEPT 2 SEMI.BURN_IN 5
MODEL.MASK_FORMER.DROPOUT 0.1 INPUT.CROP.SIZE [32,32] TEST.MAX_IMAGES 2""".split()


@pytest.fixture
def server(datasets):  # noqa: F811
    """Starts trainings, of which none outlives the test, be it a failed one."""
    trainings = Trainings(DETECTRON2_DATASETS=str(datasets))
    yield trainings
    trainings.end_training()


def arguments(output: Path, *options: str) -> list[str]:
    return ["--config-file", "configs/shapes/rc2l.yaml", *options, *TINY, *SCHEDULE, "OUTPUT_DIR", str(output)]


def undisturbed(datasets: Path, output: Path, *overrides: str) -> Path:  # noqa: F811
    trainings = Trainings(DETECTRON2_DATASETS=str(datasets))
    trainings.start(*arguments(output), *overrides)
    assert trainings.wait() == 0
    return output


@pytest.fixture(scope="module")
def straight(datasets, tmp_path_factory) -> Path:  # noqa: F811
    return undisturbed(datasets, tmp_path_factory.mktemp("straight"))


@pytest.fixture(scope="module")
def short(datasets, tmp_path_factory) -> Path:  # noqa: F811
    """With evaluations on the steps of checkpoints."""
    return undisturbed(datasets, tmp_path_factory.mktemp("short"), *shapes())


def ten_kills(size: int) -> list[Kill]:
    """Ten kills in the order of a run's progress; a checkpoint has about ``size`` bytes."""
    draw = random.Random(0)
    occasions = ["timer", "best", "writing", "renamed", "timer", "writing", "timer", "writing", "timer", "writing"]
    kills = []
    for occasion, iteration in zip(occasions, sorted(draw.sample(range(2, 43), 10)), strict=True):
        if occasion == "best":
            # The first evaluation, after step 10, always finds the best network so far.
            kills.append(Kill(min(iteration, 10), "writing", draw.randrange(size), file="model_best.pth"))
        else:
            kills.append(
                Kill(iteration, occasion, draw.uniform(0, 0.2) if occasion == "timer" else draw.randrange(size))
            )
    return kills


def test_a_run_killed_ten_times_ends_as_the_undisturbed_one(server, straight, tmp_path):
    for kill in ten_kills((straight / "model_final.pth").stat().st_size * 9 // 10):
        before = (tmp_path / "last_checkpoint").read_text() if (tmp_path / "last_checkpoint").exists() else None
        server.start(*arguments(tmp_path, "--resume"), kill=kill)
        assert server.wait() == -signal.SIGKILL, kill
        if kill.by == "writing":
            assert list(tmp_path.glob(f"{kill.file}.tmp"))
        if kill.by == "renamed":
            newest = max(path.name for path in tmp_path.glob("model_0*.pth"))
            assert before == (tmp_path / "last_checkpoint").read_text() < newest
    server.start(*arguments(tmp_path, "--resume"))
    assert server.wait() == 0
    assert run_differences(straight, tmp_path) == []
    assert tensorboard(tmp_path) == tensorboard(straight)
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_stop_signal_ends_with_a_checkpoint_and_its_own_status(number, server, short, tmp_path):
    """With a loader worker, which must outlive the signal."""
    kill = Kill(2, "timer", 0, number=number)
    server.start(*arguments(tmp_path), *shapes(), "DATALOADER.NUM_WORKERS", "1", kill=kill)
    assert server.wait() == EXIT_STOPPED
    stopped = torch.load(tmp_path / (tmp_path / "last_checkpoint").read_text(), weights_only=True)
    assert 2 <= stopped["trainer"]["iteration"] < 8
    server.start(*arguments(tmp_path, "--resume"), *shapes())
    assert server.wait() == 0
    assert timeless(tmp_path) == timeless(short)


def test_a_training_is_waited_for(server, tmp_path):
    server.start(*arguments(tmp_path))
    with pytest.raises(RuntimeError, match="has not been waited for"):
        server.start(*arguments(tmp_path))
    server.end_training()
    server.start("--config-file", "none.yaml")
    assert server.wait() == 1


def test_a_second_ctrl_c_does_not_wait():
    before = signal.getsignal(signal.SIGINT)  # a background process has it ignored
    with StopRequest() as request, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        assert request.received is signal.SIGINT
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


METHODS = {
    "supervised": ("supervised", []),
    "consistency": ("consistency", []),
    "rc2l": ("rc2l", ["DATALOADER.NUM_WORKERS", 2]),
    "rc2l, all terms and layers": (
        "rc2l",
        ["SEMI.DEEP_SUPERVISION", True, "RC2L.CONSISTENCY_WEIGHT", 1.0, "SEMI.LOSS_RESOLUTION", "mask"],
    ),
    "rc2l, reco": ("rc2l-reco", []),
    "sgd, averaged buffers": ("rc2l", ["SOLVER.OPTIMIZER", "SGD", "SEMI.TEACHER.AVERAGE_BUFFERS", True]),
    "bfloat16": ("rc2l", ["SOLVER.AMP.ENABLED", True]),
    "random seed": ("consistency", ["SEED", -1]),
    "cutout": ("cutout_deeplab", []),
    "cutmix": ("cutmix_deeplab", []),
    "classmix": ("classmix_deeplab", []),
    "classmix, reco": ("classmix-reco_deeplab", []),
    "self-training of MaskFormer": ("rc2l", ["SEMI.METHOD", "self_training"]),
    "s4gan": ("s4gan_deeplab", ["S4GAN.DISCRIMINATOR_WIDTH", 16]),
    "unimatch": ("cutmix_deeplab", ["SEMI.METHOD", "unimatch", "UNIMATCH.CONFIDENCE_THRESHOLD", 0.0]),
    "unimatch 2": (
        "cutmix_deeplab",
        ["SEMI.METHOD", "unimatch", "UNIMATCH.VERSION", 2, "UNIMATCH.CONFIDENCE_THRESHOLD", 0.0],
    ),
    "rc2l, dgcl": ("rc2l-dgcl", []),
    "cutmix, dgcl and reco with banks": (
        "cutmix-dgcl_deeplab",
        ["RECO.ENABLED", True, "RECO.MEMORY_PER_CLASS", 100, "SELF_TRAINING.KEPT_SHARE", "[0.8,1.0]"],
    ),
}
#: Parts that every checkpoint has, and those of single cases.
PARTS = {"model", "teacher", "optimizer", "scheduler", "scaler", "trainer", "objectives"}
MORE_PARTS = {
    "rc2l, reco": {"projection"},
    "classmix, reco": {"projection"},
    "rc2l, dgcl": {"projection"},
    "cutmix, dgcl and reco with banks": {"projection"},
}
#: Objectives with a state.
STATES = {"s4gan": {"s4gan"}, "rc2l, dgcl": {"dgcl"}, "cutmix, dgcl and reco with banks": {"dgcl", "reco"}}
#: The student labels for itself: there is no teacher.
ALONE = ("unimatch",)


@pytest.mark.parametrize("case", METHODS)
def test_n_and_n_steps_equal_2n(case, tmp_path):
    """Every part of the checkpoint; the number of workers is another after the restart."""
    config, overrides = METHODS[case]
    overrides = ["MODEL.MASK_FORMER.DROPOUT", 0.1, "INPUT.CROP.SIZE", "[32,32]", "TEST.MAX_IMAGES", 1, *overrides]
    overrides += ["TEST.EVAL_PERIOD", 2]
    workers = ["DATALOADER.NUM_WORKERS", 0 if "DATALOADER.NUM_WORKERS" in overrides else 1]
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    run(f"shapes/{config}.yaml", straight, *overrides)
    resumed.mkdir()
    shutil.copy(straight / "model_0000001.pth", resumed)
    run(f"shapes/{config}.yaml", resumed, *overrides, *workers, options=("--resume",))
    final = [contents(output / "model_final.pth") for output in (straight, resumed)]
    parts = PARTS - ({"teacher"} if case in ALONE else set())
    assert final[0].keys() - {"iteration"} == parts | MORE_PARTS.get(case, set())
    assert final[0]["objectives"].keys() == STATES.get(case, set())
    assert differences(*final) == []
    halfway = contents(straight / "model_0000001.pth")
    for part in final[0].keys() - {"iteration", "scaler"}:
        if part == "objectives" and case not in STATES:
            continue
        assert differences(halfway[part], final[0][part]), f"{part} does not change, so this shows nothing about it"
    assert [row["iteration"] for row in metrics(resumed)] == [row["iteration"] for row in metrics(straight)]
    assert timeless(resumed) == timeless(straight)


def test_without_resume_an_earlier_run_is_set_aside(tmp_path):
    run("shapes/supervised.yaml", tmp_path)
    weights = (tmp_path / "model_final.pth").read_bytes()
    run("shapes/supervised.yaml", tmp_path, "SEED", 5)
    assert (tmp_path / "earlier_1/model_final.pth").read_bytes() == weights
    iterations = [row["iteration"] for row in metrics(tmp_path)]
    assert len(iterations) == len(set(iterations))


def test_a_fast_dev_run_replaces_the_last_one_and_nothing_else(tmp_path):
    (tmp_path / "model_final.pth").write_bytes(b"of a real run")
    for seed in (1, 2):
        run("shapes/supervised.yaml", tmp_path, "SEED", seed, "TEST.MAX_IMAGES", 1, options=("--fast-dev-run",))
    assert {path.name for path in tmp_path.iterdir()} == {"model_final.pth", "fast_dev_run"}
    folder = tmp_path / "fast_dev_run"
    assert not list(folder.glob("earlier_*"))
    assert torch.load(folder / "model_final.pth", weights_only=True)["trainer"]["seed"] == 2
    run("shapes/supervised.yaml", tmp_path, "SEED", 2, "TEST.MAX_IMAGES", 1, options=("--fast-dev-run", "--resume"))
    assert torch.load(folder / "model_final.pth", weights_only=True)["trainer"]["seed"] == 2


def test_a_restart_by_the_launcher_resumes_by_itself(tmp_path, monkeypatch):
    run("shapes/supervised.yaml", tmp_path)
    steps = []
    original = SemiSupervisedTrainer.run_step
    monkeypatch.setattr(SemiSupervisedTrainer, "run_step", lambda self: (steps.append(self.iter), original(self)))
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    run("shapes/supervised.yaml", tmp_path)
    assert steps == [2, 3]


def test_rows_are_cut_after_the_iteration_and_torn_lines_go(tmp_path):
    path = tmp_path / "metrics.json"
    rows = [{"iteration": i, "loss": 1.0} for i in (19, 39, 33, 59)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"iteration": 7')
    cut_rows(path, 59)
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows
    cut_rows(path, 39)
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows[:3]
    cut_rows(path, -1)
    assert path.read_text() == ""


def test_a_damaged_row_is_dropped_and_told(tmp_path, caplog):
    path = tmp_path / "metrics.json"
    rows = [json.dumps({"iteration": i}) for i in (19, 39, 59)]
    path.write_bytes(f"{rows[0]}\n".encode() + bytes(30) + f"\n{rows[1]}\n{rows[2]}\n".encode())
    cut_rows(path, 39)
    assert path.read_text() == f"{rows[0]}\n{rows[1]}\n"
    assert "1 of its 4 rows cannot be read and are dropped" in caplog.text


def test_missing_metrics_are_told(tmp_path, caplog):
    cut_rows(tmp_path / "metrics.json", 19)
    assert "the metrics up to iteration 19 are lost" in caplog.text


def shapes(*options: str) -> list[str]:
    """Evaluations fall on the steps of checkpoints."""
    return [*options, "SOLVER.MAX_ITER", "9", "SOLVER.CHECKPOINT_PERIOD", "3", "TEST.EVAL_PERIOD", "3"]


BEST_KILLS = {
    "checkpoint written, evaluation to come": Kill(0, "renamed"),
    "best half written": Kill(0, "writing", 3000, file="model_best.pth"),
    "best written, step not done": Kill(0, "renamed", file="model_best.pth"),
    "final written, last evaluation to come": Kill(0, "renamed", file="model_final.pth"),
}


@pytest.mark.parametrize("case", BEST_KILLS)
def test_best_holds_the_weights_that_got_its_score_whenever_it_was_killed(case, server, short, tmp_path):
    killed = tmp_path / "killed"
    server.start(*arguments(killed), *shapes(), kill=BEST_KILLS[case])
    assert server.wait() == -signal.SIGKILL
    server.start(*arguments(killed, "--resume"), *shapes())
    assert server.wait() == 0
    assert run_differences(short, killed) == []
    best = torch.load(killed / "model_best.pth", weights_only=True)["trainer"]
    assert best["iteration"] in {2, 5, 8}  # the steps that are evaluated, not the ones after them


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_run_killed_while_an_earlier_one_moves_aside_loses_neither(server, short, tmp_path):
    shutil.copytree(short, tmp_path / "run")
    server.start(*arguments(tmp_path / "run"), *shapes(), kill=Kill(0, "moving", 3))
    assert server.wait() == -signal.SIGKILL
    assert len(list((tmp_path / "run/earlier_1").iterdir())) == 3
    server.start(*arguments(tmp_path / "run", "--resume"), *shapes())
    assert server.wait() == 0
    assert run_differences(short, tmp_path / "run") == []
    assert files(tmp_path / "run/earlier_1") == files(short)


def test_a_best_score_without_its_file_is_forgotten(server, tmp_path):
    server.start(*arguments(tmp_path), *shapes(), kill=Kill(6, "timer", 0))
    server.wait()
    (tmp_path / "model_best.pth").unlink()
    server.start(*arguments(tmp_path, "--resume"), *shapes())
    assert server.wait() == 0
    assert (tmp_path / "model_best.pth").exists()


def test_rows_are_in_order_of_iterations_and_none_is_past_the_end(straight):
    """Every twentieth step, and each evaluation."""
    rows = metrics(straight)
    assert [row["iteration"] for row in rows] == [10, 19, 21, 32, 39, 43, 44]
    scored = [row["iteration"] for row in rows if "teacher/mIoU" in row]
    assert scored == [step for step, _ in tensorboard(straight)["teacher/mIoU"]] == [10, 21, 32, 43, 44]


def test_every_evaluation_between_two_rows_is_kept(tmp_path):
    overrides = ["SOLVER.MAX_ITER", 7, "SOLVER.CHECKPOINT_PERIOD", 3, "TEST.EVAL_PERIOD", 1, "TEST.MAX_IMAGES", 1]
    run("shapes/supervised.yaml", tmp_path / "straight", *overrides)
    assert [row["iteration"] for row in metrics(tmp_path / "straight") if "teacher/mIoU" in row] == list(range(7))
    (tmp_path / "resumed").mkdir()
    shutil.copy(tmp_path / "straight/metrics.json", tmp_path / "resumed")
    shutil.copy(tmp_path / "straight/model_0000002.pth", tmp_path / "resumed")
    run("shapes/supervised.yaml", tmp_path / "resumed", *overrides, options=("--resume",))
    assert timeless(tmp_path / "resumed") == timeless(tmp_path / "straight")


def test_a_resume_one_step_before_a_row_adds_none(tmp_path):
    """What the clock says is not restored: it would make rows of its own."""
    overrides = ["SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 5, "TEST.MAX_IMAGES", 1]
    run("shapes/supervised.yaml", tmp_path / "straight", *overrides)
    for newest in ("model_0000004.pth", "model_final.pth"):
        resumed = tmp_path / newest
        resumed.mkdir()
        shutil.copy(tmp_path / "straight" / newest, resumed)
        run("shapes/supervised.yaml", resumed, *overrides, options=("--resume",))
        rows = [row["iteration"] for row in metrics(tmp_path / "straight")]
        assert [row["iteration"] for row in metrics(resumed)] == rows == [5]
