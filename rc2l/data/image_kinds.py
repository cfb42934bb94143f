"""Kinds of image files that would lose values or bands if they were read as 8-bit RGB."""

import re
from typing import BinaryIO

from PIL import Image

#: Modes of Pillow with up to 8 bits a channel, all of whose colours RGB can show.
_PLAIN_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "La", "CMYK", "YCbCr"}
_BITS_PER_SAMPLE, _SAMPLES_PER_PIXEL, _EXTRA_SAMPLES = 258, 277, 338
_ALPHA = (1, 2)


def lossy_kind(image: Image.Image, file: BinaryIO) -> str:
    """What an opened image has beyond 8-bit RGB, in words; empty where nothing would be lost.

    Alpha channels need no word. ``file`` is what the image was opened from; its position is kept.
    """
    position = file.tell()
    file.seek(0)
    head = file.read(64)
    file.seek(position)
    if image.format == "PNG" and len(head) > 24 and head[24] > 8:
        return f"{head[24]} bits per channel"
    if image.format == "TIFF":
        tags = image.tag_v2
        bits = max(tags.get(_BITS_PER_SAMPLE, (8,)))
        bands = tags.get(_SAMPLES_PER_PIXEL, 1)
        further = sum(kind not in _ALPHA for kind in tags.get(_EXTRA_SAMPLES, ()))
        if further:
            return f"{bands} bands of {bits} bits"
        if bits > 8:
            return f"{bits} bits per channel"
    if image.format == "PPM":
        header = re.match(rb"P[56]\s+(?:#[^\n]*\n\s*)*\d+\s+\d+\s+(\d+)", head)
        if header and int(header[1]) > 255:
            return f"values up to {int(header[1])}"
    return "" if image.mode in _PLAIN_MODES else f"pixels of the kind {image.mode}"
