"""One dataset dict -> tensors: a labelled image, two views of an unlabelled one, or a test image."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from torch import Tensor

from rc2l.data.errors import DatasetError
from rc2l.data.image_rule import record_rule
from rc2l.data.partial_labels import read_record_label
from rc2l.data.reading import read_image
from rc2l.data.transforms import (
    build_padding,
    build_scales,
    build_strong_augmentations,
    build_test_resize,
    build_weak_augmentations,
)
from rc2l.structures.label_map import IGNORE


@contextmanager
def seeded_randomness(*key: int) -> Iterator[None]:
    """Seed the global generators of numpy and ``random`` by ``key`` (numbers of at least 0), and put them back after.

    detectron2's augmentations draw from them, so this makes a sample a function of its key alone and leaves no trace
    in a process that loads its own data.
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()
    state = np.random.SeedSequence(key).generate_state(8)
    np.random.seed(state)
    random.seed(state.tobytes())
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def _image_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 array -> (3, H, W) uint8 tensor that owns its memory."""
    return torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))


def _read_pair(record: dict, image_format: str) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) and label (H, W) of a dataset dict."""
    image = read_image(record["file_name"], image_format, record_rule(record))
    label = read_record_label(record)
    if image.shape[:2] != label.shape:
        raise DatasetError(size_mismatch(record, image.shape[:2], label.shape))
    return image, label


def size_mismatch(record: dict, image_size: tuple[int, int], label_size: tuple[int, int]) -> str:
    """The error text for an image and a label of different (height, width)."""
    return (
        f"{record['file_name']} is {image_size[1]}x{image_size[0]} pixels (width x height, upright), its label "
        f"{record['sem_seg_file_name']} {label_size[1]}x{label_size[0]}; both must have the same size"
    )


class LabeledMapper:
    """Labelled dataset dict -> ``image`` (3, H, W) uint8, ``target`` (H, W) uint8 with 255 = ignore, ``file_name``.

    Raises:
        DatasetError: a file cannot be read, sizes differ, or a label id is out of range.
    """

    @configurable
    def __init__(self, *, augmentations: list[T.Augmentation], image_format: str):
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {
            "augmentations": [*build_weak_augmentations(cfg), build_padding(cfg)],
            "image_format": cfg.INPUT.FORMAT,
        }

    def __call__(self, record: dict) -> dict:
        image, label = _read_pair(record, self.image_format)
        view = T.AugInput(image, sem_seg=label)
        self.augmentations(view)
        return {
            "image": _image_tensor(view.image),
            "target": torch.from_numpy(np.array(view.sem_seg)),
            "file_name": record["file_name"],
        }


class UnlabeledMapper:
    """Unlabelled dataset dict -> ``image`` (weak view) (3, H, W) uint8, ``strong`` list of such, ``valid`` (H, W),
    ``file_name``.

    All views have the same geometry; ``valid`` is False in the padding. Without strong augmentations, each of
    ``strong`` is the very tensor ``image``.

    Raises:
        DatasetError: the file cannot be read.
    """

    @configurable
    def __init__(
        self,
        *,
        weak: list[T.Augmentation],
        strong: list[T.Augmentation],
        padding: T.Augmentation,
        image_format: str,
        strong_views: int = 1,
    ):
        self.strong_views = strong_views
        self.weak = T.AugmentationList(weak)
        self.strong = T.AugmentationList(strong) if strong else None
        self.padding = padding
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg: CfgNode, strong_views: int = 1) -> dict:
        return {
            "strong_views": strong_views,
            "weak": build_weak_augmentations(cfg, labeled=False),
            "strong": build_strong_augmentations(cfg),
            "padding": build_padding(cfg),
            "image_format": cfg.INPUT.FORMAT,
        }

    def __call__(self, record: dict) -> dict:
        view = T.AugInput(read_image(record["file_name"], self.image_format, record_rule(record)))
        self.weak(view)
        # Padding comes after the strong augmentations, which would otherwise colour it.
        pad = self.padding.get_transform(view.image)
        image = _image_tensor(pad.apply_image(view.image))
        valid = pad.apply_segmentation(np.zeros(view.image.shape[:2], dtype=np.uint8)) != IGNORE
        strong = [image] * self.strong_views
        if self.strong is not None:
            for number in range(self.strong_views):
                each = T.AugInput(view.image)
                self.strong(each)
                strong[number] = _image_tensor(pad.apply_image(each.image))
        return {
            "image": image,
            "strong": strong,
            "valid": torch.from_numpy(valid),
            "file_name": record["file_name"],
        }


class EvaluationMapper:
    """Test dataset dict -> the same dict with what models and evaluators need.

    * ``image`` (3, h, w) uint8, of ``INPUT.BASE_SIZE``, or else the short edge ``INPUT.MIN_SIZE_TEST`` (0: as it is)
      and the long one at most ``INPUT.MAX_SIZE_TEST``;
    * ``scales``: with ``TEST.AUG``, a list of such images, of its sizes;
    * ``height``, ``width``: the original, upright size;
    * ``sem_seg`` (height, width) uint8 with 255 = ignore, where the image has a label.

    Raises:
        DatasetError: a file cannot be read, sizes differ, or a label id is out of range.
    """

    @configurable
    def __init__(self, *, resize: T.Augmentation, image_format: str, scales: Sequence[T.Augmentation] = ()):
        self.resize = resize
        self.image_format = image_format
        self.scales = scales

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {"resize": build_test_resize(cfg), "image_format": cfg.INPUT.FORMAT, "scales": build_scales(cfg)}

    def __call__(self, record: dict) -> dict:
        sample = dict(record)
        if "sem_seg_file_name" in record:
            image, label = _read_pair(record, self.image_format)
            sample["sem_seg"] = torch.from_numpy(np.array(label))
        else:
            image = read_image(record["file_name"], self.image_format, record_rule(record))
        return sample | self.of_image(image)

    def of_image(self, image: np.ndarray) -> dict:
        """All but the label, of an image (H, W, 3) uint8 in ``INPUT.FORMAT`` order."""
        sample = {"height": image.shape[0], "width": image.shape[1]}
        sample["image"] = _image_tensor(self.resize.get_transform(image).apply_image(image))
        if self.scales:
            sample["scales"] = [_image_tensor(each.get_transform(image).apply_image(image)) for each in self.scales]
        return sample
