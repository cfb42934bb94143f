"""What values a config key may have, declared beside what reads the key, and checked once at start.

A module adds keys, their ranges and what must hold between them, and nothing else is to be changed for it::

    @config_node
    def add_my_loss_config(cfg):
        cfg.MY_LOSS = CfgNode()
        # Weight of my loss, 0 or more.
        cfg.MY_LOSS.WEIGHT = 1.0

    declare("MY_LOSS", {"WEIGHT": number(at_least=0)})

    @config_check
    def check_my_loss(cfg):
        if cfg.MY_LOSS.WEIGHT and cfg.SEMI.METHOD == "supervised":
            raise ValueError("MY_LOSS.WEIGHT is ...: ...")
"""

import math
from collections.abc import Callable, Iterator, Mapping

from detectron2.config import CfgNode

from rc2l.structures.ranges import (
    MOST_CHANNELS,
    MOST_STEPS,
    MOST_THINGS,
    SHARE,
    Range,
    a_mapping,
    either,
    exactly,
    flag,
    integer,
    number,
    one_of,
    only,
    several,
    smallest_largest,
    text,
)

__all__ = [
    "MOST_CHANNELS",
    "MOST_STEPS",
    "MOST_THINGS",
    "RANGES",
    "SHARE",
    "Range",
    "a_mapping",
    "add_config_nodes",
    "check_ranges",
    "config_check",
    "config_node",
    "declare",
    "either",
    "exactly",
    "flag",
    "flatten",
    "integer",
    "number",
    "one_of",
    "only",
    "several",
    "smallest_largest",
    "text",
]

#: Full key -> its range.
RANGES: dict[str, Range] = {}
_CHECKS: list[Callable[[CfgNode], None]] = []
_NODES: list[Callable[[CfgNode], None]] = []


def declare(node: str, ranges: Mapping[str, Range]) -> None:
    """Say what values keys may have; to be called when a module is imported.

    Args:
        node: what the keys start with, such as "SEMI.TEACHER"; "" for keys without a node.
        ranges: key below the node -> its range.

    Raises:
        ValueError: a key is declared already.
    """
    for name, values in ranges.items():
        key = f"{node}.{name}" if node else name
        if key in RANGES:
            raise ValueError(f"the range of {key} is declared twice")
        RANGES[key] = values


def config_check(function: Callable[[CfgNode], None]) -> Callable[[CfgNode], None]:
    """Mark a function that raises ValueError where keys, each in its range, don't fit together; a decorator."""
    _CHECKS.append(function)
    return function


def config_node(function: Callable[[CfgNode], None]) -> Callable[[CfgNode], None]:
    """Mark a function that adds keys to a config, in place; a decorator.

    ``get_rc2l_cfg`` runs all of them in the order of their marking, so that a YAML file can set the keys.
    """
    _NODES.append(function)
    return function


def add_config_nodes(cfg: CfgNode) -> None:
    """Add the keys of every marked function."""
    for add in _NODES:
        add(cfg)


def flatten(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every key of a config with its value, such as ("SEMI.TEACHER.DECAY", 0.999)."""
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def check_ranges(cfg: CfgNode) -> None:
    """Compare every key with its range, then run what was marked by :func:`config_check`.

    Raises:
        ValueError: a value is outside its range, or no finite number; keys don't fit together.
    """
    for key, value in flatten(cfg):
        allowed = RANGES.get(key)
        if allowed is not None:
            allowed.check(key, value)
        if not all(math.isfinite(number) for number in _numbers(value)):
            raise ValueError(f"{key} is {value!r}: it must be finite")
    for check in _CHECKS:
        check(cfg)


def _numbers(value: object) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item)
