"""Partial labels, ReCo's second mode (section 4): in every image a small share of each class's pixels is labelled.

Labels are thinned out while they are read, or beforehand by ``tools/make_partial_labels.py``, with the same result.
"""

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata

from rc2l.data.errors import DatasetError
from rc2l.data.reading import read_label
from rc2l.structures.label_map import IGNORE

#: Beside the labels in a folder of partial labels: dataset, share and seed.
FACTS_FILE = "partial_labels.json"
_KERNEL = np.ones((5, 5), dtype=np.uint8)
_REACH = 2


def partial_label(label: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Keep ``share`` of the pixels of each class, as ReCo does (section 4, "Partial Labels Full Dataset").

    One random pixel of each class is grown by 5x5 dilations inside the class until the share is met. Where the area
    that it lies in is full before, another random pixel of the rest is added, and growing goes on.

    Args:
        label: (H, W) uint8 train ids; 255 = ignore.
        share: in [0, 1]; 0 keeps the one pixel.

    Returns:
        (H, W) uint8: ``label`` where kept, 255 elsewhere. A class has at least ``share`` of its pixels, and had less
        before the last dilation.
    """
    flat = label.ravel()
    # One stable sort puts the pixels of each class together, in the order of the image.
    order = np.argsort(flat, kind="stable")
    classes, starts = np.unique(flat[order], return_index=True)
    result = np.full_like(label, IGNORE)
    for train_id, pixels in zip(classes, np.split(order, starts[1:]), strict=True):
        if train_id != IGNORE:
            result[_grow(label == train_id, pixels, share, generator)] = train_id
    return result


def _grow(inside: np.ndarray, pixels: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """(H, W) bool: the kept ones of ``inside`` (H, W), whose flat indices are ``pixels``."""
    H, W = inside.shape
    kept = np.zeros((H, W), dtype=np.uint8)
    inside = inside.view(np.uint8)
    count, target, grown = 0, share * len(pixels), 0
    while count == 0 or count < target:
        if grown == 0:  # at the start, and where the area around the last pixel is full
            rest = pixels[kept.ravel()[pixels] == 0] if count else pixels
            seed = int(rest[generator.integers(len(rest))])
            kept.flat[seed] = 1
            top, left = bottom, right = divmod(seed, W)
            grown = 1
        else:
            # Only this part of the image can change.
            top, left = max(top - _REACH, 0), max(left - _REACH, 0)
            bottom, right = min(bottom + _REACH, H - 1), min(right + _REACH, W - 1)
            window = (slice(top, bottom + 1), slice(left, right + 1))
            wider = cv2.dilate(kept[window], _KERNEL) & inside[window]
            grown = cv2.countNonZero(wider) - cv2.countNonZero(kept[window])
            kept[window] = wider
        count += grown
    return kept.view(bool)


def generator_of(seed: int, image_id: str) -> np.random.Generator:
    """The random numbers of one image: a function of seed and id alone, whatever the machine or the process."""
    digest = hashlib.sha256(f"{seed}:{image_id}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype="<u4"))


def read_record_label(record: dict) -> np.ndarray:
    """(H, W) uint8 train ids of a dataset dict's label, 255 = ignore, thinned out where the dict says so.

    Raises:
        DatasetError: as :func:`~rc2l.data.reading.read_label`.
    """
    metadata = MetadataCatalog.get(record["dataset"])
    if record.get("holds_train_ids"):  # a file that we wrote, whatever the dataset's own ids are
        metadata = Metadata(name=metadata.name, stuff_classes=metadata.stuff_classes)
    label = read_label(record["sem_seg_file_name"], metadata)
    if "partial_label" in record:
        share, seed = record["partial_label"]
        label = partial_label(label, share, generator_of(seed, str(record["image_id"])))
    return label


def thin_out(cfg: CfgNode, records: list[dict]) -> list[dict]:
    """Labelled dataset dicts -> the same with partial labels, as ``DATASETS.PARTIAL_LABELS`` says.

    Raises:
        DatasetError: a key is out of range, or the folder is missing or made for something else.
    """
    options = cfg.DATASETS.PARTIAL_LABELS
    check_options(options.SHARE, options.SEED)
    if not options.FOLDER:
        return [record | {"partial_label": (options.SHARE, options.SEED)} for record in records]

    folder = Path(options.FOLDER).expanduser()
    facts_path = folder / FACTS_FILE
    try:
        facts = json.loads(facts_path.read_text())
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"DATASETS.PARTIAL_LABELS.FOLDER: cannot read {facts_path} ({type(error).__name__}); make the folder with "
            "tools/make_partial_labels.py"
        ) from error
    wanted = {"dataset": " + ".join(cfg.DATASETS.TRAIN), "share": options.SHARE, "seed": options.SEED}
    for key, value in wanted.items():
        if facts.get(key) != value:
            raise DatasetError(
                f"DATASETS.PARTIAL_LABELS.FOLDER: {facts_path} says {key} {facts.get(key)}, the config {value}; "
                "name the folder that was made for the config, or change the config"
            )
    return [
        record | {"sem_seg_file_name": str(label_path(folder, record)), "holds_train_ids": True} for record in records
    ]


def label_path(folder: Path, record: dict) -> Path:
    """Where a folder of partial labels has the label of a dataset dict."""
    return folder / f"{record['image_id']}.png"


def check_options(share: float, seed: int) -> None:
    """Check the two numbers that decide about a partial label.

    Raises:
        DatasetError: one is out of range.
    """
    if not 0 <= share <= 1:
        raise DatasetError(
            f"DATASETS.PARTIAL_LABELS.SHARE is {share}; it must be in [0, 1], such as 0.01 for 1 %, or 0 for one pixel"
        )
    if seed < 0:
        raise DatasetError(f"DATASETS.PARTIAL_LABELS.SEED is {seed}; it must be 0 or more")


def describe_partial_labels(cfg: CfgNode) -> str:
    """The mode in words, for the log."""
    options = cfg.DATASETS.PARTIAL_LABELS
    amount = f"{options.SHARE:.3g} of the pixels" if options.SHARE else "1 pixel"
    folder = f" in {options.FOLDER}" if options.FOLDER else ""
    return f"all images labelled in {amount} of each class{folder}"
