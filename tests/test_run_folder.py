"""OUTPUT_DIR: one run at a time, an earlier one moves aside whole, and a start that fails changes nothing."""

import json
import os
import signal
from pathlib import Path

import pytest

from rc2l.engine import run_lock as locking
from rc2l.engine.checkpoint import RunCheckpointer
from rc2l.engine.run_folder import complete_move, set_aside
from rc2l.engine.run_lock import RunLockedError, refuse_if_held, run_lock
from tests.test_train_net import datasets, datasets_folder, run  # noqa: F401  the first two are fixtures

RUN = "model_final.pth model_0000003.pth config.yaml log.txt log.txt.rank1 metrics.json inference/a.json".split()


@pytest.fixture
def earlier(tmp_path) -> Path:
    """A folder with a run and a note of the user's."""
    (tmp_path / "inference").mkdir()
    for name in (*RUN, "mine.txt"):
        (tmp_path / name).write_text(name)
    return tmp_path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_of_a_run_moves_aside_and_nothing_else(earlier):
    assert set_aside(earlier) == earlier / "earlier_1"
    assert tree(earlier).keys() == {"mine.txt", *(f"earlier_1/{name}" for name in RUN)}
    assert set_aside(earlier) is None


@pytest.mark.parametrize("moved", range(len(RUN) + 1))
def test_a_move_killed_anywhere_is_completed_at_the_next_start(moved, earlier, monkeypatch):
    rename, count = Path.rename, 0

    def dying(path, target):
        nonlocal count
        if count == moved:
            raise KeyboardInterrupt
        count += 1
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying)
        if moved < len(RUN):
            with pytest.raises(KeyboardInterrupt):
                set_aside(earlier)
    complete_move(earlier)
    set_aside(earlier)
    assert tree(earlier).keys() == {"mine.txt", *(f"earlier_1/{name}" for name in RUN)}


def move_and_die(folder: Path, moved: int) -> int:
    """Exit status of a process that kills itself before it moves one file more."""
    child = os.fork()
    if child == 0:
        rename, names = Path.rename, []

        def dying(path, target):
            if len(names) == moved:
                os.kill(os.getpid(), signal.SIGKILL)
            names.append(path.name)
            return rename(path, target)

        Path.rename = dying
        try:
            set_aside(folder)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("kills", [[0], [3], [1, 1, 2, 0]])
def test_a_move_killed_by_sigkill_once_or_often_is_completed_whole(kills, earlier):
    whole = {name: content for name, content in tree(earlier).items() if name != "mine.txt"}
    for moved in kills:
        assert move_and_die(earlier, moved) == -signal.SIGKILL
    complete_move(earlier)
    assert tree(earlier) == {"mine.txt": b"mine.txt"} | {
        f"earlier_1/{name}": content for name, content in whole.items()
    }


@pytest.mark.parametrize("name", ["../../x", "..", "", "/etc/passwd"])
def test_a_forged_journal_moves_nothing(name, earlier):
    (earlier / ".moving_aside.json").write_text(json.dumps({"target": "earlier_1", "names": [name]}))
    with pytest.raises(ValueError, match="is damaged"):
        complete_move(earlier)


def test_a_start_that_fails_changes_nothing(earlier):
    before = tree(earlier)
    overlap = ["DATASETS.TEST", "('shapes_sem_seg_train',)"]
    for overrides in (["SEMI.METHOD", "magic"], overlap, ["MODEL.WEIGHTS", "no.pth"]):
        with pytest.raises((ValueError, OSError)):
            run("shapes/supervised.yaml", earlier, *overrides)
        assert tree(earlier) == before


def test_a_pointer_to_a_missing_file_stops_and_metrics_stay(tmp_path):
    (tmp_path / "metrics.json").write_text('{"iteration": 5}\n')
    (tmp_path / "last_checkpoint").write_text("model_0000005.pth")
    before = tree(tmp_path)
    for options in (("--resume",), ("--resume", "--eval-only")):
        with pytest.raises(ValueError, match=r"no checkpoint in .* can be read: .*model_0000005\.pth does not exist"):
            run("shapes/supervised.yaml", tmp_path, options=options)
        assert tree(tmp_path) == before


def test_a_negative_number_of_checkpoints_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"CHECKPOINTS_KEPT"):
        RunCheckpointer(None, str(tmp_path), kept=-1)
    with pytest.raises(ValueError, match=r"CHECKPOINTS_KEPT"):
        run("shapes/supervised.yaml", tmp_path, "SOLVER.CHECKPOINTS_KEPT", -1)


def test_a_second_run_is_refused_by_the_holders_name_and_changes_nothing(earlier):
    with run_lock(earlier):
        before = tree(earlier)
        with pytest.raises(RunLockedError, match=rf"process {os.getpid()} on \S+ since .*delete \S+\.lock$"):
            run("shapes/supervised.yaml", earlier)
        assert tree(earlier) == before
    assert not (earlier / ".lock").exists()


def held_by(folder: Path, **changes) -> None:
    (folder / ".lock").write_text(json.dumps(locking._own_record() | changes))


def test_a_killed_holders_lock_is_taken_over(tmp_path):
    child = os.fork()
    if child == 0:
        with run_lock(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (tmp_path / ".lock").exists()
    with run_lock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_whose_lock_is_dead(tmp_path, monkeypatch):
    held_by(tmp_path, start="1")  # the process id was given to another process since
    refuse_if_held(tmp_path)
    held_by(tmp_path, machine="an earlier start of it")
    refuse_if_held(tmp_path)
    held_by(tmp_path, host="node7")
    with pytest.raises(RunLockedError, match="on node7"):
        refuse_if_held(tmp_path)
    (tmp_path / ".lock").write_text("{")
    with pytest.raises(RunLockedError, match="does not name"):
        refuse_if_held(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "14")
    held_by(tmp_path, host="node7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    refuse_if_held(tmp_path)


def test_the_log_is_plain_and_short(tmp_path, capsys):
    run("shapes/supervised.yaml", tmp_path, "SOLVER.MAX_ITER", 1, "TEST.MAX_IMAGES", 1)
    log, said = (tmp_path / "log.txt").read_text(), capsys.readouterr().out
    for text in (log, said):
        assert "\x1b" not in text and "BASE_LR:" not in text and "Command line" in text
    assert log.count("\n") < 150
