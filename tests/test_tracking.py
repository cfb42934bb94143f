"""Trackers of runs, by stand-ins for their packages: what reaches them, resume, failures; and the bar on a terminal."""

import io
import logging
import re
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from detectron2.utils.events import EventStorage

import train_net
from rc2l.config import get_rc2l_cfg
from rc2l.data.datasets.shapes import generate_shapes
from rc2l.engine.config_file import load_config
from rc2l.engine.run import argument_parser
from rc2l.engine.tracking import TRACKER_REGISTRY, Tracker, Tracking, check_tracker
from tests.shared_data import REPO

TINY = """MODEL.SEM_SEG_HEAD.CONVS_DIM 32 MODEL.SEM_SEG_HEAD.MASK_DIM 32 MODEL.MASK_FORMER.HIDDEN_DIM 32
MODEL.MASK_FORMER.DIM_FEEDFORWARD 32 MODEL.MASK_FORMER.DEC_LAYERS 1 SOLVER.IMS_PER_BATCH 1 SOLVER.MAX_ITER 3
TEST.EVAL_PERIOD 1 TEST.MAX_IMAGES 1 DATASETS.SPLIT.FRACTION 1/4 MODEL.DEVICE cpu DATALOADER.NUM_WORKERS 0""".split()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def wandb(monkeypatch) -> SimpleNamespace:
    """Remembers calls as ("init", options), (step, names), ("finish", code)."""
    seen = SimpleNamespace(calls=[])

    def init(**options):
        seen.calls.append(("init", options))
        return SimpleNamespace(
            id=options["id"] or "run-1",
            log=lambda numbers, step: seen.calls.append((step, numbers)),
            finish=lambda exit_code: seen.calls.append(("finish", exit_code)),
        )

    module = ModuleType("wandb")
    module.__spec__ = SimpleNamespace(name="wandb")
    module.init, module.Image = init, lambda picture: ("image", picture.shape)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return seen


def config(tmp_path, name: str, *overrides: str):
    cfg = get_rc2l_cfg()
    cfg.merge_from_list(["OUTPUT_DIR", str(tmp_path / "run"), "TRACKER.NAME", name, *overrides])
    return cfg


def test_a_run_reaches_wandb_goes_on_with_it_and_has_a_bar_on_a_terminal(wandb, tmp_path, monkeypatch):
    generate_shapes(tmp_path, num_train=4, num_val=1, size=48)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())

    def run(*words: str) -> None:
        first = ["--config-file", str(REPO / "configs/shapes/supervised.yaml"), *words[:1]]
        output = ["OUTPUT_DIR", str(tmp_path / "run"), "TRACKER.NAME", "wandb", "TRACKER.PROJECT", "team/shapes"]
        train_net.main(argument_parser("").parse_args([*first, *TINY, *output, *words[1:]]))

    run("--num-gpus=0", "TRACKER.OFFLINE", "True")
    (_, options), *logged, end = wandb.calls
    assert options["project"] == "shapes" and options["entity"] == "team" and options["mode"] == "offline"
    assert options["id"] is None and options["name"] == "run" and options["config"]["SOLVER.MAX_ITER"] == 3
    steps = [step for step, _ in logged]
    assert steps == sorted(steps) and set(steps) == {0, 1, 2} and end == ("finish", 0)
    names = set().union(*(numbers for _, numbers in logged))
    assert {"total_loss", "teacher/mIoU", "lr", "gradient_norm", "pictures/test"} <= names
    bar = terminal.getvalue()
    assert re.search(r"3/3 \[.*loss \d.*lr .*mIoU", bar) and "total_loss:" not in bar and "mIoU" in bar
    assert "total_loss:" in (tmp_path / "run/log.txt").read_text()

    wandb.calls.clear()
    monkeypatch.setattr(sys, "stdout", plain := io.StringIO())
    run("--resume", "SOLVER.MAX_ITER", "4")
    (_, options), *logged, end = wandb.calls
    assert options["id"] == "run-1" and options["resume"] == "allow" and "mode" not in options
    assert {step for step, _ in logged} == {3} and end == ("finish", 0)
    assert "\r" not in plain.getvalue() and "\x1b" not in plain.getvalue() and "total_loss:" in plain.getvalue()
    assert len(plain.getvalue().splitlines()) < 150
    wandb.calls.clear()
    run("--num-gpus=0")
    assert wandb.calls[0][1]["id"] is None  # a new run in the same folder


def test_mlflow_gets_parameters_numbers_and_pictures(tmp_path, monkeypatch):
    calls = []

    class Client:
        def __init__(self, tracking_uri):
            calls.append(("uri", tracking_uri))

        def __getattr__(self, name):
            def call(*words, **more):
                calls.append((name, *words, more))
                return SimpleNamespace(info=SimpleNamespace(run_id="abc")) if name == "create_run" else None

            return call

    modules = {name: ModuleType(name) for name in ("mlflow", "mlflow.entities", "mlflow.tracking")}
    modules["mlflow.tracking"].MlflowClient = Client
    modules["mlflow.entities"].Metric = lambda *words: words
    modules["mlflow.entities"].Param = lambda *words: words
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.chdir(tmp_path)
    cfg = config(tmp_path, "mlflow", "TRACKER.OFFLINE", "True", "TRACKER.RUN_NAME", "mine")
    (tmp_path / "run").mkdir()
    settings = {f"KEY.{number}": "x" * 600 for number in range(150)}
    with EventStorage() as storage, Tracking(cfg) as tracking:
        tracking.start(settings)
        storage.iter = 7
        storage.put_scalars(**{"IoU/on\\off (l)": 1.0, "bad": float("nan"), "..": 2.0}, smoothing_hint=False)
        tracking.picture("pictures/test", np.zeros((2, 2, 3), np.uint8), 7)
        tracking.write()
        tracking.write()
    assert calls[0] == ("uri", f"sqlite:///{tmp_path}/mlflow.db")
    batches = [call[-1] for call in calls if call[0] == "log_batch"]
    assert [len(each["params"]) for each in batches[:2]] == [100, 50] and len(batches) == 3
    assert max(len(value) for _, value in batches[0]["params"]) == 500
    assert {(name, value, step) for name, value, _, step in batches[2]["metrics"]} == {
        ("IoU/on_off _l_", 1.0, 7),
        ("_", 2.0, 7),
    }
    assert [call[0] for call in calls if call[0] in ("create_experiment", "log_image")] == [
        "create_experiment",
        "log_image",
    ]
    assert calls[-1][:3] == ("set_terminated", "abc", "FINISHED")
    calls.clear()
    with EventStorage() as storage, pytest.raises(SystemExit), Tracking(cfg) as tracking:
        tracking.start(settings)
        storage.iter = 7
        storage.put_scalar("again", 1.0)
        tracking.write()
        raise SystemExit(75)
    assert [call[0] for call in calls] == ["uri", "update_run", "set_terminated"] and calls[-1][2] == "KILLED"


def test_a_tracker_of_ones_own_that_fails_does_not_end_the_run(tmp_path, caplog):
    class Broken(Tracker):
        tried = 0

        def start(self, run_id, settings):
            return run_id or "1"

        def log(self, numbers, iteration):
            Broken.tried += 1
            raise ConnectionError("no\nroute")

    if "Broken" not in TRACKER_REGISTRY:
        TRACKER_REGISTRY.register(Broken)
    (tmp_path / "run").mkdir()
    tracking = Tracking(config(tmp_path, "Broken"))
    with caplog.at_level(logging.WARNING, "rc2l"), EventStorage() as storage, tracking:
        tracking.start({})
        for storage.iter in range(5):
            storage.put_scalar("loss", 1.0)
            tracking.write()
    assert Broken.tried == 3 and len(caplog.records) == 3
    assert "ConnectionError: no route" in caplog.messages[0] and "goes on without Broken" in caplog.messages[2]


def test_what_cannot_be_tracked_is_one_line_before_training(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"TRACKER.NAME is 'wadnb': it must be wandb, mlflow.*, or '' for none"):
        load_config(str(REPO / "configs/shapes/supervised.yaml"), ["TRACKER.NAME", "wadnb"])
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"package wandb is not installed: pip install 'rc2l\[wandb\]', or set"):
        check_tracker(config(tmp_path, "wandb"))
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match=r"TRACKER.NAME is wandb, which cannot be started: ModuleNotFoundError"):
        Tracking(config(tmp_path, "wandb")).start({})
    check_tracker(config(tmp_path, ""))
