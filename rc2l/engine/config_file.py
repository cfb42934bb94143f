"""A config from a YAML file and overrides, checked."""

import difflib
import os

from detectron2.config import CfgNode

from rc2l.config import get_rc2l_cfg
from rc2l.data.datasets import register_custom_datasets
from rc2l.ranges import check_ranges, flatten


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
    known = [key for key, _ in flatten(cfg)]
    if config_file:
        if not os.path.isfile(config_file):
            raise FileNotFoundError(f"--config-file {config_file}: no such file (configs/ holds the project's own)")
        _merge(lambda: cfg.merge_from_file(config_file), known, config_file)
    _merge(lambda: cfg.merge_from_list(overrides), known, "override")
    check_config(cfg)
    register_custom_datasets(cfg, config_file)
    return cfg


def check_config(cfg: CfgNode) -> None:
    """Check every key against its range, and what must hold between keys, as :mod:`rc2l.ranges` collects them.

    Raises:
        ValueError: one line that names the key, its value and the allowed range.
    """
    check_ranges(cfg)


def _merge(merge, known: list[str], source: str) -> None:
    try:
        merge()
    except (KeyError, AssertionError, ValueError) as error:
        message = " ".join(str(error.args[0] if error.args else error).split())
        close = difflib.get_close_matches(message.rsplit(" ", 1)[-1], known, n=1)
        raise ValueError(f"{source}: {message}" + (f" (did you mean {close[0]}?)" if close else "")) from error
