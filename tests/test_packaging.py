"""The wheel holds what the package reads; detectron2's files in it are taken only where no other is installed."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from rc2l import compat
from rc2l.engine import entry_point
from tests.shared_data import REPO


@pytest.mark.whole_run
def test_the_wheel_holds_configs_and_tools_and_the_command(tmp_path):
    pytest.importorskip("setuptools")
    clone = tmp_path / "clone"
    for name in ("rc2l", "configs", "tools"):
        shutil.copytree(REPO / name, clone / name, ignore=shutil.ignore_patterns("__pycache__", "bundled"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CITATION.cff", "train_net.py"):
        shutil.copy(REPO / name, clone / name)
    program = f"from setuptools import build_meta; print(build_meta.build_wheel({str(tmp_path)!r}))"
    built = subprocess.run(
        [sys.executable, "-c", program],
        cwd=clone,
        env=os.environ | {"RC2L_BUNDLE_DETECTRON2": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr[-2000:]
    (path,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        command = wheel.read("rc2l-0.1.0.dist-info/entry_points.txt").decode()
    for folder in ("configs", "tools"):
        wanted = {f"rc2l/{file.relative_to(REPO).as_posix()}" for file in (REPO / folder).rglob("*.*")}
        assert {name for name in wanted if name.endswith((".yaml", ".py"))} <= names
    assert "rc2l = rc2l.cli:main" in command and "rc2l-0.1.0.dist-info/licenses/LICENSE" in names


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package folder without anything in it, and no detectron2 anywhere."""
    monkeypatch.setattr(compat, "__file__", str(tmp_path / "compat.py"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_an_installed_detectron2_comes_before_the_bundled_one(package):
    (package / "bundled").mkdir()
    before = list(sys.path)
    compat._find_detectron2()
    assert sys.path == before


def test_the_bundled_one_is_taken_where_there_is_no_other(package, monkeypatch):
    monkeypatch.setattr(compat.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"'pip install \.' in a clone brings its Python files"):
        compat._find_detectron2()
    (package / "bundled").mkdir()
    compat._find_detectron2()
    assert sys.path[-1] == str(package / "bundled")


def test_an_error_inside_the_bundled_one_is_not_ours():
    own = str(REPO / "rc2l" / "config.py")
    assert entry_point._is_of_project(own)
    assert not entry_point._is_of_project(own.replace("config.py", os.path.join("bundled", "detectron2", "x.py")))
