"""MODEL.WEIGHTS: initial weights from files of several kinds, with a report of what was loaded."""

import logging
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
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
    model: nn.Module, path: str, *, prefer: str = "teacher", cfg: CfgNode | None = None, strict: bool = False
) -> LoadReport:
    """Fill a model from a weight file, as far as names and shapes fit, in place.

    A different number of classes leaves the class head as initialised; more queries in the file than in the model: the
    first ones are used; fewer: the first queries of the model are filled. ``criterion.empty_weight`` stays what the
    config says. The summary is one record of the logger "rc2l.weights".

    Args:
        path: see :func:`~rc2l.modeling.weight_files.read_weight_file`; also ``detectron2://`` and other addresses that
            detectron2's PathManager knows. "" loads nothing.
        prefer: "teacher" or "student", of a checkpoint of ours.
        cfg: if given, a warning is raised where the weights expect another input than it gives.
        strict: for evaluation: raise if any tensor of the model is not filled completely.

    Raises:
        FileNotFoundError, ValueError: the file cannot be read (see ``read_weight_file``), or fills less than half of
            the backbone's parameters, or, if ``strict``, not all of the model; the model is unchanged then.
    """
    if not path:
        logger.info("weights: MODEL.WEIGHTS is empty, training starts from random weights")
        return LoadReport(path, missing=list(model.state_dict()))
    file = read_weight_file(path, prefer)
    report = LoadReport(path, file.sha256, file.kind)
    state = model.state_dict()
    matched = _match(file.tensors, state, report)
    report.skipped.update((name, "is no array") for name in file.not_tensors)

    identity = _identity_statistics(model, file.tensors, matched)
    ignored = {name for name in state if name == _FROM_CONFIG or name.endswith("num_batches_tracked")}
    report.loaded = [name for name in state if name in matched and name != _FROM_CONFIG]
    report.missing = [name for name in state if name not in matched.keys() | identity.keys() | ignored]
    _check_backbone(file, state, report)
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
        report.warnings += _input_warnings(cfg, file)
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
    """Number of residual blocks of each stage found in the names."""
    found = {match[0] for name in names if (match := re.match(r"backbone\.(res\d)\.\d+\.", name))}
    return dict(sorted(Counter(block.split(".")[1] for block in found).items()))


def _check_backbone(file: WeightFile, state: dict[str, Tensor], report: LoadReport) -> None:
    expected = {name for name in state if name.startswith("backbone.") and not name.endswith(_STATISTICS)}
    matched = expected.intersection(report.loaded)
    in_file, in_model = _blocks(file.tensors), _blocks(state)
    other_depth = any(in_file.get(stage, count) != count for stage, count in in_model.items())
    blocks = f"a ResNet with blocks {tuple(in_file.values())}, the model has {tuple(in_model.values())}"
    if 2 * len(matched) < len(expected):
        misfits = [name for name in report.skipped if name in expected]
        if not any(name.startswith("backbone.") for name in file.tensors):
            cause = f"its names ({', '.join(list(file.tensors)[:3])}, ...) are not those of a backbone"
            fix = "give a ResNet of torchvision or detectron2, or a MaskFormer checkpoint"
        elif other_depth:
            cause = f"it holds {blocks}"
            fix = "set MODEL.RESNETS.DEPTH to the file's, or give another file"
        elif misfits:
            cause = f"another width or block, first {misfits[0]} {report.skipped[misfits[0]]}"
            fix = "set MODEL.RESNETS.{DEPTH, STEM_OUT_CHANNELS, RES2_OUT_CHANNELS} to the file's, or give another file"
        else:
            cause = "another architecture"
            fix = "set MODEL.BACKBONE.NAME and MODEL.RESNETS to what the file was trained with, or give another file"
        raise ValueError(
            f"MODEL.WEIGHTS: {file.path} ({file.kind}) fits {len(matched)} of the backbone's {len(expected)} "
            f"parameters; likely cause: {cause}; fix: {fix}"
        )
    if other_depth:
        report.warnings.append(
            f"MODEL.WEIGHTS: {file.path} holds {blocks}: {len(expected) - len(matched)} of the model's "
            f"{len(expected)} backbone parameters stay as initialised; check MODEL.RESNETS.DEPTH"
        )


def _statistics_warnings(model: nn.Module, file: WeightFile) -> list[str]:
    trains_statistics = any(isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm) for module in model.modules())
    lacks_statistics = not any(name.endswith(".running_var") for name in file.tensors)
    if file.convention and trains_statistics and lacks_statistics:
        return [
            f"MODEL.WEIGHTS: {file.path} has batch norm fused into an affine map, without statistics, but the model's "
            "batch norm would replace them by those of its batches; set MODEL.RESNETS.NORM to FrozenBN"
        ]
    return []


_TORCHVISION_INPUT = {"FORMAT": "RGB", "PIXEL_STD": [58.395, 57.12, 57.375], "STRIDE_IN_1X1": False}
_CAFFE2_INPUT = {"FORMAT": "BGR", "PIXEL_STD": [1.0, 1.0, 1.0], "STRIDE_IN_1X1": True}


def _input_warnings(cfg: CfgNode, file: WeightFile) -> list[str]:
    if not file.convention:
        return []
    wanted = _TORCHVISION_INPUT if file.convention == "torchvision" else _CAFFE2_INPUT
    differing = []
    if wanted["FORMAT"] != cfg.INPUT.FORMAT:
        differing.append(f"INPUT.FORMAT is {cfg.INPUT.FORMAT}, they expect {wanted['FORMAT']}")
    # A few per cent of another deviation are harmless: published configs round it differently.
    ratios = [actual / expected for actual, expected in zip(cfg.MODEL.PIXEL_STD, wanted["PIXEL_STD"], strict=False)]
    if not all(0.9 < ratio < 1.1 for ratio in ratios):
        differing.append(f"MODEL.PIXEL_STD is {list(cfg.MODEL.PIXEL_STD)}, they expect {wanted['PIXEL_STD']}")
    # Basic blocks (18, 34) have no 1x1 convolution to put the stride in.
    if cfg.MODEL.RESNETS.DEPTH >= 50 and wanted["STRIDE_IN_1X1"] is not cfg.MODEL.RESNETS.STRIDE_IN_1X1:
        differing.append(
            f"MODEL.RESNETS.STRIDE_IN_1X1 is {cfg.MODEL.RESNETS.STRIDE_IN_1X1}, they expect {wanted['STRIDE_IN_1X1']}"
        )
    if not differing:
        return []
    source = "torchvision" if file.convention == "torchvision" else "Caffe2 (MSRA)"
    return [f"MODEL.WEIGHTS: {file.path} holds {source} weights, but {'; '.join(differing)}"]
