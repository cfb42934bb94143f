"""Is an image file whole? Read to its end, which opening it does not do."""

import sys
import zlib

import numpy as np
from detectron2.utils.file_io import PathManager

from rc2l.data.image_files import open_image
from rc2l.data.reading import READ_ERRORS, unreadable

_JPEG_START, _PNG_START = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_ZEROS = bytes(64)
_SCAN, _END = 0xDA, 0xD9
#: JPEG markers that have no length behind them: TEM and the restart markers.
_BARE = {0x01, *range(0xD0, 0xD8)}


def check_to_the_end(path: str) -> None:
    """Check that an image file has all of its pixels, as cheaply as its format allows.

    PNG: all chunks up to IEND, with the checksums of those that pixels depend on. JPEG: the markers up to the end of
    the image; where they do not fit, it is decoded. Other formats are decoded. This finds every file that is cut off,
    JPEG and PNG files whose end is zeros (as a power cut or a broken download leaves them), and every changed byte of
    a PNG. Overwritten pixels of formats without checksums cannot be told from others.

    Raises:
        DamagedImageError: it is cut off, empty, missing or no image; the message says which.
    """
    try:
        with PathManager.open(path, "rb") as file:
            content = file.read()
        failure = ""
        if content.startswith(_PNG_START):
            failure = _failure_of_png(content)
        elif not (content.startswith(_JPEG_START) and _is_whole_jpeg(content)):
            with open_image(path, sys.maxsize) as image:
                image.decode()
            # Zeros are pixels too, where the code of no change is made of zeros.
            if content.startswith(_JPEG_START) and content.endswith(_ZEROS):
                failure = f"it is cut off: zeros from byte {len(content.rstrip(bytes(1)))} on, and no end"
        if failure:
            raise OSError(failure)
    except READ_ERRORS as error:
        raise unreadable("image", path, error) from error


def _failure_of_png(content: bytes) -> str:
    """What is wrong with a PNG file; empty where nothing is."""
    position, view = len(_PNG_START), memoryview(content)
    while position + 12 <= len(content):
        kind = content[position + 4 : position + 8]
        end = position + 8 + int.from_bytes(content[position : position + 4], "big")
        if end + 4 > len(content):
            break
        # Pixels do not depend on chunks whose name begins with a small letter.
        if kind[:1].isupper() and zlib.crc32(view[position + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            return f"the checksum of its {kind.decode('latin-1')} chunk at byte {position} is wrong"
        if kind == b"IEND":
            return ""
        position = end + 4
    return f"it is cut off: its {len(content)} bytes end before the IEND chunk"


def _is_whole_jpeg(content: bytes) -> bool:
    """Whether the markers are in order up to the end of the first image; what follows it does not matter."""
    data = np.frombuffer(content, dtype=np.uint8)
    # In the data of a scan, 0xFF is followed by 0, by a restart marker, or else the scan is over.
    flags = np.flatnonzero(data[:-1] == 0xFF)
    codes = data[flags + 1]
    over = flags[(codes != 0) & (codes != 0xFF) & ((codes < 0xD0) | (codes > 0xD7))]
    position, scans = len(_JPEG_START), 0
    while position + 1 < len(content) and content[position] == 0xFF:
        code = content[position + 1]
        if code == _END:
            return scans > 0
        if code == 0xFF:  # filling
            position += 1
        elif code in _BARE:
            position += 2
        else:
            position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
            if code == _SCAN:
                scans += 1
                following = np.searchsorted(over, position)
                if following == len(over):
                    return False
                position = int(over[following])
    return False
