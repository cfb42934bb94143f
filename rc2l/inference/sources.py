"""What is to be labelled: files, folders, lists of paths and videos, by the names of their results."""

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from rc2l.data.datasets.folder import IMAGE_SUFFIXES
from rc2l.data.errors import DatasetError
from rc2l.data.file_listing import find_files

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".mts", ".3gp")
TIFF_SUFFIXES = (".tif", ".tiff")
#: Stands for the lines of standard input.
STDIN = "-"


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def is_tiff(path: Path) -> bool:
    return path.suffix.lower() in TIFF_SUFFIXES


def find_sources(inputs: Iterable[str], output: Path) -> dict[str, Path]:
    """Images and videos by the name of their results.

    That is the path below the folder given, without suffix; of a single file its own name; of files from a list the
    path below the folder that all of them have in common.

    Args:
        inputs: files and folders, and "-" for a list of them, one a line of standard input.
        output: where results go.

    Raises:
        ValueError: an input is missing, holds no image or holds the output, or two would have the same name.
    """
    found: dict[str, Path] = {}
    for given in map(str, inputs):
        if given == STDIN:
            listed = [Path(line.strip()) for line in sys.stdin if line.strip()]
            if not listed:
                raise ValueError("-: standard input names no file; give one path a line")
            parents = [os.path.abspath(path.parent) for path in listed if not path.is_dir()]
            common = Path(os.path.commonpath(parents)) if parents else Path()
            for path in listed:
                _add(found, path, output, common)
        else:
            _add(found, Path(given), output, Path(os.path.abspath(given)).parent)
    return found


def _add(found: dict[str, Path], given: Path, output: Path, parent: Path) -> None:
    if given.is_dir():
        if output.resolve().is_relative_to(given.resolve()):
            raise ValueError(f"--output {output} lies in {given}, whose images are to be labelled: name another")
        paths = find_files(given, (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
        names = [path.relative_to(given).with_suffix("").as_posix() for path in paths]
    elif given.exists():
        paths, names = [given], [Path(os.path.abspath(given)).relative_to(parent).with_suffix("").as_posix()]
    else:
        raise ValueError(f"{given}: no such file or folder")
    if not paths:
        raise ValueError(f"{given} holds no images; files of {', '.join(IMAGE_SUFFIXES)} are looked for, and videos")
    for name, path in zip(names, paths, strict=True):
        if name in found:
            raise ValueError(f"{found[name]} and {path} would both be labelled as {name}: give them apart")
        found[name] = path


@dataclass
class Video:
    """The frames of a video, one at a time.

    Attributes:
        path: of the file.
        every: 1: all frames; n: the first one and every n-th after it.

    Raises:
        DatasetError: when frames are asked for: it cannot be opened, or no frame can be read.
    """

    path: Path
    every: int = 1
    #: Frames a second of what is given; known from the first frame on.
    rate: float = 0.0
    #: Why there are fewer frames than the file announces; empty where there are not.
    shortfall: str = ""

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """Number of the frame in the video, from 0, and its colours, (H, W, 3) uint8 in RGB."""
        video = cv2.VideoCapture(str(self.path))
        number = 0
        try:
            self.rate = (video.get(cv2.CAP_PROP_FPS) or 25.0) / self.every
            announced = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
            while video.grab():
                if number % self.every == 0:
                    whole, frame = video.retrieve()
                    if not whole:
                        break
                    yield number, np.ascontiguousarray(frame[:, :, ::-1])
                number += 1
        finally:
            video.release()
        if not number:
            raise DatasetError(f"{self.path}: cannot read this video (no frame can be decoded); restore the file")
        if number < announced:
            self.shortfall = f"{self.path}: {number} of the {announced} frames that the file announces could be read"


class VideoWriter:
    """An MP4 file that grows by frames; opened with the first one.

    Args:
        path: of the file.
        rate: frames a second.

    Raises:
        ValueError: OpenCV cannot write it.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate = path, rate
        self._writer: cv2.VideoWriter | None = None

    def write(self, frame: np.ndarray) -> None:
        """Append a frame, (H, W, 3) uint8 in RGB, all of one size."""
        # Codecs want even sides: the last row or column is repeated.
        even = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            code = cv2.VideoWriter_fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self.path), code, self.rate, even.shape[1::-1])
            if not self._writer.isOpened():
                raise ValueError(
                    f"{self.path}: OpenCV cannot write this video of {even.shape[1]}x{even.shape[0]} pixels"
                )
        self._writer.write(np.ascontiguousarray(even[:, :, ::-1]))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()
