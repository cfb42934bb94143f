"""YAML files are data: nothing in a config, its bases or a dataset description runs, and errors are one line."""

from pathlib import Path

import pytest

from rc2l.data.datasets.custom import register_dataset_file
from rc2l.engine.config_file import load_config
from rc2l.ranges import config_node
from rc2l.yaml_file import YamlError, read_yaml_with_bases

CODE = "!!python/object/apply:pathlib.Path.touch [{path}]"
BROKEN = {
    "empty": ("", "empty"),
    "comment": ("# nothing\n", "empty"),
    "list": ("- SOLVER\n", "list"),
    "text": ("SOLVER\n", "str"),
    "unclosed": ("SEMI: [1, 2\n", "no YAML"),
    "tab": ("SEMI:\n\tMETHOD: rc2l\n", "no YAML"),
    "twice": ("SEED: 1\nSEED: 2\n", "line 2: 'SEED' stands twice"),
    "twice below": ("SEMI:\n  METHOD: rc2l\n  METHOD: s4gan\n", "line 3: 'METHOD' stands twice"),
    "own alias": ("SEMI: &a [*a]\n", "contains itself"),
    "own mapping": ("SEMI: &a\n  X: *a\n", "contains itself"),
    "bomb": ("a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{n}: &{n} [{','.join([f'*{m}'] * 9)}]\n" for m, n in zip("abcdefgh", "bcdefghi", strict=True)), "too large"),
    "deep": ("[" * 5000 + "]" * 5000, "deep"),
    "number as key": ("1: 2\n", "is no text"),
    "date": ("SEED: 2026-99-99\n", "month"),
    "base is a number": ("_BASE_: 3\n", "_BASE_ is 3"),
    "base is missing": ("_BASE_: nowhere.yaml\n", "there is no file"),
    "base is remote": ("_BASE_: https://example.org/a.yaml\n", "local path"),
    "base is itself": ("_BASE_: config.yaml\n", "leads back to itself"),
    "version 1": ("VERSION: 1\n", "VERSION is 1"),
    "a node as value": ("SEMI: 3\n", "SEMI"),
    "a value as node": ("SEED:\n  A: 1\n", "SEED"),
    "unknown": ("SEMI:\n  METOD: rc2l\n", "SEMI.METOD"),
    "type": ("SEED: [a]\n", "SEED"),
}  # fmt: skip


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert text.count("\n") == 0 and len(text) < 1000
    return text


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_config_is_one_line(name, tmp_path):
    content, words = BROKEN[name]
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(ValueError) as error:
        load_config(str(path), [])
    text = one_line(error)
    assert words in text and "config.yaml" in text


def test_not_utf8(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"SEED: \xff\xfe\n")
    with pytest.raises(YamlError, match="cannot be read"):
        read_yaml_with_bases(path)


@pytest.mark.parametrize("place", ["config", "base", "second base", "description", "override"])
def test_code_never_runs(place, tmp_path):
    victim = tmp_path / "ran"
    code = "X: " + CODE.format(path=victim) + "\n"
    config = tmp_path / "config.yaml"
    (tmp_path / "bad.yaml").write_text(code)
    (tmp_path / "good.yaml").write_text("SEED: 1\n")
    overrides = []
    if place == "config":
        config.write_text(code)
    elif place == "base":
        config.write_text("_BASE_: bad.yaml\n")
    elif place == "second base":
        config.write_text("_BASE_: [good.yaml, bad.yaml]\n")
    elif place == "description":
        config.write_text("DATASETS:\n  CUSTOM: bad.yaml\n")
        with pytest.raises(ValueError):
            register_dataset_file(tmp_path / "bad.yaml")
    else:
        config.write_text("SEED: 1\n")
        overrides = ["SEED", f"__import__('pathlib').Path('{victim}').touch()"]
    with pytest.raises(ValueError) as error:
        load_config(str(config), overrides)
    text = one_line(error)
    assert not victim.exists() and ("could run code" in text or place == "override")


def test_bases_merge_like_detectron2(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/a.yaml").write_text("SEED: 1\nSEMI:\n  METHOD: supervised\n  BURN_IN: 3\n")
    (tmp_path / "parts/b.yaml").write_text("_BASE_: a.yaml\nSEED: 2\n")
    (tmp_path / "c.yaml").write_text("SEMI:\n  BURN_IN: 4\n")
    path = tmp_path / "config.yaml"
    path.write_text("_BASE_: [parts/b.yaml, c.yaml]\nSOLVER:\n  BASE_LR: 1\n")
    own = read_yaml_with_bases(path)
    assert own == {"SEED": 2, "SEMI": {"METHOD": "supervised", "BURN_IN": 4}, "SOLVER": {"BASE_LR": 1}}
    from detectron2.config import CfgNode

    assert own == CfgNode.load_yaml_with_base(str(path))
    cfg = load_config(str(path), ["SOLVER.WEIGHT_DECAY", "0"])
    assert cfg.SOLVER.BASE_LR == 1.0 and type(cfg.SOLVER.BASE_LR) is float and cfg.SOLVER.WEIGHT_DECAY == 0.0


def test_a_node_from_outside_takes_part(tmp_path, monkeypatch):
    from detectron2.config import CfgNode

    from rc2l import ranges

    monkeypatch.setattr(ranges, "_NODES", [*ranges._NODES])
    monkeypatch.setattr(ranges, "_CHECKS", [*ranges._CHECKS])
    monkeypatch.setattr(ranges, "RANGES", dict(ranges.RANGES))

    @config_node
    def add_mine(cfg: CfgNode) -> None:
        cfg.MINE = CfgNode({"WEIGHT": 1.0})

    @ranges.config_check
    def check_mine(cfg: CfgNode) -> None:
        if cfg.MINE.WEIGHT and cfg.SEED == 3:
            raise ValueError("MINE.WEIGHT does not go with SEED 3")

    ranges.declare("MINE", {"WEIGHT": ranges.number(at_least=0, at_most=2)})
    path = Path(tmp_path / "config.yaml")
    path.write_text("MINE:\n  WEIGHT: 0.5\n")
    assert load_config(str(path), []).MINE.WEIGHT == 0.5
    for value in ("-1", "3", "1e999", "None"):
        with pytest.raises(ValueError, match=r"MINE.WEIGHT is .*: it must be a number in \[0, 2\]"):
            load_config(str(path), ["MINE.WEIGHT", value])
    with pytest.raises(ValueError, match="does not go with"):
        load_config(str(path), ["SEED", "3"])
    with pytest.raises(ValueError, match="declared twice"):
        ranges.declare("MINE", {"WEIGHT": ranges.flag()})
