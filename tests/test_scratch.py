"""Folders that appear complete or not at all: what killed builds leave is removed, what living ones build is not."""

import multiprocessing
import os
from pathlib import Path

import pytest

from rc2l.data.datasets.shapes import generate_shapes
from rc2l.data.scratch import scratch_folder

FORK = multiprocessing.get_context("fork")


def build_and_die(target: Path) -> None:
    with scratch_folder(target) as folder:
        (folder / "half").write_text("half")
        os._exit(9)


def build_slowly(target: Path, started, go_on) -> None:
    with scratch_folder(target) as folder:
        started.set()
        go_on.wait(60)
        folder.rename(target)


def leftovers(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name.startswith("."))


def test_what_a_killed_build_left_is_removed_by_the_next(tmp_path):
    process = FORK.Process(target=build_and_die, args=(tmp_path / "shapes",))
    process.start()
    process.join()
    (tmp_path / ".shapes-original").mkdir()
    (tmp_path / ".other-abcdefgh.building").mkdir()
    assert process.exitcode == 9 and len(leftovers(tmp_path)) == 3
    generate_shapes(tmp_path, num_train=1, num_val=1, size=16)
    assert leftovers(tmp_path) == [".other-abcdefgh.building", ".shapes-original"]
    assert (tmp_path / "shapes/shapes.json").exists()


def test_what_a_living_process_builds_stays(tmp_path):
    started, go_on = FORK.Event(), FORK.Event()
    process = FORK.Process(target=build_slowly, args=(tmp_path / "a", started, go_on))
    process.start()
    assert started.wait(60)
    with scratch_folder(tmp_path / "a"):
        assert len(leftovers(tmp_path)) == 2
    assert len(leftovers(tmp_path)) == 1
    go_on.set()
    process.join()
    assert process.exitcode == 0 and (tmp_path / "a").is_dir() and not leftovers(tmp_path)


def test_a_failed_build_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), scratch_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("x")
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_the_result_can_be_read_by_others(tmp_path):
    with scratch_folder(tmp_path / "a") as folder:
        folder.rename(tmp_path / "a")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755
