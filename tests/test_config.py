"""Every config key of the project is explained and read."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from rc2l.config import get_rc2l_cfg
from tests.shared_data import REPO

CODE = [*(REPO / "rc2l").rglob("*.py"), REPO / "train_net.py", *(REPO / "tools").glob("*.py")]


def flatten(node: CfgNode, prefix: str = "") -> dict[str, object]:
    values = {}
    for name, value in node.items():
        values |= flatten(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else {f"{prefix}{name}": value}
    return values


#: Files that add keys.
DECLARING = [path for path in CODE if "@config_node" in path.read_text() and path.name != "ranges.py"]


def own_keys() -> list[str]:
    """Keys that the project adds; those of detectron2's DeepLab project are its own affair."""
    foreign = get_cfg()
    add_deeplab_config(foreign)
    return sorted(set(flatten(get_rc2l_cfg())) - set(flatten(foreign)))


def test_own_keys_are_found():
    keys = own_keys()
    assert len(keys) > 60 and set(keys) <= set(flatten(get_rc2l_cfg()))


#: Keys of the official files that merge and say nothing here.
OFFICIAL = {"INPUT.IMAGE_SIZE", "INPUT.MIN_SCALE", "INPUT.MAX_SCALE"} | {
    f"MODEL.{key}"
    for key in (
        "MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD",
        "MASK_FORMER.TEST.OVERLAP_THRESHOLD",
        "SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS",
        "SWIN.PRETRAIN_IMG_SIZE",
    )
}


@pytest.mark.parametrize("key", sorted(set(own_keys()) - OFFICIAL))
def test_every_key_is_read_somewhere(key):
    """By its full path, or by its last name on an alias of its node; comments and docstrings don't count."""
    name = key.rsplit(".", 1)[-1]
    assert any(name in names_in(path) for path in CODE if path.parent.name != "config"), f"nothing reads {key}"


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
    found = 0
    for path in [*DECLARING, REPO / "rc2l/config/mask2former.py"]:
        lines = path.read_text().splitlines()
        comments = {
            token.start[0]
            for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
            if token.type == tokenize.COMMENT
        }
        for number, line in enumerate(lines, start=1):
            if re.match(r"    (cfg|node|options|head)(\.[A-Z][A-Z0-9_]*)+ = (?!CfgNode)", line):
                above = number - 1
                while re.match(r"    \w+\..* = ", lines[above - 1]) and above not in comments:
                    above -= 1
                assert above in comments, f"{path}:{number} has no comment: {line.strip()}"
                found += 1
    # The three views have their five keys from one function.
    assert found + 10 >= len(own_keys())


def test_paper_defaults():
    cfg = get_rc2l_cfg()
    assert (cfg.RC2L.RCC_WEIGHT, cfg.RC2L.SMC_FOCAL_WEIGHT, cfg.RC2L.RMC_WEIGHT, cfg.RC2L.RFC_WEIGHT) == (1, 20, 4, 4)
    assert cfg.MODEL.MASK_FORMER.NO_OBJECT_WEIGHT == 0.1 and cfg.SEMI.BURN_IN == 0
    assert cfg.SEMI.PSEUDO_LABEL.MIN_CONFIDENCE == 0 and not cfg.RC2L.POSITIVE_IN_DENOMINATOR
