"""Every config key of the project beside detectron2's own, each with its meaning, unit or range, and source.

A file for each part of the config: ``data``, ``mask_former``, ``mask2former``, ``timm``, ``semi``, ``solver``,
``evaluation``, ``watching``; and ``detectron2_keys`` for the ranges of detectron2's own. A method's node is beside its
objective, in :mod:`rc2l.semi.objectives`.

``MODEL.MASK_FORMER.*``, ``MODEL.SEM_SEG_HEAD.*``, ``INPUT.*`` and ``SOLVER.*`` carry the names and defaults of the
official MaskFormer, so that its YAML files merge unchanged.
"""

from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config

# Importing a part marks its keys, in this order.
from rc2l.config import data, detectron2_keys, evaluation, mask_former, semi, solver, timm, watching  # noqa: F401
from rc2l.ranges import add_config_nodes

__all__ = ["add_rc2l_config", "get_rc2l_cfg"]


def add_rc2l_config(cfg: CfgNode) -> None:
    """Add all keys of the project, and of modules imported so far, to a detectron2 config, in place."""
    add_deeplab_config(cfg)
    # DeepLab's default stem and multi-grid are not MaskFormer's: detectron2's ResNet ignores them, so no key is lost.
    import rc2l.semi.objectives  # noqa: F401  their nodes; here, as they import this far

    add_config_nodes(cfg)


def get_rc2l_cfg() -> CfgNode:
    """detectron2's default config with the keys of the project added."""
    cfg = get_cfg()
    add_rc2l_config(cfg)
    return cfg
