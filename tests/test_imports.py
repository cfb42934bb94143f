"""Imports run downward only, and every room's own rules hold."""

import ast
from pathlib import Path

import pytest

from tests.shared_data import REPO

#: Room (package or single file below rc2l/) -> floor. Rooms import lower ones only.
FLOORS = {
    "structures": 0,
    "collectives": 0,
    "ranges": 1,
    "project_files": 0,
    "refused_files": 0,
    "yaml_file": 1,
    "losses": 1,
    "modeling": 2,
    "data": 2,
    "visualization": 3,
    "evaluation": 5,
    "semi": 4,
    "config": 5,
    "inference": 7,
    "engine": 6,
    "report": 7,
    "new_project": 7,
    "cli": 8,
}
MODULES = sorted(path.relative_to(REPO) for path in (REPO / "rc2l").rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse((REPO / path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "rc2l" else ""


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_run_downward(path):
    if len(path.parts) == 2 and path.stem in ("__init__", "compat"):
        return
    room = path.parts[1] if len(path.parts) > 2 else path.stem
    for module in imported(path):
        other = room_of(module)
        if other in ("", room, "compat") or other not in FLOORS:
            continue
        assert FLOORS[other] < FLOORS[room], f"{path} ({room}) imports {module} ({other})"


def test_every_room_has_a_floor():
    rooms = {path.parts[1] if len(path.parts) > 2 else path.stem for path in MODULES}
    assert rooms - {"__init__", "compat"} <= FLOORS.keys()


def test_losses_know_tensors_alone():
    for path in MODULES:
        if path.parts[1] == "losses":
            foreign = {name for name in imported(path) if name.startswith(("detectron2", "rc2l.modeling", "rc2l.semi"))}
            assert not foreign, f"{path} imports {foreign}"
            assert "cfg" not in (REPO / path).read_text(), path


def test_the_trainer_knows_no_method_by_name():
    import rc2l.semi.objectives  # noqa: F401  registers them
    from rc2l.semi.method import method_names

    asked = [
        "engine/trainer.py",
        "engine/run.py",
        "data/loader.py",
        "data/splits.py",
        "data/check.py",
        "data/mapper.py",
    ]
    for path in asked:
        tree = ast.parse((REPO / "rc2l" / path).read_text())
        compared = [node for node in ast.walk(tree) if isinstance(node, ast.Compare)]
        strings = {node.value for each in compared for node in ast.walk(each) if isinstance(node, ast.Constant)}
        assert not strings & set(method_names()), path


def test_examples_are_known_to_nothing_in_the_house():
    for path in MODULES:
        assert not any(name.startswith("examples") for name in imported(path)), path
