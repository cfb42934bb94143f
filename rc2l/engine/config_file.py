"""A config from a YAML file and overrides, checked."""

import difflib
import logging
import math
import os
import re
from pathlib import Path

from detectron2.config import CfgNode

from rc2l.config import get_rc2l_cfg
from rc2l.config.detectron2_keys import without_effect
from rc2l.data.datasets import register_custom_datasets
from rc2l.project_files import project_config
from rc2l.ranges import check_ranges, flatten
from rc2l.yaml_file import read_yaml_with_bases

logger = logging.getLogger(__name__)

#: Keys of DATASETS that hold names; a single text stands for a list of one.
_LISTS_OF_NAMES = ("TRAIN", "TEST", "UNLABELED")
_NAME_KEYS = tuple(f"DATASETS.{name}" for name in _LISTS_OF_NAMES)


def load_config(config_file: str, overrides: list[str]) -> CfgNode:
    """The config of a YAML file with ``KEY VALUE`` overrides; the datasets of DATASETS.CUSTOM are registered.

    Raises:
        ValueError: an unknown key, a value of the wrong type or outside its range, an override that is an option, a
            wrong dataset file.
        FileNotFoundError: no such file.
    """
    options = [item for item in overrides if item.startswith("--")]
    if options:
        raise ValueError(f"{options[0]} stands among the config overrides: put it before the first KEY VALUE pair")
    if len(overrides) % 2:
        raise ValueError(f"config overrides are KEY VALUE pairs, but there are {len(overrides)} words: {overrides}")
    cfg = get_rc2l_cfg()
    if config_file:
        config_file = str(find_config(config_file))
        merge_yaml(cfg, read_yaml_with_bases(Path(config_file)), config_file)
    _merge(lambda: cfg.merge_from_list(_floats(cfg, overrides)), cfg, "override")
    check_config(cfg)
    register_custom_datasets(cfg, config_file)
    return cfg


def find_config(name: str) -> Path:
    """A config file; ``configs/...`` is also looked for among the project's own, from any working directory.

    Raises:
        FileNotFoundError: no such file.
    """
    if os.path.isfile(name):
        return Path(name)
    if own := project_config(name):
        return own
    raise FileNotFoundError(f"--config-file {name}: no such file (configs/ holds the project's own)")


def check_config(cfg: CfgNode) -> None:
    """Check every key against its range, and what must hold between keys, as :mod:`rc2l.ranges` collects them.

    Raises:
        ValueError: one line that names the key, its value and the allowed range.
    """
    check_ranges(cfg)
    if ignored := without_effect(cfg):
        logger.warning(f"no effect here, though the config sets them: {', '.join(ignored)} (keys of detectron2)")


def merge_yaml(cfg: CfgNode, content: dict, source: str) -> None:
    """Merge what a YAML file or the config of a dump holds, in place; unlike detectron2's, it never runs code.

    Raises:
        ValueError: an unknown key, a value of the wrong type, or a version other than detectron2's 2.
    """
    if content.get("VERSION", 2) != 2:
        raise ValueError(f"{source}: VERSION is {content['VERSION']!r}; only version 2 of detectron2's keys is read")
    _merge(lambda: cfg.merge_from_other_cfg(CfgNode(_with_floats(cfg, content))), cfg, source)


def _with_floats(node: CfgNode, content: dict) -> dict:
    """Whole numbers where a key holds other numbers: ``WEIGHT: 1`` is no mistake."""
    given = {}
    for name, value in content.items():
        own = node.get(name)
        if isinstance(own, CfgNode) and isinstance(value, dict):
            value = _with_floats(own, value)
        elif isinstance(own, float) and isinstance(value, int) and not isinstance(value, bool):
            value = _float(value)
        elif (
            name in _LISTS_OF_NAMES
            and isinstance(own, tuple)
            and isinstance(value, str)
            and (one := _single_name(value))
        ):
            value = (one,)  # ("a") is a text in YAML and in Python, and means one name
        given[name] = value
    return given


def _float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # which no key takes


def _single_name(text: str) -> str:
    """``a`` of the texts a, "a" and ("a"), which are no tuples; empty for anything else."""
    match = re.fullmatch(r"\(?\s*(['\"]?)([\w.-]+)\1\s*\)?", text.strip())
    return match[2] if match else ""


def _floats(cfg: CfgNode, overrides: list[str]) -> list[str]:
    """The same for overrides."""
    values = dict(flatten(cfg))
    overrides = [
        f"({name!r},)" if place % 2 and overrides[place - 1] in _NAME_KEYS and (name := _single_name(word)) else word
        for place, word in enumerate(overrides)
    ]
    return [
        f"{word}.0" if place % 2 and isinstance(values.get(overrides[place - 1]), float) and _is_whole(word) else word
        for place, word in enumerate(overrides)
    ]


def _is_whole(word: object) -> bool:
    return str(word).lstrip("+-").isdecimal()


def _merge(merge, cfg: CfgNode, source: str) -> None:
    known = [key for key, _ in flatten(cfg)]
    try:
        merge()
    except (KeyError, AssertionError, ValueError, AttributeError, TypeError) as error:
        message = " ".join(str(error.args[0] if error.args else error).split())
        close = difflib.get_close_matches(message.rsplit(" ", 1)[-1], known, n=1)
        raise ValueError(f"{source}: {message}" + (f" (did you mean {close[0]}?)" if close else "")) from error
