"""What a folder of checkpoints can suffer, and how each case ends."""

import errno
import io
import logging
import os
import pickle
import resource
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from rc2l.engine import checkpoint_file
from rc2l.engine.checkpoint import RunCheckpointer, numbered_checkpoints
from rc2l.engine.checkpoint_file import CheckpointError, read_checkpoint, write_checkpoint
from rc2l.engine.run_folder import set_aside
from tests.test_train_net import datasets, datasets_folder, run  # noqa: F401  the first two are fixtures


class Counter:
    """The part of a trainer that a checkpoint needs."""

    def __init__(self) -> None:
        self.iteration = -1

    def state_dict(self) -> dict:
        return {"iteration": self.iteration}

    def load_state_dict(self, state: dict) -> None:
        self.iteration = state["iteration"]


def checkpointer(folder: Path, width: int = 64, kept: int = 0, **more) -> RunCheckpointer:
    return RunCheckpointer(nn.Linear(width, width), str(folder), kept=kept, trainer=Counter(), **more)


def save(into: RunCheckpointer, iteration: int) -> Path:
    into.checkpointables["trainer"].iteration = iteration
    into.save(f"model_{iteration:07d}")
    return Path(into.save_dir) / f"model_{iteration:07d}.pth"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Checkpoints of iterations 1, 3 and 5."""
    writer = checkpointer(tmp_path)
    for iteration in (1, 3, 5):
        save(writer, iteration)
    return tmp_path


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("hacked",))


def damage_bytes(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def replace_by(content: object):
    return lambda path: torch.save(content, path)


def bit_in_the_weights(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
    middle = largest.header_offset + largest.file_size // 2 + 200
    with path.open("rb") as file:
        file.seek(middle)
        byte = file.read(1)[0]
    damage_bytes(path, middle, bytes([byte ^ 1]))


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "one byte": lambda path: path.write_bytes(b"P"),
    "truncated to a half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "last byte missing": lambda path: os.truncate(path, path.stat().st_size - 1),
    "all zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "start zeroed": lambda path: damage_bytes(path, 0, bytes(512)),
    "block of weights zeroed": lambda path: damage_bytes(path, path.stat().st_size // 2, bytes(512)),
    "end zeroed": lambda path: damage_bytes(path, path.stat().st_size - 64, bytes(64)),
    "one bit of a weight": bit_in_the_weights,
    "text": lambda path: path.write_text("<html>quota exceeded</html>"),
    "pickle with code": lambda path: path.write_bytes(pickle.dumps(Evil())),
    "torch file with code": replace_by({"model": Evil()}),
    "a list": replace_by([1, 2]),
    "torch file of the old format": lambda path: torch.save({"model": {}}, path, _use_new_zipfile_serialization=False),
    "zip of something else": lambda path: zipfile.ZipFile(path, "w").writestr("notes.txt", "hello"),
    "missing": Path.unlink,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_file_falls_back_to_the_one_before(damage, folder, caplog, monkeypatch):
    monkeypatch.chdir(folder)
    DAMAGES[damage](folder / "model_0000005.pth")
    reader = checkpointer(folder)
    with caplog.at_level(logging.WARNING):
        assert reader.resume()
    assert reader.checkpointables["trainer"].iteration == 3
    assert "model_0000005.pth" in caplog.text and "continuing from model_0000003.pth" in caplog.text
    assert not (folder / "hacked").exists()


@pytest.mark.parametrize("pointer", [None, "", "model_0000099.pth", "/etc/passwd", "..", "\0\0\0\0"])
def test_a_bad_last_checkpoint_file_costs_nothing(pointer, folder):
    (folder / "last_checkpoint").unlink()
    if pointer is not None:
        (folder / "last_checkpoint").write_text(pointer)
    reader = checkpointer(folder)
    assert reader.resume() and reader.checkpointables["trainer"].iteration == 5


def test_last_checkpoint_may_name_an_older_file(folder):
    (folder / "last_checkpoint").write_text("model_0000003.pth")
    reader = checkpointer(folder)
    assert reader.resume() and reader.checkpointables["trainer"].iteration == 3


def test_model_best_is_the_last_resort(folder):
    writer = checkpointer(folder)
    writer.checkpointables["trainer"].iteration = 2
    writer.save("model_best", tag=False)
    for path in numbered_checkpoints(folder).values():
        path.write_bytes(b"")
    reader = checkpointer(folder)
    assert reader.resume() and reader.checkpointables["trainer"].iteration == 2


def test_a_run_with_damaged_files_only_is_not_started_anew(folder):
    for path in numbered_checkpoints(folder).values():
        os.truncate(path, 100)
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read: .*model_0000005.*model_0000001") as error:
        checkpointer(folder).resume()
    assert "\n" not in str(error.value)


def test_an_empty_folder_is_no_error(tmp_path):
    assert not checkpointer(tmp_path).resume()


def test_another_model_is_refused_and_not_fallen_back_from(folder):
    with pytest.raises(ValueError, match=r"model_0000005\.pth does not fit the model and solver of this config"):
        checkpointer(folder, width=32).resume()


def test_last_checkpoint_may_be_a_folder(folder):
    (folder / "last_checkpoint").unlink()
    (folder / "last_checkpoint").mkdir()
    reader = checkpointer(folder)
    assert reader.resume() and reader.checkpointables["trainer"].iteration == 5


def change(path: Path, edit) -> None:
    state = torch.load(path, weights_only=True)
    edit(state)
    torch.save(state, path)


def optimizer_of(*widths: int) -> torch.optim.Optimizer:
    return torch.optim.AdamW([{"params": [nn.Parameter(torch.zeros(width))]} for width in widths])


MISFITS = {
    "a tensor of another shape": lambda state: state["model"].update(bias=torch.zeros(3)),
    "a tensor missing": lambda state: state["model"].pop("bias"),
    "a tensor too many": lambda state: state["model"].update(other=torch.zeros(3)),
    "a text for a tensor": lambda state: state["model"].update(bias="0.5"),
    "a list for the network": lambda state: state.update(model=[1, 2]),
    "the trainer's state empty": lambda state: state.update(trainer={}),
    "another number of parameter groups": lambda state: state.update(optimizer=optimizer_of(64, 2, 2).state_dict()),
    "a parameter group of another size": lambda state: state["optimizer"]["param_groups"][0].update(params=[0, 1, 2]),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_whole_file_that_does_not_fit_is_refused_and_not_fallen_back_from(misfit, tmp_path):
    writer = checkpointer(tmp_path, optimizer=optimizer_of(64, 2))
    for iteration in (1, 3):
        save(writer, iteration)
    change(tmp_path / "model_0000003.pth", MISFITS[misfit])
    reader = checkpointer(tmp_path, optimizer=optimizer_of(64, 2))
    with pytest.raises(
        ValueError, match=r"model_0000003\.pth does not fit the model and solver of this config"
    ) as error:
        reader.resume()
    assert "\n" not in str(error.value)


def test_a_file_without_all_the_state_is_refused(folder):
    with pytest.raises(ValueError, match=r"model_0000005\.pth cannot be resumed from: it lacks optimizer"):
        checkpointer(folder, optimizer=Counter()).resume()


@pytest.fixture
def quota():
    """Files of this process can grow to 8 kB only, as on a full disk; the signal that comes with it is ignored."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_over_the_quota_is_one_clear_error_and_older_ones_stay(folder, quota):
    # 64 x 64 floats are 16 kB.
    before = (folder / "model_0000005.pth").read_bytes()
    with pytest.raises(CheckpointError, match=r"cannot write .*model_0000005\.pth: File too large .*MiB free"):
        save(checkpointer(folder), 5)
    assert (folder / "model_0000005.pth").read_bytes() == before
    assert not list(folder.glob("*.tmp"))


def test_a_full_disk_is_one_clear_error_and_older_ones_stay(tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")
    try:
        writer = checkpointer(tmp_path)
        save(writer, 1)
        with pytest.raises(CheckpointError, match=r"cannot write \S+: No space left on device \(0 MiB free"):
            for iteration in range(3, 9):
                save(writer, iteration)
        assert not list(tmp_path.glob("*.tmp"))
        reader = checkpointer(tmp_path)
        assert reader.resume()
        named = (tmp_path / "last_checkpoint").read_text()
        assert named == f"model_{reader.checkpointables['trainer'].iteration:07d}.pth"
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_full_disk_while_flushing_is_told_too(folder, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint_file.os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save(checkpointer(folder), 7)
    assert (folder / "last_checkpoint").read_text() == "model_0000005.pth"
    assert not list(folder.glob("*.tmp"))


@pytest.fixture
def read_only(folder):
    """The folder, which this process may not write to, not even as root."""
    uid = os.geteuid()
    folder.chmod(0o555)
    if uid == 0:
        for parent in (folder, *folder.parents):
            if not os.stat(parent).st_mode & 0o001:
                parent.chmod(os.stat(parent).st_mode | 0o011)
        os.seteuid(65534)
    yield folder
    os.seteuid(uid)
    folder.chmod(0o755)


def test_a_read_only_folder_is_one_clear_error_and_can_be_resumed_from(read_only):
    with pytest.raises(CheckpointError, match=r"cannot write .*model_0000007\.pth: Permission denied"):
        save(checkpointer(read_only), 7)
    assert (read_only / "last_checkpoint").read_text() == "model_0000005.pth"
    assert checkpointer(read_only).resume()


def test_other_failures_of_saving_are_not_renamed(tmp_path):
    with pytest.raises(Exception, match="pickle") as error:
        write_checkpoint({"model": lambda: None}, tmp_path / "model.pth")
    assert not isinstance(error.value, CheckpointError)


def test_last_checkpoint_is_written_after_the_file_and_old_files_go_after_that(folder, monkeypatch):
    order = []
    replace, unlink = os.replace, Path.unlink
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(f"write {Path(b).name}"), replace(a, b)))
    monkeypatch.setattr(Path, "unlink", lambda path, **k: (order.append(f"delete {path.name}"), unlink(path, **k)))
    save(checkpointer(folder, kept=2), 7)
    assert order == [
        "write model_0000007.pth",
        "write last_checkpoint",
        "delete model_0000001.pth",
        "delete model_0000003.pth",
    ]


def test_files_from_before_a_restart_are_deleted_in_their_turn(folder):
    writer = checkpointer(folder, kept=2)
    writer.resume()
    save(writer, 7)
    assert sorted(numbered_checkpoints(folder)) == [5, 7]


def test_files_newer_than_the_one_resumed_from_are_not_counted(folder):
    (folder / "last_checkpoint").write_text("model_0000001.pth")
    writer = checkpointer(folder, kept=1)
    writer.resume()
    save(writer, 3)
    assert sorted(numbered_checkpoints(folder)) == [3, 5]


def test_scratch_of_a_killed_process_is_removed(folder):
    (folder / "model_0000007.pth.tmp").write_bytes(b"half")
    assert checkpointer(folder).resume()
    assert not list(folder.glob("*.tmp"))


def test_what_is_written_is_read_back(tmp_path):
    state = {"model": {"w": torch.arange(5.0)}, "trainer": {"iteration": 3, "best": float("-inf"), "x": [(1.0, 2)]}}
    write_checkpoint(state, tmp_path / "a.pth")
    read = read_checkpoint(tmp_path / "a.pth")
    assert torch.equal(read["model"]["w"], state["model"]["w"]) and read["trainer"] == state["trainer"]
    buffer = io.BytesIO((tmp_path / "a.pth").read_bytes())
    assert torch.load(buffer, weights_only=True)["trainer"] == state["trainer"]


def test_a_run_in_the_folder_of_another_sets_its_files_aside(folder):
    (folder / "metrics.json").write_text('{"iteration": 5}\n')
    (folder / "mine.txt").write_text("notes")
    aside = set_aside(folder)
    names = {"model_0000001.pth", "model_0000003.pth", "model_0000005.pth", "last_checkpoint", "metrics.json"}
    assert {path.name for path in aside.iterdir()} == names
    assert (folder / "mine.txt").exists() and not checkpointer(folder).resume()
    shutil.copy(aside / "model_0000001.pth", folder)
    assert set_aside(folder).name == "earlier_2"
    assert set_aside(folder) is None


def test_resume_by_another_method_is_refused(tmp_path):
    run("shapes/rc2l.yaml", tmp_path, "SOLVER.MAX_ITER", 1)
    with pytest.raises(ValueError, match=r"RECO\.ENABLED is True, but .*/model_final\.pth was trained with False"):
        run("shapes/rc2l-reco.yaml", tmp_path, options=("--resume",))
    shutil.rmtree(tmp_path)
    run("shapes/rc2l-reco.yaml", tmp_path, "SOLVER.MAX_ITER", 1)
    with pytest.raises(ValueError, match=r"RECO\.ENABLED is False, but .*/model_final\.pth was trained with True"):
        run("shapes/rc2l.yaml", tmp_path, options=("--resume",))


def test_resume_with_another_number_of_classes_is_refused(tmp_path):
    run("shapes/supervised.yaml", tmp_path, "SOLVER.MAX_ITER", 1)
    state = torch.load(tmp_path / "model_final.pth", weights_only=True)
    name = next(name for name in state["model"] if "class_embed.weight" in name)
    state["model"][name] = state["model"][name][:5]
    torch.save(state, tmp_path / "model_final.pth")
    with pytest.raises(ValueError, match=r"model_final\.pth does not fit .*class_embed"):
        run("shapes/supervised.yaml", tmp_path, options=("--resume",))
