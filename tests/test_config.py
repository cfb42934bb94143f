"""Every config key of the project is explained and read."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from rc2l.config import get_rc2l_cfg
from tests.shared_data import REPO

CODE = [*(REPO / "rc2l").rglob("*.py"), REPO / "train_net.py", *(REPO / "tools").glob("*.py")]


def flatten(node: CfgNode, prefix: str = "") -> dict[str, object]:
    values = {}
    for name, value in node.items():
        values |= flatten(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else {f"{prefix}{name}": value}
    return values


def own_keys() -> list[str]:
    """Keys that config.py itself adds; those of detectron2's DeepLab project are its own affair."""
    source = (REPO / "rc2l/config.py").read_text()
    added = [match for match in re.findall(r"^    cfg\.([A-Z0-9_.a-z]+) = (?!CfgNode)", source, re.MULTILINE)]
    return sorted(set(added) - set(flatten(get_cfg())))


def test_own_keys_are_found():
    keys = own_keys()
    assert len(keys) > 60 and set(keys) <= set(flatten(get_rc2l_cfg()))


@pytest.mark.parametrize("key", own_keys())
def test_every_key_is_read_somewhere(key):
    """By its full path, or by its last name on an alias of its node; comments and docstrings don't count."""
    name = key.rsplit(".", 1)[-1]
    assert any(name in names_in(path) for path in CODE if path.name != "config.py"), f"nothing reads {key}"


def names_in(path: Path, cache: dict[Path, set[str]] = {}) -> set[str]:  # noqa: B006  the cache is the point
    """Attribute names, and constants that index something, in a file."""
    if path not in cache:
        tree = ast.parse(path.read_text())
        attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        constants = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        cache[path] = attributes | {value for value in constants if re.fullmatch(r"[A-Z0-9_]+", value)}
    return cache[path]


def test_every_key_has_a_comment():
    """A comment above it or above the run of assignments that it belongs to."""
    source = (REPO / "rc2l/config.py").read_text()
    comments = {
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    for number, line in enumerate(source.splitlines(), start=1):
        if re.match(r"    cfg\.[A-Z0-9_.a-z]+ = (?!CfgNode)", line):
            above = number - 1
            while re.match(r"    cfg\..* = ", source.splitlines()[above - 1]) and above not in comments:
                above -= 1
            assert above in comments, f"config.py:{number} has no comment: {line.strip()}"


def test_paper_defaults():
    cfg = get_rc2l_cfg()
    assert (cfg.RC2L.RCC_WEIGHT, cfg.RC2L.SMC_FOCAL_WEIGHT, cfg.RC2L.RMC_WEIGHT, cfg.RC2L.RFC_WEIGHT) == (1, 20, 4, 4)
    assert cfg.MODEL.MASK_FORMER.NO_OBJECT_WEIGHT == 0.1 and cfg.SEMI.BURN_IN == 0
    assert cfg.SEMI.PSEUDO_LABEL.MIN_CONFIDENCE == 0 and not cfg.RC2L.POSITIVE_IN_DENOMINATOR
