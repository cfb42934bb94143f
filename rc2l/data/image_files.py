"""Opens image files of any kind without loss: what they hold, from the header alone, and their values as stored.

Pillow reads what fits into 8-bit RGB. It cuts 16-bit colour off, scales PGM, and misreads or refuses TIFF files of
other types and numbers of bands, as OpenCV does: those go through tifffile and imagecodecs.
"""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps

#: Modes of Pillow with up to 8 bits a channel, all of whose colours RGB can show.
_PLAIN_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "La", "CMYK", "YCbCr"}
_GRAY_MODES = {"1", "L", "LA", "La"}
_DEEP_MODES = {"I;16": "<u2", "I;16L": "<u2", "I;16B": ">u2", "I": "i4", "F": "f4"}
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG_START = b"\x89PNG\r\n\x1a\n"
#: A header of PGM or PPM: kind, width, height, largest value, between them blanks and comments.
_PNM_HEADER = re.compile(rb"P([2356])" + rb"(?:\s+(?:#[^\n]*\n\s*)*(\d+))" * 3 + rb"\s")
_PNM_HEADER_SIZE = 4096
_EXIF_ORIENTATION = 274


@dataclass
class ImageFile:
    """An open image file; its values are decoded by :attr:`decode`, while it is open."""

    #: (height, width), upright.
    size: tuple[int, int]
    #: Of the stored values; palette colours count as uint8.
    dtype: np.dtype
    #: That a stored value has, at most.
    bits: int
    #: Bands without alpha; of files with several pages of one size, those of all pages.
    bands: int
    #: Alpha bands behind them.
    alpha: int
    #: Values as stored, upright: (H, W, bands + alpha).
    decode: Callable[[], np.ndarray]
    pages: int = 1
    #: Why no rule can make RGB of it; empty where one can.
    unusable: str = ""
    #: Where Pillow reads it.
    picture: Image.Image | None = None

    @property
    def deep(self) -> bool:
        """Whether values are more than numbers of 8 bits."""
        return self.bits > 8 or self.dtype not in (np.uint8, bool)

    @property
    def kind(self) -> str:
        """What it has beyond 8-bit RGB, in words; empty where nothing would be lost."""
        if self.unusable:
            return self.unusable
        letter, bits = self.dtype.kind, self.bits
        numbers = {"f": f"floating-point values of {bits} bits", "i": f"signed values of {bits} bits"}.get(letter, "")
        if self.bands in (1, 3):
            return (numbers or f"{bits} bits per channel") if self.deep else ""
        bands = f"{self.bands} bands" + (f" ({self.pages} pages)" if self.pages > 1 else "")
        return f"{bands} of {numbers or f'{bits} bits'}"


@contextmanager
def open_image(path: str, max_pixels: int, *, label: bool = False) -> Iterator[ImageFile]:
    """Open a file and read its header.

    Args:
        path: of any format that Pillow knows, or any TIFF.
        max_pixels: largest width x height.
        label: the numbers of PGM files are ids, so a largest value below 255 does not mean white.

    Raises:
        TooLargeError: there are more pixels.
        OSError, SyntaxError, ValueError: the file is missing or damaged.
    """
    with PathManager.open(path, "rb") as file:
        head = file.read(_PNM_HEADER_SIZE)
        file.seek(0)
        if head[:4] in _TIFF_STARTS:
            from rc2l.data.tiff_files import open_tiff  # only here: not everyone has such files

            image = open_tiff(file)
        elif (match := _PNM_HEADER.match(head)) and (int(match[4]) > 255 or (label and int(match[4]) < 255)):
            image = _open_pnm(file, match)
        else:
            image = open_picture(file)
            if head.startswith(_PNG_START) and head[24] > 8:
                _make_deep_png(image, file, head[25])
        if image.size[0] * image.size[1] > max_pixels:
            raise TooLargeError(image.size, max_pixels)
        yield image


class TooLargeError(ValueError):
    """An image has more pixels than are to be read.

    Args:
        size: (height, width).
        max_pixels: that are to be read.
    """

    def __init__(self, size: tuple[int, int], max_pixels: int) -> None:
        height, width = size
        super().__init__(
            f"{width}x{height} pixels (width x height), {width * height / 1e6:.1f} million, and the limit is "
            f"{max_pixels / 1e6:.1f} million: cut it into tiles, or raise the limit by max_pixels: {width * height} in "
            "the description of the dataset (predict: --max-pixels) where there is memory for it"
        )


def open_picture(file: BinaryIO) -> ImageFile:
    """An open file as Pillow reads it."""
    with _without_limit():
        picture = Image.open(file)
    width, height = picture.size
    orientation = 1
    # Pillow decodes a whole PNG to look for EXIF data behind the pixels, where nobody writes it.
    if picture.format != "PNG" or "exif" in picture.info:
        orientation = picture.getexif().get(_EXIF_ORIENTATION, 1)
    mode = picture.mode
    deep = _DEEP_MODES.get(mode)
    dtype = np.dtype(deep or np.uint8)
    alpha = int(mode in ("LA", "La", "RGBA", "RGBa", "PA"))

    def decode() -> np.ndarray:
        ImageOps.exif_transpose(picture, in_place=True)
        if deep:
            return np.asarray(picture)[..., None]
        wanted = "RGBA" if alpha else "RGB"
        return np.asarray(picture if picture.mode == wanted else picture.convert(wanted))

    return ImageFile(
        size=(width, height) if orientation in (5, 6, 7, 8) else (height, width),
        dtype=dtype,
        bits=8 * dtype.itemsize,
        bands=1 if deep or mode in _GRAY_MODES else 3,
        alpha=alpha,
        decode=decode,
        unusable="" if deep or mode in _PLAIN_MODES else f"pixels of the kind {mode}",
        picture=picture,
    )


def _make_deep_png(image: ImageFile, file: BinaryIO, color: int) -> None:
    """Turn what Pillow opened into a PNG of 16 bits, of which Pillow keeps 8 where it has colour."""
    orientation = image.picture.getexif().get(_EXIF_ORIENTATION, 1) if "exif" in image.picture.info else 1
    image.dtype, image.bits, image.picture = np.dtype(np.uint16), 16, None
    image.bands, image.alpha = (1 if color in (0, 4) else 3), int(color in (4, 6))

    def decode() -> np.ndarray:
        import imagecodecs

        file.seek(0)
        try:
            return upright(imagecodecs.png_decode(file.read()), orientation)
        except RuntimeError as error:  # of libpng
            raise OSError(" ".join(str(error).split())) from error

    image.decode = decode


def _open_pnm(file: BinaryIO, header: re.Match) -> ImageFile:
    kind, width, height, largest = (int(header[group]) for group in (1, 2, 3, 4))
    bands = 1 if kind in (2, 5) else 3
    dtype = np.dtype(">u2" if largest > 255 else np.uint8)

    def decode() -> np.ndarray:
        file.seek(header.end())
        count = height * width * bands
        if kind in (5, 6):
            values = np.frombuffer(file.read(count * dtype.itemsize), dtype)
        else:
            values = np.array(re.sub(rb"#[^\n]*", b"", file.read()).split()[:count], dtype=np.int64).astype("u2")
        if len(values) < count:
            raise OSError(f"the file ends after {len(values)} of {count} values")
        return values.reshape(height, width, bands)

    return ImageFile((height, width), dtype, largest.bit_length(), bands, 0, decode)


def upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W) or (H, W, C) as stored -> (H, W, C), turned as EXIF says."""
    values = values[..., None] if values.ndim == 2 else values
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values


_limit_lock = threading.Lock()
_limit_users: list[int | None] = []


@contextmanager
def _without_limit() -> Iterator[None]:
    """Within it, Pillow's own limit of pixels, one for the whole process, does not hold: each dataset has its own."""
    with _limit_lock:
        _limit_users.append(_limit_users[-1] if _limit_users else Image.MAX_IMAGE_PIXELS)
        Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        with _limit_lock:
            limit = _limit_users.pop()
            if not _limit_users:
                Image.MAX_IMAGE_PIXELS = limit
