"""MODEL.WEIGHTS: initial weights from files of several kinds, with a report of what was loaded."""

import logging
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone.resnet import ResNet
from torch import Tensor, nn

from rc2l.modeling.weight_files import WeightFile, read_weight_file

logger = logging.getLogger("rc2l.weights")

# The config, not the file, says what "no object" weighs.
_FROM_CONFIG = "criterion.empty_weight"
_QUERIES = "sem_seg_head.predictor.query_embed.weight"
_CLASS_HEAD = "sem_seg_head.predictor.class_embed."
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_MAX_LISTED = 20


@dataclass
class LoadReport:
    """What :func:`load_weights` did."""

    path: str
    sha256: str = ""
    kind: str = ""
    #: Names of the model's tensors that were filled, sliced ones included.
    loaded: list[str] = field(default_factory=list)
    #: Names of the file's tensors that were not used -> why, with shapes.
    skipped: dict[str, str] = field(default_factory=dict)
    #: Names of tensors of which a part was used -> which.
    sliced: dict[str, str] = field(default_factory=dict)
    #: Names of the model's tensors that keep their initial values.
    missing: list[str] = field(default_factory=list)
    #: One line each; also logged.
    warnings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"weights from {self.path} (sha256 {self.sha256[:12]}, {self.kind}): "
            f"loaded {len(self.loaded)} of {len(self.loaded) + len(self.missing)} tensors"
        ]
        skipped = [f"{name} {reason}" for name, reason in self.skipped.items()]
        if len(skipped) > _MAX_LISTED:
            skipped[_MAX_LISTED:] = [f"and {len(skipped) - _MAX_LISTED} more"]
        sliced = [f"{name} {part}" for name, part in self.sliced.items()]
        groups = Counter(_group(name) for name in self.missing)
        missing = [f"{prefix} ({count})" for prefix, count in groups.items()]
        for title, count, items in (
            ("skipped", len(self.skipped), skipped),
            ("sliced", len(self.sliced), sliced),
            ("missing, left as initialised", len(self.missing), missing),
        ):
            if items:
                lines.append(f"  {title} {count}: {'; '.join(items)}")
        return "\n".join(lines)


def load_weights(
    model: nn.Module, path: str, *, prefer: str = "", cfg: CfgNode | None = None, strict: bool = False
) -> LoadReport:
    """Fill a model from a weight file, as far as names and shapes fit, in place.

    A different number of classes leaves the class head as initialised; more queries in the file than in the model: the
    first ones are used; fewer: the first queries of the model are filled. ``criterion.empty_weight`` stays what the
    config says. The summary is one record of the logger "rc2l.weights".

    Args:
        path: a file, or ``package://``, ``timm://``, ``hf-hub:``, ``https://``, ``detectron2://`` and other addresses
            that detectron2's PathManager knows; see :func:`~rc2l.modeling.weight_files.read_weight_file`. "" loads
            nothing.
        prefer: "teacher", "student" or another network of a checkpoint of ours; "": the result of its run.
        cfg: if given, a warning is raised where the weights expect another input than it gives.
        strict: for evaluation: raise if any tensor of the model is not filled completely.

    Raises:
        FileNotFoundError, ValueError: the file cannot be read (see ``read_weight_file``), or fills less than half of
            the backbone's parameters, or, if ``strict``, not all of the model; the model is unchanged then.
    """
    if not path:
        logger.info("weights: MODEL.WEIGHTS is empty, training starts from random weights")
        return LoadReport(path, missing=list(model.state_dict()))
    file = read_weight_file(path, prefer, model)
    report = LoadReport(path, file.sha256, file.kind)
    state = model.state_dict()
    matched = _match(file.tensors, state, report)
    report.skipped.update((name, "is no array") for name in file.not_tensors)

    identity = _identity_statistics(model, file.tensors, matched)
    ignored = {name for name in state if name == _FROM_CONFIG or name.endswith("num_batches_tracked")}
    report.loaded = [name for name in state if name in matched and name != _FROM_CONFIG]
    report.missing = [name for name in state if name not in matched.keys() | identity.keys() | ignored]
    _check_backbone(model, file, state, report)
    if strict and (report.missing or report.sliced):
        incomplete = [*report.missing, *report.sliced]
        raise ValueError(
            f"MODEL.WEIGHTS: {path} does not fill the whole model: {len(incomplete)} tensors such as {incomplete[0]} "
            "are missing or of another shape; use the config that the file was trained with"
        )

    with torch.no_grad():
        for name, value in (matched | identity).items():
            target = state[name]
            if name == _QUERIES:
                target[: len(value)].copy_(value)
            else:
                target.copy_(value)

    report.warnings += _statistics_warnings(model, file)
    if cfg is not None:
        report.warnings += _input_warnings(cfg, file) + _rule_warnings(cfg, file)
    logger.info(str(report))
    for warning in report.warnings:
        logger.warning(warning)
    return report


def _match(tensors: dict[str, Tensor], state: dict[str, Tensor], report: LoadReport) -> dict[str, Tensor]:
    """The file's tensors that fit the model's; notes in the report what does not."""
    matched = {}
    for name, value in tensors.items():
        if name == _FROM_CONFIG:
            continue
        shape = tuple(value.shape)
        if name not in state:
            if not name.endswith("num_batches_tracked"):  # FrozenBN has none, and needs none
                report.skipped[name] = f"{shape} is not in the model"
            continue
        expected = tuple(state[name].shape)
        if shape == expected:
            matched[name] = value
        elif name == _QUERIES and shape[1:] == expected[1:]:
            used = min(shape[0], expected[0])
            matched[name] = value[:used]
            report.sliced[name] = f"first {used} of {shape[0]} queries for the model's {expected[0]}"
        else:
            reason = "other number of classes" if name.startswith(_CLASS_HEAD) else "other shape"
            report.skipped[name] = f"{shape} does not fit {expected} ({reason})"
    return matched


def _identity_statistics(model: nn.Module, tensors: dict[str, Tensor], matched: dict[str, Tensor]) -> dict[str, Tensor]:
    """Statistics that make batch norm the affine map which files without statistics mean by its weight and bias."""
    identity = {}
    for name, module in model.named_modules():
        if not isinstance(module, FrozenBatchNorm2d | nn.BatchNorm2d | nn.SyncBatchNorm):
            continue
        if f"{name}.weight" in matched and f"{name}.running_var" not in tensors:
            identity[f"{name}.running_mean"] = torch.zeros_like(module.running_mean)
            identity[f"{name}.running_var"] = torch.full_like(module.running_var, 1 - module.eps)
    return identity


def _group(name: str) -> str:
    """backbone.res2.0.conv1.weight -> backbone.res2, sem_seg_head.predictor.x -> sem_seg_head.predictor."""
    return ".".join(name.split(".")[:2])


def _blocks(names: Iterable[str]) -> dict[str, int]:
    """How many numbered blocks each part of the backbone has: backbone.res2.0, backbone.net.blocks.11 ..."""
    found: dict[str, set[str]] = {}
    for name in names:
        for match in re.finditer(r"\.(\d+)(?=\.)", name if name.startswith("backbone.") else ""):
            found.setdefault(name[: match.start()], set()).add(match[1])
    return {part: len(found[part]) for part in sorted(found)}


def _how_to_fit(backbone: nn.Module) -> tuple[str, str]:
    """Which keys give the backbone the depth, and the width, of a file."""
    if isinstance(backbone, ResNet):
        return "MODEL.RESNETS.DEPTH", "MODEL.RESNETS.{DEPTH, STEM_OUT_CHANNELS, RES2_OUT_CHANNELS}"
    if hasattr(backbone, "timm_name"):
        return "MODEL.TIMM.NAME", "MODEL.TIMM.NAME"
    return "MODEL.BACKBONE.NAME and its keys", "MODEL.BACKBONE.NAME and its keys"


def _check_backbone(model: nn.Module, file: WeightFile, state: dict[str, Tensor], report: LoadReport) -> None:
    backbone = getattr(model, "backbone", None)
    new = tuple(f"backbone.{part}." for part in getattr(backbone, "new_parts", ()))
    expected = {
        name
        for name in state
        if name.startswith("backbone.") and not name.endswith(_STATISTICS) and not name.startswith(new)
    }
    matched = expected.intersection(report.loaded)
    in_file, in_model = _blocks(file.tensors), _blocks(expected)
    other_depth = any(in_file.get(part, count) != count for part, count in in_model.items())
    shared = [part for part in in_model if part in in_file]
    blocks = (
        f"a network with blocks {tuple(in_file[part] for part in shared)}, "
        f"the model has {tuple(in_model[part] for part in shared)}"
    )
    depth_keys, width_keys = _how_to_fit(backbone)
    if 2 * len(matched) < len(expected):
        misfits = [name for name in report.skipped if name in expected]
        if not any(name.startswith("backbone.") for name in file.tensors):
            cause = f"its names ({', '.join(list(file.tensors)[:3])}, ...) are not those of a backbone"
            fix = "give weights of this backbone, a checkpoint with it, or register a format for such files"
        elif other_depth:
            cause = f"it holds {blocks}"
            fix = f"set {depth_keys} to the file's, or give another file"
        elif misfits:
            cause = f"another width or block, first {misfits[0]} {report.skipped[misfits[0]]}"
            fix = f"set {width_keys} to the file's, or give another file"
        else:
            names = [name.removeprefix("backbone.") for name in file.tensors if name.startswith("backbone.")]
            cause = f"another architecture, with names such as {', '.join(names[:3])}"
            fix = "set MODEL.BACKBONE.NAME and its keys to what the file was trained with, or give another file"
        raise ValueError(
            f"MODEL.WEIGHTS: {file.path} ({file.kind}) fits {len(matched)} of the backbone's {len(expected)} "
            f"parameters; likely cause: {cause}; fix: {fix}"
        )
    if other_depth:
        report.warnings.append(
            f"MODEL.WEIGHTS: {file.path} holds {blocks}: {len(expected) - len(matched)} of the model's "
            f"{len(expected)} backbone parameters stay as initialised; check {depth_keys}"
        )


def _statistics_warnings(model: nn.Module, file: WeightFile) -> list[str]:
    trains_statistics = any(isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm) for module in model.modules())
    lacks_statistics = not any(name.endswith(".running_var") for name in file.tensors)
    if file.expected_input and trains_statistics and lacks_statistics:
        return [
            f"MODEL.WEIGHTS: {file.path} has batch norm fused into an affine map, without statistics, but the model's "
            "batch norm would replace them by those of its batches; set MODEL.RESNETS.NORM to FrozenBN"
        ]
    return []


def _rule_warnings(cfg: CfgNode, file: WeightFile) -> list[str]:
    """Where images of the run's own datasets would be shown otherwise than the weights have seen them."""
    differing = []
    for name in dict.fromkeys([*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]):
        family, metadata = name.split("_sem_seg_")[0], MetadataCatalog.get(name)
        for key in ("value_range", "bands"):
            now, then = metadata.get(key), file.run_config.get(f"{family}.{key}")
            now = None if now is None else list(now)
            if f"{family}.{key}" in file.run_config and now != then:
                differing.append(f"{key} of dataset '{family}' is {now}, and was {then} when they were trained")
    if not differing:
        return []
    return [f"{file.path}: these weights have seen other values: {'; '.join(dict.fromkeys(differing))}"]


def _input_warnings(cfg: CfgNode, file: WeightFile) -> list[str]:
    expected = file.expected_input
    if expected is None:
        return []
    differing = []
    if expected.format != cfg.INPUT.FORMAT:
        differing.append(f"INPUT.FORMAT is {cfg.INPUT.FORMAT}, they expect {expected.format}")
    # A few per cent of a deviation are harmless: published configs round it differently.
    actual = [*cfg.MODEL.PIXEL_STD]
    if len(actual) != len(expected.std) or not all(
        0.9 < a / b < 1.1 for a, b in zip(actual, expected.std, strict=True)
    ):
        differing.append(f"MODEL.PIXEL_STD is {actual}, they expect {list(expected.std)}")
    # On the scale of pixels: weights that divide by 1 were trained on differences of tens.
    mean = [*cfg.MODEL.PIXEL_MEAN]
    spread = [max(0.1 * std, 2.0) for std in expected.std]
    near = [abs(a - b) <= c for a, b, c in zip(mean, expected.mean, spread, strict=False)]
    if len(mean) != len(expected.mean) or not all(near):
        differing.append(f"MODEL.PIXEL_MEAN is {mean}, they expect {list(expected.mean)}")
    # Basic blocks (18, 34) have no 1x1 convolution to put the stride in.
    if (
        expected.stride_in_1x1 is not None
        and cfg.MODEL.RESNETS.DEPTH >= 50
        and expected.stride_in_1x1 is not cfg.MODEL.RESNETS.STRIDE_IN_1X1
    ):
        differing.append(
            f"MODEL.RESNETS.STRIDE_IN_1X1 is {cfg.MODEL.RESNETS.STRIDE_IN_1X1}, they expect {expected.stride_in_1x1}"
        )
    if not differing:
        return []
    return [f"MODEL.WEIGHTS: {file.path} holds {expected.source} weights, but {'; '.join(differing)}"]
