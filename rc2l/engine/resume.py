"""What a resumed run takes from its checkpoint and what from the config, and which changes it refuses.

Position and state (iteration, weights, moments of the optimiser, banks, best score) come from the checkpoint; the
schedule and everything else come from the config. What the state depends on cannot change (:data:`_FIXED`).
"""

import hashlib
import logging
import math
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from functools import cached_property
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor

from rc2l.data.datasets import dataset_family, load_records
from rc2l.data.image_rule import dataset_rule
from rc2l.data.splits import Split
from rc2l.semi.method import method_of

logger = logging.getLogger(__name__)

#: What the state in a checkpoint is a state of.
_FIXED = (
    *("SEED", "SEMI.METHOD", "SOLVER.OPTIMIZER", "INPUT.FORMAT", "MODEL.*", "S4GAN.DISCRIMINATOR_WIDTH"),
    # Of each dataset: what the networks have seen of its images.
    *("*.value_range", "*.bands"),
    *("RECO.ENABLED", "RECO.DIM", "RECO.MEMORY_PER_CLASS", "DGCL.ENABLED", "DGCL.DIM", "DGCL.MEMORY_PER_CLASS"),
)
#: Keys of MODEL that are no part of the architecture: where it starts and runs, losses, dropout, inference.
_FREE = (
    *("MODEL.WEIGHTS", "MODEL.DEVICE", "MODEL.SEM_SEG_HEAD.LOSS_*", "MODEL.MASK_FORMER.*_WEIGHT"),
    *("MODEL.MASK_FORMER.MASK_LOSS_ON", "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "MODEL.MASK_FORMER.*_RATIO"),
    *("MODEL.MASK_FORMER.DROPOUT", "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT", "MODEL.TIMM.DROP_PATH", "MODEL.SWIN.*DROP*_RATE"),
    *("MODEL.TIMM.PRETRAINED", "MODEL.TIMM.CHECKPOINTING", "MODEL.SWIN.USE_CHECKPOINT", "MODEL.MASK_FORMER.TEST.*"),
)
#: Keys of a dataset that say what the networks see of its images.
_RULE_KEYS = ("value_range", "bands")
#: Keys that change no result.
WITHOUT_EFFECT = ("OUTPUT_DIR", "DATALOADER.NUM_WORKERS", "VIS_PERIOD", "TRACKER.*")
#: Which of them differ says how parameters are grouped in the optimiser.
_GROUPING = (
    *("SOLVER.BACKBONE_MULTIPLIER", "SOLVER.BACKBONE_LAYER_DECAY", "SOLVER.BASE_LR"),
    *("SOLVER.WEIGHT_DECAY", "SOLVER.WEIGHT_DECAY_NORM", "SOLVER.WEIGHT_DECAY_EMBED"),
)


class RunRecord:
    """Config and data of a run, which its checkpoints hold so that a resumed run can be compared with them.

    Args:
        cfg: the full config.
        split: labelled and unlabelled images.
    """

    def __init__(self, cfg: CfgNode, split: Split) -> None:
        self._cfg, self._split = cfg, split
        self._trained_before = torch.zeros(0, dtype=torch.int64)

    def state_dict(self) -> dict[str, Any]:
        """``config``: key -> value, with those of :func:`image_rules`; ``split``: its hash; ``labeled``, ``unlabeled``,
        ``validation``, ``trained``: (n,) int64 digests of the ids of images, ascending, where ``trained`` counts those
        before a change of data too."""
        return self._data | {"trained": torch.cat([self._trained, self._trained_before]).unique()}

    @cached_property
    def _validation(self) -> dict[int, str]:
        most = self._cfg.TEST.MAX_IMAGES or None
        return _digests(record for name in self._cfg.DATASETS.TEST for record in load_records(name)[:most])

    @cached_property
    def _data(self) -> dict[str, Any]:
        return {
            "config": {key: value for key, value in settings(self._cfg).items() if not matches(key, WITHOUT_EFFECT)}
            | image_rules(self._cfg),
            "split": self._split.hash,
            "labeled": _tensor(_digests(self._split.labeled)),
            "unlabeled": _tensor(_digests(self._split.unlabeled)),
            "validation": _tensor(self._validation),
        }

    @cached_property
    def _trained(self) -> Tensor:
        learns_from_both = method_of(self._cfg).needs.unlabeled
        return torch.cat([self._data["labeled"], *([self._data["unlabeled"]] if learns_from_both else [])])

    def examine(self, path: object, content: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
        """Compare this run with the checkpoint that it is to go on from; differences that are allowed are logged.

        Where the validation images are others, the best score in ``content`` is taken back.

        Args:
            path: of the checkpoint, for messages.
            content: the checkpoint. Older ones hold no record of their run, and are not compared.
            optimizer: this run's, before anything is loaded.

        Raises:
            ValueError: the run cannot be continued so.
        """
        state, saved = content.get("trainer"), content.get("optimizer")
        if not (state and saved and "iteration" in state):
            return  # not a run's: loading it says what it lacks
        done, max_iter = state["iteration"] + 1, self._cfg.SOLVER.MAX_ITER
        if done > max_iter:
            raise ValueError(
                f"--resume: SOLVER.MAX_ITER is {max_iter}, but {path} has {done} iterations behind it: set it to "
                f"{done} or more, or start a new run with another OUTPUT_DIR"
            )
        record = state.get("record")
        if record is None:
            return
        self._examine_config(path, record["config"], saved, optimizer)
        self._examine_data(path, record, state)

    def _examine_config(self, path: object, before: dict, saved: dict, optimizer: torch.optim.Optimizer) -> None:
        now = self._data["config"]
        changed = {key: (before[key], now[key]) for key in now if key in before and before[key] != now[key]}
        fixed = [key for key in changed if matches(key, _FIXED) and not matches(key, _FREE)]
        sizes = [
            [len(group["params"]) for group in groups] for groups in (saved["param_groups"], optimizer.param_groups)
        ]
        if sizes[0] != sizes[1]:
            fixed += [key for key in changed if key in _GROUPING]
        if fixed:
            key, (old, new) = fixed[0], changed[fixed[0]]
            others = ", ".join(f"{other} {changed[other][0]!r} -> {changed[other][1]!r}" for other in fixed[1:])
            more = f" (likewise {others})" if others else ""
            raise ValueError(
                f"--resume: {key} is {new!r}, but {path} was trained with {old!r}, and its state depends on it{more}: "
                f"set it back, or start a new run with another OUTPUT_DIR and MODEL.WEIGHTS {path}"
            )
        if changed:
            shown = ", ".join(f"{key} {old!r} -> {new!r}" for key, (old, new) in sorted(changed.items()))
            logger.warning(f"--resume: the config differs from the checkpoint's and holds from here on: {shown}")

    def _examine_data(self, path: object, before: dict, state: dict) -> None:
        self._trained_before = before["trained"]
        now, trained = self._data, set(before["trained"].tolist())
        parts = ("labeled", "unlabeled", "validation")
        if before["split"] == now["split"] and all(torch.equal(before[part], now[part]) for part in parts):
            return
        changes = ", ".join(_change(part, before[part], now[part]) for part in parts)
        said = f"--resume: the split is not the run's (hash {before['split']} then, {now['split']} now; {changes})"
        leaked = [image_id for digest, image_id in self._validation.items() if digest in trained]
        if leaked:
            raise ValueError(
                f"{said}: {len(leaked)} images that it was trained on are now for validation, first '{leaked[0]}'. "
                "Restore the data, keep the validation images by a list ('val' in the dataset's description), or start "
                f"a new run with another OUTPUT_DIR and MODEL.WEIGHTS {path}"
            )
        other = not torch.equal(before["validation"], now["validation"])
        if other:
            state["best"] = -math.inf
        logger.warning(said + ("; the best score was of other validation images and is forgotten" if other else ""))


def settings(node: CfgNode, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of a config; tuples become lists, so that the value does not depend on where it came from."""
    found: dict[str, Any] = {}
    for name, value in node.items():
        if isinstance(value, CfgNode):
            found |= settings(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = _plain(value)
    return found


def image_rules(cfg: CfgNode) -> dict[str, Any]:
    """``<family>.value_range`` and ``<family>.bands`` of all datasets of a config, as lists or None."""
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.UNLABELED, *cfg.DATASETS.TEST]
    rules = {dataset_family(name): dataset_rule(name) for name in names}
    return {f"{family}.{key}": _plain(getattr(rule, key)) for family, rule in rules.items() for key in _RULE_KEYS}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def keep_schedule(
    optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler
) -> Callable[[int], None]:
    """Remember the schedule of the config, which loading a checkpoint overwrites.

    Returns:
        A function of the iteration that comes next, to be called after loading: it restores learning rates, weight
        decay and so on, and sets the scheduler to that iteration, as a run that got there by itself would have it.
    """
    options = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    attributes = dict(scheduler.__dict__)

    def restore(iteration: int) -> None:
        scheduler.__dict__.clear()
        scheduler.__dict__.update(attributes)
        scheduler.last_epoch, scheduler._step_count = iteration, iteration + 1
        for group, own in zip(optimizer.param_groups, options, strict=True):
            group.update(own)
        rates = scheduler.get_lr()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = rates

    return restore


def matches(key: str, patterns: Iterable[str]) -> bool:
    """Whether a key is one of some, which may be patterns of file names."""
    return any(fnmatch(key, pattern) for pattern in patterns)


def _digests(records: Iterable[dict]) -> dict[int, str]:
    """Digest -> id, of images that are told apart by the family of their dataset and their id."""
    found = {}
    for record in records:
        image_id = str(record["image_id"])
        digest = hashlib.sha256(f"{dataset_family(record['dataset'])}:{image_id}".encode()).digest()
        found[int.from_bytes(digest[:8], "big", signed=True)] = image_id
    return found


def _tensor(digests: dict[int, str]) -> Tensor:
    return torch.tensor(sorted(digests), dtype=torch.int64)


def _change(part: str, before: Tensor, now: Tensor) -> str:
    old, new = set(before.tolist()), set(now.tolist())
    name = {"labeled": "labelled", "unlabeled": "unlabelled"}.get(part, part)
    return f"{name} {len(old)} -> {len(new)}" + (f" (+{len(new - old)} -{len(old - new)})" if old != new else "")
