"""TIFF files, which can hold anything: their values as stored, of any type, number of bands, pages and compression."""

import logging
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
import tifffile
from PIL import UnidentifiedImageError

from rc2l.data.image_files import ImageFile, open_picture, upright

_ORIENTATION = 274
_ALPHA = (1, 2)
_CONTIGUOUS = 1
#: Meanings of values (PhotometricInterpretation) that are numbers or RGB.
_NUMBERS = (0, 1, 2)
#: Further ones that Pillow makes RGB of, where they have 8 bits.
_COLORS = {3: "palette colours", 5: "CMYK colours", 6: "YCbCr colours"}


#: Of what tifffile writes to its log.
_CUT_OFF = ("invalid value offset", "invalid page offset", "invalid offset to", "corrupted tag list")


#: And what says nothing about the pixels: a description that another program left as it was.
_HARMLESS = "failed to reshape"


class _Complaints(logging.Filter):
    """Keeps what tifffile only logs, pages and tags that lie behind the end of a file, for whoever asks in a thread."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        found = getattr(self.asked, "found", None)
        message = record.getMessage()
        cut_off = any(text in message for text in _CUT_OFF)
        if found is not None and cut_off:
            found.append(message)
        return found is None or not (cut_off or _HARMLESS in message)

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Within it, a complaint becomes an OSError at the end."""
        self.asked.found = found = []
        try:
            yield
        finally:
            self.asked.found = None
        if found:
            raise OSError(f"the file is truncated: {found[0]}")


_complaints = _Complaints()
logging.getLogger("tifffile").addFilter(_complaints)


def open_tiff(file: BinaryIO) -> ImageFile:
    """An open TIFF file; pages of the size and type of the first count as further bands.

    Raises:
        OSError: the file is damaged.
    """
    try:
        # Else the metadata of a microscope could have other files opened.
        with _complaints.raised():
            tiff = tifffile.TiffFile(file, is_ome=False)
            page = tiff.pages.first
            pages = len(tiff.series[0].pages) if len(tiff.pages) > 1 or tiff.is_imagej else 1
        return _describe(file, tiff, page, pages)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # of whatever bytes a damaged file has: IndexError, KeyError, struct.error, ...
        raise OSError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def _describe(file: BinaryIO, tiff: tifffile.TiffFile, page: tifffile.TiffPage, pages: int) -> ImageFile:
    for each in filter(None, tiff.series[0].pages if pages > 1 else [page]):
        _check_end(file, each)
    source = tiff.series[0] if pages > 1 else page
    axes, shape = source.axes, source.shape
    height, width = (shape[axes.index(axis)] for axis in "YX")
    bits, photometric = int(np.max(page.bitspersample)), int(page.photometric)
    bands = math.prod(shape) // (height * width)
    alpha = 0
    if pages == 1:
        for extra in reversed(page.extrasamples):
            if int(extra) not in _ALPHA or bands - alpha <= 1:
                break
            alpha += 1
    orientation_tag = page.tags.get(_ORIENTATION)
    orientation = int(orientation_tag.value) if orientation_tag else 1
    size = (width, height) if orientation in (5, 6, 7, 8) else (height, width)

    plain = page.dtype in (np.uint8, bool) and pages == 1 and bands - alpha in ((4,) if photometric == 5 else (1, 3))
    contiguous = int(page.planarconfig) == _CONTIGUOUS
    if plain and (contiguous or photometric not in _NUMBERS) and photometric in (*_NUMBERS, *_COLORS):
        try:
            image = open_picture(file)
        except UnidentifiedImageError:  # a compression that only tifffile knows
            if photometric not in _NUMBERS:
                raise
        else:
            image.size = size  # versions of Pillow differ in whether they have turned it by now
            return image

    unusable = ""
    if page.dtype is None or page.dtype.kind not in "buif":
        unusable = f"values of the kind {page.dtype or f'{bits} bits'}"
    elif photometric not in _NUMBERS:
        unusable = f"{_COLORS.get(photometric, f'colours of the kind {photometric}')} of {bits} bits"

    def decode() -> np.ndarray:
        try:
            values = source.asarray()
        except (OSError, MemoryError):
            raise
        except Exception as error:  # decoders of damaged data raise nearly anything
            raise OSError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
        values = np.moveaxis(values, (axes.index("Y"), axes.index("X")), (0, 1)).reshape(height, width, -1)
        return upright(values, orientation)

    return ImageFile(size, page.dtype, bits, bands - alpha, alpha, decode, pages, unusable)


def _check_end(file: BinaryIO, page: tifffile.TiffPage) -> None:
    """tifffile fills up what is missing at the end of a file, as it may be meant to be empty."""
    ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False) if count]
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if ends and max(ends) > size:
        raise OSError(f"the file is truncated: it has {size} of at least {max(ends)} bytes")
