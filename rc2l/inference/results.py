"""Predictions as files: label maps, confidence, probabilities and pictures, of images and of images in pieces."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.data.catalog import Metadata
from PIL import Image

from rc2l.inference.large_tiff import LargeTiff, TiffRows
from rc2l.inference.predictor import Prediction, Predictor
from rc2l.inference.tables import Tally
from rc2l.structures.label_map import IGNORE
from rc2l.visualization.label_images import palette_image

#: Pixels of an overlay's shorter side, at least: in smaller pictures the names would hide the classes.
_LEGIBLE = 320
#: Pixels of its longer side, at most, where it is drawn larger than the image.
_LARGEST = 4000
#: How probabilities may be stored.
PROBABILITY_TYPES = ("uint8", "float16")


@dataclass(frozen=True)
class ResultFolder:
    """Where the results of images go, and which are wanted.

    * ``labels/<name>.png``: class ids, 255 where the network was unsure, with the colours of the classes as palette;
    * ``confidence/<name>.png``: that of each pixel, 0 to 255 for 0 to 1;
    * ``probabilities/<name>.npy``: (K, H, W), float16, or uint8 with 0 to 255 for 0 to 1;
    * ``overlays/<name>.jpg``: the classes drawn over the image.

    Attributes:
        path: of the folder.
        class_names, colors: of the classes, in order of their ids; colours are RGB, 0 to 255.
        confidence, overlays: whether these are wanted.
        probabilities: how these are stored, one of ``PROBABILITY_TYPES``, or "": not at all.
    """

    path: Path
    class_names: Sequence[str]
    colors: Sequence[Sequence[int]]
    confidence: bool = False
    overlays: bool = False
    probabilities: str = ""

    def write(self, name: str, image: np.ndarray, prediction: Prediction, *, overlay: bool = True) -> None:
        """Write the files of one image, (H, W, 3) uint8 in RGB; ``overlay=False``: all but its overlay."""
        palette_image(prediction.label_map, self.colors).save(self.file("labels", name, ".png"))
        if self.confidence:
            Image.fromarray(as_bytes(prediction.confidence)).save(self.file("confidence", name, ".png"))
        if self.probabilities:
            as_stored = as_bytes if self.probabilities == "uint8" else np.float16
            np.save(self.file("probabilities", name, ".npy"), as_stored(prediction.probabilities))
        if self.overlays and overlay:
            Image.fromarray(self._overlay(image, prediction.label_map)).save(self.file("overlays", name, ".jpg"))

    def file(self, kind: str, name: str, suffix: str) -> Path:
        """Path of a result, whose folder is made."""
        path = self.path / kind / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _overlay(self, image: np.ndarray, label_map: np.ndarray) -> np.ndarray:
        # Imported only here: it brings matplotlib, a second of CPU.
        from detectron2.utils.visualizer import Visualizer

        metadata = Metadata(stuff_classes=list(self.class_names), stuff_colors=list(self.colors))
        scale = max(1.0, min(_LEGIBLE / min(label_map.shape), _LARGEST / max(label_map.shape)))
        return Visualizer(image, metadata, scale=scale).draw_sem_seg(label_map, alpha=0.5).get_image()

    def blend(self, image: np.ndarray, label_map: np.ndarray) -> np.ndarray:
        """The colours of the classes over a frame of a video, half and half: (H, W, 3) uint8 in RGB, without names."""
        table = np.zeros((256, 3), dtype=np.uint8)
        table[: len(self.colors)] = self.colors
        mixed = (image.astype(np.uint16) + table[label_map]) // 2
        return np.where((label_map == IGNORE)[..., None], image, mixed).astype(np.uint8)

    def write_pieces(self, name: str, tiff: LargeTiff, predictor: Predictor) -> Tally:
        """Label a TIFF file piece by piece, as tiled TIFF files with its place on the map.

        Their names end in .tif; all are uint8, of probabilities one band a class. Where the image says that it has no
        data, labels are 255 and confidence and probabilities 0. There are no overlays.

        Raises:
            ValueError, DatasetError: as :meth:`Predictor.pieces` and :meth:`LargeTiff.read_rows`; no file is left then.
        """
        tally, (height, width) = Tally(), tiff.size
        with ExitStack() as stack:
            whole = [False]

            def open_rows(kind: str, **options) -> TiffRows:
                rows = TiffRows(self.file(kind, name, ".tif"), tiff, **options)
                stack.callback(lambda: rows.close(whole[0]))
                return rows

            labels = open_rows("labels", colors=self.colors, nodata=IGNORE)
            confidence = open_rows("confidence") if self.confidence else None
            shares = open_rows("probabilities", bands=len(self.class_names)) if self.probabilities else None
            pieces = predictor.pieces(tiff.read_rows, height, width, probabilities=shares is not None)
            for top, piece in pieces:
                valid = tiff.read_valid(top, len(piece.label_map))
                piece.label_map[~valid] = IGNORE
                tally.add(piece.label_map, piece.confidence)
                labels.write(piece.label_map[None])
                if confidence:
                    confidence.write(as_bytes(piece.confidence * valid)[None])
                if shares:
                    shares.write(as_bytes(piece.probabilities * valid))
            whole[0] = True
        return tally


def as_bytes(values: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1] -> uint8, 0 to 255."""
    return np.rint(values * np.float32(255)).astype(np.uint8)
