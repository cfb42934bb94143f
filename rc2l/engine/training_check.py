"""What must hold for a training or an evaluation beyond the range of each key; nothing of the data is read."""

import inspect
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from detectron2.utils import comm
from fvcore.common.registry import Registry

import rc2l.modeling  # noqa: F401  registers the architectures
from rc2l.data.loader import batch_size
from rc2l.data.mapper import LabeledMapper, UnlabeledMapper
from rc2l.engine.entry_point import is_lack_of_memory
from rc2l.engine.optimizer import amp_dtype
from rc2l.modeling.segmentor import Segmentor
from rc2l.semi.method import method_of


def check_training(cfg: CfgNode) -> None:
    """Check what training and evaluation need of a config whose keys are in their ranges; takes no time.

    Raises:
        ValueError: one line that names the key, its value and what it may be: an unknown architecture, backbone or
            head, a precision that the device lacks, crops without a fixed size, batches that don't divide by the number
            of processes, no dataset to train on or to score.
    """
    check_networks(cfg)
    _check_precision(cfg)
    for key, purpose in (("TRAIN", "that labels come from"), ("TEST", "that the networks are scored on")):
        if not cfg.DATASETS[key]:
            raise ValueError(f"DATASETS.{key} is empty: name a dataset {purpose}")
    LabeledMapper(cfg)
    batch_size(cfg, "IMS_PER_BATCH", comm.get_world_size())
    if method_of(cfg).needs.unlabeled:
        UnlabeledMapper(cfg)
        batch_size(cfg, "IMS_PER_BATCH_UNLABELED", comm.get_world_size())


def check_networks(cfg: CfgNode) -> None:
    """Check the names of the parts of a network.

    Raises:
        ValueError: one is not registered, or is an architecture of detectron2 that does something else; the message
            lists the choices.
    """
    architectures = [name for name, made in META_ARCH_REGISTRY if inspect.isclass(made) and issubclass(made, Segmentor)]
    _check_name("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, architectures)
    _check_name("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, _names(BACKBONE_REGISTRY))
    _check_name("MODEL.SEM_SEG_HEAD.NAME", cfg.MODEL.SEM_SEG_HEAD.NAME, _names(SEM_SEG_HEADS_REGISTRY))


@contextmanager
def explained_build() -> Iterator[None]:
    """Within it, networks are built; an error that is not in our words becomes one line about the config.

    Raises:
        ValueError: what does not fit.
    """
    try:
        yield
    except Exception as error:  # builders of networks raise nearly anything: AssertionError, KeyError, RuntimeError
        frames = traceback.extract_tb(error.__traceback__)
        own = Path(frames[-1].filename).is_relative_to(Path(__file__).resolve().parents[1])
        if isinstance(error, OSError) or is_lack_of_memory(error) or (isinstance(error, ValueError) and own):
            raise
        reason = " ".join(str(error).split())[:300] or frames[-1].line
        raise ValueError(
            f"the networks of this config cannot be built: {type(error).__name__}: {reason} (in "
            f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}): correct the keys of MODEL"
        ) from error


def _names(registry: Registry) -> list[str]:
    return [name for name, _ in registry]


def _check_name(key: str, value: str, choices: list[str]) -> None:
    if value not in choices:
        raise ValueError(f"{key} is '{value}': it must be one of {', '.join(sorted(choices))}")


def _check_precision(cfg: CfgNode) -> None:
    on_cuda = cfg.MODEL.DEVICE.startswith("cuda")
    if amp_dtype(cfg) is torch.bfloat16 and on_cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError("SOLVER.AMP.DTYPE is bfloat16, which this GPU does not have: set it to auto or float16")
    norms = {
        "MODEL.RESNETS.NORM": cfg.MODEL.RESNETS.NORM,
        "MODEL.SEM_SEG_HEAD.NORM": cfg.MODEL.SEM_SEG_HEAD.NORM,
        "MODEL.TIMM.NORM": cfg.MODEL.TIMM.NORM if cfg.MODEL.BACKBONE.NAME == "build_timm_backbone" else "",
    }
    for key, norm in norms.items():
        if norm in ("SyncBN", "nnSyncBN") and not on_cuda and comm.get_world_size() > 1:
            raise ValueError(f"{key} is {norm}, which runs on GPUs only with several processes: set it to BN or GN")
