"""The recipes of configs/: parts that go together, and what every recipe of before has become, to the last key."""

import json
import shlex
from functools import cache
from pathlib import Path

import pytest
import yaml

from rc2l.config import get_rc2l_cfg
from rc2l.engine.config_file import load_config
from rc2l.ranges import flatten
from tests.shared_data import REPO

CONFIGS = REPO / "configs"
#: bases: name of a former base file -> keys that it set apart from the defaults. recipes: former name -> what stands
#: for it now (a file, or several as `_BASE_` lists them), overrides, its base, and the keys that it set apart from it.
BEFORE = json.loads((REPO / "tests/recipes_before.json").read_text())
#: Keys that changed on purpose since, key -> (before, now).
CHANGED: dict[str, tuple] = {}


def plain(value: object) -> object:
    """As JSON has it: tuples are lists."""
    return json.loads(json.dumps(value))


@cache
def defaults() -> dict[str, object]:
    return {key: plain(value) for key, value in flatten(get_rc2l_cfg())}


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """The full config of a recipe, or of several files one over the other."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "my_dataset.yaml").write_text((CONFIGS / "custom/my_dataset.yaml").read_text())

    def load(files: list[str], overrides: str) -> dict[str, object]:
        path = CONFIGS / files[0]
        if len(files) > 1:
            path = folder / "joined.yaml"
            path.write_text(yaml.safe_dump({"_BASE_": [str(CONFIGS / name) for name in files]}))
        values = {key: plain(value) for key, value in flatten(load_config(str(path), shlex.split(overrides)))}
        if described := values["DATASETS.CUSTOM"]:
            values["DATASETS.CUSTOM"] = Path(described).name
        return values

    return load


@pytest.mark.parametrize("folder", sorted({name.split("/")[0] for name in BEFORE["recipes"]}))
def test_every_recipe_of_before_is_the_same(folder, load):
    recipes = {name: recipe for name, recipe in BEFORE["recipes"].items() if name.startswith(f"{folder}/")}
    assert recipes
    for name, recipe in recipes.items():
        expected = defaults() | BEFORE["bases"].get(recipe["base"], {}) | recipe["but"]
        for key, (before, now) in CHANGED.items():
            if expected[key] == before:
                expected[key] = now
        found = load(recipe["now"].split(), recipe["overrides"])
        differing = {key: (found.get(key), value) for key, value in expected.items() if found.get(key) != value}
        assert not differing, f"{name}, now {recipe['now']}"


def test_the_list_of_recipes_is_that_of_before():
    assert len(BEFORE["recipes"]) == 203 and len(BEFORE["bases"]) == 24
    assert sum(recipe["now"] == name for name, recipe in BEFORE["recipes"].items()) >= 40


def recipes() -> list[Path]:
    """Files that a run can start from."""
    parts = ("data", "methods", "models", "papers")
    found = [path for path in CONFIGS.rglob("*.yaml") if path.parent.name not in parts]
    return sorted(path for path in found if not path.name.startswith("Base-") and path.name != "my_dataset.yaml")


def test_recipes_are_a_few_lines_and_parts_are_used():
    """What differs in one number is an override, not a file."""
    assert len(list(CONFIGS.rglob("*.yaml"))) <= 90
    named = set()
    for path in CONFIGS.rglob("*.yaml"):
        bases = (yaml.safe_load(path.read_text()) or {}).get("_BASE_", [])
        named |= {(path.parent / base).resolve() for base in ([bases] if isinstance(bases, str) else bases)}
    # Backbones to set over any recipe, as configs/README.md says; no recipe of the project does.
    free = {CONFIGS / f"models/{name}.yaml" for name in ("convnext-tiny", "swin-tiny", "dinov2-base")}
    parts = {path for name in ("data", "methods", "models") for path in (CONFIGS / name).glob("*.yaml")}
    assert parts - free <= named
    for path in recipes():
        lines = [line for line in path.read_text().splitlines() if line.strip() and not line.strip().startswith("#")]
        assert len(lines) <= (12 if path.parent.name != "custom" else 32), path
