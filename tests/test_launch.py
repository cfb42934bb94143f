"""How processes are launched, stopped together and handed signals on; SLURM's variables."""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm

import train_net
from rc2l.engine import launch as launching
from rc2l.engine.launch import first_host, process_environment, was_restarted
from rc2l.engine.run import argument_parser
from rc2l.engine.signals import EXIT_STOPPED, STOP_SIGNALS
from tests.processes import run_processes, start_processes, torchrun
from tests.shared_data import REPO
from tests.test_train_net import TINY, datasets, datasets_folder  # noqa: F401  two are fixtures


def test_torchrun_stops_all_processes_together_and_one_process_goes_on(tmp_path):
    output = ["OUTPUT_DIR", str(tmp_path)]
    schedule = ["SOLVER.MAX_ITER", "200", "SOLVER.CHECKPOINT_PERIOD", "4", "INPUT.CROP.SIZE", "[32,32]"]
    stopped = torchrun(2, "train_net.py", *TINY, *schedule, *output)
    while not (tmp_path / "last_checkpoint").exists():
        assert stopped.poll() is None, stopped.stdout.read()[-3000:]
        time.sleep(0.02)
    stopped.send_signal(signal.SIGTERM)
    said = stopped.communicate(timeout=100)[0]
    assert stopped.returncode != 0 and "stopped on request after iteration" in said, said[-3000:]
    iteration = torch.load(tmp_path / (tmp_path / "last_checkpoint").read_text(), weights_only=True)["iteration"]
    schedule[1] = str(iteration + 3)
    arguments = ["--config-file", str(REPO / "configs/shapes/rc2l.yaml"), "--num-gpus", "0", "--resume"]
    train_net.main(argument_parser("").parse_args([*arguments, *TINY, *schedule, *output]))
    assert "the run had 2 process(es) and goes on with 1" in (tmp_path / "log.txt").read_text()


SRUN = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}


def test_srun_becomes_torch_variables():
    expected = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu03", "MASTER_PORT": "29567"}
    assert process_environment(SRUN) == expected
    chosen = process_environment(SRUN | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1"})
    assert (chosen["MASTER_ADDR"], chosen["MASTER_PORT"]) == ("10.0.0.1", "1")


def test_outside_srun_there_is_one_process():
    assert process_environment({}) is None
    assert process_environment({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}) is None
    assert process_environment(SRUN | {"SLURM_STEP_NUM_TASKS": "1"}) is None


def test_torchrun_inside_srun_wins():
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a"}
    assert process_environment(SRUN | torchrun)["WORLD_SIZE"] == "2"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu03", "gpu03"),
        ("gpu[03-05,9],login", "gpu03"),
        ("a1,b2", "a1"),
        ("n-[7]", "n-7"),
        ("rack1-n[01,03]-ib", "rack1-n01-ib"),
    ],
)
def test_first_host(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.parametrize("nodes", ["", "[1-2]", "gpu["])
def test_a_node_list_that_cannot_be_read_is_refused(nodes):
    with pytest.raises(ValueError, match=r"SLURM_STEP_NODELIST is '.*'.*set MASTER_ADDR"):
        first_host(nodes)


def srun_process(rank: int, folder: Path) -> None:
    os.environ.update(SLURM_JOB_ID="14775", SLURM_STEP_NUM_TASKS="2", SLURM_STEP_NODELIST="localhost")
    os.environ.update(SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank))
    found = launching.launch(lambda _: comm.all_gather(comm.get_rank()), argparse.Namespace(num_gpus=0, num_machines=1))
    (folder / str(rank)).write_text(str(found))


def test_two_srun_processes_find_each_other(tmp_path):
    """The variables that srun would set, without SLURM."""
    run_processes(srun_process, 2, tmp_path)
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["[0, 1]", "[0, 1]"]


@pytest.mark.parametrize("name", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_a_restart_is_seen(name, monkeypatch):
    monkeypatch.setenv(name, "0")
    assert not was_restarted()
    monkeypatch.setenv(name, "2")
    assert was_restarted()


def test_several_machines_without_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"--num-machines 2 needs GPUs; on CPUs start each machine by torchrun"):
        launching.launch(lambda args: {}, argparse.Namespace(num_gpus=1, num_machines=2, machine_rank=0, dist_url=""))


def wait_for_signal(rank: int, folder: str) -> None:
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(EXIT_STOPPED))
    Path(folder, str(rank)).touch()
    time.sleep(60)


def test_the_parent_of_spawned_processes_hands_signals_on_and_takes_their_status(tmp_path, monkeypatch):
    """detectron2's launcher needs GPUs; what it does around torch's spawn is replaced here."""
    before = [signal.getsignal(number) for number in STOP_SIGNALS]

    def fake(main, *_):
        context = start_processes(wait_for_signal, 2, str(tmp_path))
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)
        while not context.join():
            pass

    monkeypatch.setattr(launching, "launch_on_gpus", fake)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    arguments = argparse.Namespace(num_gpus=2, num_machines=1, machine_rank=0, dist_url="")
    with pytest.raises(SystemExit) as stop:
        launching.launch(lambda args: {}, arguments)
    assert stop.value.code == EXIT_STOPPED
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
