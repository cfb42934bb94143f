"""Builds the augmented labels of PASCAL VOC 2012 from the Semantic Boundaries Dataset (SBD)."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import loadmat
from tqdm import tqdm

from rc2l.data.datasets.voc import CLASSES, palette, read_ids
from rc2l.data.errors import DatasetError
from rc2l.data.scratch import scratch_folder

#: What comes out with the complete datasets.
NUM_AUGMENTED = 10582


def read_sbd_label(path: Path) -> np.ndarray:
    """(H, W) uint8 class ids, 0..20, of an SBD ``cls/*.mat`` file.

    Raises:
        DatasetError: the file is missing, damaged or another kind of file.
    """
    try:
        label = np.asarray(loadmat(path)["GTcls"][0]["Segmentation"][0])
    except Exception as error:  # scipy raises many kinds for damaged files
        raise DatasetError(f"{path}: cannot read this SBD label ({type(error).__name__}); unpack SBD again") from error
    if label.ndim != 2 or label.size == 0 or not 0 <= label.min() <= label.max() < len(CLASSES):
        raise DatasetError(f"{path}: this is no label map of ids 0..{len(CLASSES) - 1}; unpack SBD again")
    return label.astype(np.uint8)


def build_voc_aug(sbd: Path, devkit: Path, overwrite: bool = False) -> int:
    """Write ``SegmentationClassAug/`` and ``ImageSets/Segmentation/trainaug.txt`` into a VOC 2012 devkit.

    Images are those of VOC's training list and of SBD without VOC's validation list; where both have a label, VOC's own
    (finer) one is taken. Nothing is changed unless all labels could be made.

    Args:
        sbd: the folder that holds SBD's ``cls``.
        devkit: ``VOCdevkit/VOC2012``.
        overwrite: replace labels and a list that exist.

    Returns:
        The number of images, 10582 with the complete datasets.

    Raises:
        DatasetError: a folder, list, image or label is missing or damaged, or the results exist already.
    """
    lists = devkit / "ImageSets" / "Segmentation"
    labels, list_file = devkit / "SegmentationClassAug", lists / "trainaug.txt"
    if not (sbd / "cls").is_dir():
        raise DatasetError(f"{sbd / 'cls'} does not exist; --sbd must be SBD's folder 'dataset', which holds cls/*.mat")
    for path in (lists / "train.txt", lists / "val.txt", devkit / "SegmentationClass", devkit / "JPEGImages"):
        if not path.exists():
            raise DatasetError(f"{path} does not exist; --voc must be the folder VOC2012 of the VOC 2012 devkit")
    for path in (labels, list_file):
        if path.exists() and not overwrite:
            raise DatasetError(f"{path} exists already; add --overwrite to replace it")
    train, validation = set(read_ids(lists / "train.txt")), set(read_ids(lists / "val.txt"))
    ids = sorted((train | {path.stem for path in (sbd / "cls").glob("*.mat")}) - validation)
    absent = [image_id for image_id in ids if not (devkit / "JPEGImages" / f"{image_id}.jpg").exists()]
    if absent:
        raise DatasetError(
            f"{devkit / 'JPEGImages' / absent[0]}.jpg and {len(absent) - 1} others are missing; unpack VOC 2012"
        )

    colors = np.zeros((256, 3), dtype=np.uint8)
    colors[:] = palette(256)
    with scratch_folder(labels) as scratch:
        new = scratch / "labels"
        new.mkdir()

        def convert(image_id: str) -> None:
            if image_id in train:
                own = devkit / "SegmentationClass" / f"{image_id}.png"
                if not own.exists():
                    raise DatasetError(f"{own} is missing; unpack VOC 2012 again")
                shutil.copyfile(own, new / own.name)
                return
            image = Image.fromarray(read_sbd_label(sbd / "cls" / f"{image_id}.mat")).convert("P")
            image.putpalette(colors.tobytes())
            image.save(new / f"{image_id}.png")

        with ThreadPoolExecutor() as pool:
            for _ in tqdm(pool.map(convert, ids), "SegmentationClassAug", len(ids), unit="image", disable=None):
                pass
        new_list = scratch / list_file.name
        new_list.write_text("".join(f"{image_id}\n" for image_id in ids))
        if labels.exists():
            labels.rename(scratch / "replaced")
        new.rename(labels)
        os.replace(new_list, list_file)
    return len(ids)
