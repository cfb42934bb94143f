"""A trained network as a function of images, for tools, notebooks and services."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image, ImageOps
from torch import Tensor, nn

import rc2l.modeling  # noqa: F401  registers the architectures
from rc2l.data.image_rule import ImageRule, rule_of
from rc2l.data.mapper import EvaluationMapper
from rc2l.data.reading import read_image
from rc2l.engine.arguments import checkpoint_of_run, config_of_run
from rc2l.engine.config_file import load_config
from rc2l.engine.launch import resolve_device
from rc2l.engine.training_check import check_networks, explained_build
from rc2l.evaluation.scorer import build_scorer
from rc2l.evaluation.window import scores_by_rows
from rc2l.modeling.weights import load_weights
from rc2l.structures.label_map import IGNORE
from rc2l.visualization.label_images import colors_of

#: A file, a picture, or an array as :meth:`Predictor.__call__` describes it.
ImageLike = str | Path | Image.Image | np.ndarray
#: Pixels whose labels are found at once in images in pieces.
_PIECE = 1 << 22
#: Modes of Pillow with 8 bits a channel; of others, the stored values are taken.
_PLAIN_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


@dataclass
class Prediction:
    """What a network says about one image, at the image's own size."""

    #: (H, W) uint8, the class of each pixel, or 255 where the confidence is below the least one asked for.
    label_map: np.ndarray
    #: (H, W) float32 in [0, 1]: share of the most probable class in the sum over classes.
    confidence: np.ndarray
    #: (K, H, W) float32, the share of each class, where it was asked for.
    probabilities: np.ndarray | None = None


class Predictor:
    """Labels images as evaluation does: the same sizes, network, windows, scales and precision, as the config says.

    Args:
        cfg: the config of the training run, MODEL.DEVICE being where it runs. Those of TEST.WINDOW, TEST.AUG and
            TEST.AMP may be changed.
        checkpoint: of a run, or any file that fits the whole model (:func:`~rc2l.modeling.weights.load_weights`); or
            the network itself, which keeps its place and its training mode.
        network: "teacher", "student" or another one of a checkpoint of ours; "": the result of its run.
        min_confidence: pixels below it, in [0, 1], become 255.
        image_rule: how stored values become 8-bit RGB; default: as in the dataset of the run.
        batch_size: images of one size that the network sees at once, where several are given.

    Raises:
        FileNotFoundError, ValueError: the checkpoint cannot be read or does not fit, or a value is out of range.
    """

    def __init__(
        self,
        cfg: CfgNode,
        checkpoint: str | Path | nn.Module,
        *,
        network: str = "",
        min_confidence: float = 0.0,
        image_rule: ImageRule | None = None,
        batch_size: int = 1,
    ) -> None:
        if not 0 <= min_confidence <= 1:
            raise ValueError(f"the least confidence is {min_confidence}: it must be in [0, 1]")
        if batch_size < 1:
            raise ValueError(f"the batch size is {batch_size}: it must be 1 or more")
        self.min_confidence, self.batch_size = min_confidence, batch_size
        if isinstance(checkpoint, nn.Module):
            self.network = checkpoint
        else:
            if not str(checkpoint).strip():
                raise ValueError("--checkpoint is empty: name the file of a trained network, such as model_best.pth")
            check_networks(cfg)
            with explained_build():
                self.network = build_model(cfg).eval()
            load_weights(self.network, str(checkpoint), prefer=network, cfg=cfg, strict=True)
        self.scorer = build_scorer(cfg, self.network)
        self.mapper = EvaluationMapper(cfg)
        self.bgr = cfg.INPUT.FORMAT == "BGR"
        metadata = MetadataCatalog.get((*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)[0])
        self.image_rule = image_rule or rule_of(metadata)
        self.class_names: list[str] = list(metadata.stuff_classes)
        self.class_colors = colors_of(metadata)
        self._resizes = (
            bool(cfg.INPUT.BASE_SIZE or cfg.INPUT.MIN_SIZE_TEST)
            if not cfg.TEST.AUG.ENABLED
            else any((*cfg.INPUT.BASE_SIZE, *cfg.TEST.AUG.MIN_SIZES))
        )

    @classmethod
    def from_run(cls, folder: str | Path, *overrides: str, checkpoint: str | Path = "", **options) -> "Predictor":
        """The best network of a run.

        Args:
            folder: its OUTPUT_DIR.
            overrides: keys of the config and their values in turn, as texts, such as "TEST.AUG.ENABLED", "True".
            checkpoint: another one than the best of the run.
            options: further arguments of :class:`Predictor`.

        Raises:
            FileNotFoundError, ValueError: there is no run in the folder, or as :class:`Predictor`.
        """
        cfg = load_config(config_of_run(folder), [str(word) for word in overrides])
        resolve_device(cfg, num_gpus=1)
        return cls(cfg, checkpoint or checkpoint_of_run(folder), **options)

    def __call__(
        self, images: ImageLike | list[ImageLike] | tuple[ImageLike, ...], *, probabilities: bool = False
    ) -> Prediction | list[Prediction]:
        """Label one image, or several.

        Args:
            images: one image of any size: a path; a picture of Pillow, which is turned upright by its EXIF orientation;
                (H, W, 3) uint8 in RGB; or values as a file stores them, (H, W) or (H, W, C) of another type or number
                of bands, of which ``image_rule`` makes RGB. Or a list or tuple of such images, or a batch of arrays
                (B, H, W, C).
            probabilities: give those of every class, too.

        Returns:
            One prediction, or a list of them.

        Raises:
            ValueError: it is no such array, or the rule says nothing about its values or bands.
            DatasetError: a file is missing, damaged or too large.
        """
        if isinstance(images, (list, tuple)) or (isinstance(images, np.ndarray) and images.ndim == 4):
            return list(self.stream(images, probabilities=probabilities))
        return next(self.stream([images], probabilities=probabilities))

    def stream(self, images: Iterable[ImageLike], *, probabilities: bool = False) -> Iterator[Prediction]:
        """Label images one after the other, reading each when it is its turn; see :meth:`__call__`."""
        batch: list[dict] = []
        for item in chain((self.mapper.of_image(self.as_array(image)) for image in images), [None]):
            if batch and (item is None or len(batch) == self.batch_size or _shapes(item) != _shapes(batch[0])):
                yield from self._predict(batch, probabilities)
                batch = []
            if item is not None:
                batch.append(item)

    def pieces(
        self,
        read_rows: Callable[[int, int], np.ndarray],
        height: int,
        width: int,
        *,
        probabilities: bool = False,
    ) -> Iterator[tuple[int, Prediction]]:
        """Label an image that is too large for memory, by TEST.WINDOW, from top to bottom.

        The labels are those of :meth:`__call__` for the whole image. Memory is that of the scores in one row of
        windows, K x window height x width x 4 bytes, and of some windows.

        Args:
            read_rows: called with the first row and the number of rows; gives (rows, width, C), as :meth:`__call__`
                takes it.
            height, width: of the image, in pixels.
            probabilities: give those of every class, too.

        Yields:
            The first row, and what the network says about the rows from there on, to the first one of the next piece.

        Raises:
            ValueError: TEST.WINDOW.SIZE is not set, or images would be resized.
        """
        self.check_pieces()
        device, rows = self.scorer.device, (-1, np.empty(0))

        def score(corners: list[tuple[int, int]], size: tuple[int, int]) -> Tensor:
            nonlocal rows
            top = corners[0][0]  # all windows of a batch are in one row
            if rows[0] != top:
                rows = top, self.as_array(read_rows(top, size[0]))
            crops = [rows[1][:, left : left + size[1]].transpose(2, 0, 1) for _, left in corners]
            return self.scorer.scores(torch.from_numpy(np.stack(crops)).to(device))

        steps = scores_by_rows(self.scorer.window, height, width, score)
        while True:
            with self._running():
                step = next(steps, None)
            if step is None:
                return
            top, scores = step
            for part in scores.split(max(_PIECE // width, 1), dim=1):
                with self._running():
                    prediction = self._prediction(part, probabilities)
                yield top, prediction
                top += part.shape[1]

    def check_pieces(self) -> None:
        """Check that the config allows pieces.

        Raises:
            ValueError: TEST.WINDOW.SIZE is not set, or images would be resized.
        """
        if self.scorer.window is None:
            raise ValueError(
                "TEST.WINDOW.SIZE is []: labelling in pieces needs windows, such as TEST.WINDOW.SIZE [1024,1024]"
            )
        if self._resizes:
            raise ValueError(
                "an image in pieces is shown at its own size: add INPUT.MIN_SIZE_TEST 0 INPUT.BASE_SIZE [], and with "
                "TEST.AUG.ENABLED also TEST.AUG.MIN_SIZES [0]"
            )

    def as_array(self, image: ImageLike) -> np.ndarray:
        """(H, W, 3) uint8 in INPUT.FORMAT order, of an image as :meth:`__call__` takes it."""
        if isinstance(image, (str, Path)):
            return read_image(str(image), "BGR" if self.bgr else "RGB", self.image_rule)
        if isinstance(image, Image.Image):
            image = ImageOps.exif_transpose(image)
            image = np.asarray(image.convert("RGB") if image.mode in _PLAIN_MODES else image)
        if not isinstance(image, np.ndarray):
            raise ValueError(f"the image is a {type(image).__name__}: give a path, a picture of Pillow or an array")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            image = self.image_rule.to_rgb(image)
        return np.ascontiguousarray(image[..., ::-1]) if self.bgr else image

    def _predict(self, items: list[dict], probabilities: bool) -> Iterator[Prediction]:
        with self._running():
            predictions = [self._prediction(output["sem_seg"], probabilities) for output in self.scorer(items)]
        yield from predictions

    def _prediction(self, scores: Tensor, probabilities: bool) -> Prediction:
        """Of scores (K, H, W)."""
        best, label_map = scores.max(0)
        total = scores.sum(0).clamp(min=torch.finfo(scores.dtype).tiny)
        confidence = best / total
        label_map = torch.where(confidence >= self.min_confidence, label_map, IGNORE).to(torch.uint8)
        shares = (scores / total).cpu().numpy() if probabilities else None
        return Prediction(label_map.cpu().numpy(), confidence.cpu().numpy(), shares)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Within it the network is in eval mode, and nothing is remembered for gradients."""
        modes = [(module, module.training) for module in self.scorer.modules()]
        self.scorer.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            for module, training in modes:
                module.training = training


def _shapes(item: dict) -> list[tuple[int, ...]]:
    return [tuple(image.shape) for image in (item["image"], *item.get("scales", ()))]
