"""Names of a user's images that do not depend on where the data lies, and which of them are for validation."""

import glob
import hashlib
import logging
import os
import unicodedata
from pathlib import Path

from detectron2.utils.logger import log_first_n

from rc2l.data.datasets.description import Description, Source
from rc2l.data.file_listing import split_pattern


def image_folder(source: Source, root: Path) -> Path:
    """The folder that images are named from: their own, that of their pattern, or ``root`` for lists of paths."""
    if source.images is None:
        return root
    base, rest = split_pattern(source.images)
    return base if any(map(glob.has_magic, rest)) else source.images


def image_ids(description: Description, images: list[Path]) -> list[str]:
    """Ids of images: the path below the images' own folder, without suffix, in Unicode NFC.

    Neither ``root`` nor the place of the description enters, so the same folder has the same ids wherever it is
    described. Where the subsets have folders of their own, the first one's (train, val, unlabelled) images have such
    short ids, and those of another begin with as much of its folder's path as tells it from the first.
    """
    sources = description.sources
    folders = list(
        dict.fromkeys(image_folder(sources[s], description.root) for s in description.subsets if s in sources)
    )
    prefixes = {folder: _prefix(folder, folders[0]) for folder in folders}
    return [_image_id(image, prefixes, description.root) for image in images]


def _image_id(image: Path, prefixes: dict[Path, Path], root: Path) -> str:
    folder = next((folder for folder in prefixes if image.is_relative_to(folder)), None)
    if folder is None:  # a path of a list, somewhere else
        path = image.relative_to(os.path.commonpath((root, image)))
    else:
        path = prefixes[folder] / image.relative_to(folder)
    return unicodedata.normalize("NFC", path.with_suffix("").as_posix())


def _prefix(folder: Path, first: Path) -> Path:
    if folder == first:
        return Path()
    parts, others = folder.parts[1:], first.parts[1:]
    length = 1
    # A folder of this name below the first would give two images one id.
    while length < len(parts) and (parts[-length:] == others[-length:] or (first / Path(*parts[-length:])).exists()):
        length += 1
    return Path(*parts[-length:])


def validation_ids(ids: list[str], fraction: float, dataset: str) -> set[str]:
    """Those of two or more ``ids`` that validate: whose hash, a number in [0, 1), is below ``fraction``.

    That is a property of each image by itself, so none moves when others are added or removed. Only where all hashes
    are on one side, the image nearest to the fraction is on the other: the smallest hash validates, or the largest one
    trains. No rule that looks at the images alone could keep such a one in its place for ever, so the log names it.
    """
    hashes = {image_id: _position(image_id) for image_id in ids}
    chosen = {image_id for image_id, position in hashes.items() if position < fraction}
    if not chosen:
        forced = min(hashes, key=hashes.get)
        chosen = {forced}
    elif len(chosen) == len(hashes):
        forced = max(hashes, key=hashes.get)
        chosen.remove(forced)
    else:
        return chosen
    role, number = ("validates", "none") if forced in chosen else ("trains", "all")
    log_first_n(
        logging.WARNING,
        f"dataset '{dataset}': val_fraction {fraction:g} takes {number} of {len(ids)} images by their hashes, so "
        f"'{forced}' {role} in addition; it may change sides when images are added: list them in 'val' to fix it",
        name="rc2l",
        key="message",
    )
    return chosen


def _position(image_id: str) -> float:
    digest = hashlib.sha256(f"val:{image_id}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
