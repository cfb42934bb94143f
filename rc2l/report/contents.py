"""What a report shows, section by section, as plain values for the page."""

import base64
import math
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from rc2l.report.figures import class_history, confusion_figure, score_curves, small_multiples
from rc2l.report.groups import (
    SEEDS,
    Group,
    best_score,
    differing_settings,
    last_score,
    mean_and_deviation,
)
from rc2l.report.run_files import Run

#: Rows of the lists of confused classes and of single images.
_LISTED = 10


def summary(groups: Sequence[Group]) -> list[dict]:
    """A row for each group: scores, iterations, cost."""
    rows = []
    for group in groups:
        seeds = [run.settings.get("SEED") for run in group.runs]
        last, best = group.scores_of(last_score), group.scores_of(best_score)
        rows.append(
            {
                "name": group.name,
                "folders": [str(run.folder) for run in group.runs],
                "seeds": ", ".join("?" if seed is None else str(seed) for seed in seeds),
                "last": with_deviation(last),
                "best": with_deviation(best),
                "each": ", ".join(f"{score:.2f}" for score in last) if len(last) > 1 else "",
                "done": ", ".join(dict.fromkeys(_progress(run) for run in group.runs)),
            }
        )
    return rows


def with_deviation(values: Sequence[float], digits: int = 2) -> str:
    """ "mean ± sd", the mean alone for one value, "" for none."""
    values = [value for value in values if value is not None and math.isfinite(value)]
    if not values:
        return ""
    mean, deviation = mean_and_deviation(values)
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if len(values) > 1 else "")


def _progress(run: Run) -> str:
    planned = run.settings.get("SOLVER.MAX_ITER")
    if not run.rows:
        return "nothing yet"
    return f"{run.iterations}" if run.iterations == planned else f"{run.iterations} of {planned or '?'}"


def cost(groups: Sequence[Group]) -> list[dict]:
    """Time and memory of each run."""
    return [{"name": group.name, "folder": str(run.folder), **_cost(run)} for group in groups for run in group.runs]


def _cost(run: Run) -> dict:
    seconds, before = 0.0, 0
    for row in run.rows:
        if "time" in row:
            seconds += row["time"] * (row["iteration"] + 1 - before)
            before = row["iteration"] + 1
    per_step = seconds / before if before else None
    streams = ["SOLVER.IMS_PER_BATCH"]
    if any("pseudo/confidence" in row for row in run.rows):
        streams.append("SOLVER.IMS_PER_BATCH_UNLABELED")
    images = sum(int(run.settings.get(key) or 0) for key in streams)
    waits = [row["data_time"] for row in run.rows if "data_time" in row]
    memory = max((row["memory_mib"] for row in run.rows if "memory_mib" in row), default=None)
    return {
        "device": str(run.settings.get("MODEL.DEVICE") or ""),
        "steps": str(timedelta(seconds=round(seconds))) if before else "",
        "per_step": f"{per_step:.3f} s" if per_step else "",
        "images": f"{images / per_step:.1f}" if per_step and images else "",
        "waiting": f"{100 * sum(waits) / len(waits) / per_step:.0f} %" if waits and per_step else "",
        "memory": f"{memory:,.0f} MiB" if memory else "",
        "wall_clock": str(run.wall_clock) if run.wall_clock is not None else "",
    }


def settings_of(groups: Sequence[Group], defaults: dict[str, object]) -> list[dict]:
    """The settings of each group that are not the defaults: ``key``, ``value``, ``default``."""
    found = []
    for group in groups:
        settings = group.runs[0].settings
        rows = [
            {"key": key, "value": shown(value), "default": shown(defaults[key]) if key in defaults else "no such key"}
            for key, value in sorted(settings.items())
            if (key not in defaults or defaults[key] != value)
            and key != "OUTPUT_DIR"
            and not (key in SEEDS and len(group.runs) > 1)
        ]
        found.append({"name": group.name, "rows": rows})
    return found


def differences(groups: Sequence[Group], defaults: dict[str, object]) -> list[dict]:
    """Settings in which groups differ."""
    if len(groups) < 2:
        return []
    return [
        {"key": key, "values": [shown(value) for value in values]}
        for key, values in differing_settings(groups, defaults).items()
    ]


def shown(value: object) -> str:
    """A value of a config as text of bounded length."""
    text = '""' if value == "" else str(value)
    return text if len(text) <= 300 else f"{text[:300]}…"


def curves(groups: Sequence[Group]) -> list[dict]:
    """Figures over the iterations: ``title``, ``image``."""
    keys = list(dict.fromkeys(key for group in groups for run in group.runs for row in run.rows for key in row))
    figures = []
    if any(run.networks and run.rows for group in groups for run in group.runs):
        figures.append({"title": "mIoU", "image": score_curves(groups)})
    losses = sorted(key for key in keys if key.rpartition("/")[2].startswith("loss_"))
    # Of decoder layers, the last one alone: the others look alike.
    losses = [key for key in losses if not (key.rpartition("_")[2].isdigit() and key.rpartition("_")[0] in losses)]
    losses = [key for key in ("total_loss",) if key in keys] + losses
    if losses:
        figures.append({"title": "Losses", "image": small_multiples(groups, losses)})
    others = [key for key in ("lr", "gradient_norm", "teacher/decay") if key in keys]
    if others:
        figures.append({"title": "Optimisation", "image": small_multiples(groups, others)})
    return figures


def pseudo_labels(groups: Sequence[Group]) -> list[dict]:
    """Figures of the pseudo labels over the iterations: numbers, and those by class of each group's first run."""
    keys = list(dict.fromkeys(key for group in groups for run in group.runs for row in run.rows for key in row))
    keys = [key for key in keys if "pseudo" in key.split("/")]
    whole = [key for key in keys if not key.partition("pseudo/")[2].count("/")]
    figures = []
    if whole:
        whole.sort(key=lambda key: (not key.endswith("mIoU"), key))
        figures.append({"title": "All classes", "image": small_multiples(groups, whole)})
    kinds = dict.fromkeys(key.split("/")[1] for key in keys if key.startswith("pseudo/") and key.count("/") > 1)
    for group in groups:
        for kind in kinds:
            prefix = f"pseudo/{kind}/"
            curves = {key.removeprefix(prefix): group.runs[0].curve(key) for key in keys if key.startswith(prefix)}
            curves = {name: curve for name, curve in curves.items() if curve}
            if curves:
                title = f"pseudo/{kind}" + (f", {group.name}" if len(groups) > 1 else "")
                figures.append({"title": title, "image": class_history(curves, "")})
    return figures


def classes(groups: Sequence[Group]) -> dict:
    """IoU of each class by group, with its true pixels; {} where nothing was evaluated."""
    results = [[run.result for run in group.runs if run.result] for group in groups]
    every = [result for group in results for result in group]
    if not every:
        return {}
    names = list(dict.fromkeys(name for result in every for name in result["IoU"]))
    pixels = {name: count for result in reversed(every) for name, count in (result.get("pixels") or {}).items()}
    total = sum(pixels.values()) or 1
    rows = []
    for name in names:
        cells = []
        for group in results:
            values = [result["IoU"][name] for result in group if result["IoU"].get(name) is not None]
            width = min(max(mean_and_deviation(values)[0], 0), 100) if values else 0
            cells.append({"text": with_deviation(values, 1) or "n/a", "width": round(width, 1)})
        count = pixels.get(name)
        share = f"{100 * count / total:.2f}" if count is not None else ""
        rows.append({"name": name, "pixels": "" if count is None else f"{count:,}", "share": share, "cells": cells})
    totals = []
    for key in ("mIoU", "mean_accuracy", "pixel_accuracy", "fwIoU", "mDice", "boundary_mIoU"):
        if not any(key in result for result in every):
            continue
        cells = [with_deviation([result.get(key) for result in group]) for group in results]
        totals.append({"name": key.replace("_", " "), "cells": cells})
    first = every[0]
    source = f"{first.get('network')} on {first.get('dataset')}, {first.get('num_images', '?')} images"
    return {"rows": rows, "totals": totals, "source": f"{source}, {first['mode']}" if "mode" in first else source}


def confusions(groups: Sequence[Group]) -> list[dict]:
    """Of each group, over its runs: the matrix as a picture, and the pairs that are confused most."""
    found = []
    for group in groups:
        matrices = [run.result["confusion_matrix"] for run in group.runs if run.result.get("confusion_matrix")]
        names = next((list(run.result["IoU"]) for run in group.runs if run.result.get("confusion_matrix")), [])
        matrices = [matrix for matrix in matrices if len(matrix) == len(names)]
        if not matrices:
            continue
        matrix = [[sum(each) for each in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]
        pairs = sorted(
            (
                (count, names[i], names[j], 100 * count / sum(row))
                for i, row in enumerate(matrix)
                for j, count in enumerate(row)
                if i != j and count
            ),
            key=lambda pair: -pair[0],
        )[:_LISTED]
        wrong = sum(count for i, row in enumerate(matrix) for j, count in enumerate(row) if i != j) or 1
        listed = [
            {"truth": truth, "prediction": guess, "of_class": f"{share:.1f}", "of_errors": f"{100 * count / wrong:.1f}"}
            for count, truth, guess, share in pairs
        ]
        found.append({"name": group.name, "image": confusion_figure(matrix, names), "pairs": listed})
    return found


def images(groups: Sequence[Group]) -> list[dict]:
    """Pictures of each group's first run: its worst and best test images, its first and last of the training."""
    found = []
    for group in groups:
        run = group.runs[0]
        entry = {"name": group.name, "folder": str(run.folder), "ends": [], "training": [], "scores": _scores_of(run)}
        result = run.result
        folder = run.score_folders.get(f"{result.get('dataset')}/{result.get('network')}")
        for end in ("worst", "best"):
            listed = [
                {"caption": f"{each['image_id']}: mIoU {each['mIoU']:.1f}", "image": image}
                for each in (result.get("pictures") or {}).get(end, [])
                # The name alone: a file of another folder was not written by an evaluation.
                if folder and (image := picture_uri(folder / Path(each["file"]).name))
            ]
            if listed:
                entry["ends"].append({"title": f"{end.capitalize()} images", "pictures": listed})
        for name in dict.fromkeys(name for _, name, _ in run.pictures):
            of_name = [(iteration, path) for iteration, each, path in run.pictures if each == name]
            for iteration, path in dict.fromkeys((of_name[0], of_name[-1])):
                if image := picture_uri(path):
                    caption = f"{name}, after {iteration + 1} iterations"
                    entry["training"].append({"caption": caption, "image": image})
        if entry["ends"] or entry["training"] or entry["scores"]:
            found.append(entry)
    return found


def _scores_of(run: Run) -> list[dict]:
    scored = [image for image in run.result.get("images") or [] if image.get("mIoU") is not None]
    return [
        {"image_id": each["image_id"], "mIoU": f"{each['mIoU']:.1f}", "pixel_accuracy": f"{each['pixel_accuracy']:.1f}"}
        for each in sorted(scored, key=lambda image: image["mIoU"])[:_LISTED]
    ]


def picture_uri(path: Path) -> str:
    """A JPEG or PNG file as an address that holds all of it; "" where it cannot be read."""
    try:
        content = path.read_bytes()
    except OSError:
        return ""
    kind = "png" if path.suffix == ".png" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
