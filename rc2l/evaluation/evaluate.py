"""Evaluates the networks of a run by name: one table and one JSON file for each network and test set."""

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from tabulate import tabulate
from torch import nn

from rc2l.evaluation.confusion import format_score
from rc2l.evaluation.evaluator import SemSegEvaluator
from rc2l.evaluation.extremes import ScoredPicture
from rc2l.evaluation.scorer import build_scorer, describe_mode
from rc2l.visualization.grid import as_picture, error_map, legend_of, picture_grid, save_picture, shrink
from rc2l.visualization.label_images import class_colors
from rc2l.visualization.panels import colorize

#: Scores over all classes, in the order of the log; the last one may be missing.
_SUMMARY = ("mIoU", "pixel_accuracy", "mean_accuracy", "fwIoU", "mDice", "boundary_mIoU")
#: Scores of each class: heading of the table, key.
_COLUMNS = {
    "IoU [%]": "IoU",
    "accuracy [%]": "accuracy",
    "Dice [%]": "Dice",
    "boundary IoU [%]": "boundary_IoU",
}

logger = logging.getLogger(__name__)


def evaluate_networks(
    cfg: CfgNode,
    networks: Mapping[str, nn.Module],
    build_loader: Callable[[CfgNode, str], Iterable[list[dict]]],
) -> dict[str, float]:
    """Evaluate each network on each of ``cfg.DATASETS.TEST``; log a table, write ``OUTPUT_DIR/inference/*.json``.

    Beside each file, a folder of its name holds pictures of the images with the best and the worst scores, unless
    VIS_PERIOD is 0. All processes must call it. Networks run in eval mode without gradient, and get their training
    mode back.

    Args:
        cfg: read are DATASETS.TEST, MODEL.SEM_SEG_HEAD.NUM_CLASSES, MODEL.DEVICE, INPUT.FORMAT, VIS_PERIOD, OUTPUT_DIR,
            TEST.BOUNDARY_WIDTH and what :func:`build_scorer` reads.
        networks: by name, in this order.
        build_loader: called with cfg and dataset name; its loader has a length and gives lists of dicts, each with the
            label map ``sem_seg`` (H0, W0) uint8 at original size beside what the network reads.

    Returns:
        On every process, in percent: "<network>/mIoU", "<network>/pixel_accuracy", "<network>/mean_accuracy",
        "<network>/fwIoU", "<network>/mDice", "<network>/boundary_mIoU" where it is measured, and
        "<network>/IoU/<class>", the latter without classes that are not applicable. With several test sets, each key
        begins with "<dataset>/".

    Raises:
        ValueError: no test set is configured, or what :class:`SemSegEvaluator` refuses.
    """
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty; name at least one dataset to evaluate on")
    results, mode = {}, describe_mode(cfg)
    for dataset_name in cfg.DATASETS.TEST:
        prefix = f"{dataset_name}/" if len(cfg.DATASETS.TEST) > 1 else ""
        for name, network in networks.items():
            num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
            draw = partial(draw_prediction, dataset_name, num_classes, cfg.INPUT.FORMAT) if cfg.VIS_PERIOD else None
            evaluator = SemSegEvaluator(
                dataset_name, num_classes, cfg.MODEL.DEVICE, draw, boundary_width=cfg.TEST.BOUNDARY_WIDTH
            )
            scores = inference_on_dataset(build_scorer(cfg, network), build_loader(cfg, dataset_name), evaluator)
            results |= {f"{prefix}{name}/{key}": scores[key] for key in _SUMMARY if key in scores}
            results |= {f"{prefix}{name}/IoU/{c}": iou for c, iou in scores["IoU"].items() if not math.isnan(iou)}
            pictures = evaluator.pictures() if draw else {}
            if comm.is_main_process():
                path = Path(cfg.OUTPUT_DIR) / "inference" / f"{dataset_name}_{name}.json"
                scores |= {"pictures": _write_pictures(path.with_suffix(""), pictures)}
                _write_json(path, {"dataset": dataset_name, "network": name, "mode": mode, **scores})
                logger.info(f"{_report(dataset_name, name, scores, mode)}\nwritten to {path}")
    return results


def draw_prediction(
    dataset_name: str, num_classes: int, image_format: str, image: dict, pred: np.ndarray
) -> np.ndarray:
    """Image, ground truth, prediction and errors side by side, (height, width, 3) uint8.

    Args:
        dataset_name: whose classes and colours.
        num_classes: K.
        image_format: "RGB" or "BGR", of the image.
        image: ``image`` (3, h, w) uint8, if it is there, and ``sem_seg`` (H0, W0) uint8, 255 = ignored.
        pred: (H0, W0) uint8 class ids.
    """
    metadata = MetadataCatalog.get(dataset_name)
    colors, names = class_colors(metadata, num_classes)
    target, pred = shrink(image["sem_seg"].numpy()), shrink(pred)
    photo = np.full((*target.shape, 3), 127, dtype=np.uint8)
    if "image" in image:
        photo = as_picture(image["image"], image_format, target.shape)
    panels = [photo, colorize(target, colors), colorize(pred, colors), error_map(photo, pred, target)]
    return picture_grid(
        [panels], ("image", "truth", "prediction", "errors"), legend=legend_of([target, pred], names, colors)
    )


def _write_pictures(folder: Path, pictures: dict[str, list[ScoredPicture]]) -> dict[str, list[dict]]:
    """Replace the pictures of an earlier evaluation; what the JSON file says of them."""
    shutil.rmtree(folder, ignore_errors=True)
    listed = {}
    for end, ordered in pictures.items():
        listed[end] = []
        for number, each in enumerate(ordered, start=1):
            path = folder / f"{end}_{number}.jpg"
            save_picture(each.picture, path)
            listed[end].append({"image_id": each.image_id, "mIoU": each.score, "file": path.name})
    return listed


def _report(dataset_name: str, network: str, scores: dict, mode: str) -> str:
    """Head line and per-class table of one network on one dataset."""
    summary = ", ".join(f"{key} {format_score(scores[key])}" for key in _SUMMARY if key in scores)
    columns = {heading: scores[key] for heading, key in _COLUMNS.items() if key in scores}
    rows = [
        (index, name, *(format_score(column[name]) for column in columns.values()), scores["pixels"][name])
        for index, name in enumerate(scores["IoU"])
    ]
    table = tabulate(
        rows,
        headers=("id", "class", *columns, "pixels"),
        tablefmt="pipe",
        colalign=("right", "left", *["right"] * (len(columns) + 1)),
        disable_numparse=True,
    )
    return f"{network} on {dataset_name}, {scores['num_images']} images ({mode}): {summary}\n{table}"


def _write_json(path: Path, content: dict) -> None:
    """Write JSON with null for NaN; a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.tmp")
    scratch.write_text(json.dumps(_without_nan(content), indent=1, allow_nan=False) + "\n")
    os.replace(scratch, path)


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
