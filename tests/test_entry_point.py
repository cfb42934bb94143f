"""The last resort of every command: one line, one status, and a file for what nobody foresaw."""

import os
import re
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import multiprocessing as mp

import train_net
from rc2l.data.errors import DatasetError
from rc2l.engine import entry_point as module
from rc2l.engine import launch as launching
from rc2l.engine.entry_point import EXIT_INTERRUPTED, EXIT_UNEXPECTED, EXIT_USER_ERROR, entry_point
from rc2l.engine.training_check import explained_build
from tests.processes import run_python
from tests.shared_data import REPO
from tests.test_train_net import TINY, datasets, datasets_folder  # noqa: F401  fixtures

TOOLS = sorted(path for path in (REPO / "tools").glob("*.py") if "__main__" in path.read_text())


def ends(function, capsys, status: int) -> str:
    """The one line that a command says as it ends with a status."""
    with pytest.raises(SystemExit) as stop:
        entry_point(function)()
    assert stop.value.code == status
    (line,) = capsys.readouterr().err.splitlines()
    assert "Traceback" not in line
    return line


def raising(error: BaseException):
    def function(*_):
        raise error

    return function


def test_every_command_has_it():
    assert len(TOOLS) > 10
    for path in [*TOOLS, REPO / "train_net.py"]:
        written = path.read_text()
        assert any(each in written for each in ("@entry_point\n", "entry_point(main)", "engine.command import")), path


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (DatasetError("a.png is torn"), "error: a.png is torn"),
        (FileNotFoundError(2, "No such file or directory", "/none/x.png"), "error: /none/x.png: No such file or dir"),
        (FloatingPointError("iteration 3: not finite"), "error: iteration 3: not finite"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "error: there is too little memory (CUDA out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "error: there is too little memory ("),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. \nmore"),
            "error: DataLoader worker (pid",
        ),
        (torch.distributed.DistNetworkError("refused\nat x"), "error: the processes cannot reach each other: refused"),
    ],
)
def test_errors_of_users_are_one_line(error, said, capsys):
    assert ends(raising(error), capsys, EXIT_USER_ERROR).startswith(said)


def test_our_own_words_count_and_foreign_value_errors_do_not(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_trace_folder", tmp_path)
    line = ends(lambda: torch.nn.GroupNorm(32, 48), capsys, EXIT_UNEXPECTED)
    path = re.search(r"The full trace is in (\S+traceback_\S+\.txt): .*report it", line)[1]
    assert line.startswith("error: unexpected ValueError") and path.startswith(str(tmp_path))
    assert (
        "num_channels (48) must be divisible" in (written := Path(path).read_text())
        and "Traceback (most recent" in written
    )
    assert "SOLVER.AMP.DTYPE" in ends(
        lambda: train_net.main(
            Namespace(
                config_file=str(REPO / "configs/shapes/rc2l.yaml"),
                opts=["SOLVER.AMP.DTYPE", "float8"],
                num_gpus=0,
            )
        ),
        capsys,
        EXIT_USER_ERROR,
    )


def test_a_trace_goes_elsewhere_where_the_folder_is_gone(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_trace_folder", tmp_path / "gone")
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path))
    line = ends(raising(KeyError("several\nlines")), capsys, EXIT_UNEXPECTED)
    assert str(tmp_path / "traceback_") in line
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path / "gone"))
    assert "The trace could not be written" in ends(raising(KeyError("x")), capsys, EXIT_UNEXPECTED)


def test_an_interrupt_is_one_word(capsys):
    assert ends(raising(KeyboardInterrupt()), capsys, EXIT_INTERRUPTED) == "interrupted"


def test_statuses_and_results_pass():
    assert entry_point(lambda: 1)() == 1
    with pytest.raises(SystemExit) as stop:
        entry_point(raising(SystemExit(75)))()
    assert stop.value.code == 75


class Torn(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int):
        raise DatasetError("b.jpg: cut off")


def test_an_error_of_a_loader_worker_is_told_without_the_workers_trace(capsys):
    loader = torch.utils.data.DataLoader(Torn(), num_workers=1)
    assert ends(lambda: list(loader), capsys, EXIT_USER_ERROR) == "error: b.jpg: cut off"


def spawned(rank: int, error: Exception) -> None:
    launching._main_of_child(raising(error), None)


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("SEED is x"), EXIT_UNEXPECTED), (DatasetError("x"), EXIT_USER_ERROR)]
)
def test_spawned_processes_end_with_the_status_and_their_parent_too(error, status, monkeypatch):
    """By the spawning of --num-gpus, which needs GPUs; a bare ValueError of the test is not in this project's words."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        launching,
        "launch_on_gpus",
        lambda *_: mp.start_processes(spawned, (error,), nprocs=1, start_method="fork"),
    )
    with pytest.raises(SystemExit) as stop:
        launching.launch(train_net.main, Namespace(num_gpus=2, num_machines=1, machine_rank=0, dist_url="auto"))
    assert stop.value.code == status


def killed(rank: int) -> None:
    os.kill(os.getpid(), 9)


def test_a_process_that_was_killed_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        launching, "launch_on_gpus", lambda *_: mp.start_processes(killed, (), nprocs=1, start_method="fork")
    )
    with pytest.raises(OSError, match=r"process 0 was killed by SIGKILL; .*--resume"):
        launching.launch(train_net.main, Namespace(num_gpus=2, num_machines=1, machine_rank=0, dist_url="auto"))


def test_a_network_that_cannot_be_built_is_one_line_about_the_config():
    depth = 18
    message = r"cannot be built: AssertionError: .*correct the keys of MODEL"
    with pytest.raises(ValueError, match=message), explained_build():
        assert depth == 50
    with pytest.raises(MemoryError), explained_build():
        raise MemoryError


BAD_TRAININGS = {
    "device": (["MODEL.DEVICE", "tpu"], r"MODEL\.DEVICE is 'tpu': it must be cpu, cuda"),
    "device like one": (["MODEL.DEVICE", "cudaaa"], r"MODEL\.DEVICE is 'cudaaa'"),
    "architecture": (["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"], r"META_ARCHITECTURE is .*: it must be one of Mas"),
    "backbone": (
        ["MODEL.BACKBONE.NAME", "resnet"],
        r"BACKBONE\.NAME is 'resnet': it must be one of .*build_basic_",
    ),
    "head": (["MODEL.SEM_SEG_HEAD.NAME", "Head"], r"SEM_SEG_HEAD\.NAME is 'Head': it must be one of .*MaskFormerHead"),
    "norm": (["MODEL.RESNETS.NORM", "Batch"], r"MODEL\.RESNETS\.NORM is 'Batch': it must be "),
    "crop": (["INPUT.CROP.TYPE", "relative"], r"INPUT\.CROP is ENABLED True, TYPE 'relative'"),
    "crop of half a pixel": (["INPUT.CROP.SIZE", "[32.5,32]"], r"INPUT\.CROP is .*SIZE \[32\.5, 32\]"),
    "huge crop": (["INPUT.CROP.SIZE", "[100000,32]"], r"INPUT\.CROP\.SIZE is \[100000, 32\]: it must be"),
    "batch": (["SOLVER.IMS_PER_BATCH_UNLABELED", "0"], r"SOLVER\.IMS_PER_BATCH_UNLABELED is 0"),
    "no test set": (["DATASETS.TEST", "()"], r"DATASETS\.TEST is empty"),
    "no training set": (["DATASETS.TRAIN", "()"], r"DATASETS\.TRAIN is empty"),
    "weights": (["MODEL.WEIGHTS", "/none.pth"], r"there is no file /none\.pth"),
    "groups": (["MODEL.SEM_SEG_HEAD.NORM", "GN", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "48"], r"networks .* cannot be built"),
    "iterations": (["SOLVER.MAX_ITER", str(10**30)], r"SOLVER\.MAX_ITER is 10+: it must be"),
}


@pytest.mark.parametrize("case", BAD_TRAININGS)
def test_what_cannot_be_trained_is_one_line_in_training_and_in_the_doctor(case, tmp_path, capsys, monkeypatch):
    from tests.tool_modules import load_tool

    overrides, message = BAD_TRAININGS[case]
    arguments = ["--config-file", str(REPO / "configs/shapes/rc2l.yaml"), *TINY, "OUTPUT_DIR", str(tmp_path / "run")]
    arguments += ["MODEL.DEVICE", "cpu", *overrides]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["train_net.py", *arguments])
        assert re.search(message, ends(lambda: train_net.run.__wrapped__("train"), capsys, EXIT_USER_ERROR))
    assert not (tmp_path / "run").exists()
    doctor = load_tool("doctor")
    monkeypatch.setattr(doctor, "self_test", lambda: iter(()))
    monkeypatch.setattr(sys, "argv", ["doctor.py", *arguments])
    assert doctor.main() == 1
    problems = [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem")]
    assert len(problems) == 1 and re.search(message, problems[0])


def test_one_error_on_the_command_line():
    done = run_python("train_net.py", "--config-file", "configs/shapes/rc2l.yaml", "MODEL.DEVICE", "tpu")
    assert done.returncode == EXIT_USER_ERROR and "Traceback" not in done.stdout + done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: MODEL.DEVICE is 'tpu'")
